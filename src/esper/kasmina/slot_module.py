"""What stands in a slot, and how it computes: the seed, its gate, its alpha, and what is known of them.

`forward` first; then what was measured of the seed, then checkpoints. `slot.py` has the operations that change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES, BlendGate, gated_weight
from esper.kasmina.compiling import Backend, compile_region
from esper.kasmina.config import SlotSettings
from esper.kasmina.gradient_health import grad_norm
from esper.kasmina.isolation import blend, leash, squares, tap
from esper.kasmina.ladder import Ladder
from esper.kasmina.planting import build_seed, effective_params_of, kind_of, max_level_of, regions_of, rungs_of
from esper.kasmina.reporting import report_of
from esper.kasmina.state import SeedState
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import Contribution, SeedStateReport
from esper.leyline.stages import SEEDED, SeedStage

_FAINT = 1e-3
"""Up to here alpha, or the weight of a gate, which is at least its square, might be 0 in half precision."""


class SlotModule(nn.Module):
    """A place for one seed: the identity while it is empty."""

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
        self.in_parts = False  # forward sees a part of each batch; whoever sums gradients up leashes them (`squares`)
        self.strayed: Tensor | None = None  # `squares` of the last forward pass of a seed in training
        self._watched: list[Tensor] | None = None

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """x: [N, ...] in this slot's layout with `spec.dim` channels. Returns the same shape and memory format.

        read: what the weight made x of, [N, ..., in_dim] a Linear and [N, in_dim, H, W] a convolution, where the slot
        stands around one; None in a cut.
        """
        if not self.is_active:
            return x
        assert self.state is not None
        heard = self.state.alpha.alpha > _FAINT
        entry = tap(x, self.alpha, self.isolate_gradients, heard)
        candidate = CANDIDATES[self.state.blend](entry, self._grown(entry, read, heard))
        if self.stage is SeedStage.TRAINING:
            if self.in_parts:
                self.strayed = squares(candidate, entry)
            else:
                candidate = leash(candidate, entry, self.settings.leash)
        weight = self.alpha
        if self.gate is not None:
            weight = gated_weight(self.alpha, self.gate(entry))
            if self._watched is not None:
                self._watched.append(weight.detach())
        return blend(x, candidate, weight, self.isolate_gradients, heard)

    def _grown(self, entry: Tensor, read: Tensor | None, heard: bool) -> Tensor:
        """What the seed puts in the place of `entry`; around a weight it adds its map of `read`."""
        assert (read is None) == (self.spec.in_dim is None), "a slot around a weight is told what the weight reads"
        seed = self._module
        source = entry if read is None else tap(read, self.alpha, self.isolate_gradients, heard)
        if self._backend is not None and torch.is_grad_enabled():
            source.requires_grad_()  # an isolated seed so shares its graphs with one that is part of the host
        grown: Tensor = seed(source)
        return grown if read is None else entry + grown

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

    def _sync_alpha(self) -> None:
        self.alpha.fill_(0.0 if self.state is None else self.state.alpha.alpha)
