"""From a slot's state to what may be told of it: the report for deciders, and an event per change."""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.kasmina.gates import GateResult
from esper.kasmina.ladder import Ladder, count_params
from esper.kasmina.planting import effective_params_of, group_size_of, kind_of, max_level_of, rungs_of
from esper.kasmina.state import SeedState
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.reports import Contribution, SeedStateReport
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    Payload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
)


def report_of(
    spec: InjectionSpec, state: SeedState | None, seed: nn.Module | None, gated: bool, clock: int, embargo: int
) -> SeedStateReport:
    """The report of one slot. Where a gate decides, alpha is its mean weight over the last measured pass."""
    place: dict[str, Any] = {
        "slot_id": spec.slot_id,
        "address": (spec.slot_id,),
        "dim": spec.dim,
        "layout": spec.layout,
        "surface": spec.surface,
        "order": spec.order,
    }
    if state is None:
        return SeedStateReport(**place, stage=SeedStage.DORMANT)
    metrics, health, alpha = state.metrics, state.health, state.alpha
    in_stage = clock - int(state.stage_entered_at)
    return SeedStateReport(
        **place,
        stage=state.stage,
        seed_id=state.seed_id,
        blueprint_id=state.blueprint_id,
        blend=state.blend,
        age=state.age,
        epochs_in_stage=in_stage,
        embargo_left=embargo_left(state.stage, in_stage, embargo),
        alpha=metrics.gate_weight if gated else alpha.alpha,
        alpha_target=alpha.target,
        alpha_mode=alpha.mode,
        alpha_steps_done=alpha.steps_done,
        alpha_steps_total=alpha.steps_total,
        params=0 if seed is None else count_params(seed),
        internal_kind=kind_of(seed),
        internal_level=sum(rungs_of(seed)),
        internal_max_level=max_level_of(seed),
        internal_effective_params=effective_params_of(seed),
        internal_group_size=group_size_of(seed),
        internal_active_groups=None if group_size_of(seed) is None else sum(rungs_of(seed)),
        internal_previous_level=None if state.previous_rungs is None else sum(state.previous_rungs),
        rungs=rungs_of(seed),
        contribution=metrics.contribution,
        level_effect=metrics.level_effect,
        seed_grad_norm=health.seed_norm,
        host_grad_norm=health.host_norm,
        grad_ratio=health.ratio,
        metric_at_germination=metrics.metric_at_germination,
        metric_at_stage_start=metrics.metric_at_stage_start,
        metric_now=metrics.metric_now,
        broken=health.broken,
    )


def embargo_left(stage: SeedStage, in_stage: int, embargo: int) -> int:
    """Epochs until the slot is free: one as PRUNED, `embargo` as EMBARGOED, one as RESETTING."""
    stays = {SeedStage.PRUNED: embargo + 3, SeedStage.EMBARGOED: embargo + 2, SeedStage.RESETTING: 2}
    return stays[stage] - in_stage if stage in stays else 0


def told_germinated(state: SeedState, seed: nn.Module) -> Payload:
    return SeedGerminatedPayload(
        **_identity(state),
        params=count_params(seed),
        blend=state.blend,
        tempo=state.tempo,
        internal_kind=int(kind_of(seed)),
        internal_level=sum(rungs_of(seed)),
        internal_max_level=max_level_of(seed),
    )


def told_gate(state: SeedState, result: GateResult) -> Payload:
    checks = tuple((check.name, check.value, check.limit, check.passed) for check in result.checks)
    return SeedGateEvaluatedPayload(**_identity(state), gate=result.gate, passed=result.passed, checks=checks)


def told_stage(state: SeedState, old: SeedStage, driver: str) -> Payload:
    """The state has entered its stage already."""
    return SeedStageChangedPayload(
        **_identity(state),
        from_stage=old.name,
        to_stage=state.stage.name,
        driver=driver,
        alpha=state.alpha.alpha,
        age=state.age,
    )


def told_level(state: SeedState, ladder: Ladder, from_level: int, params_before: int) -> Payload:
    """The ladder stands at its new level already; `params_before` are the effective ones."""
    return SeedInternalLevelChangedPayload(
        **_identity(state),
        internal_kind=int(ladder.kind),
        from_level=from_level,
        to_level=ladder.level,
        internal_max_level=ladder.max_level,
        params_before=params_before,
        internal_effective_params=ladder.effective_params,
    )


def told_pruned(state: SeedState, seed: nn.Module, initiator: str) -> SeedPrunedPayload:
    return SeedPrunedPayload(
        **_identity(state),
        initiator=initiator,
        age=state.age,
        params=count_params(seed),
        contribution=_metric(state.metrics.contribution),
    )


def told_fossilized(state: SeedState, seed: nn.Module, params_removed: int) -> Payload:
    return SeedFossilizedPayload(
        **_identity(state),
        age=state.age,
        params=count_params(seed),
        params_removed=params_removed,
        internal_level=sum(rungs_of(seed)),
        contribution=_metric(state.metrics.contribution),
    )


def _identity(state: SeedState) -> dict[str, Any]:
    return {"slot_id": state.slot_id, "seed_id": state.seed_id, "blueprint_id": state.blueprint_id}


def _metric(contribution: Contribution | None) -> float | None:
    return None if contribution is None else contribution.metric
