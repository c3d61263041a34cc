"""What growing leaves behind: a topology that can be built anew, and a plain network without slots.

Only fossilised seeds are kept; a seed that is still on probation is not part of the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES
from esper.kasmina.host import Host
from esper.kasmina.ladder import Ladder
from esper.kasmina.model import GrowingModel, MorphogeneticModel, probe_output
from esper.kasmina.planting import build_seed
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite, without_slot
from esper.leyline.errors import ConfigError, WrongHostError
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.reports import BlendName
from esper.leyline.stages import SeedStage


@dataclass(frozen=True)
class Graft:
    """One seed of a topology."""

    slot_id: str
    blueprint_id: str
    blend: BlendName
    rungs: tuple[bool, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"slot": self.slot_id, "blueprint": self.blueprint_id, "blend": self.blend, "rungs": list(self.rungs)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Graft:
        """Raises ConfigError for anything that `as_dict` did not make."""
        is_seed = isinstance(data, dict) and set(data) == {"slot", "blueprint", "blend", "rungs"}
        if not is_seed or data["blend"] not in list(CANDIDATES) or not isinstance(data["rungs"], list):
            raise ConfigError(f"topology: {data!r:.80} is not a seed; it needs slot, blueprint, blend and rungs")
        if not (isinstance(data["slot"], str) and isinstance(data["blueprint"], str)):
            raise ConfigError(f"topology: {data!r:.80} names its slot or blueprint by something else than text")
        return cls(data["slot"], data["blueprint"], data["blend"], tuple(data["rungs"]))


class _Multiplied(nn.Module):
    """A seed that was blended by MULTIPLY, at alpha 1."""

    def __init__(self, seed: nn.Module) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        return CANDIDATES["MULTIPLY"](x, self.seed(x))


def topology_of(model: GrowingModel) -> tuple[Graft, ...]:
    """The fossilised seeds, in execution order."""
    grafts = []
    for slot_id, slot in model.slots.items():
        if slot.stage is SeedStage.FOSSILIZED and slot.state is not None:
            grafts.append(Graft(slot_id, slot.state.blueprint_id, slot.state.blend, slot.report().rungs))
    return tuple(grafts)


def with_seeds(network: nn.Module, topology: Sequence[Graft]) -> nn.Module:
    """The network with fresh seeds built into it, its slots empty again: a `Host`, or one with slots around weights.

    Draws weights from torch's global generator. Raises WrongHostError where the network lacks a slot, and ConfigError
    where it has slots in its own forward that stand around no weight.
    """
    places = _places(network)
    for graft in topology:
        if graft.slot_id not in places:
            raise WrongHostError(f"topology: slot {graft.slot_id!r} is not in this host; it has {', '.join(places)}")
        place = places[graft.slot_id]
        seed = build_seed(graft.blueprint_id, place.spec, torch.device("cpu"))
        if isinstance(seed, Ladder):
            seed.set_active(graft.rungs)
            seed.remove_unused()
        place.build_in(seed, graft.blend)
    return network


@dataclass(frozen=True)
class _Place:
    """Where a seed can be built into a network."""

    spec: InjectionSpec
    build_in: Callable[[nn.Module, BlendName], None]


def _places(network: nn.Module) -> dict[str, _Place]:
    """By slot, in execution order."""
    if isinstance(network, Host):
        return {
            spec.slot_id: _Place(spec, partial(_build_in, network, spec.slot_id)) for spec in network.injection_specs
        }
    sites = [part for part in network.modules() if isinstance(part, WeightSite)]
    if not sites or len(sites) < sum(isinstance(part, SeedSlot) for part in network.modules()):
        raise ConfigError(f"topology: {type(network).__name__} has slots that stand around no weight; give a Host")
    sites.sort(key=lambda site: site.slot.spec.order)
    return {site.slot.spec.slot_id: _Place(site.slot.spec, site.graft) for site in sites}


def export(model: GrowingModel, probe: Tensor) -> nn.Module:
    """A copy of the grown network without slots: every fossilised seed is part of it, live ones are left out.

    Of a chain of segments the copy is a `Host` in which a seed follows its segment. In any other network a seed takes
    its slot's place, an empty slot becomes the identity, and a layer with a slot around it a plain one.

    probe: a batch of inputs on which the copy is checked against the model without its live seeds: to 1e-6, or, since
    merging seeds into weights adds in another order, to 100 roundings of the largest output, 1e-5 of it in float32.
    Raises ConfigError where the host can be cut but is no `Host`.
    """
    bare = copy.deepcopy(model)
    for slot in bare.slots.values():
        if slot.stage is not SeedStage.FOSSILIZED:
            slot.muted = True
    expected = probe_output(bare, probe)
    plain = _unslotted_host(bare) if isinstance(bare, MorphogeneticModel) else _unslotted(bare.module)
    largest = float(expected.nan_to_num().abs().max())
    slack = 1e-6 if isinstance(plain, Host) else 100 * torch.finfo(expected.dtype).eps * largest
    same = torch.allclose(probe_output(plain, probe), expected, rtol=1e-6, atol=slack, equal_nan=True)
    assert same, "the exported network computes something else"
    return plain


def _unslotted_host(model: MorphogeneticModel) -> Host:
    host = model.host
    if not isinstance(host, Host):
        raise ConfigError("export: this host is not a chain of segments, so its slots cannot be taken out")
    for graft in topology_of(model):
        seed = model.slots[graft.slot_id].seed
        assert seed is not None
        _build_in(host, graft.slot_id, seed, graft.blend)
    return host


def _unslotted(network: nn.Module) -> nn.Module:
    """The network with a plain module in the place of every slot; a module that stands in two places stays one."""
    whole = nn.ModuleDict({"network": network})  # so that the network itself may be what is replaced
    plain: dict[nn.Module, nn.Module] = {}
    for path, module in list(whole.named_modules(remove_duplicate=False)):
        if isinstance(module, WeightSite) and module not in plain:
            plain[module] = without_slot(module)
        elif isinstance(module, SeedSlot) and module not in plain and module.spec.in_dim is None:
            plain[module] = _kept(module)
        if module in plain:
            whole.set_submodule(path, plain[module])
    return whole["network"]


def _kept(slot: SeedSlot) -> nn.Module:
    if slot.stage is not SeedStage.FOSSILIZED or slot.seed is None or slot.state is None:
        return nn.Identity()
    return _as_blended(slot.seed, slot.state.blend)


def _as_blended(seed: nn.Module, blend: BlendName) -> nn.Module:
    return _Multiplied(seed) if blend == "MULTIPLY" else seed


def _build_in(host: Host, slot_id: str, seed: nn.Module, blend: BlendName) -> None:
    index = host.cut_of(slot_id) - 1
    host.segments[index] = nn.Sequential(host.segments[index], _as_blended(seed, blend))
