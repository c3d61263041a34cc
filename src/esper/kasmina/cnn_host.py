"""The convolutional family of hosts: blocks with a slot after each, at its pool or around its convolution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.cnn import group_norm
from esper.kasmina.host import Host
from esper.kasmina.sited_host import SitedHost
from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.slot_id import format_slot_id

_CONVOLUTION = "0"  # its place in a block
CNNCut = Literal["blocks", "pools", "weights"]


@dataclass(frozen=True)
class CNNConfig:
    """A plain convolutional classifier: `n` blocks of 3x3 (or 1x1) convolution, norm, ReLU and perhaps a 2x2 pool."""

    widths: tuple[int, ...]  # channels of each block; two blocks or more
    pools: tuple[bool, ...]  # whether a block ends in a 2x2 max pool
    in_channels: int = setting(1, low=1)
    classes: int = setting(10, low=2)
    kernel: int = setting(3, low=1, help="1 or 3")
    channels_last: bool = setting(False, help="memory format inside; the input is converted once")
    cut: CNNCut = setting("blocks", help="slots after each block, on both sides of its pool or around its weight")
    frozen: bool = setting(False, help="its weights stay as they are; seeds alone learn")

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.widths) < 2:
            raise ConfigError(f"a CNN host of {len(self.widths)} block: it needs two blocks or more to have a slot")
        if len(self.pools) != len(self.widths) or min(self.widths) < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"a CNN host of widths {self.widths}, pools {self.pools}, kernel {self.kernel}: "
                "give one pool flag per width, widths of at least 1 and an odd kernel"
            )

    @property
    def scale(self) -> tuple[int, ...]:
        """What makes the host larger: channels of each block."""
        return self.widths

    def scaled(self, factor: float) -> CNNConfig:
        """The same host with about `factor` times the channels in every block."""
        return replace(self, widths=tuple(max(1, round(width * factor)) for width in self.widths))

    @property
    def described(self) -> str:
        """Its size, as the settings name it."""
        return f"task.widths: {list(self.widths)}"

    def build(self) -> CNNHost | SitedHost:
        """The host; draws its weights from torch's global generator, the same under every cut.

        Cut at its weights its slots are those of the blocks, each around its block's convolution.
        """
        if self.cut == "weights":
            return SitedHost(CNNHost(replace(self, cut="blocks")), _CONVOLUTION, self.entered)
        return CNNHost(self)

    def entered(self, x: Tensor) -> Tensor:
        """Images in the memory format of the host."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


class CNNHost(Host):
    """Images [N, C, H, W] to logits [N, classes]. Not for the cut `weights`.

    Cut into blocks, n blocks give the slots r0c0 ... r0c{n-1}, one after each. Cut at pools, block b gives r{b}c0
    before its pool and r{b}c1 after it; a block without a pool has the first only. The classifier head follows. The
    weights drawn are the same under every cut. A frozen host's parameters need no gradient.
    """

    def __init__(self, config: CNNConfig) -> None:
        segments: list[nn.Module] = []
        specs: list[InjectionSpec] = []
        previous = config.in_channels
        for block, (width, pool) in enumerate(zip(config.widths, config.pools, strict=True)):
            for column, (surface, segment) in enumerate(_parts(previous, width, pool, config)):
                row, place = (0, block) if config.cut == "blocks" else (block, column)
                slot_id = format_slot_id(row, place)
                specs.append(InjectionSpec(slot_id, width, "NCHW", surface, len(specs), block, len(segments)))
                segments.append(segment)
            previous = width
        segments.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, config.classes)))
        super().__init__(segments, specs, isolate_blending=True)
        self.config = config
        if config.frozen:
            self.requires_grad_(False)
        if config.channels_last:
            for param in self.parameters():
                if param.dim() == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)

    def enter(self, x: Tensor) -> Tensor:
        return self.config.entered(x)


def _parts(inputs: int, outputs: int, pool: bool, config: CNNConfig) -> list[tuple[InjectionSurface, nn.Module]]:
    """The segments of one block, each with the surface that it ends in."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, config.kernel, padding=config.kernel // 2, bias=False),
        group_norm(outputs),
        nn.ReLU(),
    ]
    if config.cut == "blocks":
        whole = nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)
        return [(InjectionSurface.BLOCK_END, whole)]
    before = (InjectionSurface.PRE_POOL, nn.Sequential(*layers))
    return [before, (InjectionSurface.POST_POOL, nn.MaxPool2d(2))] if pool else [before]
