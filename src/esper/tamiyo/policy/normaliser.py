"""Running statistics of observations, by which a network's inputs are brought to mean 0 and deviation 1.

A number that has not moved yet has no deviation to go by; its unit is the width of its sensor's declared range, so that
its first move reads as what it is, a share of that range, and not as the greatest surprise there can be.

Frozen while a rollout is collected and learned from; `update` is called once after each. Flags stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LIMIT = 10.0
_LEAST_DEVIATION = 1e-3  # of a number that has moved
_ROUNDING = 1e-6  # a number that deviates less has not moved


class RunningNormaliser(nn.Module):
    """Mean and variance of every number since the first observation, in float64; saved with the module around it."""

    mean: Tensor
    var: Tensor
    count: Tensor
    is_flag: Tensor
    span: Tensor

    def __init__(self, spans: Sequence[float | None]) -> None:
        """spans: of every feature the width of its declared range, above 0, or None for a flag, which is left alone."""
        super().__init__()
        size = len(spans)
        widths = [1.0 if span is None else span for span in spans]
        assert min(widths, default=1.0) > 0, f"the width of a range is {min(widths)}, want more than 0"
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("is_flag", torch.tensor([span is None for span in spans], dtype=torch.bool))
        # Declared, not learned: no part of what is saved.
        self.register_buffer("span", torch.tensor(widths, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., F] float32. Returns the same shape, numbers within [-10, 10]; as it is before the first update."""
        if self.count == 0:
            return x
        deviation = self.var.sqrt()
        unit = torch.where(deviation > _ROUNDING, deviation.clamp(min=_LEAST_DEVIATION), self.span)
        scaled = ((x - self.mean) / unit).clamp(-LIMIT, LIMIT).to(x.dtype)
        return torch.where(self.is_flag, x, scaled)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in observations x [..., F] (Chan's parallel form of Welford's recurrence)."""
        rows = x.reshape(-1, x.shape[-1]).double()
        if rows.shape[0] == 0:
            return
        count = self.count + rows.shape[0]
        mean, var = rows.mean(0), rows.var(0, unbiased=False)
        delta = mean - self.mean
        spread = self.var * self.count + var * rows.shape[0]
        spread = spread + delta.square() * self.count * rows.shape[0] / count
        self.mean.add_(delta * rows.shape[0] / count)
        self.var.copy_(spread / count)
        self.count.copy_(count)
