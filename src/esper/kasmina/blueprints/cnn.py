"""Blueprints for images [N, C, H, W]; `channels.py` has one more. Parameter counts are for C channels."""

from __future__ import annotations

from torch import Tensor, nn

from esper.kasmina.blueprints.layers import Residual, ScaledNorm, zeroed
from esper.kasmina.blueprints.registry import blueprint
from esper.kasmina.ladder import Ladder
from esper.leyline.seed_internal import SeedInternalKind

CONV_LADDER_RUNGS = 4


def group_norm(dim: int) -> nn.GroupNorm:
    """As many groups as divide `dim`, at most 8, with at least 4 channels each where there are that many."""
    wanted = max(1, min(8, dim // 4))
    groups = next(count for count in range(wanted, 0, -1) if dim % count == 0)
    return nn.GroupNorm(groups, dim)


class ChannelAttention(nn.Module):
    """Squeeze and excite (Hu et al. 2018): x * (1 + z), z linear in a small code of the channel means."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(1, dim // 4)
        self.squeeze = nn.Conv2d(dim, hidden, 1)
        self.excite = zeroed(nn.Conv2d(hidden, dim, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        # Not ReLU: its few units see means that are all positive, so one that starts below zero is often so for every
        # image. With ReLU one seed in five of 4 channels, one in fifty of 8, was born dead (400 draws, random images).
        code = nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        excited: Tensor = x * (1 + self.excite(code))
        return excited


def _conv3(dim: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=groups, bias=False)


def _stage(dim: int) -> list[nn.Module]:
    """One pre-activation convolution that starts at zero: 9C^2 + 2C parameters."""
    return [group_norm(dim), nn.ReLU(), zeroed(_conv3(dim))]


@blueprint("norm", "scaled group norm; 2C + 1 parameters", "NCHW")
def norm(dim: int) -> nn.Module:
    return ScaledNorm(group_norm(dim))


@blueprint("attention", "squeeze-excite over channels; about C^2 / 2", "NCHW")
def attention(dim: int) -> nn.Module:
    return ChannelAttention(dim)


@blueprint("depthwise", "depthwise 3x3, then 1x1; C^2 + 11C", "NCHW")
def depthwise(dim: int) -> nn.Module:
    pointwise = zeroed(nn.Conv2d(dim, dim, 1, bias=False))
    return Residual(_conv3(dim, groups=dim), group_norm(dim), nn.ReLU(), pointwise)


@blueprint("bottleneck", "1x1 down, 3x3, 1x1 up; 2Cb + 9b^2 + 4b with b = max(8, C/4)", "NCHW")
def bottleneck(dim: int) -> nn.Module:
    inner = max(8, dim // 4)
    return Residual(
        nn.Conv2d(dim, inner, 1, bias=False),
        group_norm(inner),
        nn.ReLU(),
        _conv3(inner),
        group_norm(inner),
        nn.ReLU(),
        zeroed(nn.Conv2d(inner, dim, 1, bias=False)),
    )


@blueprint("conv_small", "one 1x1 convolution; C^2 + 2C", "NCHW")
def conv_small(dim: int) -> nn.Module:
    return Residual(group_norm(dim), nn.ReLU(), zeroed(nn.Conv2d(dim, dim, 1, bias=False)))


@blueprint("conv_light", "one 3x3 convolution; 9C^2 + 2C", "NCHW")
def conv_light(dim: int) -> nn.Module:
    return Residual(*_stage(dim))


@blueprint("conv_heavy", "two 3x3 convolutions; 18C^2 + 4C", "NCHW")
def conv_heavy(dim: int) -> nn.Module:
    return Residual(group_norm(dim), nn.ReLU(), _conv3(dim), *_stage(dim))


@blueprint(
    "conv_ladder",
    "up to four residual 3x3 stages, switched one by one; 9C^2 + 2C each",
    "NCHW",
    kind=SeedInternalKind.CONV_LADDER,
    standard=False,
)
def conv_ladder(dim: int) -> nn.Module:
    stages = [nn.Sequential(*_stage(dim)) for _ in range(CONV_LADDER_RUNGS)]
    return Ladder(SeedInternalKind.CONV_LADDER, stages)
