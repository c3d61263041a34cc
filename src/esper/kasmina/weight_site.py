"""Slots around a Linear or a convolution: y = W x + b + alpha * seed(x), the seed a linear map that starts at zero.

`WeightSite` stands in a network's forward like the layer it holds; `SlottedModel` finds its slot. Whatever holds for a
slot in a cut holds here: the slot's candidate is y with the seed's map of x added, so at alpha 0 the host does not
notice the seed, and MULTIPLY and GATE are what they are elsewhere. What was kept can be merged: `merged`. What a
topology puts there from the start is part of the weight, and the slot around it is empty: `Grafted`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES
from esper.kasmina.blueprints.lora import LORA_SCALE, low_rank_parts
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import Convolution, InjectionSpec, InjectionSurface, Layout
from esper.leyline.reports import BlendName
from esper.leyline.stages import SeedStage

Weighted = nn.Linear | nn.Conv2d
"""What a slot can stand around."""


class WeightSite(nn.Module):
    """A Linear, or a convolution of images, with a slot around it."""

    def __init__(
        self,
        layer: Weighted,
        slot_id: str,
        layout: Layout | None = None,
        order: int = 0,
        surface: InjectionSurface = InjectionSurface.BLOCK_END,
        host_layer: int | None = None,
    ) -> None:
        """layout: axes of the layer's output, BTC if not given or BC of a Linear, NCHW of a convolution.

        order: the slot's place along the forward pass of the network. host_layer: the layer of the network that this
        one is part of; `order` where it is None. Raises ConfigError for a layer or layout that no seed is made for.
        """
        super().__init__()
        host_layer = order if host_layer is None else host_layer
        self.layer: Weighted | Grafted = layer
        self.slot = SeedSlot(_spec_of(layer, slot_id, layout, surface, order, host_layer))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., inputs] -> [N, ..., outputs], or [N, inputs, H, W] -> [N, outputs, H', W']."""
        out: Tensor = self.slot(self.layer(x), x)
        return out

    @property
    def mergeable(self) -> bool:
        """Whether a kept seed can be made part of the layer's weight: a product (MULTIPLY) cannot."""
        state = self.slot.state
        fits = state is not None and state.stage is SeedStage.FOSSILIZED and state.blend != "MULTIPLY"
        return fits and isinstance(self.layer, Weighted)

    def graft(self, seed: nn.Module, blend: BlendName) -> None:
        """Makes a seed part of what the slot stands around, at full weight."""
        self.layer = Grafted(self.layer, seed, blend)


def _spec_of(
    layer: nn.Module, slot_id: str, layout: Layout | None, surface: InjectionSurface, order: int, host_layer: int
) -> InjectionSpec:
    if isinstance(layer, nn.Linear):
        if layout == "NCHW":
            raise ConfigError(f"slot {slot_id}: a Linear's output is BTC or BC, not NCHW")
        inputs, outputs, convolution = layer.in_features, layer.out_features, None
    elif isinstance(layer, nn.Conv2d):
        if layout not in (None, "NCHW"):
            raise ConfigError(f"slot {slot_id}: a convolution's output is NCHW, not {layout}")
        if layer.groups != 1:
            raise ConfigError(f"slot {slot_id}: its convolution has {layer.groups} groups; seeds are made for 1")
        inputs, outputs, convolution = layer.in_channels, layer.out_channels, _geometry_of(layer)
    else:
        raise ConfigError(f"slot {slot_id}: it stands around a Linear or a Conv2d, not a {type(layer).__name__}")
    axes: Layout = ("BTC" if convolution is None else "NCHW") if layout is None else layout
    return InjectionSpec(slot_id, outputs, axes, surface, order, host_layer, order, inputs, convolution)


def _geometry_of(layer: nn.Conv2d) -> Convolution:
    padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
    kernel, stride, dilation = map(_pair, (layer.kernel_size, layer.stride, layer.dilation))
    return Convolution(kernel, stride, padding, dilation, layer.padding_mode)


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    rows, columns = sizes
    return rows, columns


class Grafted(nn.Module):
    """A layer and a seed at alpha 1, without a slot."""

    def __init__(self, layer: nn.Module, seed: nn.Module, blend: BlendName) -> None:
        super().__init__()
        self.layer = layer
        self.seed = seed
        self.blend: BlendName = blend

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return CANDIDATES[self.blend](y, y + self.seed(x))


def merged(site: WeightSite) -> Weighted:
    """A new layer that computes what the site does, its fossilised seed added to the weight.

    Raises ConfigError where there is no fossil, one that was blended by MULTIPLY, or one beside another seed.
    """
    if not site.mergeable or site.slot.seed is None or not isinstance(site.layer, Weighted):
        raise ConfigError(
            f"slot {site.slot.spec.slot_id}: nothing to merge; it takes a fossilised seed, blended by ADD or GATE"
        )
    return _added(site.layer, site.slot.seed)


def _added(layer: Weighted, seed: nn.Module) -> Weighted:
    """A new layer with the seed's map in its weight."""
    whole = copy.deepcopy(layer)
    with torch.no_grad():
        for part in low_rank_parts(seed):
            # Of a convolution, whose weight is [C, I, rows, columns], B is 1x1: the product of two matrices again.
            product = part.up.weight.flatten(1) @ part.down.weight.flatten(1)
            whole.weight += LORA_SCALE * product.view_as(whole.weight)
    return whole


def without_slot(site: WeightSite) -> nn.Module:
    """The site as a plain module: its kept seed merged where that can be, a seed that is not kept left out."""
    base, state = _plain(site.layer), site.slot.state
    if state is None or site.slot.seed is None or state.stage is not SeedStage.FOSSILIZED:
        return base
    return _plain(Grafted(base, site.slot.seed, state.blend))


def _plain(module: nn.Module) -> nn.Module:
    """A Linear or a convolution where what was grafted on it can be merged."""
    if not isinstance(module, Grafted):
        return module
    base = _plain(module.layer)
    if module.blend != "MULTIPLY" and isinstance(base, Weighted):
        return _added(base, module.seed)
    return Grafted(base, module.seed, module.blend)
