"""Blueprints for sequences [B, T, C]; `lora.py` has more. Parameter counts are for C channels.

All that looks along the sequence is causal, because language hosts are: place t is told of places up to t.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.blueprints.channels import even_groups
from esper.kasmina.blueprints.layers import Residual, ScaledNorm, zeroed
from esper.kasmina.blueprints.registry import blueprint
from esper.kasmina.ladder import Ladder
from esper.leyline.seed_internal import SeedInternalKind

HEAD_LADDER_RUNGS = 4  # where there are that many heads


def head_count(dim: int) -> int:
    """As many heads as divide `dim`, at most 8, of at least 8 channels each where there are that many."""
    return next(count for count in range(max(1, min(8, dim // 8)), 0, -1) if dim % count == 0)


class CausalHeads(nn.Module):
    """What some heads of causal self-attention have to say: [B, T, C] -> [B, T, C], zero at birth."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        """heads: how many, of `width` channels each; they read all of `dim`."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * heads * width, bias=False)
        self.merge = zeroed(nn.Linear(heads * width, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        # B batch, T places, H heads, D channels of a head
        projected: Tensor = self.project(self.norm(x))  # [B, T, 3HD]
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        said: Tensor = self.merge(attended.transpose(1, 2).flatten(2))
        return said


def _mlp(dim: int, inner: int) -> nn.Module:
    up, down = nn.Linear(dim, inner, bias=False), nn.Linear(inner, dim, bias=False)
    return Residual(nn.LayerNorm(dim), up, nn.GELU(), zeroed(down))


@blueprint("norm", "scaled layer norm; 2C + 1 parameters", "BTC")
def norm(dim: int) -> nn.Module:
    return ScaledNorm(nn.LayerNorm(dim))


@blueprint("attention", "causal self-attention of up to 8 heads; 4C^2 + 2C", "BTC")
def attention(dim: int) -> nn.Module:
    heads = head_count(dim)
    return Residual(CausalHeads(dim, heads, dim // heads))


@blueprint("mlp_small", "two layers with C units between; 2C^2 + 2C", "BTC")
def mlp_small(dim: int) -> nn.Module:
    return _mlp(dim, dim)


@blueprint("mlp", "two layers with 4C units between; 8C^2 + 2C", "BTC")
def mlp(dim: int) -> nn.Module:
    return _mlp(dim, 4 * dim)


@blueprint(
    "attn_head_ladder",
    "causal self-attention, up to four groups of heads switched one by one; 4C^2 + 2CG with G groups",
    "BTC",
    kind=SeedInternalKind.ATTN_HEAD_LADDER,
    standard=False,
)
def attn_head_ladder(dim: int) -> nn.Module:
    heads = head_count(dim)
    groups = even_groups(heads, min(HEAD_LADDER_RUNGS, heads))
    rungs = [CausalHeads(dim, len(group), dim // heads) for group in groups]
    return Ladder(SeedInternalKind.ATTN_HEAD_LADDER, rungs, chained=False, group_size=len(groups[0]))
