"""A small blueprint for sequences [B, T, C]; the fixture `on_the_shelf` registers it for the length of a test."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.blueprints.registry import Blueprint

NAME = "small_for_sequences"


class Small(nn.Module):
    """x + a two-layer network with two hidden channels; the identity at first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, 2, bias=False), nn.Linear(2, dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


SMALL = Blueprint(NAME, "for tests", ("BTC",), Small)
