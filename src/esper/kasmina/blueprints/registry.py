"""The shelf of blueprints: what a seed can be built from.

A blueprint builds a module with `seed(x)` of x's shape, dtype and memory format that replaces x; residual blueprints
add x themselves. Its last layer starts at zero with no activation after it (a zero before a ReLU has no gradient, and
the seed would be dead for ever). Nothing in it draws random numbers in forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from esper.leyline.injection_spec import Layout
from esper.leyline.registry import Registry
from esper.leyline.seed_internal import SeedInternalKind

Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Blueprint:
    """A way to build a seed for `dim` channels."""

    name: str
    summary: str
    layouts: tuple[Layout, ...]
    build: Build
    kind: SeedInternalKind = SeedInternalKind.NONE
    standard: bool = True  # offered where a run does not name its blueprints

    def fits(self, layout: Layout) -> bool:
        return layout in self.layouts


BLUEPRINTS: Registry[Blueprint] = Registry("blueprint")


def blueprint(
    name: str,
    summary: str,
    *layouts: Layout,
    kind: SeedInternalKind = SeedInternalKind.NONE,
    standard: bool = True,
) -> Callable[[Build], Build]:
    """Registers the decorated builder. Raises ConfigError if the name is taken."""

    def register(build: Build) -> Build:
        BLUEPRINTS.register(name)(Blueprint(name, summary, layouts, build, kind, standard))
        return build

    return register


def standard_set() -> tuple[str, ...]:
    """The blueprints a run offers unless it names its own. No ladder is among them."""
    return tuple(name for name in BLUEPRINTS.names() if BLUEPRINTS[name].standard)
