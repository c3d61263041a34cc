"""Which panels a screen has, where they stand in a terminal of any size, and what is drawn there. Read `SCREENS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.karn.sanctum import churn, env, events, garden, policy, runs
from esper.karn.sanctum.head import alert_line, status_line
from esper.karn.sanctum.ink import ALERT, DIM, STRONG, Line, fitted, framed, joined, safe, text, wrapped
from esper.karn.sanctum.scene import READING, Panel, Scene

LEAST = (40, 12)
"""Columns and lines below which there is a sentence instead."""
TWO_COLUMNS = 100
_ABOVE, _BELOW = 2, 1  # lines of the status and the keys


@dataclass(frozen=True)
class Screen:
    """One question. Where there is room for one column alone, the right one waits behind `z`."""

    name: str
    question: str
    left: tuple[Panel, ...]
    right: tuple[Panel, ...]
    keys: str

    @property
    def panels(self) -> tuple[Panel, ...]:
        return self.left + self.right


SCREENS: tuple[Screen, ...] = (
    Screen(
        "Garden",
        "where is each environment, and what is it growing?",
        (garden.GARDEN, garden.LIFECYCLE, garden.EVENTS),
        (garden.HEADS_PANEL, garden.OPS_PANEL, garden.PPO, garden.GATES),
        "j/k env  h/l slot  Enter drill",
    ),
    Screen(
        "Env",
        "what happened in this episode, and why?",
        (env.LANES, env.SLOTS, env.DECISION, env.CHANGES),
        (env.REWARDS, env.GOVERNOR),
        "[ ] step  { } event  , . round  o overlay  Esc back",
    ),
    Screen(
        "Policy",
        "is the controller healthy, and what does it choose?",
        (policy.HEADS_OVER_TIME, policy.OPS_OVER_TIME, policy.BLUEPRINTS, policy.SLOTS),
        (policy.PPO, policy.RETURNS, policy.GOVERNOR),
        "w window  t group",
    ),
    Screen(
        "Churn",
        "is the ladder used or thrashed?",
        (churn.GRID, churn.OVER_TIME, churn.WORST),
        (churn.OCCUPANCY, churn.BUYS, churn.PRICE),
        "w window  j/k row  Enter open",
    ),
    Screen(
        "Events", "what was told?", (events.LIST,), (events.RECORD,), "/ filter  n/N next  c copy  Enter its episode"
    ),
    Screen("Runs", "how do runs compare?", (runs.LIST, runs.COMPARISON), (), "space mark  c compare  Enter open"),
)


@dataclass(frozen=True)
class Placed:
    """A panel and its region: left, top, width, height."""

    panel: Panel
    x: int
    y: int
    width: int
    height: int


def place(scene: Scene, width: int, height: int) -> list[Placed]:
    """Every panel that there is room for. None in a terminal that is too small for one."""
    if width < LEAST[0] or height < LEAST[1]:
        return []
    screen, room = SCREENS[scene.gaze.screen], height - _ABOVE - _BELOW
    if scene.gaze.zoomed:
        return [Placed(focused(scene), 0, _ABOVE, width, room)]
    if width < TWO_COLUMNS or not screen.right:
        return _column(scene, screen.left, 0, width, room)
    right = min(64, max(34, round(width * 0.29)))
    left = width - right
    return _column(scene, screen.left, 0, left, room) + _column(scene, screen.right, left, right, room)


def focused(scene: Scene) -> Panel:
    """The panel that z, x and y are about."""
    panels = SCREENS[scene.gaze.screen].panels
    return panels[scene.gaze.panel % len(panels)]


def lines_of(scene: Scene, placed: Placed) -> list[Line]:
    """Exactly what stands in the region."""
    panel = placed.panel
    inside = panel.draw(scene, placed.width - 2, placed.height - 2)
    if inside == [READING] and scene.trouble is not None:
        inside = wrapped(safe(scene.trouble), placed.width - 2, ALERT)
    return framed(panel.title(scene), inside, placed.width, placed.height, panel is focused(scene))


def above(scene: Scene, width: int) -> list[Line]:
    """The lines over every screen."""
    second = env.host_line if SCREENS[scene.gaze.screen].name == "Env" else alert_line
    return [status_line(scene, width), second(scene, width)]


def below(scene: Scene, width: int, notice: str = "") -> Line:
    """The keys that matter here, or what the last one did."""
    if notice:
        return fitted(text(" " + safe(notice), STRONG), width)
    names = " ".join(
        f"[{at}]{screen.name}" if at - 1 == scene.gaze.screen else f"{at} {screen.name}"
        for at, screen in enumerate(SCREENS, start=1)
    )
    own, common = SCREENS[scene.gaze.screen].keys, "z zoom  ? help  q quit"
    for words in (f" {names} │ {own}  {common}", f" 1-6 screens  {own}  {common}", f" 1-6 {own}  ? q", " 1-6  ?  q"):
        if len(words) <= width:
            return fitted(text(words, DIM), width)
    return fitted(text(" ? q", DIM), width)


def too_small(width: int, height: int) -> list[Line]:
    """The sentence for a terminal in which nothing else fits."""
    words = f"Sanctum needs {LEAST[0]} x {LEAST[1]} characters; this terminal has {width} x {height}. q leaves."
    lines = [fitted(line, width) for line in wrapped(words, width)][:height]
    return lines + [fitted((), width)] * (height - len(lines))


def whole(scene: Scene, width: int, height: int, notice: str = "") -> list[Line]:
    """The whole screen, line by line: what `--once` prints."""
    regions = place(scene, width, height)
    if not regions:
        return too_small(width, height)
    body: list[list[tuple[int, Line]]] = [[] for _ in range(height - _ABOVE - _BELOW)]
    for region in regions:
        for at, line in enumerate(lines_of(scene, region)):
            body[region.y - _ABOVE + at].append((region.x, line))
    rows = [fitted(joined(*(line for _, line in sorted(parts, key=lambda part: part[0]))), width) for parts in body]
    return [*above(scene, width), *rows, below(scene, width, notice)]


def _column(scene: Scene, panels: Sequence[Panel], x: int, width: int, room: int) -> list[Placed]:
    """Panels below each other: the first is what the screen is about, and as many others as fit stand below it. Each is
    as tall as it wants to be; the last takes the rest."""
    heights: dict[Panel, int] = {}
    for panel in panels:
        least = panel.least if heights else max(panel.least, min(panel.wants(scene), 2 * room // 3))
        if sum(heights.values()) + least <= room:
            heights[panel] = least
    for panel in heights:
        heights[panel] += max(0, min(panel.wants(scene) - heights[panel], room - sum(heights.values())))
    heights[next(reversed(heights))] += room - sum(heights.values())
    found, y = [], _ABOVE
    for panel, height in heights.items():
        found.append(Placed(panel, x, y, width, height))
        y += height
    return found


assert all(len(screen.panels) == len({panel.name for panel in screen.panels}) for screen in SCREENS)
