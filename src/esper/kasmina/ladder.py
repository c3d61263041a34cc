"""Ladders: seeds made of rungs that can be switched on and off between epochs.

A rung maps what it reads to a correction; it ends in a layer that starts at zero, so switching on a rung that was
never used moves nothing. A chained rung reads x as those before it have corrected it, one that is not reads x. Active
rungs are a tuple of flags that changes only between epochs, so that each rung is a compiled region of its own and an
inactive one neither runs nor gets a gradient (optimisers skip parameters without one: weights and moments stay as they
are). `masked` is the same function with a mask tensor, for stacked hosts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.kasmina.isolation import tap
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.seed_internal import SeedInternalKind


class Ladder(nn.Module):
    """An ordered inventory of rungs; the level is how many are active, and level 0 is the exact identity.

    around: the slot of a ladder around a weight, which returns the sum of its corrections alone, zero at level 0; None
    of a ladder in a cut, which adds them to what it reads.
    group_size: channels or heads of a whole group where each rung is one; None where rungs are no groups.
    """

    def __init__(
        self,
        kind: SeedInternalKind,
        rungs: Sequence[nn.Module],
        chained: bool = True,
        around: InjectionSpec | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        assert around is None or not chained, "a sum of corrections is no input for the next one"
        self.kind = kind
        self.chained = chained
        self.around = around
        self.group_size = group_size
        self.rungs = nn.ModuleList(rungs)
        self.max_level = len(rungs)  # stays when unused rungs are removed
        self.active: tuple[bool, ...] = (False,) * len(rungs)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.around is None else None
        for is_active, rung in zip(self.active, self.rungs, strict=False):
            if is_active:
                correction: Tensor = rung(out if self.chained else x)
                out = correction if out is None else out + correction
        return self._nothing_added(x) if out is None else out

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """Like forward with the active rungs given by `mask` [rungs] bool; every rung runs.

        Of a rung that is off nothing is heard, forward or backward, even if its weights are not finite.
        """
        out = self._nothing_added(x)
        for index, rung in enumerate(self.rungs):
            read = tap(out if self.chained else x, mask[index], isolated=False)
            out = torch.where(mask[index], out + rung(read), out)
        return out

    def _nothing_added(self, x: Tensor) -> Tensor:
        return x if self.around is None else x.new_zeros(self.around.shape_after(x.shape))

    @property
    def level(self) -> int:
        return sum(self.active)

    def set_active(self, active: Sequence[bool]) -> None:
        """Between epochs only. Gradients of rungs that are switched off are dropped."""
        assert len(active) == self.max_level, f"{len(active)} flags for {self.max_level} rungs"
        assert not any(active[len(self.rungs) :]), "a rung that was removed cannot be switched on"
        self.active = tuple(active)
        for is_active, rung in zip(self.active, self.rungs, strict=False):
            if not is_active:
                for param in rung.parameters():
                    param.grad = None

    def grow(self) -> None:
        """Switches on the first rung that is off."""
        self.set_active(_flipped(self.active, self.active.index(False)))

    def shrink(self) -> None:
        """Switches off the last rung that is on."""
        self.set_active(_flipped(self.active, self.max_level - 1 - self.active[::-1].index(True)))

    def remove_unused(self) -> int:
        """Removes the rungs above the highest active one for good; returns the parameters removed.

        Inactive rungs below an active one stay: places in the tuple are addresses.
        """
        keep = self.max_level - self.active[::-1].index(True) if any(self.active) else 0
        removed = count_params(nn.ModuleList(list(self.rungs)[keep:]))
        self.rungs = nn.ModuleList(list(self.rungs)[:keep])
        return removed

    @property
    def effective_params(self) -> int:
        return sum(count_params(rung) for on, rung in zip(self.active, self.rungs, strict=False) if on)


def _flipped(flags: tuple[bool, ...], index: int) -> tuple[bool, ...]:
    return (*flags[:index], not flags[index], *flags[index + 1 :])


def count_params(module: nn.Module) -> int:
    """Trainable or not, each tensor once."""
    return sum(param.numel() for param in module.parameters())
