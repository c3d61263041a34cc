"""What a host's work costs in FLOPs, put together from its parts.

Cost is additive over segments and seeds: what a seed costs depends on its blueprint, its active rungs, whether its
weights learn, whether its gradient goes on into the host, and whether it has a gate. So the host is counted once, each
such seed once and by itself, and the topologies of a whole run are sums: on a small host a count of everything takes
as long as an epoch. `tests/tolaria/test_costs.py` holds the sums against a count of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from esper.kasmina.groups import HOST_GROUP, host_parameters
from esper.kasmina.host import Host
from esper.kasmina.model import Configuration, GrowingModel, MorphogeneticModel
from esper.kasmina.planting import rungs_of
from esper.kasmina.slot import SeedSlot
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.tolaria.flops import StepFlops, count_step

_SeedKey = tuple[object, ...]


@dataclass(frozen=True)
class _SeedWork:
    """FLOPs of a seed for one training batch."""

    step: int
    forward: int


@dataclass(frozen=True)
class _HostWork:
    """FLOPs of a host for one training batch."""

    step: int
    segments: tuple[int, ...]  # forward alone; a single entry where the host is no chain
    shapes: tuple[tuple[int, ...], ...]  # of what the segments return; empty where the host is no chain


@dataclass
class Costs:
    """Counts of one host; shared by all environments that train it (`Task.host_key`)."""

    task: Task
    _hosts: dict[str, _HostWork] = field(default_factory=dict)  # by `_source_of`
    _seeds: dict[_SeedKey, _SeedWork] = field(default_factory=dict)

    def step(self, model: GrowingModel) -> tuple[int, dict[str, int]]:
        """One training step: of the host, and of each seed by its id."""
        host, seeds = self._parts(model)
        by_seed = {}
        for slot_id, work in seeds.items():
            state = model.slots[slot_id].state
            assert state is not None
            by_seed[state.seed_id] = work.step
        return host.step, by_seed

    def evaluation(self, model: GrowingModel, inputs: Tensor, configurations: Sequence[Configuration]) -> int:
        """One pass over `inputs` under every configuration, with the prefixes that the model caches.

        A pass treats items apart, so that its work is in proportion to their number. Rungs that differ from the
        model's are charged as the model's, and a host that is no chain of segments is charged whole passes, because
        what lies before a slot cannot be told apart.
        """
        work, trained = self._parts(model)
        items, size = inputs.shape[0], self.task.recipe.batch_size
        segments = [flops * items // size for flops in work.segments]
        seeds = {
            slot_id: trained[slot_id].forward * items // size if _heard(slot) else 0
            for slot_id, slot in model.slots.items()
        }
        whole, host = sum(segments) + sum(seeds.values()), _chain_of(model)
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
            total += sum(segments[cut:])
            total += sum(seeds[slot_id] for slot_id in places[first:] if slot_id not in configuration.off)
        return total

    def _parts(self, model: GrowingModel) -> tuple[_HostWork, dict[str, _SeedWork]]:
        """The work of the host and of every seed that runs in training, by slot; what is not known yet is counted."""
        source, chain = _source_of(model), _chain_of(model)
        keys = {
            slot_id: _key(slot_id, slot, source not in ("", slot_id))
            for slot_id, slot in model.slots.items()
            if _trains(slot)
        }
        fresh = [slot_id for slot_id, key in keys.items() if key not in self._seeds]
        if source not in self._hosts or (fresh and chain is None):
            counted = self._count_whole(model)
            paths = {slot_id: _path(model, slot_id) for slot_id in model.slots}
            self._hosts[source] = _host_work(counted, list(paths.values()), chain)
            for slot_id, key in keys.items():
                path = paths[slot_id]
                self._seeds[key] = _SeedWork(counted.by_module[path], counted.forward_by_module[path])
        elif chain is not None:
            for slot_id in fresh:
                reached = source not in ("", slot_id)
                self._seeds[keys[slot_id]] = _count_seed(model.slots[slot_id], chain, self._hosts[source], reached)
        return self._hosts[source], {slot_id: self._seeds[key] for slot_id, key in keys.items()}

    def _count_whole(self, model: GrowingModel) -> StepFlops:
        size, split = self.task.recipe.batch_size, self.task.splits.train
        return count_step(
            model, split.inputs[:size], lambda out, want: self.task.loss(out, want).mean(), split.targets[:size]
        )


def _count_seed(slot: SeedSlot, chain: Host, host: _HostWork, reached: bool) -> _SeedWork:
    """A count of the slot alone, on a batch like the one that the segment before it returns.

    reached: something before the slot learns, so that a gradient goes on through it.
    """
    cut = chain.cut_of(slot.spec.slot_id)
    entry = torch.empty(host.shapes[cut - 1], dtype=slot.alpha.dtype, device=slot.alpha.device)
    entry.requires_grad_(reached)
    counted = count_step(slot, entry, lambda out, _: out.sum(), entry)
    return _SeedWork(counted.total, counted.forward)


def _host_work(counted: StepFlops, slots: Sequence[str], chain: Host | None) -> _HostWork:
    """What is left of a count of the whole model without its slots."""
    step = counted.total - sum(counted.by_module[path] for path in slots)
    if chain is None:
        forward = counted.forward_by_module
        return _HostWork(step, (forward[""] - sum(forward[path] for path in slots),), ())
    names = [f"host.segments.{index}" for index in range(len(chain.segments))]
    segments = tuple(counted.forward_by_module[name] for name in names)
    return _HostWork(step, segments, tuple(counted.output_shapes[name] for name in names))


def _path(model: GrowingModel, slot_id: str) -> str:
    paths: list[str] = [name for name, module in model.named_modules() if module is model.slots[slot_id]]
    return paths[0]


def _chain_of(model: GrowingModel) -> Host | None:
    return model.host if isinstance(model, MorphogeneticModel) and isinstance(model.host, Host) else None


def _source_of(model: GrowingModel) -> str:
    """The first thing that learns, which is how far back a gradient has to go.

    "host" where the host does. In a frozen one it is the first slot whose seed learns, and "" if there is none: what
    lies before it costs no backward pass, what lies after it does.
    """
    if host_parameters(model):
        return HOST_GROUP
    return next((slot_id for slot_id, slot in model.slots.items() if _trains(slot) and _learns(slot)), "")


def _learns(slot: SeedSlot) -> bool:
    return slot.seed is not None and any(param.requires_grad for param in slot.seed.parameters())


def _key(slot_id: str, slot: SeedSlot, reached: bool) -> _SeedKey:
    """Everything that a seed's cost depends on. reached: as in `_count_seed`."""
    assert slot.state is not None
    assert slot.seed is not None
    rungs, gated = rungs_of(slot.seed), slot.gate is not None
    return (slot_id, slot.state.blueprint_id, rungs, _learns(slot), slot.isolate_gradients, gated, reached)


def _trains(slot: SeedSlot) -> bool:
    return slot.seed is not None and slot.stage is not SeedStage.GERMINATED


def _heard(slot: SeedSlot) -> bool:
    return _trains(slot) and slot.stage is not SeedStage.TRAINING
