"""What growing leaves behind: a topology that can be built anew, and a plain network without slots.

Only fossilised seeds are kept; a seed that is still on probation is not part of the result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blending import CANDIDATES
from esper.kasmina.host import Host
from esper.kasmina.ladder import Ladder
from esper.kasmina.model import GrowingModel, MorphogeneticModel, probe_output
from esper.kasmina.planting import build_seed
from esper.leyline.errors import ConfigError, WrongHostError
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


def with_seeds(host: Host, topology: Sequence[Graft]) -> Host:
    """The host with fresh seeds built into its segments, its slots empty again.

    Draws weights from torch's global generator. Raises WrongHostError where the host lacks a slot.
    """
    specs = {spec.slot_id: spec for spec in host.injection_specs}
    for graft in topology:
        if graft.slot_id not in specs:
            raise WrongHostError(f"topology: slot {graft.slot_id!r} is not in this host; it has {', '.join(specs)}")
        seed = build_seed(graft.blueprint_id, specs[graft.slot_id], torch.device("cpu"))
        if isinstance(seed, Ladder):
            seed.set_active(graft.rungs)
            seed.remove_unused()
        _build_in(host, graft.slot_id, seed, graft.blend)
    return host


def export(model: GrowingModel, probe: Tensor) -> Host:
    """A copy of the grown network as a plain chain: every fossilised seed follows its segment, live ones are left out.

    probe: a batch of inputs on which the copy is checked against the model without its live seeds, to 1e-6.
    Raises ConfigError where the host is no chain of segments.
    """
    if not (isinstance(model, MorphogeneticModel) and isinstance(model.host, Host)):
        raise ConfigError("export: this host is not a chain of segments, so its slots cannot be taken out")
    bare, host = copy.deepcopy((model, model.host))
    for slot in bare.slots.values():
        if slot.stage is not SeedStage.FOSSILIZED:
            slot.muted = True
    expected = probe_output(bare, probe)
    for graft in topology_of(bare):
        seed = bare.slots[graft.slot_id].seed
        assert seed is not None
        _build_in(host, graft.slot_id, seed, graft.blend)
    same = torch.allclose(probe_output(host, probe), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert same, "the exported network computes something else"
    return host


def _build_in(host: Host, slot_id: str, seed: nn.Module, blend: BlendName) -> None:
    index = host.cut_of(slot_id) - 1
    grafted = _Multiplied(seed) if blend == "MULTIPLY" else seed
    host.segments[index] = nn.Sequential(host.segments[index], grafted)
