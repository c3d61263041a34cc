"""Screen 2, Env: what happened in this episode, and why? Everything stands at the cursor, which is a step."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

from esper.karn.episodes import Episode, stages_of
from esper.karn.sanctum import ink
from esper.karn.sanctum.garden import clock
from esper.karn.sanctum.ink import (
    ALERT,
    DIM,
    SELECTED,
    STRONG,
    Cell,
    Line,
    joined,
    number,
    row,
    safe,
    size,
    text,
    wrapped,
)
from esper.karn.sanctum.lanes import lane_lines, wanted
from esper.karn.sanctum.scene import OF_HOST, READING, Panel, Scene
from esper.karn.telling import decision, result, summary
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.stages import SEEDED
from esper.leyline.telemetry import EnvStepPayload

_UNTOLD = text("nothing has been told of this step", DIM)


def host_line(scene: Scene, width: int) -> Line:
    """Which episode this is, and where the cursor is in it."""
    episode, started = scene.episode, scene.state.started
    length = None if started is None else started.episode_length
    where = f" ENV e{scene.gaze.env}  ·  round {number(scene.round, 0)}"
    step = f"  ·  step {number(scene.step, 0)} of {number(length, 0)}"
    ended = "" if episode is None or episode.finished is None else f"  ·  {safe(summary(episode.finished))}"
    return ink.fitted(joined(text(where, STRONG), step, text(ended, DIM)), width)


def _lanes(scene: Scene, width: int, _height: int) -> list[Line]:
    episode = scene.episode
    if episode is None or not episode.steps:
        return [READING if scene.round is not None else _UNTOLD]
    return lane_lines(scene, episode, width, aside=min(34, width // 3), alphas=True, cursor=scene.step)


def _slots(scene: Scene, _width: int, _height: int) -> list[Line]:
    episode, told = _at_cursor(scene)
    if episode is None or told is None:
        return [_UNTOLD]
    widths = (8, 10, 12, 5, -5, -7, -7, -5, 15)
    lines = [row([text(h, DIM) for h in ("slot", "stage", "blueprint", "lvl", "alpha", "params", "g-ratio", "age",
                                         "cf ± sem")], widths)]  # fmt: skip
    seeds, stages = episode.seeds(scene.step), stages_of(told)
    for slot, name in enumerate(scene.slots[: len(stages)]):
        stage = stages[slot]
        seed = seeds[name] if name in seeds and stage in SEEDED else None
        most = "" if seed is None or seed.planted is None else f"/{seed.planted.internal_max_level}"
        cf = None if seed is None else seed.contribution
        age = None if seed is None or scene.step is None else scene.step - seed.planted_at
        cells: list[Cell] = [
            text(name, SELECTED if slot == scene.gaze.slot else ""),
            text(stage.name, stage.name),
            "–" if seed is None else safe(seed.blueprint),
            "–" if seed is None else f"{told.level[slot]}{most}",
            "–" if seed is None else number(told.alpha[slot]),
            "–" if seed is None else size(told.slot_params[slot]),
            number(told.grad_ratio[slot]),
            number(age, 0),
            "–" if cf is None else f"{number(cf.metric, signed=True)} ± {number(cf.metric_sem)}",
        ]
        lines.append(row(cells, widths))
    return lines


def _decision(scene: Scene, width: int, _height: int) -> list[Line]:
    episode, told = _at_cursor(scene)
    if episode is None or told is None or scene.step is None:
        return [_UNTOLD]
    where = episode.steps[scene.step]
    possible = [op.name for op in LifecycleOp if told.op_mask >> op & 1]
    masked = [op.name for op in LifecycleOp if not told.op_mask >> op & 1]
    slots = [name for index, name in enumerate(scene.slots) if told.slot_mask >> index & 1]
    lines = [
        _named("decision", safe(decision(told)), STRONG),
        _named("result", safe(result(told)), "" if told.done else ALERT),
        _named("chance", f"{_probability(told)}  value {number(told.value)}  reward {number(told.reward, 3, True)}"),
        *_list("possible", possible, width),
        *_list("masked", masked, width),
    ]
    if told.slot is not None:
        lines += _list("slots", slots, width)
    change = None if told.output_change is None else f"{told.output_change:.3g}"
    lines.append(_named("moved", f"output by {change or '–'}"))
    lines.append(_named("losses", f"train {number(told.train_loss, 4)}  validation {number(told.val_loss, 4)}"))
    sizes = f"{size(told.params)} parameters, {size(told.effective_params)} effective, {told.flops:.3g} FLOPs"
    lines.append(_named("size", sizes))
    return [*lines, _named("record", f"{where.writer}#{where.counter} at {clock(where.time_s)}", DIM)]


def _probability(told: EnvStepPayload) -> str:
    return "p –" if told.log_prob is None else f"p {exp(told.log_prob):.3f}  log p {told.log_prob:.2f}"


def _named(name: str, words: str, style: str = "") -> Line:
    return joined(text(f"{name:<10}", DIM), text(words, style))


def _list(name: str, items: Iterable[str], width: int) -> list[Line]:
    lines = wrapped(" ".join(items) or "none", max(width - 10, 10))
    return [joined(text(f"{name if not at else '':<10}", DIM), line) for at, line in enumerate(lines)]


def _changes(scene: Scene, _width: int, _height: int) -> list[Line]:
    rows = scene.rows(_CHANGES_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text("no level was changed in this episode", DIM)]
    widths = (-4, 7, 8, -8, -8, -8, -8, -8)
    head = ("step", "slot", "change", "params", "before", "1 later", "20 later", "cause")
    lines = [row([text(each, DIM) for each in head], widths)]
    for step, slot, before, after, added, metric, soon, late, cause in rows:
        cells: list[Cell] = [
            text(str(step), SELECTED if step == scene.step else ""), safe(slot), f"{before} → {after}",
            size(added, signed=True), number(metric), number(soon), number(late), safe(cause),
        ]  # fmt: skip
        lines.append(row(cells, widths))
    return lines


def _rewards(scene: Scene, width: int, _height: int) -> list[Line]:
    episode, told = _at_cursor(scene)
    if episode is None or told is None:
        return [_UNTOLD]
    sums: dict[str, float] = {}
    for _, each in episode.walk():
        for term, value in each.terms:
            sums[term] = sums.get(term, 0.0) + value
    here = dict(told.terms)
    widths = (max(8, width - 20), -9, -9)
    lines = [row([text(each, DIM) for each in ("term", "step", "Σ episode")], widths)]
    for term, total in sums.items():
        at = here.get(term, 0.0)  # terms that are 0 are left out of the line
        lines.append(row([safe(term), number(at, 3, True), number(total, 3, True)], widths))
    last: list[Cell] = [text("reward", STRONG), number(told.reward, 3, True), number(episode.reward, 3, True)]
    return [*lines, row(last, widths)]


def _governor(scene: Scene, width: int, _height: int) -> list[Line]:
    episode = scene.episode
    told = [] if episode is None else episode.governor()
    if not told:
        return wrapped("it said nothing in this episode", width, DIM)
    lines: list[Line] = []
    for each in reversed(told):
        step = each.where.step
        lines.append(text(f"{number(step, 0):>4} {each.payload.type.value}", ALERT))
        lines += [joined("     ", line) for line in wrapped(safe(summary(each.payload)), max(width - 5, 10))]
    return lines


def _at_cursor(scene: Scene) -> tuple[Episode | None, EnvStepPayload | None]:
    episode = scene.episode
    return episode, None if episode is None else episode.at(scene.step)


_CHANGES_SQL = (
    "select step, slot, from_level, to_level, params_added, metric_before, metric_1, metric_20, cause "
    f"from level_changes where {OF_HOST} order by step desc, slot"
)
LANES = Panel(
    "lanes",
    lambda _scene: text("LANES  ▼ is the cursor", ink.TITLE),
    _lanes,
    f"select step, slot, stage, alpha, level, val_metric from slot_steps where {OF_HOST} order by step, slot_index",
    least=8,
    wants=lambda scene: wanted(scene, alphas=True),
)
SLOTS = Panel(
    "slots",
    lambda scene: text(f"SLOTS  at step {number(scene.step, 0)}", ink.TITLE),
    _slots,
    f"select slot, stage, blueprint_id, level, alpha, slot_params, grad_ratio from slot_steps where {OF_HOST} "
    "and step = $step order by slot_index",
    wants=lambda scene: len(scene.slots) + 3,
)
DECISION = Panel(
    "decision",
    lambda scene: text(f"DECISION  step {number(scene.step, 0)}", ink.TITLE),
    _decision,
    f"from decisions where {OF_HOST} and step = $step",
    wants=lambda _scene: 13,
)
CHANGES = Panel("changes", lambda _scene: text("INTERNAL LEVEL CHANGES", ink.TITLE), _changes, _CHANGES_SQL)
REWARDS = Panel(
    "rewards",
    lambda _scene: text("REWARD", ink.TITLE),
    _rewards,
    f"select step, term, value from reward_long where {OF_HOST} order by step, term",
    wants=lambda _scene: 16,
)
GOVERNOR = Panel(
    "governor",
    lambda _scene: text("GOVERNOR", ink.TITLE),
    _governor,
    f'select step, reason, loss, "limit", restored_epoch, decision from governor where {OF_HOST} order by step',
)
