"""Where a host offers a slot: after which part of it, or around which weight, how wide, in which layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from esper.leyline.errors import ConfigError
from esper.leyline.slot_id import parse_slot_id, slot_sort_key

Layout = Literal["NCHW", "BTC", "BC"]
"""Axes of the tensor at a slot: images [N, C, H, W], sequences [B, T, C], vectors [B, C]. `dim` is C."""

Place = Layout | Literal["weight"]
"""What a seed has to be built for: a layout where the slot stands in a cut, or a weight that it stands around."""


class InjectionSurface(IntEnum):
    """What the host has just done where the slot stands. Values are stored and never change."""

    BLOCK_END = 0
    POST_ATTN = 1
    POST_MLP = 2
    PRE_POOL = 3
    POST_POOL = 4


@dataclass(frozen=True)
class InjectionSpec:
    """One surface of a host. `order` is its place in the order of execution and is authoritative."""

    slot_id: str
    dim: int  # channels
    layout: Layout
    surface: InjectionSurface
    order: int  # 0, 1, 2, ... along the forward pass
    host_layer: int  # index of the host's layer or block that ends here
    host_block: int  # index of the segment after which the slot stands
    in_dim: int | None = None  # inputs of the Linear that the slot stands around, `dim` its outputs; None in a cut

    def __post_init__(self) -> None:
        parse_slot_id(self.slot_id)
        if self.in_dim is not None and self.in_dim < 1:
            raise ConfigError(f"slot {self.slot_id}: in_dim {self.in_dim} must be at least 1")
        if self.dim < 1 or self.order < 0:
            raise ConfigError(f"slot {self.slot_id}: dim {self.dim} and order {self.order} must be at least 1 and 0")

    @property
    def place(self) -> Place:
        return self.layout if self.in_dim is None else "weight"

    @property
    def width(self) -> int:
        """The narrower side of what a seed maps: no map through here has a higher rank."""
        return self.dim if self.in_dim is None else min(self.in_dim, self.dim)

    def position(self, surfaces: int) -> float:
        """Relative depth in (0, 1] for drawing, given how many surfaces the host has."""
        return (self.order + 1) / surfaces


def in_order(specs: Iterable[InjectionSpec]) -> tuple[InjectionSpec, ...]:
    """Specs by execution order; refuses hosts whose order is not row-major or not 0, 1, 2, ..."""
    ordered = tuple(sorted(specs, key=lambda spec: spec.order))
    ids = [spec.slot_id for spec in ordered]
    if [spec.order for spec in ordered] != list(range(len(ordered))):
        raise ConfigError(f"slots {', '.join(ids)}: orders must be 0, 1, 2, ... without gaps")
    if len(set(ids)) != len(ids) or ids != sorted(ids, key=slot_sort_key):
        raise ConfigError(f"slots {', '.join(ids)}: ids must be distinct and run row by row along the forward pass")
    return ordered
