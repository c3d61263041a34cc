"""The shelf of blueprints: what a seed can be built from, and for which places.

A name may be offered in several places, built differently in each: a layout of tensors, or a weight. In a cut it
builds a module with `seed(x)` of x's shape, dtype and memory format that replaces x; residual blueprints add x
themselves. Around a weight, a Linear's or a convolution's, it maps what that reads to the shape of what it returns,
linearly, and is added to it. Its last layer starts at zero with no activation after it (a zero before a ReLU has no
gradient, and the seed would be dead for ever). Nothing in it draws random numbers in forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, Layout, Place
from esper.leyline.registry import Registry
from esper.leyline.seed_internal import SeedInternalKind

Build = Callable[[int], nn.Module]
"""From the number of channels."""
BuildAround = Callable[[InjectionSpec], nn.Module]
"""From a slot around a weight."""


_AROUND: dict[Place, tuple[str, str]] = {"weight": ("a weight", "weights"), "conv": ("a convolution", "convolutions")}
"""One and many of what a slot stands around, in words."""


@dataclass(frozen=True)
class Form:
    """How a blueprint is built in one place."""

    summary: str  # what it is; number of parameters
    build: Callable[[InjectionSpec], nn.Module]
    rank: int  # of the map that is learned where it is given by a number; 1 where it follows the width


@dataclass(frozen=True)
class Blueprint:
    """A way to build a seed, for every place that it has a form for."""

    name: str
    kind: SeedInternalKind
    standard: bool  # offered where a run does not name its blueprints
    forms: dict[Place, Form] = field(default_factory=dict)

    def why_not(self, spec: InjectionSpec) -> str | None:
        """Why no such seed can stand in the slot; None where one can."""
        if spec.place not in self.forms:
            suited = " or ".join(map(named, self.forms))
            is_here = (
                f"carries {named(spec.place)}" if spec.in_dim is None else f"stands around {_AROUND[spec.place][0]}"
            )
            return f"blueprint {self.name!r} is for {suited}, but slot {spec.slot_id} {is_here}"
        rank = self.forms[spec.place].rank
        if rank > spec.width:
            wide = f"the width of slot {spec.slot_id}, {spec.width}"
            return f"blueprint {self.name!r} has rank {rank}, which is above {wide}"
        return None

    def fits(self, spec: InjectionSpec) -> bool:
        return self.why_not(spec) is None

    def build(self, spec: InjectionSpec) -> nn.Module:
        """A new seed for a slot that it fits; draws its weights from torch's global generator."""
        why = self.why_not(spec)
        if why is not None:
            raise ConfigError(why)
        return self.forms[spec.place].build(spec)


BLUEPRINTS: Registry[Blueprint] = Registry("blueprint")


def blueprint(
    name: str,
    summary: str,
    *layouts: Layout,
    kind: SeedInternalKind = SeedInternalKind.NONE,
    standard: bool = True,
    rank: int = 1,
) -> Callable[[Build], Build]:
    """Registers the decorated builder for cuts. Raises ConfigError if the name is taken for one of the layouts."""

    def register(build: Build) -> Build:
        form = Form(summary, lambda spec: build(spec.dim), rank)
        for layout in layouts:
            _enter(Blueprint(name, kind, standard), layout, form)
        return build

    return register


def weight_blueprint(
    name: str,
    summary: str,
    place: Literal["weight", "conv"],
    kind: SeedInternalKind = SeedInternalKind.NONE,
    standard: bool = True,
    rank: int = 1,
) -> Callable[[BuildAround], BuildAround]:
    """Registers the decorated builder for weights of one sort. Raises ConfigError if the name is taken there."""

    def register(build: BuildAround) -> BuildAround:
        _enter(Blueprint(name, kind, standard), place, Form(summary, build, rank))
        return build

    return register


def standard_set(*places: Place) -> tuple[str, ...]:
    """The blueprints that a run with slots in `places` offers unless it names its own. No ladder is among them."""
    return tuple(
        name for name, item in BLUEPRINTS.items() if item.standard and not item.forms.keys().isdisjoint(places)
    )


def _enter(wanted: Blueprint, place: Place, form: Form) -> None:
    """Adds the form to the blueprint of that name, which is made if this is its first."""
    if wanted.name not in BLUEPRINTS:
        BLUEPRINTS.register(wanted.name, wanted)
    known = BLUEPRINTS[wanted.name]
    if place in known.forms:
        raise ConfigError(f"blueprint {known.name!r} is registered already for {named(place)}; choose another name")
    assert (known.kind, known.standard) == (wanted.kind, wanted.standard), f"{known.name} is of one kind everywhere"
    known.forms[place] = form


def named(place: Place) -> str:
    """What is there, in words."""
    return _AROUND[place][1] if place in _AROUND else f"{place} tensors"
