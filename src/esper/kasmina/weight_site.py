"""Slots around a Linear: y = W x + b + alpha * seed(x), where the seed is a linear map that starts at zero.

`WeightSite` stands in a network's forward like the Linear it holds; `SlottedModel` finds its slot. Whatever holds for a
slot in a cut holds here: the slot's candidate is y with the seed's map of x added, so at alpha 0 the host does not
notice the seed, and MULTIPLY and GATE are what they are elsewhere. What was kept can be merged: `merged`.
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
    ) -> None:
        """layout: axes of the Linear's output; `order` is the slot's place along the forward pass of the network."""
        super().__init__()
        if layout == "NCHW":
            raise ConfigError(f"slot {slot_id}: a Linear's output is BTC or BC, not NCHW")
        self.linear = linear
        self.slot = SeedSlot(
            InjectionSpec(slot_id, linear.out_features, layout, surface, order, order, order, in_dim=linear.in_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., inputs] -> [N, ..., outputs]."""
        out: Tensor = self.slot(self.linear(x), x)
        return out

    @property
    def mergeable(self) -> bool:
        """Whether a kept seed can be made part of the weight: a product (MULTIPLY) cannot."""
        state = self.slot.state
        return state is not None and state.stage is SeedStage.FOSSILIZED and state.blend != "MULTIPLY"


class Multiplied(nn.Module):
    """A Linear and its kept seed that was blended by MULTIPLY, without a slot."""

    def __init__(self, linear: nn.Module, seed: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return CANDIDATES["MULTIPLY"](y, y + self.seed(x))


def merged(site: WeightSite) -> nn.Linear:
    """A new Linear that computes what the site does, its fossilised seed added to the weight.

    Raises ConfigError where there is no fossil, or one that was blended by MULTIPLY.
    """
    if not site.mergeable or site.slot.seed is None:
        raise ConfigError(
            f"slot {site.slot.spec.slot_id}: nothing to merge; it takes a fossilised seed, blended by ADD or GATE"
        )
    linear = copy.deepcopy(site.linear)
    with torch.no_grad():
        for part in low_rank_parts(site.slot.seed):
            linear.weight += LORA_SCALE * (part.up.weight @ part.down.weight)
    return linear


def without_slot(site: WeightSite) -> nn.Module:
    """The site as a plain module: its kept seed merged where that can be, a seed that is not kept left out."""
    if site.mergeable:
        return merged(site)
    if site.slot.stage is SeedStage.FOSSILIZED and site.slot.seed is not None:
        return Multiplied(site.linear, site.slot.seed)
    return site.linear
