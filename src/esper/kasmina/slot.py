"""A slot: an ordinary module that is the identity until a seed is planted in it.

`slot_module.py` has its forward pass. Here are the operations, each of which changes state in one place and returns a
receipt, then time. Every change of stage goes through `_on_enter_stage`, whoever asked for it. Slots return events and
publish none.
"""

from __future__ import annotations

from esper.kasmina.blending import GATED, BlendGate
from esper.kasmina.gates import GateResult, evaluate
from esper.kasmina.ladder import Ladder
from esper.kasmina.planting import (
    effective_params_of,
    probe_for,
    remove_unused_rungs,
    switch_on,
)
from esper.kasmina.reporting import (
    told_fossilized,
    told_gate,
    told_germinated,
    told_level,
    told_pruned,
    told_stage,
)
from esper.kasmina.slot_module import SlotModule
from esper.kasmina.state import SeedState
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import OPS, Curve, LifecycleOp, Style
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, Layout
from esper.leyline.reports import HostReport
from esper.leyline.stages import ADVANCES, EDGES, LIVE, SEEDED, Edge, GateName, SeedStage
from esper.leyline.telemetry import Payload, SeedPrunedPayload


class SeedSlot(SlotModule):
    """One slot. In a network of your own, `SeedSlot.at("r0c0", dim=32)` stands in `forward` like any layer."""

    @classmethod
    def at(cls, slot_id: str, dim: int, layout: Layout = "NCHW", order: int = 0) -> SeedSlot:
        """A slot for a network of one's own; `order` is its place along the forward pass."""
        return cls(InjectionSpec(slot_id, dim, layout, InjectionSurface.BLOCK_END, order, order, order))

    # --- operations ---------------------------------------------------------------------------------------------

    def germinate(self, blueprint_id: str, style: Style, tempo: int, alpha_target: float) -> Receipt:
        """Plants a seed. Draws its weights from torch's global generator, which the caller lends.

        Raises ConfigError for an unknown blueprint or one that does not keep this slot's shape.
        """
        illegal = self._illegal(LifecycleOp.GERMINATE)
        if illegal is not None:
            return illegal
        seed = self._build(blueprint_id)
        self.germinations += 1
        seed_id = f"{self.spec.slot_id}.{self.germinations}"
        self.state = SeedState.planted(seed_id, blueprint_id, self.spec.slot_id, style, tempo, alpha_target)
        self.seed = seed
        switch_on(seed, self.settings.ladder_start)
        gate = self._ask("G0")
        born = told_germinated(self.state, seed)
        moved = self._on_enter_stage(SeedStage.GERMINATED, SeedStage.DORMANT, "GERMINATE")
        return self._receipt(LifecycleOp.GERMINATE, 0, (born, told_gate(self.state, gate), moved))

    def advance_stage(self) -> Receipt:
        """On to the next stage, if its gate agrees."""
        illegal = self._illegal(LifecycleOp.ADVANCE)
        if illegal is not None:
            return illegal
        before = effective_params_of(self.seed)
        edge = ADVANCES[self.stage]
        event, result = self._pass_gate(edge)
        if not result.passed:
            return self._refused(LifecycleOp.ADVANCE, result.gate, result.why, (event,))
        moved = self._on_enter_stage(edge.new, edge.old, "ADVANCE")
        return self._receipt(LifecycleOp.ADVANCE, before, (event, moved))

    def set_alpha_target(self, target: float, steps: int, curve: Curve) -> Receipt:
        """Blends in or out; a held seed that is to give way goes back to BLENDING, one that is not stays as it is."""
        illegal = self._illegal(LifecycleOp.SET_ALPHA_TARGET)
        if illegal is not None:
            return illegal
        state = self._planted
        before = effective_params_of(self.seed)
        events: tuple[Payload, ...] = ()
        if self.stage is SeedStage.HOLDING:
            if target >= 1.0:
                return self._receipt(LifecycleOp.SET_ALPHA_TARGET, before, ())
            events = (self._on_enter_stage(SeedStage.BLENDING, SeedStage.HOLDING, "SET_ALPHA_TARGET"),)
        state.alpha.retarget(target, steps, curve)
        self._sync_alpha()
        return self._receipt(LifecycleOp.SET_ALPHA_TARGET, before, events)

    def prune(self, steps: int, curve: Curve) -> Receipt:
        """Removes the seed, at once with 0 steps or where it has no weight, otherwise after fading out."""
        illegal = self._illegal(LifecycleOp.PRUNE)
        if illegal is not None:
            return illegal
        state = self._planted
        before = effective_params_of(self.seed)
        if steps == 0 or state.alpha.alpha == 0.0:
            return self._receipt(LifecycleOp.PRUNE, before, self._remove("controller", "PRUNE"))
        events: tuple[Payload, ...] = ()
        if self.stage is SeedStage.HOLDING:
            events = (self._on_enter_stage(SeedStage.BLENDING, SeedStage.HOLDING, "PRUNE"),)
        state.fading = True
        state.alpha.retarget(0.0, steps, curve)
        return self._receipt(LifecycleOp.PRUNE, before, events)

    def uproot(self) -> tuple[Payload, ...]:
        """The governor's prune: at once, whatever its age. Only for live seeds."""
        assert self.stage in LIVE, f"no live seed to uproot in {self.spec.slot_id} ({self.stage.name})"
        return self._remove("governor", "rollback")

    def obituary(self) -> SeedPrunedPayload:
        """What the governor tells where it takes the host back to a time before this seed."""
        return told_pruned(self._planted, self._module, "governor")

    def fossilize(self) -> Receipt:
        """Keeps a held seed for good. Its structure is frozen and rungs that were never needed are removed."""
        illegal = self._illegal(LifecycleOp.FOSSILIZE)
        if illegal is not None:
            return illegal
        before = effective_params_of(self.seed)
        edge = EDGES[SeedStage.HOLDING, SeedStage.FOSSILIZED]
        event, result = self._pass_gate(edge)
        if not result.passed:
            return self._refused(LifecycleOp.FOSSILIZE, result.gate, result.why, (event,))
        removed = remove_unused_rungs(self._module, probe_for(self.spec, self.alpha.device).to(self.alpha))
        moved = self._on_enter_stage(edge.new, edge.old, "FOSSILIZE")
        kept = told_fossilized(self._planted, self._module, removed)
        return self._receipt(LifecycleOp.FOSSILIZE, before, (event, moved, kept))

    def grow_internal(self) -> Receipt:
        """Switches on the next rung."""
        return self._change_level(LifecycleOp.GROW_INTERNAL)

    def shrink_internal(self) -> Receipt:
        """Switches off the last rung; its weights and moments stay, and a later GROW brings them back."""
        return self._change_level(LifecycleOp.SHRINK_INTERNAL)

    # --- time ---------------------------------------------------------------------------------------------------

    def step_epoch(self) -> tuple[Payload, ...]:
        """One host epoch begins: stages that time drives move on, then alpha takes its step."""
        events = self._auto_advance() + self._rest()
        state = self.state
        if state is not None and self.stage in SEEDED:
            state.age += 1
        if state is not None and self.stage is SeedStage.BLENDING:
            state.alpha.step()
            self._sync_alpha()
            if state.fading and state.alpha.alpha == 0.0:
                events += self._remove("fade", "time")
        self.clock += 1
        return events

    def _auto_advance(self) -> tuple[Payload, ...]:
        edge = ADVANCES.get(self.stage)
        if edge is None or edge.gate not in self.settings.auto_advance or self._planted.fading:
            return ()
        event, result = self._pass_gate(edge)
        return (event, self._on_enter_stage(edge.new, edge.old, "time")) if result.passed else ()

    def _rest(self) -> tuple[Payload, ...]:
        in_stage = 0 if self.state is None else self._epochs_in_stage
        if self.stage is SeedStage.PRUNED and in_stage >= 1:
            return (self._on_enter_stage(SeedStage.EMBARGOED, SeedStage.PRUNED, "time"),)
        if self.stage is SeedStage.EMBARGOED and in_stage >= self.settings.embargo:
            return (self._on_enter_stage(SeedStage.RESETTING, SeedStage.EMBARGOED, "time"),)
        if self.stage is SeedStage.RESETTING and in_stage >= 1:
            return (self._on_enter_stage(SeedStage.DORMANT, SeedStage.RESETTING, "time"),)
        return ()

    def _on_enter_stage(self, new: SeedStage, old: SeedStage, driver: str) -> Payload:
        """The only place where a stage changes. Returns the event that tells of it."""
        assert (old, new) in EDGES, f"{old.name} -> {new.name} is not in the transition table"
        assert self.stage is old, f"{self.spec.slot_id} is {self.stage.name}, not {old.name}"
        state = self._planted
        state.stage, state.stage_entered_at = new, float(self.clock)
        state.metrics.metric_at_stage_start = state.metrics.metric_now
        if new is SeedStage.GERMINATED:
            state.metrics.metric_at_germination = state.metrics.metric_now
        elif new is SeedStage.TRAINING:
            self.isolate_gradients = True
        elif new is SeedStage.BLENDING:
            self.isolate_gradients = self.settings.isolate_blending
            if old is SeedStage.TRAINING:
                self._start_blending(state)
        elif new is SeedStage.HOLDING:
            self.gate = None
            state.alpha.settle(1.0)
        elif new is SeedStage.FOSSILIZED:
            self.isolate_gradients = False
            self._module.requires_grad_(self.settings.fossil_train)
        elif new is SeedStage.PRUNED:
            self.seed = self.gate = None
            state.alpha.settle(0.0)
        self._sync_alpha()
        if new is SeedStage.DORMANT:
            self.state = None
        return told_stage(state, old, driver)

    def _start_blending(self, state: SeedState) -> None:
        state.blending_started = True
        state.metrics.metric_at_blending_start = state.metrics.metric_now
        state.alpha.retarget(state.first_target, state.tempo, state.curve)
        if state.blend in GATED:
            self.gate = BlendGate(self.spec.dim, self.spec.layout).to(self.alpha)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _remove(self, initiator: str, driver: str) -> tuple[Payload, ...]:
        gone = told_pruned(self._planted, self._module, initiator)
        return (gone, self._on_enter_stage(SeedStage.PRUNED, self.stage, driver))

    def _change_level(self, op: LifecycleOp) -> Receipt:
        illegal = self._illegal(op)
        if illegal is not None:
            return illegal
        ladder, state = self._module, self._planted
        assert isinstance(ladder, Ladder)
        before, level, state.previous_rungs = ladder.effective_params, ladder.level, ladder.active
        if op is LifecycleOp.GROW_INTERNAL:
            ladder.grow()
        else:
            ladder.shrink()
        state.level_effect_due = True
        return self._receipt(op, before, (told_level(state, ladder, level, before),))

    def _ask(self, gate: GateName) -> GateResult:
        return evaluate(gate, self.report(), self.settings.rules, self.settings.gates)

    def _pass_gate(self, edge: Edge) -> tuple[Payload, GateResult]:
        assert edge.gate is not None
        result = self._ask(edge.gate)
        return told_gate(self._planted, result), result

    def _illegal(self, op: LifecycleOp) -> Receipt | None:
        """The receipt of a refusal where the table of operations calls `op` impossible in this slot."""
        report = self.report()
        alone = HostReport(0, 0, 1, self.settings.rules, (report,), 0, 0, 0)
        if OPS[op].possible(report, alone):
            return None
        what = f"{self.spec.slot_id} is {self.stage.name}"
        if self.state is not None:
            what += f", alpha {report.alpha_mode.name}, age {report.age}, level {report.internal_level}"
        return self._refused(op, "illegal", f"not possible: {what}")

    def _refused(self, op: LifecycleOp, by: str, why: str, events: tuple[Payload, ...] = ()) -> Receipt:
        params = effective_params_of(self.seed)
        return Receipt(op, self.spec.slot_id, False, why, by, params, params, events=events)

    def _receipt(self, op: LifecycleOp, params_before: int, events: tuple[Payload, ...]) -> Receipt:
        return Receipt(
            op, self.spec.slot_id, True, "", None, params_before, effective_params_of(self.seed), events=events
        )
