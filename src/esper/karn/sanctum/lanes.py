"""An episode drawn over its steps: a lane of stages per slot, levels, the metric, and where the governor spoke."""

from __future__ import annotations

from collections.abc import Sequence

from esper.karn.episodes import GOVERNOR, GOVERNOR_LETTERS, Episode, Seed, stages_of
from esper.karn.sanctum import ink
from esper.karn.sanctum.ink import ALERT, DIM, SELECTED, STRONG, Line, joined, number, safe, text
from esper.karn.sanctum.scene import Scene
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import EnvStepPayload

_NAME = 9  # characters of what a lane is called
_EMPTY = (SeedStage.DORMANT, SeedStage.EMBARGOED, SeedStage.RESETTING)

LEGEND: Line = joined(
    *(
        joined((ink.mark(stage),), text(f" {word} ", DIM))
        for stage, word in (
            (SeedStage.DORMANT, "empty"),
            (SeedStage.GERMINATED, "germinated"),
            (SeedStage.TRAINING, "training"),
            (SeedStage.BLENDING, "blending"),
            (SeedStage.HOLDING, "holding"),
            (SeedStage.FOSSILIZED, "fossilized"),
            (SeedStage.PRUNED, "pruned"),
        )
    )
)


class Columns:
    """Which step of an episode stands in which column: one step in one or more, or several in one."""

    def __init__(self, first: int, last: int, length: int, width: int) -> None:
        self.first, self.last = first, last
        self._length, self.width = max(length, last - first + 1, 1), max(width, 1)

    def steps(self, column: int) -> range:
        begin = self.first + column * self._length // self.width
        end = self.first + (column + 1) * self._length // self.width
        return range(begin, max(end, begin + 1))

    def of(self, step: int) -> int:
        """The column of a step."""
        return min(self.width - 1, max(0, ((step - self.first) * self.width + self.width - 1) // self._length))


def lane_lines(
    scene: Scene, episode: Episode, width: int, aside: int, alphas: bool = False, cursor: int | None = None
) -> list[Line]:
    """All lanes of an episode; `aside` characters right of them tell what grows there."""
    told = dict(episode.walk())
    started = scene.state.started
    length = max(told) + 1 if started is None else max(started.episode_length, max(told) + 1)
    columns = Columns(0, max(told), length, min(width - _NAME - aside - 1, 4 * length))
    seeds = episode.seeds()
    lines = [_ruler(columns, length, cursor)]
    for slot, name in enumerate(scene.slots):
        seed = seeds.get(name)
        stages = [_stage_in(told, columns.steps(at), slot) for at in range(columns.width)]
        beside = "" if seed is None else _beside(seed)
        lines.append(_lane(name, _marks(stages), columns.width, text(f" {beside}"), slot == scene.gaze.slot))
        if seed is not None and seed.is_ladder:
            levels = "".join(_level_in(told, columns.steps(at), slot) for at in range(columns.width))
            lines.append(_lane(" level", text(levels), columns.width, text(f" {_changes(seed)}", DIM)))
        if alphas and seed is not None:
            values = [_value_in(told, columns.steps(at), slot) for at in range(columns.width)]
            bars = "".join(" " if alpha is None else ink.alpha_bar(alpha, 1) for alpha in values)
            lines.append(_lane(" alpha", text(bars), columns.width))
    lines += metric_lanes(scene, episode, columns)
    return [*lines, _governor(episode, columns)]


def wanted(scene: Scene, alphas: bool = False) -> int:
    """Lines of all lanes with their frame and one to spare."""
    episode, overlaid = scene.episode, scene.gaze.overlay is not None
    seeds = [] if episode is None else list(episode.seeds().values())
    lanes = len(scene.slots) + sum(seed.is_ladder for seed in seeds) + (len(seeds) if alphas else 0)
    return lanes + 3 + overlaid + 3


def metric_lanes(scene: Scene, episode: Episode, columns: Columns) -> list[Line]:
    """The metric of this episode, and of the one that is laid over it."""
    found = [_metric_lane(safe(scene.about.metric)[: _NAME - 1], episode, columns)]
    other = scene.gaze.overlay
    beside = None if other is None else scene.team.episode(episode.round, other)
    if beside is not None and beside.steps:
        found.append(_metric_lane(f" of e{other}", beside, columns))
    return found


def _metric_lane(name: str, episode: Episode, columns: Columns) -> Line:
    told = dict(episode.walk())
    metrics = [_last([told[s].val_metric for s in columns.steps(at) if s in told]) for at in range(columns.width)]
    known = [value for value in episode.metrics if value is not None]
    beside = f" {number(known[-1])} now · {number(min(known))} to {number(max(known))}" if known else " –"
    return _lane(name, ink.trend(metrics, columns.width), columns.width, text(beside))


def _governor(episode: Episode, columns: Columns) -> Line:
    """Its letters, where it said something."""
    signs = ["·"] * columns.width
    for told in episode.governor():
        if told.where.step is not None:
            signs[columns.of(told.where.step)] = GOVERNOR_LETTERS[told.payload.type]
    spans = [(sign, DIM if sign == "·" else ALERT) for sign in signs]
    kinds = dict.fromkeys(told.payload.type for told in episode.governor())
    words = "".join(f" {GOVERNOR_LETTERS[kind]} {kind.value.removeprefix(GOVERNOR)}" for kind in kinds)
    return _lane("governor", tuple(spans), columns.width, text(words, DIM))


def _ruler(columns: Columns, length: int, cursor: int | None) -> Line:
    signs = [" "] * columns.width
    for step in range(0, length, max(1, length // 6)):
        at = columns.of(step)
        label = str(step)
        if at + len(label) <= columns.width and not "".join(signs[at : at + len(label)]).strip():
            signs[at : at + len(label)] = label
    line = text(" " * _NAME + "".join(signs), DIM)
    if cursor is None:
        return line
    at = columns.of(cursor)
    before, after = "".join(signs[:at]), "".join(signs[at + 1 :])
    return joined(text(" " * _NAME + before, DIM), text("▼", SELECTED), text(after, DIM))


def _lane(name: str, line: Line, width: int, beside: Line = (), chosen: bool = False) -> Line:
    head = text(f"{name[: _NAME - 1]:<{_NAME}}", STRONG if chosen else DIM if name.startswith(" ") else "")
    return joined(head, ink.fitted(line, width), beside)


def _marks(stages: Sequence[SeedStage | None]) -> Line:
    return joined(*((ink.mark(stage),) if stage is not None else text(" ") for stage in stages))


def _stage_in(told: dict[int, EnvStepPayload], steps: range, slot: int) -> SeedStage | None:
    """The last of these steps at which the slot was not empty, so that a short life shows too."""
    here = [stages_of(told[step])[slot] for step in steps if step in told and slot < len(told[step].stage)]
    grown = [stage for stage in here if stage not in _EMPTY]
    return (grown or here)[-1] if here else None


def _level_in(told: dict[int, EnvStepPayload], steps: range, slot: int) -> str:
    here = [told[step] for step in steps if step in told and slot < len(told[step].stage)]
    if not here:
        return " "
    return "·" if stages_of(here[-1])[slot] in _EMPTY else str(min(here[-1].level[slot], 9))


def _value_in(told: dict[int, EnvStepPayload], steps: range, slot: int) -> float | None:
    here = [told[step].alpha[slot] for step in steps if step in told and slot < len(told[step].alpha)]
    return here[-1] if here else None


def _last(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _beside(seed: Seed) -> str:
    cf = seed.contribution
    brought = "" if cf is None else f"  cf {number(cf.metric, signed=True)} ±{number(cf.metric_sem)}"
    return safe(seed.blueprint) + brought


def _changes(seed: Seed) -> str:
    net = sum(change.told.to_level - change.told.from_level for change in seed.changes)
    turned = sum(change.reverses for change in seed.changes)
    return f"{len(seed.changes)} chg · net {net:+d} · {turned} rev"
