"""Every event in one line, for lists of events: `summary(payload)`.

`SUMMARIES` has words of its own for the events that people look for; any other event, and any that is added, is told
by its fields. Text in a line may come from a run: whoever shows it strips what is not printable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from esper.leyline.telemetry import (
    EnvStepPayload,
    EpisodeFinishedPayload,
    LogPayload,
    ObservationsPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    RunStartedPayload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
)
from esper.nissa.progress import count

NOT_MEASURED = "–"
_SHOWN_ELSEWHERE = ("env_id", "slot_id", "seed_id", "blueprint_id")  # columns of their own, or in front of the line
_MOST = 4  # items of a list that are told


def summary(payload: Payload) -> str:
    """One line, without what the event is called and where it happened."""
    kind = type(payload)
    words = SUMMARIES[kind](payload) if kind in SUMMARIES else fields_of(payload)
    if isinstance(payload, SeedPayload):
        return f"{payload.slot_id} {payload.blueprint_id}  {words}"
    return words


def fields_of(payload: Payload) -> str:
    """What an event says that is not its field's default: `reason loss, restored_epoch 3`."""
    told = []
    for each in msgspec.structs.fields(payload):
        value = getattr(payload, each.name)
        if each.name not in _SHOWN_ELSEWHERE and (each.required or value != each.default):
            told.append(f"{each.name} {_value(value)}")
    return ", ".join(told)


def signed(value: float | None, digits: int = 2) -> str:
    return NOT_MEASURED if value is None else f"{value:+.{digits}f}"


def plain_number(value: float | None, digits: int = 2) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def decision(told: EnvStepPayload) -> str:
    """An operation and what was chosen with it."""
    heads = (told.slot, told.blueprint, told.style, told.tempo, told.alpha_target, told.alpha_speed, told.alpha_curve)
    return " ".join([told.op, *(choice for choice in heads if choice is not None)])


def result(told: EnvStepPayload) -> str:
    """Whether it was done, or who refused it and why."""
    return "ok" if told.done else f"refused by {told.refused_by or NOT_MEASURED}: {told.why}"


def _step(told: EnvStepPayload) -> str:
    return f"{decision(told)}  {result(told)}  metric {plain_number(told.val_metric)}  reward {signed(told.reward, 3)}"


def _started(told: RunStartedPayload) -> str:
    return (
        f"{told.controller} on {told.task}: {told.rounds} rounds of {told.envs} episodes of {told.episode_length} steps"
    )


def _finished(told: RunFinishedPayload) -> str:
    return f"{told.status} after {told.seconds:.0f} s" + (f": {told.reason}" if told.reason else "")


def _round(told: RoundFinishedPayload) -> str:
    return (
        f"{told.episodes} episodes in {told.seconds:.1f} s, metric {plain_number(told.metric_mean)}, "
        f"reward {signed(told.reward_mean)}"
    )


def _episode(told: EpisodeFinishedPayload) -> str:
    return (
        f"{told.outcome}: test {plain_number(told.test_metric)}, validation {plain_number(told.val_metric)}, "
        f"{count(told.host_params)} -> {count(told.params)} parameters, {told.fossilized} kept, "
        f"reward {signed(told.reward)}"
    )


def _germinated(told: SeedGerminatedPayload) -> str:
    level = f"level {told.internal_level}/{told.internal_max_level}  " if told.internal_max_level > 1 else ""
    return f"{level}{count(told.params)} parameters, blend {told.blend}, tempo {told.tempo}"


def _stage(told: SeedStageChangedPayload) -> str:
    return f"{told.from_stage} -> {told.to_stage} by {told.driver}, alpha {told.alpha:.2f}, age {told.age}"


def _gate(told: SeedGateEvaluatedPayload) -> str:
    refused = [
        f"{name} {plain_number(value)} (limit {plain_number(limit)})"
        for name, value, limit, passed in told.checks
        if not passed
    ]
    return f"{told.gate} {'passed' if told.passed else 'refused: ' + ', '.join(refused)}"


def _level(told: SeedInternalLevelChangedPayload) -> str:
    change = told.internal_effective_params - told.params_before
    size = f"{'-' if change < 0 else '+'}{count(abs(change))}"
    return f"{told.from_level} -> {told.to_level} of {told.internal_max_level} by {told.cause}, eff {size}"


def _contribution(told: SeedContributionMeasuredPayload) -> str:
    return f"against {told.against} {told.metric:+.3f} ± {told.metric_sem:.3f}, loss {told.loss:+.4f}"


def _pruned(told: SeedPrunedPayload) -> str:
    return f"by {told.initiator} at age {told.age}, {count(told.params)} parameters, cf {signed(told.contribution)}"


def _fossilized(told: SeedFossilizedPayload) -> str:
    return (
        f"at age {told.age}, level {told.internal_level}, {count(told.params)} parameters, cf "
        f"{signed(told.contribution)}"
    )


def _updated(told: PpoUpdatedPayload) -> str:
    if told.skipped:
        return f"{told.update} skipped: {told.skipped}"
    return (
        f"{told.update}: KL {plain_number(told.approx_kl, 4)}, clip {plain_number(told.clip_fraction)}, EV "
        f"{plain_number(told.explained_variance)}, gradient {plain_number(told.grad_norm)}, {told.epochs} epochs"
    )


def _observations(told: ObservationsPayload) -> str:
    if not told.sensors:
        return "no sensors"
    name, _, _, outside, _ = max(told.sensors, key=lambda sensor: sensor[3])
    return f"{len(told.sensors)} sensors; most often outside its range: {name}, {outside:.1%}"


def _heartbeat(told: RunHeartbeatPayload) -> str:
    return f"{told.rss_bytes / 2**20:.0f} MiB, {told.buffered_bytes} bytes to be written"


def _log(told: LogPayload) -> str:
    return f"{told.level}: {told.text}"


SUMMARIES: Mapping[type[Payload], Callable[[Any], str]] = {
    RunStartedPayload: _started,
    RunHeartbeatPayload: _heartbeat,
    RunFinishedPayload: _finished,
    RoundFinishedPayload: _round,
    EpisodeFinishedPayload: _episode,
    EnvStepPayload: _step,
    SeedGerminatedPayload: _germinated,
    SeedStageChangedPayload: _stage,
    SeedGateEvaluatedPayload: _gate,
    SeedInternalLevelChangedPayload: _level,
    SeedContributionMeasuredPayload: _contribution,
    SeedPrunedPayload: _pruned,
    SeedFossilizedPayload: _fossilized,
    PpoUpdatedPayload: _updated,
    ObservationsPayload: _observations,
    LogPayload: _log,
}
"""Words for an event; one that is not here is told by `fields_of`."""


def _value(value: object) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        items = " ".join(_value(item) for item in value[:_MOST])
        return f"({items}{' …' if len(value) > _MOST else ''})"
    return str(value)
