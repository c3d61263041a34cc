"""The toy world in the words of reports: what a real engine would have measured."""

from __future__ import annotations

from esper.gym.toy.world import HOST_PARAMS, ITEMS, ToySlot, ToyState, own_skill
from esper.kasmina.config import SlotSettings
from esper.kasmina.reporting import embargo_left
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.reports import Contribution, HostReport, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import SEEDED, SeedStage

_PER_NAT = 50  # points of the metric


def report_of(
    state: ToyState, slots: tuple[SeedStateReport, ...], settings: SlotSettings, episode_length: int
) -> HostReport:
    """The report of environment 0 in round 0; the engine puts its own numbers there. slots: those of the state."""
    seeded = [slot for slot in state.slots if slot.stage in SEEDED]
    loss = None if state.metric is None else loss_at(state.metric)
    return HostReport(
        env=0,
        epoch=state.epoch,
        episode_length=episode_length,
        rules=settings.rules,
        slots=slots,
        host_params=HOST_PARAMS,
        total_params=HOST_PARAMS + sum(slot.params for slot in seeded),
        effective_params=HOST_PARAMS + sum(slot.active_params for slot in seeded),
        train_loss=loss,
        val_loss=loss,
        val_metric=state.metric,
        train_items=ITEMS[state.world.plenty],
        previous_metric=state.previous,
        last_op=state.last_op,
        last_action_success=state.last_done,
        exported_metric=exported_metric(state) if state.epoch >= episode_length else None,
    )


def exported_metric(state: ToyState) -> float:
    """Accuracy in percent of host and fossils alone."""
    fossils = (slot for slot in state.slots if slot.stage is SeedStage.FOSSILIZED)
    return own_skill(state.epoch) + sum(slot.contribution for slot in fossils)


def loss_at(metric: float) -> float:
    """Nats that go with an accuracy in percent."""
    return 2.5 - metric / _PER_NAT


def slot_report(spec: InjectionSpec, slot: ToySlot, epoch: int, embargo: int) -> SeedStateReport:
    """The report of one slot."""
    place = (spec.slot_id, (spec.slot_id,), spec.dim, spec.layout, spec.surface, spec.order, slot.stage)
    if slot.stage is SeedStage.DORMANT:
        return SeedStateReport(*place)
    is_there = slot.stage in SEEDED
    heard = slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING)
    trained = heard or slot.stage is SeedStage.FOSSILIZED or (slot.stage is SeedStage.TRAINING and slot.in_stage > 0)
    gradient = 1.0 if trained else None
    return SeedStateReport(
        *place,
        seed_id=f"{spec.slot_id}.{slot.germinations}",
        blueprint_id=slot.blueprint,
        blend=slot.blend,
        age=slot.age,
        epochs_in_stage=slot.in_stage,
        embargo_left=embargo_left(slot.stage, slot.in_stage, embargo),
        alpha=slot.alpha.alpha,
        alpha_target=slot.alpha.target,
        alpha_mode=slot.alpha.mover.mode,
        alpha_steps_done=slot.alpha.steps_done,
        alpha_steps_total=slot.alpha.steps_total,
        params=slot.params if is_there else 0,
        internal_kind=SeedInternalKind.CONV_LADDER if is_there and slot.is_ladder else SeedInternalKind.NONE,
        internal_level=slot.level if is_there else 0,
        internal_max_level=len(slot.learned) if is_there else 1,
        internal_effective_params=slot.active_params if is_there else 0,
        internal_previous_level=slot.previous_level,
        rungs=tuple(rung < slot.level for rung in range(len(slot.learned))) if is_there else (),
        contribution=_measured(slot.contribution, epoch) if heard else None,
        level_effect=_measured(slot.level_effect, epoch) if heard and slot.previous_level is not None else None,
        seed_grad_norm=gradient,
        host_grad_norm=gradient,
        grad_ratio=gradient,
    )


def _measured(points: float, epoch: int) -> Contribution:
    """As measured over a great many items."""
    return Contribution(points, metric_sem=0.1, loss=points / _PER_NAT, loss_sem=0.1 / _PER_NAT, epoch=epoch)
