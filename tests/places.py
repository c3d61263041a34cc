"""Seeds in every place that a blueprint may be built for: in a cut of some layout, or around a Linear.

A slot in a cut carries as many channels as its seed reads; a Linear here has three inputs more than outputs.
"""

from __future__ import annotations

import torch
from tests.support import PATIENT, activation, empty_slot, noise, seeded
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, Place


def spec_at(place: Place, dim: int, inputs: int | None = None) -> InjectionSpec:
    """A slot of `dim` channels; around a weight with as many `inputs`, three more than outputs if not given."""
    if place == "weight":
        inputs = dim + 3 if inputs is None else inputs
        return InjectionSpec("r0c0", dim, "BTC", InjectionSurface.BLOCK_END, 0, 0, 0, in_dim=inputs)
    return InjectionSpec("r0c0", dim, place, InjectionSurface.BLOCK_END, 0, 0, 0)


def built(name: str, dim: int, place: Place = "NCHW", *, stirred: bool = False, seed: int = 0) -> nn.Module:
    """A seed with all its rungs on; `stirred`: moved away from the identity."""
    with seeded(seed):
        module = BLUEPRINTS[name].build(spec_at(place, dim))
        if isinstance(module, Ladder):
            module.set_active((True,) * module.max_level)
        if stirred:
            with torch.no_grad():
                for param in module.parameters():
                    param += 0.1 * torch.randn_like(param)
    return module


def entry(place: Place, channels: int, seed: int = 0) -> Tensor:
    """What a seed reads there."""
    if place != "weight":
        return activation(place, channels, seed)
    inputs = spec_at(place, channels).in_dim
    assert inputs is not None
    return activation("BTC", inputs, seed)


def unmoved(place: Place, channels: int, x: Tensor) -> Tensor:
    """What the identity makes of it."""
    return torch.zeros(*x.shape[:-1], channels) if place == "weight" else x


class Around(nn.Module):
    """A fixed host around a slot, with a target that no identity reaches."""

    def __init__(self, place: Place, channels: int) -> None:
        super().__init__()
        self.place: Place = place
        self.channels = channels
        self.site: SeedSlot | WeightSite
        if place == "weight":
            with seeded():
                self.site = WeightSite(nn.Linear(channels + 3, channels).requires_grad_(False), "r0c0")
            self.slot = self.site.slot
            self.slot.settings = PATIENT
        else:
            self.site = self.slot = empty_slot(channels, place)

    def loss(self) -> Tensor:
        x = entry(self.place, self.channels)
        out: Tensor = self.site(x)
        return (out - noise(*out.shape, seed=1)).square().mean()
