"""Seeds as modules: how one is built for a slot, and what can be asked of it whether or not it has rungs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder, count_params
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, Layout
from esper.leyline.seed_internal import SeedInternalKind

_PROBE_SHAPES: dict[Layout, tuple[int, ...]] = {"NCHW": (2, -1, 4, 4), "BTC": (2, 4, -1), "BC": (2, -1)}


def probe_for(spec: InjectionSpec, device: torch.device) -> Tensor:
    """A small fixed input for a seed of this slot; draws no random number."""
    read = spec.dim if spec.in_dim is None else spec.in_dim
    shape = [read if axis == -1 else axis for axis in _PROBE_SHAPES[spec.layout]]
    if spec.convolution is not None:  # at least as far as one reading of it reaches
        reach = [d * (k - 1) + 1 for d, k in zip(spec.convolution.dilation, spec.convolution.kernel, strict=True)]
        shape[2:] = [max(pair) for pair in zip(shape[2:], reach, strict=True)]
    return torch.linspace(-2.0, 2.0, torch.Size(shape).numel(), device=device).reshape(shape)


def build_seed(blueprint_id: str, spec: InjectionSpec, device: torch.device) -> nn.Module:
    """A new seed, a ladder with all rungs off; draws its weights from torch's global generator.

    Raises ConfigError for an unknown blueprint, one that does not fit the slot or that does not keep the shape.
    """
    seed = BLUEPRINTS[blueprint_id].build(spec).to(device)
    probe = probe_for(spec, device)
    with torch.no_grad():
        shape = seed(probe).shape
    wanted = spec.shape_after(probe.shape)
    if shape != wanted:
        kept = "keeps the shape" if spec.in_dim is None else f"around a weight gives {wanted}"
        raise ConfigError(f"blueprint {blueprint_id!r} turns {tuple(probe.shape)} into {tuple(shape)}; a seed {kept}")
    return seed


def regions_of(seed: nn.Module) -> list[nn.Module]:
    """The parts that are compiled each by itself."""
    return list(seed.rungs) if isinstance(seed, Ladder) else [seed]


def kind_of(seed: nn.Module | None) -> SeedInternalKind:
    return seed.kind if isinstance(seed, Ladder) else SeedInternalKind.NONE


def rungs_of(seed: nn.Module | None) -> tuple[bool, ...]:
    """Active rungs; one flag for a seed without rungs, none where there is no seed."""
    if isinstance(seed, Ladder):
        return seed.active
    return () if seed is None else (True,)


def max_level_of(seed: nn.Module | None) -> int:
    return seed.max_level if isinstance(seed, Ladder) else 1


def group_size_of(seed: nn.Module | None) -> int | None:
    """Channels or heads of a whole group where rungs are groups; None where they are not."""
    return seed.group_size if isinstance(seed, Ladder) else None


def effective_params_of(seed: nn.Module | None) -> int:
    """Parameters of active rungs."""
    if seed is None:
        return 0
    return seed.effective_params if isinstance(seed, Ladder) else count_params(seed)


def switch_on(seed: nn.Module, rungs: int) -> None:
    """The first rungs of a ladder that is planted; nothing to do for another seed."""
    if isinstance(seed, Ladder):
        start = min(rungs, seed.max_level)
        seed.set_active((True,) * start + (False,) * (seed.max_level - start))


def planted_params(blueprint_id: str, spec: InjectionSpec, rungs: int) -> int:
    """Parameters of a seed that is planted with its first rungs on; 0 where it does not fit the slot."""
    blueprint = BLUEPRINTS[blueprint_id]
    if not blueprint.fits(spec):
        return 0
    with torch.device("meta"):
        seed = blueprint.build(spec)
    switch_on(seed, rungs)
    return effective_params_of(seed)


def remove_unused_rungs(seed: nn.Module, probe: Tensor) -> int:
    """Drops the rungs above the highest active one; the output is asserted not to move. Returns parameters removed."""
    if not isinstance(seed, Ladder):
        return 0
    before = _uncompiled(seed, probe)
    removed = seed.remove_unused()
    same = torch.allclose(_uncompiled(seed, probe), before, rtol=0.0, atol=0.0, equal_nan=True)
    assert same, "removing unused rungs moved the seed's output"
    return removed


def _uncompiled(seed: nn.Module, probe: Tensor) -> Tensor:
    """The seed's output; a copy is not compiled, and the probe's shape is not worth a graph."""
    with torch.no_grad():
        out: Tensor = copy.deepcopy(seed)(probe)
    return out
