"""Where a host offers a slot: after which part of it, or around which weight, how wide, in which layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from esper.leyline.errors import ConfigError
from esper.leyline.slot_id import parse_slot_id, slot_sort_key

Layout = Literal["NCHW", "BTC", "BC"]
"""Axes of the tensor at a slot: images [N, C, H, W], sequences [B, T, C], vectors [B, C]. `dim` is C."""

Place = Layout | Literal["weight", "conv"]
"""What a seed has to be built for: a layout where the slot stands in a cut, or the weight that it stands around, which
is that of a Linear or that of a convolution."""


class InjectionSurface(IntEnum):
    """What the host has just done where the slot stands. Values are stored and never change."""

    BLOCK_END = 0
    POST_ATTN = 1
    POST_MLP = 2
    PRE_POOL = 3
    POST_POOL = 4


@dataclass(frozen=True)
class Convolution:
    """How a convolution of images, its channels all connected, reads them: rows, then columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)  # or `same` or `valid`
    dilation: tuple[int, int] = (1, 1)
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros"

    @property
    def taps(self) -> int:
        """Pixels that it reads of each channel for each pixel that it writes."""
        return self.kernel[0] * self.kernel[1]

    def pixels(self, side: int, axis: int) -> int:
        """How many it writes along an axis (0: rows, 1: columns) on which it reads `side`."""
        if self.padding == "same":
            return side
        padded = side + 2 * (0 if isinstance(self.padding, str) else self.padding[axis])
        return (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1


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
    in_dim: int | None = None  # channels that the weight reads around which the slot stands; None in a cut
    convolution: Convolution | None = None  # how that weight is applied; None where it is a Linear's, and in a cut

    def __post_init__(self) -> None:
        parse_slot_id(self.slot_id)
        if self.in_dim is not None and self.in_dim < 1:
            raise ConfigError(f"slot {self.slot_id}: in_dim {self.in_dim} must be at least 1")
        assert self.convolution is None or (self.in_dim is not None and self.layout == "NCHW")
        if self.dim < 1 or self.order < 0:
            raise ConfigError(f"slot {self.slot_id}: dim {self.dim} and order {self.order} must be at least 1 and 0")

    @property
    def place(self) -> Place:
        if self.in_dim is None:
            return self.layout
        return "weight" if self.convolution is None else "conv"

    @property
    def width(self) -> int:
        """The narrower side of what a seed maps: no map through here has a higher rank."""
        taps = 1 if self.convolution is None else self.convolution.taps
        return self.dim if self.in_dim is None else min(self.in_dim * taps, self.dim)

    def shape_after(self, read: Sequence[int]) -> tuple[int, ...]:
        """Of what a seed adds that reads a tensor of shape `read`: in a cut the same, else that of the weight's output.

        read: [N, ..., in_dim] around a Linear, [N, in_dim, H, W] around a convolution.
        """
        if self.in_dim is None:
            return tuple(read)
        if self.convolution is None:
            return (*read[:-1], self.dim)
        sides = (self.convolution.pixels(side, axis) for axis, side in enumerate(read[-2:]))
        return (*read[:-3], self.dim, *sides)

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
