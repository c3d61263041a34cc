"""Screen 1, Garden: where is each environment, and what is it growing?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from esper.karn.episodes import Episode, Seed, Told, is_governor, stages_of
from esper.karn.sanctum import ink
from esper.karn.sanctum.ink import ALERT, DIM, SELECTED, STRONG, Cell, Line, joined, number, row, safe, size, text
from esper.karn.sanctum.lanes import LEGEND, lane_lines, wanted
from esper.karn.sanctum.scene import OF_HOST, READING, UNTIL, Panel, Scene
from esper.karn.state import ENTROPY_FLOOR, collapsed, is_trouble
from esper.karn.telling import NOT_MEASURED, summary
from esper.leyline.factored_actions import HEADS, OPS
from esper.leyline.stages import SEEDED
from esper.leyline.telemetry import EnvPayload, EnvStepPayload, GovernorRollbackPayload, PpoUpdatedPayload

_RECENT = 5  # steps for which a reversal is marked
_CELLS = (6, 4, 3)  # characters of a slot, the widest that fits


# ---- environments x slots --------------------------------------------------------------------------------------------


def _garden(scene: Scene, width: int, height: int) -> list[Line]:
    envs, slots = scene.team.envs, scene.slots
    if not envs:
        return [text("nothing has been told of a step yet", DIM)]
    cell = next((each for each in _CELLS if 26 + len(slots) * (each + 1) <= width), _CELLS[-1])
    most = max(1, (width - 26) // (cell + 1))
    shown_slots = window_of(range(len(slots)), scene.gaze.slot, most)
    spare = width - 26 - len(shown_slots) * (cell + 1)
    wide = spare >= 30
    trend = min(40, spare - 16) if wide else 0
    widths = [4, -6, -6, *([trend] if wide else []), *[cell] * len(shown_slots), *([-7] if wide else []), -6]
    head = ["env", "metric", "Δrd", *(["trend"] if wide else [])]
    head += [_slot_title(scene, slot, cell) for slot in shown_slots] + (["params"] if wide else []) + ["return"]
    lines = [joined(" ", row([text(each, DIM) for each in head], widths))]
    for env in window_of(envs, envs.index(scene.gaze.env) if scene.gaze.env in envs else 0, height - 3):
        cells = _env_cells(scene, env, shown_slots, cell, trend)
        chosen = env == scene.gaze.env
        lines.append(joined(text("▸" if chosen else " ", STRONG), row(cells, widths), _rolled_back(scene, env)))
    hidden = "" if len(shown_slots) == len(slots) else f"  {len(shown_slots)} of {len(slots)} slots"
    return [*lines, LEGEND, text(_SIGNS + hidden, DIM)]


_SIGNS = "0-9 level  bar = alpha  ↕ level taken back lately  R rollback  ▸ selected"


def window_of(items: Sequence[int], chosen: int, most: int) -> list[int]:
    """At most so many neighbours of a list, the chosen place among them."""
    first = max(0, min(chosen - most // 2, len(items) - most))
    return list(items[first : first + max(most, 1)])


def _slot_title(scene: Scene, slot: int, cell: int) -> str:
    name = scene.slots[slot]
    return name if len(name) <= cell else name[-cell:]


def _env_cells(scene: Scene, env: int, slots: Sequence[int], cell: int, trend: int) -> list[Cell]:
    episode = scene.team.newest(env)
    assert episode is not None, "an environment is known by its episodes"
    last, seeds = episode.last, episode.seeds()
    before = scene.team.episode(episode.round - 1, env)
    now, then = (None if each is None else each.metric for each in (episode, before))
    change = None if now is None or then is None else now - then
    cells: list[Cell] = [text(f"e{env}", SELECTED if env == scene.gaze.env else "")]
    cells += [number(now), number(change, signed=True)]
    cells += [ink.trend(episode.metrics, trend)] if trend else []
    cells += [_slot_cell(scene, episode, seeds, slot, cell) for slot in slots]
    cells += [size(None if last is None else last.params)] if trend else []
    return [*cells, number(episode.reward if episode.steps else None, signed=True)]


def _slot_cell(scene: Scene, episode: Episode, seeds: Mapping[str, Seed], slot: int, cell: int) -> Line:
    """`B2▅▅▅↕`: letter of the stage, level of a ladder, alpha, and whether its level was taken back just now."""
    last = episode.last
    if last is None or slot >= len(last.stage):
        return text(NOT_MEASURED, DIM)
    stage = stages_of(last)[slot]
    chosen = episode.env == scene.gaze.env and slot == scene.gaze.slot
    style = SELECTED if chosen else stage.name
    if stage not in SEEDED:
        return text(ink.letter(stage), style)
    seed = seeds.get(scene.slots[slot])
    level = str(min(last.level[slot], 9)) if seed is not None and seed.is_ladder else " "
    late = (episode.last_step or 0) - _RECENT
    turned = seed is not None and any(change.reverses and change.step > late for change in seed.changes)
    alpha = ink.alpha_bar(last.alpha[slot], 3 if cell == _CELLS[0] else 1)
    parts = ((ink.letter(stage) + level, style), (alpha, stage.name), ("↕" if turned else "", ALERT))
    return parts[:1] + parts[2:] if cell == _CELLS[-1] else parts


def _rolled_back(scene: Scene, env: int) -> Line:
    episode = scene.team.newest(env)
    rolled = episode is not None and any(isinstance(told.payload, GovernorRollbackPayload) for told in episode.happened)
    return text("R" if rolled else " ", ALERT)


# ---- one episode -----------------------------------------------------------------------------------------------------


def _lifecycle(scene: Scene, width: int, _height: int) -> list[Line]:
    episode = scene.episode
    if episode is None or not episode.steps:
        return [text("nothing has been told of this episode yet", DIM)]
    return lane_lines(scene, episode, width, aside=min(30, width // 3))


def happenings(scene: Scene) -> list[Told]:
    """What happened in the environment that is looked at, decisions besides WAIT among it, newest first."""
    episode = scene.episode
    here = [] if episode is None else [*episode.happened]
    if episode is not None:
        here += [told for told in episode.steps.values() if not _waits(told)]
    return sorted([*here, *scene.state.notices], reverse=True)


def _waits(told: Told) -> bool:
    return isinstance(told.payload, EnvStepPayload) and told.payload.op == "WAIT"


def _events(scene: Scene, _width: int, height: int) -> list[Line]:
    told = happenings(scene)[: max(height, 1)]
    return [event_line(each) for each in told] or [text("no events yet", DIM)]


def event_line(told: Told) -> Line:
    """Time, place, name and words of an event on one line."""
    where, payload = told.where, told.payload
    grave = is_governor(payload) or is_trouble(payload)
    env = f"e{payload.env_id}" if isinstance(payload, EnvPayload) else ""
    step = "" if where.step is None else f"st{where.step:>4}"
    name, words = payload.type.value, summary(payload)
    sign = text("!" if grave else " ", ALERT)
    place = row([clock(where.time_s), env, step], (8, 4, 6))
    return joined(place, sign, text(f"{name:<16} ", ALERT if grave else STRONG), safe(words))


def clock(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))


# ---- the learner -----------------------------------------------------------------------------------------------------


def _heads(scene: Scene, width: int, _height: int) -> list[Line]:
    now = scene.team.update()
    if now is None:
        return [text("no policy has learned yet", DIM)]
    before = scene.team.update(max(scene.team.updates) - 1)
    was = {} if before is None else dict(before.entropy)
    room = max(4, width - 28)
    lines = [row([text(each, DIM) for each in ("", "head", "H/Hmax", "", "Δrd")], (1, 12, -6, room, -5))]
    known = dict(now.entropy)
    for head in HEADS:
        value = known.get(head)
        low = value is not None and collapsed(value)
        change = None if value is None or head not in was else value - was[head]
        style = ALERT if low else ""
        cells: list[Cell] = [text("!" if low else " ", ALERT), head, text(number(value), style), ink.bar(value, room)]
        lines.append(row([*cells, number(change, signed=True)], (1, 12, -6, room, -5)))
    return [*lines, text(f"! below {ENTROPY_FLOOR:.2f}  – nothing to choose", DIM)]


def _ops(scene: Scene, width: int, _height: int) -> list[Line]:
    newest = scene.team.round
    if newest is None:
        return [text("no decisions yet", DIM)]
    now, before = scene.team.chosen(newest), scene.team.chosen(newest - 1)
    room = max(2, width - 31)
    lines = [row([text(each, DIM) for each in ("", "now", "", "before")], (16, -6, room, -6))]
    for op in OPS:
        shares = [counts[op.name] / sum(counts.values()) if op.name in counts else 0.0 if counts else None
                  for counts in (now, before)]  # fmt: skip
        lines.append(row([op.name, ink.share(shares[0]), ink.bar(shares[0], room), ink.share(shares[1])],
                         (16, -6, room, -6)))  # fmt: skip
    return lines


def _ppo(scene: Scene, _width: int, _height: int) -> list[Line]:
    now = scene.team.update()
    if now is None:
        return [text("no policy has learned yet", DIM)]
    return [text(line) for line in ppo_words(now)]


def ppo_words(now: PpoUpdatedPayload) -> list[str]:
    skipped = [f"skipped: {safe(now.skipped)}"] if now.skipped else []
    return [
        *skipped,
        f"KL {number(now.approx_kl, 4)}  clip {number(now.clip_fraction)}  EV {number(now.explained_variance)}",
        f"value loss {number(now.value_loss)}  gradient {number(now.grad_norm)}",
        f"value {number(now.value_mean)} ± {number(now.value_deviation)}  forced {ink.share(now.forced_share)}",
        f"lr {now.lr:.3g}  epochs {now.epochs}  ratio ±{now.ratio_error:.0e}",
    ]


def _gates(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_GATES_SQL)
    if rows is None:
        return [READING]
    words = {True: ("ok", ink.GOOD), False: ("!!", ALERT), None: (NOT_MEASURED, DIM)}
    room = max(8, width - 14)
    lines = []
    for name, value, limit, passed in rows:
        word, style = words[passed]
        lines.append(row([safe(name), safe(number(value, 3)), text(word, style)], (room, -10, 2)))
        lines.append(text(f"  {safe(limit)}", DIM))
    return lines or [text("no gates are judged yet", DIM)]


_GATES_SQL = 'select name, value, "limit", passed from gates where run = $run'
GARDEN = Panel(
    "garden",
    lambda scene: text(f"GARDEN  {len(scene.team.envs)} envs × {len(scene.slots)} slots", ink.TITLE),
    _garden,
    "select env, round, step, val_metric, reward, params, effective_params, stage, alpha, level from live_env_step "
    f"where {UNTIL} qualify row_number() over (partition by env order by round desc, step desc) = 1 order by env",
    least=6,
    wants=lambda scene: len(scene.team.envs) + 5,
)
LIFECYCLE = Panel(
    "lifecycle",
    lambda scene: text(f"LIFECYCLE  e{scene.gaze.env} · round {number(scene.round, 0)}", ink.TITLE),
    _lifecycle,
    "select slot, blueprint_id, stage, from_step, to_step from lifecycle_spans "
    f"where {OF_HOST} order by slot, from_step",
    least=9,
    wants=wanted,
)
EVENTS = Panel(
    "events",
    lambda scene: text(f"EVENTS  e{scene.gaze.env}", ink.TITLE),
    _events,
    f"select step, event, slot, blueprint_id, what from lifecycle where {OF_HOST} order by step desc, writer, n desc",
)
HEADS_PANEL = Panel(
    "heads",
    lambda _scene: text("POLICY HEADS", ink.TITLE),
    _heads,
    f"select round, head, entropy from head_health where {UNTIL} order by round, head",
    wants=lambda _scene: len(HEADS) + 4,
)
OPS_PANEL = Panel(
    "ops",
    lambda scene: text(f"OPS CHOSEN  round {number(scene.team.round, 0)}", ink.TITLE),
    _ops,
    f"select round, choice as op, share, possible_share, done_share from action_mix where {UNTIL} and head = 'op' "
    "order by round, op",
    wants=lambda _scene: len(OPS) + 3,
)
PPO = Panel(
    "ppo",
    lambda scene: text(f"PPO UPDATE {number(max(scene.team.updates, default=None), 0)}", ink.TITLE),
    _ppo,
    f"from ppo_updates where {UNTIL} order by update",
    wants=lambda _scene: 7,
)
GATES = Panel(
    "gates",
    lambda _scene: text("GATES  of this run by itself", ink.TITLE),
    _gates,
    _GATES_SQL,
)
