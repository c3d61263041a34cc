"""Slots around a Linear: y = W x + b + alpha * seed(x), where the seed is a linear map that starts at zero.

`WeightSite` stands in a network's forward like the Linear it holds; `SlottedModel` finds its slot. Whatever holds for a
slot in a cut holds here: the slot's candidate is y with the seed's map of x added, so at alpha 0 the host does not
notice the seed, and MULTIPLY and GATE are what they are elsewhere. What was kept can be merged: `merged`. What a
topology puts there from the start is part of the weight, and the slot around it is empty: `Grafted`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES
from esper.kasmina.blueprints.lora import LORA_SCALE, low_rank_parts
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, Layout
from esper.leyline.reports import BlendName
from esper.leyline.stages import SeedStage


class WeightSite(nn.Module):
    """A Linear with a slot around it."""

    def __init__(
        self,
        linear: nn.Linear,
        slot_id: str,
        layout: Layout = "BTC",
        order: int = 0,
        surface: InjectionSurface = InjectionSurface.BLOCK_END,
        host_layer: int | None = None,
    ) -> None:
        """layout: axes of the Linear's output; `order` is the slot's place along the forward pass of the network.

        host_layer: the layer of the network that the Linear is part of; `order` where it is None.
        """
        super().__init__()
        if layout == "NCHW":
            raise ConfigError(f"slot {slot_id}: a Linear's output is BTC or BC, not NCHW")
        layer = order if host_layer is None else host_layer
        self.linear: nn.Linear | Grafted = linear
        self.slot = SeedSlot(
            InjectionSpec(slot_id, linear.out_features, layout, surface, order, layer, order, in_dim=linear.in_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., inputs] -> [N, ..., outputs]."""
        out: Tensor = self.slot(self.linear(x), x)
        return out

    @property
    def mergeable(self) -> bool:
        """Whether a kept seed can be made part of a Linear's weight: a product (MULTIPLY) cannot."""
        state = self.slot.state
        fits = state is not None and state.stage is SeedStage.FOSSILIZED and state.blend != "MULTIPLY"
        return fits and isinstance(self.linear, nn.Linear)

    def graft(self, seed: nn.Module, blend: BlendName) -> None:
        """Makes a seed part of what the slot stands around, at full weight."""
        self.linear = Grafted(self.linear, seed, blend)


class Grafted(nn.Module):
    """A Linear and a seed at alpha 1, without a slot."""

    def __init__(self, linear: nn.Module, seed: nn.Module, blend: BlendName) -> None:
        super().__init__()
        self.linear = linear
        self.seed = seed
        self.blend: BlendName = blend

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return CANDIDATES[self.blend](y, y + self.seed(x))


def merged(site: WeightSite) -> nn.Linear:
    """A new Linear that computes what the site does, its fossilised seed added to the weight.

    Raises ConfigError where there is no fossil, one that was blended by MULTIPLY, or one beside another seed.
    """
    if not site.mergeable or site.slot.seed is None or not isinstance(site.linear, nn.Linear):
        raise ConfigError(
            f"slot {site.slot.spec.slot_id}: nothing to merge; it takes a fossilised seed, blended by ADD or GATE"
        )
    return _added(site.linear, site.slot.seed)


def _added(linear: nn.Linear, seed: nn.Module) -> nn.Linear:
    """A new Linear with the seed's map in its weight."""
    whole = copy.deepcopy(linear)
    with torch.no_grad():
        for part in low_rank_parts(seed):
            whole.weight += LORA_SCALE * (part.up.weight @ part.down.weight)
    return whole


def without_slot(site: WeightSite) -> nn.Module:
    """The site as a plain module: its kept seed merged where that can be, a seed that is not kept left out."""
    base, state = _plain(site.linear), site.slot.state
    if state is None or site.slot.seed is None or state.stage is not SeedStage.FOSSILIZED:
        return base
    return _plain(Grafted(base, site.slot.seed, state.blend))


def _plain(module: nn.Module) -> nn.Module:
    """A Linear where what was grafted on it can be merged."""
    if not isinstance(module, Grafted):
        return module
    base = _plain(module.linear)
    if module.blend != "MULTIPLY" and isinstance(base, nn.Linear):
        return _added(base, module.seed)
    return Grafted(base, module.seed, module.blend)
