"""The transformer family of hosts: a pre-norm decoder over tokens, with slots in its cuts or around its weights.

N sequences, T tokens, C channels, V symbols of the vocabulary, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.host import Host
from esper.kasmina.sited_host import SitedHost
from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.slot_id import format_slot_id

Cut = Literal["segments", "layers", "lattice", "weights"]
Positions = Literal["learned", "sinusoidal"]

_MLP_FACTOR = 4  # hidden channels of an MLP over the width


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder: `layers` of causal attention and MLP, pre-norm, the head tied to the embedding."""

    vocabulary: int = setting(97, low=2, help="symbols")
    context: int = setting(64, low=1, help="the longest sequence, in tokens")
    layers: int = setting(6, low=1)
    width: int = setting(32, low=1, help="channels")
    heads: int = setting(4, low=1, help="of attention; they divide the width")
    cut: Cut = setting("segments", help="where slots stand")
    num_segments: int = setting(3, low=1, help="how many runs of layers are a segment; they divide the layers")
    positions: Positions = setting("learned")
    dropout: float = setting(0.0, low=0.0, below=1.0, help="of embeddings and of what layers add")
    frozen: bool = setting(False, help="its weights stay as they are; seeds alone learn")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.heads:
            raise ConfigError(f"task.heads: {self.heads} heads do not divide a width of {self.width} channels")
        if self.positions == "sinusoidal" and self.width % 2:
            raise ConfigError(f"task.width: {self.width} is odd; sinusoidal positions need an even one")
        if self.cut == "segments" and self.layers % self.num_segments:
            raise ConfigError(
                f"task.num_segments: {self.num_segments} does not divide the {self.layers} layers of the host; "
                f"use one of {', '.join(str(n) for n in range(1, self.layers + 1) if self.layers % n == 0)}"
            )

    @property
    def scale(self) -> tuple[int, ...]:
        """What makes the host larger: channels of each head."""
        return (self.width // self.heads,)

    def scaled(self, factor: float) -> TransformerConfig:
        """The same host with about `factor` times the channels in every head."""
        return replace(self, width=self.heads * max(1, round(self.width / self.heads * factor)))

    @property
    def described(self) -> str:
        """Its size, as the settings name it."""
        return f"task.width: {self.width} channels in task.layers: {self.layers}"

    def build(self) -> TransformerHost | SitedHost:
        """The host; draws its weights from torch's global generator, the same under every cut.

        Cut at its weights its slots are those of the lattice, one sum earlier: r{layer}c0 around the output Linear of
        attention, r{layer}c1 around that of the MLP.
        """
        if self.cut == "weights":
            return SitedHost(TransformerHost(replace(self, cut="lattice")), "out")
        return TransformerHost(self)


class TransformerHost(Host):
    """Tokens [N, T] int64 to logits [N, T, V]; position t sees tokens 0 .. t. Not for the cut `weights`.

    Slots carry [N, T, C] ("BTC"). `segments`: r0c{i} after each of `num_segments` runs of layers. `layers`: r0c{i}
    after each layer. `lattice`: r{layer}c0 after the residual of attention, r{layer}c1 after that of the MLP. The
    weights drawn are the same under every cut. A frozen host's parameters need no gradient.
    """

    def __init__(self, config: TransformerConfig) -> None:
        embedding = _Embedding(config)
        parts = [part for _ in range(config.layers) for part in (_Attention(config), _MLP(config))]
        runs = _runs(config)
        segments = [nn.Sequential(*parts[start:stop]) if stop - start > 1 else parts[start] for start, stop in runs]
        super().__init__([embedding, *segments, _Head(config, embedding)], _specs(config), isolate_blending=False)
        self.config = config
        _initialise(self, config)
        if config.frozen:
            self.requires_grad_(False)


def _runs(config: TransformerConfig) -> list[tuple[int, int]]:
    """First and last-but-one sublayer of each segment; layer l is sublayers 2l and 2l + 1."""
    size = {"segments": 2 * config.layers // config.num_segments, "layers": 2, "lattice": 1}[config.cut]
    return [(start, start + size) for start in range(0, 2 * config.layers, size)]


def _specs(config: TransformerConfig) -> list[InjectionSpec]:
    """A slot after every segment but the embedding, which is segment 0, and the head."""
    specs = []
    for order, (_, stop) in enumerate(_runs(config)):
        layer, column = divmod(stop - 1, 2)
        surface, row = InjectionSurface.BLOCK_END, 0
        if config.cut == "lattice":
            surface, row = (InjectionSurface.POST_ATTN, InjectionSurface.POST_MLP)[column], layer
        slot_id = format_slot_id(row, column if config.cut == "lattice" else order)
        specs.append(InjectionSpec(slot_id, config.width, "BTC", surface, order, layer, order + 1))
    return specs


class _Embedding(nn.Module):
    """Tokens [N, T] to [N, T, C]: what they are plus where they stand."""

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.context = config.context
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.context, config.width))
        else:
            self.register_buffer("positions", sinusoids(config.context, config.width), persistent=False)
        self.dropout = _dropout(config)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.context:
            raise ConfigError(f"a sequence of {length} tokens is longer than the host's context of {self.context}")
        out: Tensor = self.dropout(self.tokens(tokens) + self.positions[:length])
        return out


class _Attention(nn.Module):
    """x + what every position hears from itself and those before it. [N, T, C] to the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.dropout = _dropout(config)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = self.query_key_value(self.norm(x)).view(n, t, 3, self.heads, c // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [N, H, T, C / H] each
        heard = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = x + self.dropout(self.out(heard.transpose(1, 2).reshape(n, t, c)))
        return out


class _MLP(nn.Module):
    """x + a two-layer network of each position by itself. [N, T, C] to the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, _MLP_FACTOR * config.width, bias=False)
        self.out = nn.Linear(_MLP_FACTOR * config.width, config.width, bias=False)
        self.dropout = _dropout(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.out(F.gelu(self.up(self.norm(x)))))
        return out


class _Head(nn.Module):
    """[N, T, C] to logits [N, T, V] by the embedding's own matrix (Press and Wolf 2017)."""

    def __init__(self, config: TransformerConfig, embedding: _Embedding) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.weight = embedding.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.weight)


def sinusoids(context: int, width: int) -> Tensor:
    """[context, width]: sine and cosine of each position at width / 2 wavelengths (Vaswani et al. 2017)."""
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    angle = torch.arange(context)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), dim=2).reshape(context, width)


def _dropout(config: TransformerConfig) -> nn.Module:
    return nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()


@torch.no_grad()
def _initialise(host: TransformerHost, config: TransformerConfig) -> None:
    """Normal weights that keep the size of what they are applied to, whatever the width.

    Those that add to the residual stream are smaller by the root of how many there are (Radford et al. 2019), so that
    its variance does not grow with depth.
    """
    for name, param in host.named_parameters():
        if param.dim() > 1:
            adds = name.endswith("out.weight")
            nn.init.normal_(param, std=(param.shape[1] * (2 * config.layers if adds else 1)) ** -0.5)
