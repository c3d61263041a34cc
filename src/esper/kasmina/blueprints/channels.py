"""`channel_ladder`: a convolution for images [N, C, H, W] that is switched on some output channels at a time.

A rung normalises all C channels and convolves them, 3x3, into its own group of channels; every rung reads the seed's
input, so that the level says how many channels are corrected and nothing else. Work and parameters follow it: a rung
of g channels costs 9 C g multiply-adds per place, the whole ladder as much as one 3x3 convolution from C to C. A rung
that went C -> g -> C instead would correct every channel from level 1 on, and the level would not say how many.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.blueprints.cnn import group_norm
from esper.kasmina.blueprints.layers import zeroed
from esper.kasmina.blueprints.registry import blueprint
from esper.kasmina.ladder import Ladder
from esper.leyline.seed_internal import SeedInternalKind

GROUP_SIZE = 16


def even_groups(count: int, groups: int) -> tuple[range, ...]:
    """0 .. count - 1 in so many neighbourly groups, whose sizes differ by one at most, the larger ones first."""
    size, larger = divmod(count, groups)
    ends = [index * size + min(index, larger) for index in range(groups + 1)]
    return tuple(range(*pair) for pair in pairwise(ends))


def channel_groups(channels: int, size: int = GROUP_SIZE) -> tuple[range, ...]:
    """The channels in as few groups of at most `size` as there can be, as even as can be.

    A function of its arguments alone, so every host and every rank has the same: 16 is one group, 17 is 9 + 8,
    48 is three of 16, 100 is two of 15 and five of 14.
    """
    return even_groups(channels, -(-channels // size))


class GroupConvolution(nn.Module):
    """What is added to one group of channels: zero elsewhere, [N, C, H, W] as it comes."""

    def __init__(self, dim: int, group: range) -> None:
        super().__init__()
        self.norm = group_norm(dim)
        self.conv = zeroed(nn.Conv2d(dim, len(group), 3, padding=1, bias=False))
        self.around = (0, 0, 0, 0, group.start, dim - group.stop)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.conv(torch.relu(self.norm(x))), self.around)


@blueprint(
    "channel_ladder",
    "a 3x3 convolution into groups of up to 16 channels, switched one by one; 9C^2 + 2CG with G groups",
    "NCHW",
    kind=SeedInternalKind.CHANNEL_LADDER,
    standard=False,
)
def channel_ladder(dim: int) -> nn.Module:
    groups = channel_groups(dim)
    rungs = [GroupConvolution(dim, group) for group in groups]
    return Ladder(SeedInternalKind.CHANNEL_LADDER, rungs, chained=False, group_size=len(groups[0]))
