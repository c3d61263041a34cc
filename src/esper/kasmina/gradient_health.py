"""How strongly a seed is being trained, compared with its host: what gate G2 and controllers look at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RATIO_CEILING = 10.0


def _batched_grad_norm(grads: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a 0-dim tensor; 0 for an empty list."""
    if not grads:
        return torch.zeros(())
    # One norm of all, laid end to end: a third of the time of one norm each and one of these, at 11 small tensors.
    norm: Tensor = torch.linalg.vector_norm(torch.cat([grad.reshape(-1) for grad in grads]))
    return norm


def grad_norm(params: Iterable[nn.Parameter]) -> float:
    """Norm over the parameters that have a gradient. Not finite where one of them is not."""
    return float(_batched_grad_norm([param.grad for param in params if param.grad is not None]))


@dataclass
class GradientHealthMonitor:
    """Seed norm, host norm and their smoothed ratio per parameter.

    ratio = (|seed| / |host|) * sqrt(host parameters / seed parameters), at most 10, so that 1 means that an
    average weight of the seed is pulled as hard as an average weight of the host.
    """

    smoothing: float = 0.5  # weight of the past
    seed_norm: float | None = None
    host_norm: float | None = None
    ratio: float | None = None
    broken: bool = False  # the last gradient was not finite

    def record(self, seed_norm: float, host_norm: float, seed_params: int, host_params: int) -> None:
        self.broken = not math.isfinite(seed_norm)
        if self.broken or not math.isfinite(host_norm):
            return
        self.seed_norm, self.host_norm = seed_norm, host_norm
        if host_norm > 0.0 and seed_params > 0:
            ratio = min(seed_norm / host_norm * math.sqrt(host_params / seed_params), RATIO_CEILING)
            past = ratio if self.ratio is None else self.ratio
            self.ratio = self.smoothing * past + (1 - self.smoothing) * ratio
