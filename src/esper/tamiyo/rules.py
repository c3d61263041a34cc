"""What rule-based controllers share: the next step of a seed's life, and how much time is left for a new one."""

from __future__ import annotations

from collections.abc import Iterator

from esper.leyline.factored_actions import TEMPOS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.reports import AlphaMode, HostReport, Rules, SeedStateReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.policy.action_masks import LegalActions


def on(space: ActionSpace, op: LifecycleOp, slot: SeedStateReport) -> FactoredAction:
    """An operation on a slot, with every further head at its first choice."""
    return space.action(op, slot=slot.slot_id)


def is_ready(slot: SeedStateReport, host: HostReport) -> bool:
    """Whether ADVANCE can be expected to pass the permissive gate of the seed's stage."""
    if slot.stage is SeedStage.GERMINATED:
        return True
    if slot.stage is SeedStage.TRAINING:
        trained = slot.epochs_in_stage >= host.rules.min_training
        return trained and slot.internal_level >= 1 and slot.seed_grad_norm is not None and not slot.broken
    if slot.stage is SeedStage.BLENDING:
        return slot.alpha_mode is AlphaMode.HOLD and slot.alpha_target >= 1.0
    return False


def advance_one(host: HostReport, legal: LegalActions) -> FactoredAction | None:
    """ADVANCE for the seed that is furthest along and ready; None if none is."""
    ready = [slot for slot in host.slots if is_ready(slot, host)]
    ready = [slot for slot in ready if slot.slot_id in legal.slots(LifecycleOp.ADVANCE)]
    if not ready:
        return None
    return on(legal.space, LifecycleOp.ADVANCE, max(ready, key=lambda slot: (slot.stage, slot.age)))


def nearest_tempo(epochs: float) -> str:
    """The offered tempo nearest to a number of epochs; the faster one of two."""
    return min(TEMPOS, key=lambda name: (abs(TEMPOS[name] - epochs), TEMPOS[name]))


def epochs_to_keep(host: HostReport, tempo: str) -> int:
    """Epochs a seed planted now needs until it can be fossilised, with an epoch for every decision on the way."""
    busy = sum(slot.holds_seed and slot.stage is not SeedStage.FOSSILIZED for slot in host.slots)
    return least_epochs(host.rules, tempo) + busy


def least_epochs(rules: Rules, tempo: str) -> int:
    """The same for a seed that has the decisions to itself."""
    return 1 + rules.min_training + TEMPOS[tempo] + rules.min_holding + 2


def free_slots(host: HostReport, legal: LegalActions) -> Iterator[SeedStateReport]:
    """Slots in which something may germinate."""
    ids = legal.slots(LifecycleOp.GERMINATE)
    return (slot for slot in host.slots if slot.slot_id in ids)


def fits(space: ActionSpace, slot_id: str, blueprint: str) -> bool:
    """Whether the blueprint is on offer for the slot."""
    if blueprint not in space.blueprints:
        return False
    return space.fits[space.slot_config.index_of(slot_id)][space.blueprints.index(blueprint)]
