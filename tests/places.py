"""Seeds in every place that a blueprint may be built for: in a cut of some layout, or around a weight.

A slot in a cut carries as many channels as its seed reads; a weight here reads three more than it returns. The
convolution is of 3x3 and writes every other column alone: of images of 4x4 it makes some of 4x2.
"""

from __future__ import annotations

import torch
from tests.support import PATIENT, activation, empty_slot, noise, seeded
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite
from esper.leyline.injection_spec import Convolution, InjectionSpec, InjectionSurface, Place

GEOMETRY = Convolution((3, 3), stride=(1, 2), padding=(1, 1))
AROUND: tuple[Place, ...] = ("weight", "conv")


def spec_at(place: Place, dim: int, inputs: int | None = None) -> InjectionSpec:
    """A slot of `dim` channels; around a weight with as many `inputs`, three more than outputs if not given."""
    inputs = dim + 3 if inputs is None else inputs
    if place == "weight":
        return InjectionSpec("r0c0", dim, "BTC", InjectionSurface.BLOCK_END, 0, 0, 0, inputs)
    if place == "conv":
        return InjectionSpec("r0c0", dim, "NCHW", InjectionSurface.BLOCK_END, 0, 0, 0, inputs, GEOMETRY)
    return InjectionSpec("r0c0", dim, place, InjectionSurface.BLOCK_END, 0, 0, 0)


def layer_at(spec: InjectionSpec) -> nn.Linear | nn.Conv2d:
    """What the slot stands around."""
    assert spec.in_dim is not None
    if spec.convolution is None:
        return nn.Linear(spec.in_dim, spec.dim)
    return nn.Conv2d(spec.in_dim, spec.dim, 3, stride=(1, 2), padding=1)


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
    spec = spec_at(place, channels)
    return activation(spec.layout, channels if spec.in_dim is None else spec.in_dim, seed)


def unmoved(place: Place, channels: int, x: Tensor) -> Tensor:
    """What the identity makes of it."""
    if place == "conv":
        return torch.zeros(x.shape[0], channels, 4, 2)
    return torch.zeros(*x.shape[:-1], channels) if place == "weight" else x


class Around(nn.Module):
    """A fixed host around a slot, with a target that no identity reaches."""

    def __init__(self, place: Place, channels: int) -> None:
        super().__init__()
        self.place: Place = place
        self.channels = channels
        self.site: SeedSlot | WeightSite
        if place == "weight" or place == "conv":
            with seeded():
                self.site = WeightSite(layer_at(spec_at(place, channels)).requires_grad_(False), "r0c0")
            self.slot = self.site.slot
            self.slot.settings = PATIENT
        else:
            self.site = self.slot = empty_slot(channels, place)

    def loss(self) -> Tensor:
        x = entry(self.place, self.channels)
        out: Tensor = self.site(x)
        return (out - noise(*out.shape, seed=1)).square().mean()
