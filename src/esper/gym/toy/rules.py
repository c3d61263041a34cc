"""How the toy world goes on: what an operation does to a slot, and what an epoch does to everything.

Read `ToyRules.act` and `ToyRules.live`; both are pure functions of a `ToyState`. Stages, durations and refusals are
those of `kasmina/slot.py`, whose gates are asked here too.
"""

from __future__ import annotations

from functools import lru_cache

from esper.gym.toy.reports import report_of, slot_report
from esper.gym.toy.world import FULL, PARAMS, SPECS, WEED, Alpha, ToySlot, ToyState, World, own_skill, rates
from esper.kasmina.config import SlotSettings
from esper.kasmina.gates import evaluate
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import CURVES, OPS, ActionSpace, Curve, FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport, SeedStateReport
from esper.leyline.stages import ADVANCES, EDGES, EFFECTIVE, SEEDED, Edge, SeedStage

_CURVES = tuple(CURVES.values())
_REMEMBERED = 256  # reports: those of an epoch are asked for again and again

Changed = tuple[ToySlot | None, str, str]
"""The slot after an operation; or None, why it was refused, and by which gate."""


class ToyRules:
    """The rules of one run. Results are remembered, because the same few states are met again and again."""

    def __init__(self, settings: SlotSettings, episode_length: int, space: ActionSpace) -> None:
        self.settings, self.episode_length = settings, episode_length
        self.specs = tuple(spec for spec in SPECS if spec.slot_id in space.slot_config.slot_ids)
        self.report = lru_cache(_REMEMBERED)(self._report)
        self._slot_report = lru_cache(_REMEMBERED)(self._report_of_slot)

    def start(self, world: World) -> ToyState:
        """An untrained host. A weed can only stand where its slot is enabled."""
        return ToyState(
            world, tuple(WEED if world.weedy and spec.slot_id == "r0c1" else ToySlot() for spec in self.specs)
        )

    def _report(self, state: ToyState) -> HostReport:
        slots = tuple(self._slot_report(index, slot, state.epoch) for index, slot in enumerate(state.slots))
        return report_of(state, slots, self.settings, self.episode_length)

    def _report_of_slot(self, index: int, slot: ToySlot, epoch: int) -> SeedStateReport:
        return slot_report(self.specs[index], slot, epoch, self.settings.embargo)

    # --- decisions ------------------------------------------------------------------------------------------------

    def act(self, state: ToyState, action: FactoredAction) -> tuple[ToyState, Receipt]:
        """One action, done or refused as a real slot does or refuses it."""
        op, slot_id, index = action.op, action.slot_id, action.slot_idx
        if slot_id is None:
            return state._replace(last_op=int(op), last_done=True), Receipt(op, None, True)
        slot, report = state.slots[index], self.report(state)
        seen = report.slots[index]
        if OPS[op].possible(seen, report) and action.fits:
            changed, why, gate = self._changed(slot, action, seen)
        else:
            changed, why, gate = None, f"not possible: {slot_id} is {slot.stage.name}", "illegal"
        state = state._replace(last_op=int(op), last_done=changed is not None)
        if changed is None:
            params = seen.internal_effective_params
            return state, Receipt(op, slot_id, False, why, gate, params, params)
        state = state._replace(slots=(*state.slots[:index], changed, *state.slots[index + 1 :]))
        params = changed.active_params if changed.stage in SEEDED else 0
        return state, Receipt(op, slot_id, True, "", None, seen.internal_effective_params, params)

    def _changed(self, slot: ToySlot, action: FactoredAction, report: SeedStateReport) -> Changed:
        """What a possible operation does to the slot."""
        match action.op:
            case LifecycleOp.GERMINATE:
                return self._planted(slot, action), "", ""
            case LifecycleOp.ADVANCE:
                return self._through_gate(slot, ADVANCES[slot.stage], report)
            case LifecycleOp.FOSSILIZE:
                pruned = slot._replace(learned=slot.learned[: slot.level])  # rungs that were never needed go
                return self._through_gate(pruned, EDGES[SeedStage.HOLDING, SeedStage.FOSSILIZED], report)
            case LifecycleOp.SET_ALPHA_TARGET:
                return _retargeted(slot, action.alpha_target, action.alpha_speed, action.alpha_curve), "", ""
            case LifecycleOp.PRUNE:
                return _pruned(slot, action.alpha_speed, action.alpha_curve), "", ""
            case LifecycleOp.GROW_INTERNAL:
                return slot._replace(level=slot.level + 1, previous_level=slot.level), "", ""
            case LifecycleOp.SHRINK_INTERNAL:
                return slot._replace(level=slot.level - 1, previous_level=slot.level), "", ""
            case _:
                raise AssertionError(f"{action.op.name} is nothing that is done to a slot")

    def _planted(self, slot: ToySlot, action: FactoredAction) -> ToySlot:
        blueprint, rungs = action.chosen("blueprint"), len(PARAMS[action.chosen("blueprint")])
        return ToySlot(
            stage=SeedStage.GERMINATED,
            germinations=slot.germinations + 1,
            blueprint=blueprint,
            blend=action.style.blend,
            first=Alpha(target=action.alpha_target, steps_total=action.tempo, curve=_CURVES.index(action.style.curve)),
            level=min(self.settings.ladder_start, rungs) if rungs > 1 else 1,
            learned=(0,) * rungs,
        )

    def _through_gate(self, slot: ToySlot, edge: Edge, report: SeedStateReport) -> Changed:
        assert edge.gate is not None
        result = evaluate(edge.gate, report, self.settings.rules, self.settings.gates)
        return (_entered(slot, edge.new), "", "") if result.passed else (None, result.why, edge.gate)

    # --- time -----------------------------------------------------------------------------------------------------

    def live(self, state: ToyState) -> ToyState:
        """One epoch: time passes in the slots, what can be heard learns, and the host is measured."""
        driven = (self._driven(index, slot, state.epoch) for index, slot in enumerate(state.slots))
        slots = tuple(
            _taught(self._aged(slot), spec.slot_id, state.world) for slot, spec in zip(driven, self.specs, strict=True)
        )
        epoch = state.epoch + 1
        metric = own_skill(epoch) + sum(slot.contribution for slot in slots)
        return state._replace(slots=slots, epoch=epoch, metric=metric, previous=state.metric)

    def _driven(self, index: int, slot: ToySlot, epoch: int) -> ToySlot:
        """The slot in its next stage, where time drives that edge and its gate agrees."""
        edge = ADVANCES.get(slot.stage)
        if edge is None or edge.gate not in self.settings.auto_advance or slot.fading:
            return slot
        changed, _, _ = self._through_gate(slot, edge, self._slot_report(index, slot, epoch))
        return slot if changed is None else changed

    def _aged(self, slot: ToySlot) -> ToySlot:
        rests = {
            SeedStage.PRUNED: (1, SeedStage.EMBARGOED),
            SeedStage.EMBARGOED: (self.settings.embargo, SeedStage.RESETTING),
            SeedStage.RESETTING: (1, SeedStage.DORMANT),
        }
        if slot.stage in rests and slot.in_stage >= rests[slot.stage][0]:
            slot = _entered(slot, rests[slot.stage][1])
        if slot.stage in SEEDED:
            slot = slot._replace(age=slot.age + 1)
        if slot.stage is SeedStage.BLENDING:
            mover = slot.alpha.mover
            mover.step()
            slot = slot._replace(alpha=Alpha.of(mover))
            if slot.fading and mover.alpha == 0.0:
                slot = _entered(slot, SeedStage.PRUNED)
        return slot if slot.stage is SeedStage.DORMANT else slot._replace(in_stage=slot.in_stage + 1)


def _taught(slot: ToySlot, slot_id: str, world: World) -> ToySlot:
    """Every active rung of a seed that can be heard is an epoch further."""
    if slot.stage not in EFFECTIVE:
        return slot
    rungs = enumerate(zip(slot.learned, rates(world, slot_id, slot.blueprint), strict=False))
    return slot._replace(learned=tuple(was + rate * (rung < slot.level) for rung, (was, rate) in rungs))


def _entered(slot: ToySlot, stage: SeedStage) -> ToySlot:
    """The slot in its next stage, and what that does to alpha."""
    slot = slot._replace(stage=stage, in_stage=0)
    if stage is SeedStage.DORMANT:
        return ToySlot(germinations=slot.germinations)
    if stage is SeedStage.BLENDING:
        return slot._replace(alpha=slot.first)
    if stage is SeedStage.HOLDING:
        return slot._replace(alpha=FULL)
    return slot._replace(alpha=Alpha(), fading=False) if stage is SeedStage.PRUNED else slot


def _retargeted(slot: ToySlot, target: float, steps: int, curve: Curve) -> ToySlot:
    if slot.stage is SeedStage.HOLDING:
        if target >= 1.0:
            return slot
        slot = slot._replace(stage=SeedStage.BLENDING, in_stage=0)
    mover = slot.alpha.mover
    mover.retarget(target, steps, curve)
    return slot._replace(alpha=Alpha.of(mover))


def _pruned(slot: ToySlot, steps: int, curve: Curve) -> ToySlot:
    if steps == 0 or slot.alpha.alpha == 0.0:
        return _entered(slot, SeedStage.PRUNED)
    return _retargeted(slot, 0.0, steps, curve)._replace(fading=True)
