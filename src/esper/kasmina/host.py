"""Hosts as chains of segments: slots stand in the cuts, so routing is one loop, written once.

`Host` is what to subclass: fill `segments` and `specs`. `CNNHost` is the convolutional family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.cnn import group_norm
from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, in_order
from esper.leyline.slot_id import format_slot_id, parse_slot_id


class Host(nn.Module):
    """A network as a chain of modules. A slot with `host_block` i stands after segment i."""

    def __init__(self, segments: Iterable[nn.Module], specs: Iterable[InjectionSpec], isolate_blending: bool) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.injection_specs = in_order(specs)
        self.isolate_blending = isolate_blending
        self._cut = {spec.slot_id: spec.host_block + 1 for spec in self.injection_specs}
        cuts = list(self._cut.values())
        assert cuts == sorted(set(cuts)), "slots must stand after different segments, in order"
        assert all(cut <= len(self.segments) for cut in cuts)

    @property
    def injection_points(self) -> Mapping[str, int]:
        return {spec.slot_id: spec.dim for spec in self.injection_specs}

    @property
    def slot_order(self) -> tuple[str, ...]:
        return tuple(self._cut)

    def cut_of(self, slot_id: str) -> int:
        """How many segments lie before the slot. Raises ConfigError for a slot this host lacks."""
        if slot_id not in self._cut:
            parse_slot_id(slot_id, self._cut)
            raise ConfigError(f"slot {slot_id!r} is not in this host; it has {', '.join(self._cut)}")
        return self._cut[slot_id]

    def cuts_between(self, from_slot_id: str, slot_id: str) -> tuple[int, int]:
        """The cuts of two slots. Raises ConfigError if `slot_id` comes before `from_slot_id`."""
        start, stop = self.cut_of(from_slot_id), self.cut_of(slot_id)
        if start > stop:
            raise ConfigError(f"slot {slot_id!r} comes before {from_slot_id!r} in this host")
        return start, stop

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Segments start .. stop - 1."""
        return through(islice(self.segments, start, stop), x)

    def enter(self, x: Tensor) -> Tensor:
        """What happens to the input once, before the first segment."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.enter(x), 0, len(self.segments))

    def forward_to(self, slot_id: str, x: Tensor, from_slot_id: str | None = None) -> Tensor:
        """From the input, or from just after `from_slot_id`, to the boundary where `slot_id` stands."""
        if from_slot_id is None:
            return self.run(self.enter(x), 0, self.cut_of(slot_id))
        return self.run(x, *self.cuts_between(from_slot_id, slot_id))

    def forward_from(self, slot_id: str, x: Tensor) -> Tensor:
        """From just after `slot_id` to the output."""
        return self.run(x, self.cut_of(slot_id), len(self.segments))


def through(segments: Iterable[nn.Module], x: Tensor) -> Tensor:
    """One segment after the other."""
    for segment in segments:
        x = segment(x)
    return x


@dataclass(frozen=True)
class CNNConfig:
    """A plain convolutional classifier: `n` blocks of 3x3 (or 1x1) convolution, norm, ReLU and perhaps a 2x2 pool."""

    widths: tuple[int, ...]  # channels of each block; two blocks or more
    pools: tuple[bool, ...]  # whether a block ends in a 2x2 max pool
    in_channels: int = setting(1, low=1)
    classes: int = setting(10, low=2)
    kernel: int = setting(3, low=1, help="1 or 3")
    channels_last: bool = setting(False, help="memory format inside; the input is converted once")

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.widths) < 2:
            raise ConfigError(f"a CNN host of {len(self.widths)} block: it needs two blocks or more to have a slot")
        if len(self.pools) != len(self.widths) or min(self.widths) < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"a CNN host of widths {self.widths}, pools {self.pools}, kernel {self.kernel}: "
                "give one pool flag per width, widths of at least 1 and an odd kernel"
            )


class CNNHost(Host):
    """n blocks give the slots r0c0 ... r0c{n-1}, one after each block; the classifier head follows."""

    def __init__(self, config: CNNConfig) -> None:
        blocks: list[nn.Module] = []
        previous = config.in_channels
        for width, pool in zip(config.widths, config.pools, strict=True):
            blocks.append(_block(previous, width, config.kernel, pool))
            previous = width
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, config.classes))
        super().__init__([*blocks, head], _block_ends(config.widths), isolate_blending=True)
        self.config = config
        if config.channels_last:
            for param in self.parameters():
                if param.dim() == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)

    def enter(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.config.channels_last else x


def _block(inputs: int, outputs: int, kernel: int, pool: bool) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        group_norm(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def _block_ends(widths: Sequence[int]) -> list[InjectionSpec]:
    return [
        InjectionSpec(
            slot_id=format_slot_id(0, block),
            dim=width,
            layout="NCHW",
            surface=InjectionSurface.BLOCK_END,
            order=block,
            host_layer=block,
            host_block=block,
        )
        for block, width in enumerate(widths)
    ]
