"""A slot: an ordinary module that is the identity until a seed is planted in it.

`forward` first; then the operations, each of which changes state in one place and returns a receipt; then time. Every
change of stage goes through `_on_enter_stage`, whoever asked for it. Slots return events and publish none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES, GATED, BlendGate, gated_weight
from esper.kasmina.compiling import Backend, compile_region
from esper.kasmina.config import SlotSettings
from esper.kasmina.gates import GateResult, evaluate
from esper.kasmina.gradient_health import grad_norm
from esper.kasmina.isolation import blend, leash, tap
from esper.kasmina.ladder import Ladder
from esper.kasmina.planting import (
    build_seed,
    effective_params_of,
    kind_of,
    max_level_of,
    probe_for,
    regions_of,
    remove_unused_rungs,
    rungs_of,
)
from esper.kasmina.reporting import (
    report_of,
    told_fossilized,
    told_gate,
    told_germinated,
    told_level,
    told_pruned,
    told_stage,
)
from esper.kasmina.state import SeedState
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import OPS, Curve, LifecycleOp, Style
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, Layout
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import Contribution, HostReport, Receipt, SeedStateReport
from esper.leyline.stages import ADVANCES, EDGES, LIVE, SEEDED, Edge, GateName, SeedStage
from esper.leyline.telemetry import Payload

_FAINT = 1e-6
"""Up to here alpha, or the weight of a gate, which is at least its square, might be 0 in the host's precision."""


class SeedSlot(nn.Module):
    """One slot. In a network of your own, `SeedSlot.at("r0c0", dim=32)` stands in `forward` like any layer."""

    alpha: Tensor

    def __init__(self, spec: InjectionSpec, settings: SlotSettings | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.settings = SlotSettings() if settings is None else settings
        self.register_buffer("alpha", torch.zeros(()))
        self.seed: nn.Module | None = None
        self.gate: BlendGate | None = None
        self.state: SeedState | None = None
        self.clock = 0  # epochs lived through
        self.germinations = 0
        self.isolate_gradients = True
        self._backend: Backend | None = None  # of compiled seeds; None where seeds are not compiled
        self.muted = False  # stands aside for a counterfactual pass
        self._watched: list[Tensor] | None = None

    @classmethod
    def at(cls, slot_id: str, dim: int, layout: Layout = "NCHW", order: int = 0) -> SeedSlot:
        """A slot for a network of one's own; `order` is its place along the forward pass."""
        return cls(InjectionSpec(slot_id, dim, layout, InjectionSurface.BLOCK_END, order, order, order))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, ...] in this slot's layout with `spec.dim` channels. Returns the same shape and memory format."""
        if not self.is_active:
            return x
        assert self.seed is not None
        assert self.state is not None
        heard = self.state.alpha.alpha > _FAINT
        entry = tap(x, self.alpha, self.isolate_gradients, heard)
        if self._backend is not None and torch.is_grad_enabled():
            entry.requires_grad_()  # an isolated seed so shares its graphs with one that is part of the host
        candidate = CANDIDATES[self.state.blend](entry, self.seed(entry))
        if self.stage is SeedStage.TRAINING:
            candidate = leash(candidate, entry, self.settings.leash)
        weight = self.alpha
        if self.gate is not None:
            weight = gated_weight(self.alpha, self.gate(entry))
            if self._watched is not None:
                self._watched.append(weight.detach())
        return blend(x, candidate, weight, self.isolate_gradients, heard)

    @property
    def stage(self) -> SeedStage:
        return SeedStage.DORMANT if self.state is None else self.state.stage

    @property
    def is_active(self) -> bool:
        """Whether forward runs the seed: not while it only germinated, nor where an isolated one cannot be heard."""
        if self.seed is None or self.muted or self.stage is SeedStage.GERMINATED:
            return False
        return self.training or self.stage is not SeedStage.TRAINING

    def compile_seeds(self, backend: Backend) -> None:
        """Makes a compiled region of the seed, or of every rung of a ladder, and of each that is planted later."""
        self._backend = backend
        for region in () if self.seed is None else regions_of(self.seed):
            compile_region(region, backend)

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
        if isinstance(seed, Ladder):
            start = min(self.settings.ladder_start, seed.max_level)
            seed.set_active((True,) * start + (False,) * (seed.max_level - start))
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
        """Blends in or out; a held seed that is to give way goes back to BLENDING."""
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
        events = self._auto_advance()
        self.clock += 1
        state = self.state
        if state is None:
            return events
        if self.stage in LIVE or self.stage is SeedStage.FOSSILIZED:
            state.age += 1
        if self.stage is SeedStage.BLENDING:
            state.alpha.step()
            self._sync_alpha()
            if state.fading and state.alpha.alpha == 0.0:
                events += self._remove("fade", "time")
        else:
            events += self._rest()
        return events

    def _auto_advance(self) -> tuple[Payload, ...]:
        edge = ADVANCES.get(self.stage)
        if edge is None or edge.gate not in self.settings.auto_advance or self._planted.fading:
            return ()
        event, result = self._pass_gate(edge)
        return (event, self._on_enter_stage(edge.new, edge.old, "time")) if result.passed else ()

    def _rest(self) -> tuple[Payload, ...]:
        in_stage = self._epochs_in_stage
        if self.stage is SeedStage.PRUNED:
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

    def _sync_alpha(self) -> None:
        self.alpha.fill_(0.0 if self.state is None else self.state.alpha.alpha)

    # --- what was measured --------------------------------------------------------------------------------------

    def record_metric(self, metric: float) -> None:
        """The host's validation metric after the epoch."""
        if self.state is not None:
            self.state.metrics.metric_now = metric

    def record_contribution(self, contribution: Contribution) -> None:
        self._planted.metrics.contribution = contribution

    def record_level_effect(self, effect: Contribution) -> None:
        state = self._planted
        state.metrics.level_effect, state.level_effect_due = effect, False

    def record_gradients(self, host_norm: float, host_params: int) -> None:
        """Reads the seed's gradients as they are now; call between backward and the optimiser's step."""
        self._planted.health.record(
            grad_norm(self._module.parameters()), host_norm, effective_params_of(self.seed), host_params
        )

    @contextmanager
    def watching_gate(self) -> Iterator[None]:
        """Forward passes inside the block are the measured pass: alpha is reported as their mean weight."""
        self._watched = []
        try:
            yield
            if self._watched and self.state is not None:
                self.state.metrics.gate_weight = float(torch.cat([w.reshape(-1) for w in self._watched]).mean())
        finally:
            self._watched = None

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """A counterfactual pass inside the block does not count for the gate."""
        watched, self._watched = self._watched, None
        try:
            yield
        finally:
            self._watched = watched

    @contextmanager
    def rungs_set(self, rungs: tuple[bool, ...]) -> Iterator[None]:
        """Another choice of rungs for a counterfactual pass; no gradient is touched."""
        ladder = self._module
        assert isinstance(ladder, Ladder)
        before, ladder.active = ladder.active, rungs
        try:
            yield
        finally:
            ladder.active = before

    def report(self) -> SeedStateReport:
        """What deciders may see of this slot."""
        return report_of(self.spec, self.state, self.seed, self.gate is not None, self.clock, self.settings.embargo)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Primitives only. Weights, those of a gate too, are in the state_dict proper."""
        state = self.state
        saved: dict[str, Any] | None = None
        if state is not None:
            saved = state.to_primitives() | {
                "internal_kind": int(kind_of(self.seed)),
                "internal_level": sum(rungs_of(self.seed)),
                "internal_max_level": max_level_of(self.seed),
                "internal_mask": list(rungs_of(self.seed)),
            }
        return {
            "seed_state": saved,
            "alpha_schedule_config": None if state is None else state.schedule_config(),
            "isolate_gradients": self.isolate_gradients,
            "gated": self.gate is not None,
            "rungs_kept": len(self.seed.rungs) if isinstance(self.seed, Ladder) else None,
            "clock": self.clock,
            "germinations": self.germinations,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Rebuilds the seed and its gate empty; `load_state_dict` then fills them. Moves no random stream."""
        saved = state["seed_state"]
        self.clock, self.germinations = state["clock"], state["germinations"]
        self.isolate_gradients = state["isolate_gradients"]
        self.seed = self.gate = self.state = None
        if saved is not None:
            self.state = SeedState.from_primitives(saved, state["alpha_schedule_config"])
            if self.state.stage in SEEDED:
                with drawing_from(torch.Generator()):
                    self._restore_modules(self.state, saved["internal_mask"], state["rungs_kept"], state["gated"])
        self._sync_alpha()

    def _restore_modules(self, state: SeedState, mask: list[bool], rungs_kept: int | None, gated: bool) -> None:
        self.seed = self._build(state.blueprint_id)
        if len(mask) != len(rungs_of(self.seed)):
            raise ConfigError(f"{state.blueprint_id} has {len(rungs_of(self.seed))} rungs, the file {len(mask)}.")
        if isinstance(self.seed, Ladder):
            self.seed.set_active(mask)
            if rungs_kept is not None and rungs_kept < len(self.seed.rungs):
                self.seed.remove_unused()
        if gated:
            self.gate = BlendGate(self.spec.dim, self.spec.layout).to(self.alpha)
        if state.stage is SeedStage.FOSSILIZED:
            self.seed.requires_grad_(self.settings.fossil_train)

    # --- helpers ------------------------------------------------------------------------------------------------

    @property
    def _planted(self) -> SeedState:
        assert self.state is not None, f"slot {self.spec.slot_id} is empty"
        return self.state

    @property
    def _module(self) -> nn.Module:
        assert self.seed is not None, f"slot {self.spec.slot_id} holds no seed"
        return self.seed

    @property
    def _epochs_in_stage(self) -> int:
        return self.clock - int(self._planted.stage_entered_at)

    def _build(self, blueprint_id: str) -> nn.Module:
        seed = build_seed(blueprint_id, self.spec, self.alpha.device).to(self.alpha).train(self.training)
        if self._backend is not None:
            for region in regions_of(seed):
                compile_region(region, self._backend)
        return seed

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
