"""Maps of low rank (LoRA, Hu et al. 2022): added to sequences [B, T, C] in a cut, or to a weight's output around it.

A map is scale * B A x with A [r, I] drawn like a Linear's weight and B [C, r] zero. Around a convolution A is one of
the same geometry to r channels and B one of 1x1, as PEFT has them. The scale is the same for every rank (alpha is twice
the rank, in LoRA's own terms), so that a ladder that grows by a block leaves the others as they are. Around a weight
any of them can be merged into it: `kasmina/weight_site.py`.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor, nn

from esper.kasmina.blueprints.layers import Residual, zeroed
from esper.kasmina.blueprints.registry import blueprint, weight_blueprint
from esper.kasmina.ladder import Ladder
from esper.leyline.injection_spec import Convolution, InjectionSpec
from esper.leyline.seed_internal import SeedInternalKind

LORA_SCALE = 2.0
RANK, LARGE_RANK = 8, 32
LADDER_BLOCKS = (4, 4, 8, 16)  # ranks of the rungs: 4, 8, 16 and 32 at levels 1 to 4


class LowRank(nn.Module):
    """scale * B A x: what the weight reads to what it returns, zero at birth."""

    def __init__(self, inputs: int, outputs: int, rank: int, convolution: Convolution | None = None) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d  # A
        self.up: nn.Linear | nn.Conv2d  # B
        if convolution is None:
            self.down = nn.Linear(inputs, rank, bias=False)
            self.up = zeroed(nn.Linear(rank, outputs, bias=False))
        else:
            self.down = _alike(convolution, inputs, rank)
            self.up = zeroed(nn.Conv2d(rank, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.up(LORA_SCALE * self.down(x))
        return mapped


def _alike(of: Convolution, inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution of the same geometry without a bias."""
    return nn.Conv2d(
        inputs,
        outputs,
        of.kernel,
        of.stride,
        of.padding,
        of.dilation,
        bias=False,
        padding_mode=of.padding_mode,
    )


def low_rank_parts(seed: nn.Module) -> list[LowRank]:
    """The maps whose sum a seed around a weight is; of a ladder those that are switched on."""
    if isinstance(seed, Ladder):
        parts = [rung for is_active, rung in zip(seed.active, seed.rungs, strict=False) if is_active]
    else:
        parts = [seed]
    maps = [part for part in parts if isinstance(part, LowRank)]
    assert len(maps) == len(parts), "a seed around a weight is made of maps of low rank"
    return maps


def _around(spec: InjectionSpec, rank: int) -> LowRank:
    assert spec.in_dim is not None
    return LowRank(spec.in_dim, spec.dim, rank, spec.convolution)


@blueprint("lora", "residual map of rank 8; 16C parameters", "BTC", rank=RANK)
def lora(dim: int) -> nn.Module:
    return Residual(LowRank(dim, dim, RANK))


@weight_blueprint("lora", "map of rank 8; 8C + 8KI parameters with K taps on I channels", "conv", rank=RANK)
@weight_blueprint("lora", "map of rank 8; 8C + 8I parameters with I inputs", "weight", rank=RANK)
def lora_around(spec: InjectionSpec) -> nn.Module:
    return _around(spec, RANK)


@blueprint("lora_large", "residual map of rank 32; 64C parameters", "BTC", rank=LARGE_RANK)
def lora_large(dim: int) -> nn.Module:
    return Residual(LowRank(dim, dim, LARGE_RANK))


@weight_blueprint(
    "lora_large", "map of rank 32; 32C + 32KI parameters with K taps on I channels", "conv", rank=LARGE_RANK
)
@weight_blueprint("lora_large", "map of rank 32; 32C + 32I parameters with I inputs", "weight", rank=LARGE_RANK)
def lora_large_around(spec: InjectionSpec) -> nn.Module:
    return _around(spec, LARGE_RANK)


@blueprint(
    "lora_ladder",
    "residual maps of rank 4, 4, 8 and 16, switched one by one to rank 4, 8, 16 and 32; 64C parameters",
    "BTC",
    kind=SeedInternalKind.LORA_LADDER,
    standard=False,
    rank=sum(LADDER_BLOCKS),
)
def lora_ladder(dim: int) -> nn.Module:
    return Ladder(SeedInternalKind.LORA_LADDER, [LowRank(dim, dim, rank) for rank in LADDER_BLOCKS], chained=False)


@weight_blueprint(
    "lora_ladder",
    "maps of rank 4, 4, 8 and 16, as far as the width goes; RC + RKI parameters with rank R, K taps, I channels",
    "conv",
    kind=SeedInternalKind.LORA_LADDER,
    standard=False,
    rank=LADDER_BLOCKS[0],
)
@weight_blueprint(
    "lora_ladder",
    "maps of rank 4, 4, 8 and 16, switched one by one to rank 4, 8, 16 and 32; 32C + 32I parameters with I inputs",
    "weight",
    kind=SeedInternalKind.LORA_LADDER,
    standard=False,
    rank=sum(LADDER_BLOCKS),
)
def lora_ladder_around(spec: InjectionSpec) -> nn.Module:
    # Convolutions of small hosts have 8 or 16 channels: a ladder ends where its rank would be above that.
    ranks = [rank for rank, whole in zip(LADDER_BLOCKS, accumulate(LADDER_BLOCKS), strict=True) if whole <= spec.width]
    rungs = [_around(spec, rank) for rank in ranks]
    return Ladder(SeedInternalKind.LORA_LADDER, rungs, chained=False, around=spec)
