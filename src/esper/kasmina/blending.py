"""How a seed joins the host: one table of formulas, and the gate that one of them uses while BLENDING.

Every formula is `lerp(host, candidate, weight)`. ADD: the candidate is the seed's output and the weight alpha.
MULTIPLY: the candidate is host * (1 + tanh(seed - host)). GATE: as ADD with one weight per item,
alpha * (g + alpha * (1 - g)), g = gate(x) in (0, 1): it tends to 1 with alpha, so that dropping the gate
at alpha 1 moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esper.leyline.injection_spec import Layout
from esper.leyline.reports import BlendName

Candidate = Callable[[Tensor, Tensor], Tensor]


def _multiply(x: Tensor, seed_output: Tensor) -> Tensor:
    return x * (1 + torch.tanh(seed_output - x))


CANDIDATES: dict[BlendName, Candidate] = {
    "ADD": lambda _x, seed_output: seed_output,
    "MULTIPLY": _multiply,
    "GATE": lambda _x, seed_output: seed_output,
}
GATED: frozenset[BlendName] = frozenset({"GATE"})

_POOLED_AXES: dict[Layout, tuple[int, ...]] = {"NCHW": (2, 3), "BTC": (1,), "BC": ()}


class BlendGate(nn.Module):
    """One number in (0, 1) per item: mean over positions -> Linear -> ReLU -> Linear -> sigmoid."""

    def __init__(self, dim: int, layout: Layout) -> None:
        super().__init__()
        hidden = max(8, dim // 4)
        self.layout: Layout = layout
        self.score = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, ...] in this gate's layout. Returns [N, 1, ...] with as many axes as x."""
        axes = _POOLED_AXES[self.layout]
        pooled = x.mean(axes) if axes else x
        gate: Tensor = torch.sigmoid(self.score(pooled))
        return gate.reshape(-1, *(1,) * (x.dim() - 1))


def gated_weight(alpha: Tensor, gate: Tensor) -> Tensor:
    """alpha * (g + alpha * (1 - g)): 0 at alpha 0, 1 at alpha 1, whatever g is."""
    return alpha * (gate + alpha * (1 - gate))
