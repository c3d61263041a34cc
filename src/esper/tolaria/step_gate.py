"""The step gate: reads a step's loss and gradients before the optimiser does, so that weights never see a bad one.

Host and seeds are read apart: a seed in isolation can be broken while its host is sound, and then only the seed's own
step is dropped. One copy to the CPU per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.kasmina.gradient_health import _batched_grad_norm
from esper.kasmina.groups import host_parameters
from esper.kasmina.model import GrowingModel


@dataclass(frozen=True)
class Reading:
    """One step before the optimiser takes it."""

    loss: float  # mean over the batch, in nats
    host_norm: float  # of the gradient of all host parameters
    broken: tuple[str, ...]  # slots whose seed has a gradient that is not finite

    @property
    def finite(self) -> bool:
        """Whether the host may take the step."""
        return math.isfinite(self.loss) and math.isfinite(self.host_norm)


class StepGate:
    """For a model as it is built now; make another one when its structure changes."""

    def __init__(self, model: GrowingModel) -> None:
        self._host = [param for _, param in host_parameters(model)]
        self._seeds = {slot_id: params for slot_id, slot in model.slots.items() if (params := [*slot.parameters()])}
        # A forward pass writes running statistics and their count, which a skipped step must not leave behind. The
        # slots' own numbers change between epochs only.
        own = {id(buffer) for slot in model.slots.values() for buffer in slot.buffers(recurse=False)}
        self._buffers = [buffer for buffer in model.buffers() if id(buffer) not in own]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Call before the forward pass: what `undo` goes back to."""
        _copy(self._buffers, self._kept)

    def read(self, loss: Tensor) -> Reading:
        """Call after the backward pass. loss: 0-dim. The one synchronisation of a step."""
        found = [loss, *(_norm(params, loss) for params in (self._host, *self._seeds.values()))]
        # On a CPU a number is read in a tenth of the time that a stack takes.
        value, host, *seeds = torch.stack(found).tolist() if loss.is_cuda else map(float, found)
        broken = tuple(slot_id for slot_id, norm in zip(self._seeds, seeds, strict=True) if not math.isfinite(norm))
        return Reading(value, host, broken)

    def undo(self) -> None:
        """The forward pass leaves nothing behind."""
        _copy(self._kept, self._buffers)

    def drop(self, slot_id: str) -> None:
        """The optimiser passes over this slot's seed and its gate, moments included."""
        for param in self._seeds[slot_id]:
            param.grad = None


def _norm(params: list[nn.Parameter], like: Tensor) -> Tensor:
    """0-dim, dtype and device of `like`."""
    return _batched_grad_norm([param.grad for param in params if param.grad is not None]).to(like)


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        with torch.no_grad():
            for old, new in zip(source, target, strict=True):
                new.copy_(old)
