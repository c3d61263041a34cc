"""Maps of low rank (LoRA, Hu et al. 2022): added to sequences [B, T, C] in a cut, or to a Linear's output around it.

A map is scale * B A x with A [r, I] drawn like a Linear's weight and B [C, r] zero. The scale is the same for every
rank (alpha is twice the rank, in LoRA's own terms), so that a ladder that grows by a block leaves the others as they
are. Around a weight any of them can be merged into it: `kasmina/weight_site.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from esper.kasmina.blueprints.layers import Residual, zeroed
from esper.kasmina.blueprints.registry import blueprint, weight_blueprint
from esper.kasmina.ladder import Ladder
from esper.leyline.seed_internal import SeedInternalKind

LORA_SCALE = 2.0
RANK, LARGE_RANK = 8, 32
LADDER_BLOCKS = (4, 4, 8, 16)  # ranks of the rungs: 4, 8, 16 and 32 at levels 1 to 4


class LowRank(nn.Module):
    """scale * B A x: [..., I] -> [..., C], zero at birth."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)  # A
        self.up = zeroed(nn.Linear(rank, outputs, bias=False))  # B

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.up(LORA_SCALE * self.down(x))
        return mapped


def low_rank_parts(seed: nn.Module) -> list[LowRank]:
    """The maps whose sum a seed around a weight is; of a ladder those that are switched on."""
    if isinstance(seed, Ladder):
        parts = [rung for is_active, rung in zip(seed.active, seed.rungs, strict=False) if is_active]
    else:
        parts = [seed]
    maps = [part for part in parts if isinstance(part, LowRank)]
    assert len(maps) == len(parts), "a seed around a weight is made of maps of low rank"
    return maps


@blueprint("lora", "residual map of rank 8; 16C parameters", "BTC", rank=RANK)
def lora(dim: int) -> nn.Module:
    return Residual(LowRank(dim, dim, RANK))


@weight_blueprint("lora", "map of rank 8; 8C + 8I parameters with I inputs", rank=RANK)
def lora_around(inputs: int, outputs: int) -> nn.Module:
    return LowRank(inputs, outputs, RANK)


@blueprint("lora_large", "residual map of rank 32; 64C parameters", "BTC", rank=LARGE_RANK)
def lora_large(dim: int) -> nn.Module:
    return Residual(LowRank(dim, dim, LARGE_RANK))


@weight_blueprint("lora_large", "map of rank 32; 32C + 32I parameters with I inputs", rank=LARGE_RANK)
def lora_large_around(inputs: int, outputs: int) -> nn.Module:
    return LowRank(inputs, outputs, LARGE_RANK)


@blueprint(
    "lora_ladder",
    "residual maps of rank 4, 4, 8 and 16, switched one by one to rank 4, 8, 16 and 32; 64C parameters",
    "BTC",
    kind=SeedInternalKind.LORA_LADDER,
    standard=False,
    rank=sum(LADDER_BLOCKS),
)
def lora_ladder(dim: int) -> nn.Module:
    return Ladder(SeedInternalKind.LORA_LADDER, _blocks(dim, dim), chained=False)


@weight_blueprint(
    "lora_ladder",
    "maps of rank 4, 4, 8 and 16, switched one by one to rank 4, 8, 16 and 32; 32C + 32I parameters with I inputs",
    kind=SeedInternalKind.LORA_LADDER,
    standard=False,
    rank=sum(LADDER_BLOCKS),
)
def lora_ladder_around(inputs: int, outputs: int) -> nn.Module:
    return Ladder(SeedInternalKind.LORA_LADDER, _blocks(inputs, outputs), chained=False, sum_width=outputs)


def _blocks(inputs: int, outputs: int) -> list[LowRank]:
    return [LowRank(inputs, outputs, rank) for rank in LADDER_BLOCKS]
