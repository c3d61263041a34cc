"""From a slot's state to what may be told of it: the report for deciders, and events about gates."""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.kasmina.gates import GateResult
from esper.kasmina.ladder import count_params
from esper.kasmina.planting import effective_params_of, kind_of, max_level_of, rungs_of
from esper.kasmina.state import SeedState
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.reports import Contribution, SeedStateReport
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import Payload, SeedGateEvaluatedPayload


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
        embargo_left=_embargo_left(state.stage, in_stage, embargo),
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


def _embargo_left(stage: SeedStage, in_stage: int, embargo: int) -> int:
    """Epochs until the slot is free: one as PRUNED, `embargo` as EMBARGOED, one as RESETTING."""
    left = {SeedStage.PRUNED: embargo + 2, SeedStage.EMBARGOED: embargo + 1 - in_stage, SeedStage.RESETTING: 1}
    return left.get(stage, 0)


def told(result: GateResult, identity: dict[str, Any]) -> Payload:
    """The event of a gate's answer."""
    checks = tuple((check.name, check.value, check.limit, check.passed) for check in result.checks)
    return SeedGateEvaluatedPayload(**identity, gate=result.gate, passed=result.passed, checks=checks)


def metric_of(contribution: Contribution | None) -> float | None:
    return None if contribution is None else contribution.metric
