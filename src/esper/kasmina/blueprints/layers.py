"""Layers that blueprints of every layout are made of."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zeroed(layer: Layer) -> Layer:
    """The layer, starting at zero: put it last. It has no bias."""
    assert layer.bias is None
    nn.init.zeros_(layer.weight)
    return layer


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        corrected: Tensor = x + self.body(x)
        return corrected


class ScaledNorm(nn.Module):
    """x + scale * norm(x), the scale starting at zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        corrected: Tensor = x + self.scale * self.norm(x)
        return corrected
