"""What every key does, as moves of the gaze: no terminal here. Read `KEYS`, which `?` shows too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.karn.sanctum import board, churn, events, runs
from esper.karn.sanctum.scene import WINDOWS, Scene
from esper.karn.sanctum.watching import teams_of
from esper.leyline.telemetry import EnvPayload


@dataclass(frozen=True)
class Key:
    """Names of keys as Textual has them, how they are written, and what they do. `action` is one of the program's."""

    names: tuple[str, ...]
    written: str
    action: str
    does: str


KEYS: tuple[Key, ...] = (
    Key(tuple("123456"), "1-6", "screen", "Garden, Env, Policy, Churn, Events, Runs"),
    Key(("j", "down"), "j ↓", "move('down')", "next environment, or next row of a list"),
    Key(("k", "up"), "k ↑", "move('up')", "the one before it"),
    Key(("h", "left"), "h ←", "move('left')", "slot before"),
    Key(("l", "right"), "l →", "move('right')", "next slot"),
    Key(("enter",), "Enter", "enter", "in: an episode, its events, a run"),
    Key(("escape",), "Esc", "leave", "out again; ends zoom and filter"),
    Key(("left_square_bracket",), "[", "move('step_before')", "a step back"),
    Key(("right_square_bracket",), "]", "move('step_after')", "a step on"),
    Key(("left_curly_bracket",), "{", "move('event_before')", "to the step at which something happened before"),
    Key(("right_curly_bracket",), "}", "move('event_after')", "to the next one"),
    Key(("comma",), ",", "move('round_before')", "the episode of the round before"),
    Key(("full_stop",), ".", "move('round_after')", "the episode of the next round"),
    Key(("slash",), "/", "filter", "filter events: type:gov env:5 round:3 slot:r0c1 group:a words"),
    Key(("n", "tab"), "n Tab", "move('next')", "next event that fits; elsewhere the next panel"),
    Key(("N", "shift+tab"), "N", "move('previous')", "the one before it"),
    Key(("space",), "space", "space", "pause the view, not the run; on Runs: mark a run"),
    Key(("z",), "z", "move('zoom')", "the panel in bold over the whole terminal, and back"),
    Key(("w",), "w", "move('window')", "rounds to look back on: 10, 50, all"),
    Key(("t",), "t", "move('team')", "the other learner of an A/B run"),
    Key(("o",), "o", "move('overlay')", "lay the metric of another environment over the lanes"),
    Key(("x",), "x", "export", "the panel's rows as a CSV file"),
    Key(("y",), "y", "copy_sql", "copy the SQL behind the panel"),
    Key(("c",), "c", "c", "Events: copy where an event is; Runs: compare the marked"),
    Key(("g", "home"), "g", "move('first')", "first environment, step or row"),
    Key(("G", "end"), "G", "move('last')", "last environment, step or row"),
    Key(("ctrl+p",), "Ctrl-P", "command_palette", "all commands by name; dark and light"),
    Key(("question_mark",), "?", "help", "these keys"),
    Key(("q",), "q", "quit", "leave; training is not touched"),
)

GARDEN, ENV, POLICY, CHURN, EVENTS, RUNS = range(len(board.SCREENS))


def go(scene: Scene, screen: int) -> None:
    """To another screen; where the person looks stays."""
    gaze = scene.gaze
    if gaze.screen != screen:
        gaze.screen, gaze.panel, gaze.row, gaze.zoomed = screen, 0, 0, False


def move(scene: Scene, how: str) -> None:
    """One of the moves that `KEYS` names."""
    _MOVES[how](scene)


def enter(scene: Scene) -> str | None:
    """In. Returns the name of a run where one is to be opened."""
    gaze = scene.gaze
    if gaze.screen == GARDEN:
        gaze.round = gaze.step = None
        go(scene, ENV)
    elif gaze.screen == ENV:
        gaze.sought = f"env:{gaze.env}" + ("" if scene.round is None else f" round:{scene.round}")
        go(scene, EVENTS)
    elif gaze.screen == POLICY:
        gaze.zoomed = not gaze.zoomed
    elif gaze.screen == CHURN:
        _open_worst(scene)
    elif gaze.screen == EVENTS:
        _open_event(scene)
    else:
        names = runs.run_names(scene)
        return names[min(gaze.row, len(names) - 1)] if names else None
    return None


def leave(scene: Scene) -> None:
    """Out: of a zoom, of a filter, of a screen."""
    gaze = scene.gaze
    if gaze.zoomed:
        gaze.zoomed = False
    elif gaze.screen == RUNS and gaze.compares:
        gaze.compares = False
    elif gaze.screen == EVENTS and gaze.sought:
        gaze.sought, gaze.row = "", 0
    else:
        gaze.round = gaze.step = gaze.overlay = None
        go(scene, GARDEN)


def mark(scene: Scene) -> None:
    """The run that the cursor is on, or takes its mark away; of three the two last ones stay."""
    gaze, names = scene.gaze, runs.run_names(scene)
    if names:
        name = names[min(gaze.row, len(names) - 1)]
        others = tuple(each for each in gaze.marked if each != name)
        gaze.marked = others if name in gaze.marked else (*others, name)[-2:]
        gaze.compares = gaze.compares and len(gaze.marked) == 2


# ---- moves -----------------------------------------------------------------------------------------------------------


def _along(scene: Scene, by: int) -> None:
    """Down or up: environments, slots of an episode, rows of a list."""
    gaze = scene.gaze
    if gaze.screen == ENV:
        _aside(scene, by)
    elif gaze.screen in (CHURN, EVENTS, RUNS):
        gaze.row = max(0, min(gaze.row + by, _rows(scene) - 1))
    else:
        envs = scene.team.envs
        if envs:
            at = envs.index(gaze.env) if gaze.env in envs else 0
            gaze.env = envs[max(0, min(at + by, len(envs) - 1))]
            gaze.round = gaze.step = None


def _aside(scene: Scene, by: int) -> None:
    scene.gaze.slot = max(0, min(scene.gaze.slot + by, len(scene.slots) - 1))


def _step(scene: Scene, by: int) -> None:
    _to_step(scene, (scene.step or 0) + by)


def _to_step(scene: Scene, step: int) -> None:
    episode = scene.episode
    if episode is not None and episode.last_step is not None:
        scene.gaze.step = max(0, min(step, episode.last_step))


def _event(scene: Scene, by: int) -> None:
    """To the nearest step in a direction at which something was done or happened."""
    episode, now = scene.episode, scene.step
    if episode is None or now is None:
        return
    steps = {told.where.step for told in episode.happened if told.where.step is not None}
    steps |= {step for step, told in episode.walk() if told.op != "WAIT"}
    ahead = [step for step in steps if (step - now) * by > 0]
    if ahead:
        _to_step(scene, min(ahead, key=lambda step: abs(step - now)))


def _round(scene: Scene, by: int) -> None:
    now, newest = scene.round, scene.team.round
    if now is not None and newest is not None:
        scene.gaze.round, scene.gaze.step = max(0, min(now + by, newest)), None


def _panel(scene: Scene, by: int) -> None:
    gaze = scene.gaze
    if gaze.screen == EVENTS and not gaze.zoomed:
        _along(scene, by)
    else:
        gaze.panel = (gaze.panel + by) % len(board.SCREENS[gaze.screen].panels)


def _end(scene: Scene, last: bool) -> None:
    gaze = scene.gaze
    if gaze.screen == ENV:
        _to_step(scene, 10**9 if last else 0)
    else:
        _along(scene, 10**9 if last else -(10**9))


def _zoom(scene: Scene) -> None:
    scene.gaze.zoomed = not scene.gaze.zoomed


def _window(scene: Scene) -> None:
    scene.gaze.window = (scene.gaze.window + 1) % len(WINDOWS)


def _team(scene: Scene) -> None:
    teams = teams_of(scene.state)
    if teams:
        at = teams.index(scene.gaze.team) if scene.gaze.team in teams else -1
        scene.gaze.team = teams[(at + 1) % len(teams)]


def _overlay(scene: Scene) -> None:
    """The next environment besides this one, and in the end none."""
    others: Sequence[int | None] = [None, *(env for env in scene.team.envs if env != scene.gaze.env)]
    at = others.index(scene.gaze.overlay) if scene.gaze.overlay in others else 0
    scene.gaze.overlay = others[(at + 1) % len(others)]


_MOVES = {
    "down": lambda scene: _along(scene, 1),
    "up": lambda scene: _along(scene, -1),
    "left": lambda scene: _aside(scene, -1),
    "right": lambda scene: _aside(scene, 1),
    "step_before": lambda scene: _step(scene, -1),
    "step_after": lambda scene: _step(scene, 1),
    "event_before": lambda scene: _event(scene, -1),
    "event_after": lambda scene: _event(scene, 1),
    "round_before": lambda scene: _round(scene, -1),
    "round_after": lambda scene: _round(scene, 1),
    "next": lambda scene: _panel(scene, 1),
    "previous": lambda scene: _panel(scene, -1),
    "zoom": _zoom,
    "window": _window,
    "team": _team,
    "overlay": _overlay,
    "first": lambda scene: _end(scene, False),
    "last": lambda scene: _end(scene, True),
}


def _rows(scene: Scene) -> int:
    if scene.gaze.screen == EVENTS:
        listed = scene.listed()
        return 0 if listed is None else len(listed.events)
    return len(runs.run_names(scene)) if scene.gaze.screen == RUNS else len(churn.worst(scene))


def _open_worst(scene: Scene) -> None:
    rows = churn.worst(scene)
    if rows:
        env, slot, round_ = rows[min(scene.gaze.row, len(rows) - 1)][:3]
        _open_host(scene, env, round_, None)
        scene.gaze.slot = scene.slots.index(slot) if slot in scene.slots else 0


def _open_event(scene: Scene) -> None:
    event = events.chosen(scene)
    if event is None:
        return
    where, payload = event
    if isinstance(payload, EnvPayload) and where.round is not None:
        scene.gaze.team = where.group
        _open_host(scene, payload.env_id, where.round, where.step)


def _open_host(scene: Scene, env: int, round_: int, step: int | None) -> None:
    go(scene, ENV)
    scene.gaze.env, scene.gaze.round, scene.gaze.step = env, round_, step
