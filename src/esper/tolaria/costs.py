"""What a host's work costs in FLOPs, put together from its parts.

Cost is additive over segments and seeds: what a seed costs depends on its blueprint, its active rungs, whether its
weights learn, whether its gradient goes on into the host, and whether it has a gate. So every part is counted once and
the topologies of a whole run are sums. `tests/tolaria/test_costs.py` holds the sums against a count of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from esper.kasmina.host import Host
from esper.kasmina.model import Configuration, GrowingModel, MorphogeneticModel
from esper.kasmina.slot import SeedSlot
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.tolaria.flops import StepFlops, count_eval, count_step

_SeedKey = tuple[object, ...]


@dataclass
class Costs:
    """Counts of one host family; shared by all environments, which train the same host."""

    task: Task
    _host_step: int | None = None
    _host_eval: dict[int, dict[str, int]] = field(default_factory=dict)  # items -> segment -> FLOPs
    _seed_step: dict[_SeedKey, int] = field(default_factory=dict)
    _seed_eval: dict[_SeedKey, int] = field(default_factory=dict)

    def step(self, model: GrowingModel) -> tuple[int, dict[str, int]]:
        """One training step: of the host, and of each seed by its id."""
        slots = {slot_id: slot for slot_id, slot in model.slots.items() if _trains(slot)}
        keys = {slot_id: _key(slot_id, slot) for slot_id, slot in slots.items()}
        if self._host_step is None or any(key not in self._seed_step for key in keys.values()):
            counted = self._count_step(model)
            shares = {slot_id: counted.by_module[_path(model, slot_id)] for slot_id in model.slots}
            self._host_step = counted.total - sum(shares.values())
            self._seed_step |= {key: shares[slot_id] for slot_id, key in keys.items()}
        by_seed = {}
        for slot_id, slot in slots.items():
            assert slot.state is not None
            by_seed[slot.state.seed_id] = self._seed_step[keys[slot_id]]
        return self._host_step, by_seed

    def evaluation(self, model: GrowingModel, inputs: Tensor, configurations: Sequence[Configuration]) -> int:
        """One pass over `inputs` under every configuration, with the prefixes that the model caches.

        Rungs that differ from the model's are charged as the model's, and a host that is no chain of segments is
        charged whole passes, because what lies before a slot cannot be told apart.
        """
        segments, seeds = self._evaluation_parts(model, inputs)
        whole, host = sum(segments.values()) + sum(seeds.values()), _chain_of(model)
        if host is None:
            off = sum(seeds[slot_id] for configuration in configurations for slot_id in configuration.off)
            return len(configurations) * whole - off
        total, places = 0, list(model.slots)
        for configuration in configurations:
            first = min((places.index(slot_id) for slot_id in configuration.touched), default=None)
            if first is None:
                total += whole
                continue
            cut = host.cut_of(places[first])
            total += sum(list(segments.values())[cut:])
            total += sum(seeds[slot_id] for slot_id in places[first:] if slot_id not in configuration.off)
        return total

    def _evaluation_parts(self, model: GrowingModel, inputs: Tensor) -> tuple[dict[str, int], dict[str, int]]:
        items = inputs.shape[0]
        heard = {slot_id: slot for slot_id, slot in model.slots.items() if _heard(slot)}
        keys = {slot_id: (items, *_key(slot_id, slot)) for slot_id, slot in heard.items()}
        if items not in self._host_eval or any(key not in self._seed_eval for key in keys.values()):
            counted = count_eval(model, inputs)
            shares = {slot_id: counted.by_module[_path(model, slot_id)] for slot_id in model.slots}
            self._host_eval[items] = _segment_shares(model, counted, sum(shares.values()))
            self._seed_eval |= {key: shares[slot_id] for slot_id, key in keys.items()}
        seeds = dict.fromkeys(model.slots, 0) | {slot_id: self._seed_eval[key] for slot_id, key in keys.items()}
        return self._host_eval[items], seeds

    def _count_step(self, model: GrowingModel) -> StepFlops:
        size, split = self.task.recipe.batch_size, self.task.splits.train
        return count_step(
            model, split.inputs[:size], lambda out, want: self.task.loss(out, want).mean(), split.targets[:size]
        )


def _path(model: GrowingModel, slot_id: str) -> str:
    paths: list[str] = [name for name, module in model.named_modules() if module is model.slots[slot_id]]
    return paths[0]


def _segment_shares(model: GrowingModel, counted: StepFlops, seeds: int) -> dict[str, int]:
    host = _chain_of(model)
    if host is None:
        return {"": counted.total - seeds}
    names = [f"host.segments.{index}" for index in range(len(host.segments))]
    return {name: counted.by_module[name] for name in names}


def _chain_of(model: GrowingModel) -> Host | None:
    return model.host if isinstance(model, MorphogeneticModel) and isinstance(model.host, Host) else None


def _key(slot_id: str, slot: SeedSlot) -> _SeedKey:
    """Everything that a seed's cost depends on."""
    assert slot.state is not None
    assert slot.seed is not None
    learns = any(param.requires_grad for param in slot.seed.parameters())
    rungs, gated = slot.report().rungs, slot.gate is not None
    return (slot_id, slot.state.blueprint_id, rungs, learns, slot.isolate_gradients, gated)


def _trains(slot: SeedSlot) -> bool:
    return slot.seed is not None and slot.stage is not SeedStage.GERMINATED


def _heard(slot: SeedSlot) -> bool:
    return _trains(slot) and slot.stage is not SeedStage.TRAINING
