"""What the governor makes of nine faults: how many steps until it knows, and where the host goes. Read `struck` first.

Every case is one host that has trained for a while, some with a seed in it, and then meets one fault. Steps are counted
from the fault on: 0 is the step that it fell into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.groups import host_parameters
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.randomness import drawing_from
from esper.leyline.stages import SeedStage
from esper.leyline.task import Split, Task
from esper.leyline.telemetry import GovernorRollbackPayload
from esper.tolaria.config import GovernorConfig
from esper.tolaria.digest import digest_of_state
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.setup import Setup

Mend = Callable[[], object]
"""Ends a fault that lasts for one step."""

LENGTH = 60  # epochs of an episode
CALM = 10  # epochs before a seed is planted, or the fault
WATCHED = 10  # epochs after the fault


# --- the faults -----------------------------------------------------------------------------------------------------


def _nan_batch(environment: Environment) -> Mend:
    task = environment.task
    environment.task = replace(task, augment=lambda inputs, _generator: inputs * torch.nan)
    return lambda: setattr(environment, "task", task)


def _nan_activation(environment: Environment) -> Mend:
    first = next(each for each in environment.model.modules() if isinstance(each, nn.Conv2d | nn.Linear))
    return first.register_forward_hook(lambda _module, _args, output: output * torch.nan).remove


def _nan_host_gradient(environment: Environment) -> Mend:
    _, param = host_parameters(environment.model)[0]
    return param.register_hook(lambda gradient: gradient * torch.nan).remove


def _nan_seed_gradient(environment: Environment) -> Mend:
    return _seed_params(environment)[0].register_hook(lambda gradient: gradient * torch.nan).remove


def _too_fast(environment: Environment) -> Mend:
    for group in environment.optimiser.param_groups:
        group["lr"] *= 100.0
    return _stays


def _nan_weight(environment: Environment) -> Mend:
    return _spoil(environment, torch.nan)


def _huge_weight(environment: Environment) -> Mend:
    return _spoil(environment, 3e4)


@torch.no_grad()
def _spoil(environment: Environment, value: float) -> Mend:
    _, param = host_parameters(environment.model)[0]
    param.view(-1)[0] = value
    return _stays


def _shuffled_labels(environment: Environment) -> Mend:
    task, train = environment.task, environment.task.splits.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    splits = replace(task.splits, train=Split(train.inputs, train.targets[order]))
    environment.task = replace(task, splits=splits)
    return _stays


@torch.no_grad()
def _exploding_seed(environment: Environment) -> Mend:
    for param in _seed_params(environment):
        param.mul_(300.0)
    return _stays


def _stays() -> None:
    """The fault is in the weights, the optimiser or the data, and stays there."""


def _seed_params(environment: Environment) -> list[nn.Parameter]:
    seed = next(slot.seed for slot in environment.model.slots.values() if slot.seed is not None)
    return [param for param in seed.parameters() if param.requires_grad]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a host, and what the governor owes it."""

    strike: Callable[[Environment], Mend]
    grown: SeedStage | None = None  # what the seed has to be doing, where there is one
    images: bool = False  # tokens cannot be NaN
    skip: bool = False  # not one weight of the host may see it
    taken_back_in: int | None = None  # steps until the median alarm, at most; None where there must be none
    heals: bool = False  # training mends it as a rule, so that an alarm is neither owed nor wrong
    unlearns: bool = False  # it costs what was learned, which is little where text was read for so short a time


FAULTS: Mapping[str, Fault] = {
    "NaN in a batch": Fault(_nan_batch, images=True, skip=True),
    "NaN in an activation": Fault(_nan_activation, skip=True),
    "NaN in a host gradient": Fault(_nan_host_gradient, skip=True),
    "NaN in a seed's gradient": Fault(_nan_seed_gradient, SeedStage.TRAINING),
    "NaN in a weight": Fault(_nan_weight, skip=True, taken_back_in=5),
    "one weight 30000": Fault(_huge_weight, heals=True),
    "learning rate x 100": Fault(_too_fast, taken_back_in=8),
    "shuffled labels": Fault(_shuffled_labels, taken_back_in=8, unlearns=True),
    "exploding seed": Fault(_exploding_seed, SeedStage.BLENDING, taken_back_in=8),
}


# --- one host -------------------------------------------------------------------------------------------------------


@dataclass
class Bed:
    """A host before its fault, and what it was after each epoch that nothing was wrong with."""

    hosts: LocalHosts
    known: dict[int, str] = field(default_factory=dict)  # digest of the host by optimiser steps

    @classmethod
    def on(cls, task: Task, seed: int) -> Bed:
        config = GovernorConfig()
        engine = Engine(Setup(task, envs=1, episode_length=LENGTH, seed=seed, governor=config))
        bed = cls(LocalHosts(engine, Governor(config)))
        engine.reset(0)
        bed.hosts.governor.begin(engine)
        bed.know()
        return bed

    @property
    def environment(self) -> Environment:
        return self.hosts.engine.environments[0]

    def know(self) -> None:
        self.known[self.environment.vitals.steps] = host_digest(self.environment)

    def live(self, epochs: int) -> None:
        for _ in range(epochs):
            self.hosts.engine.train_epoch()
            self.review()
            self.know()

    def review(self) -> GovernorRollbackPayload | None:
        """The end of an epoch."""
        engine = self.hosts.engine
        verdicts, _ = self.hosts.governor.review(engine, engine.measure())
        back = [event for event in verdicts[0].events if isinstance(event, GovernorRollbackPayload)]
        return back[0] if back else None

    def do(self, op: LifecycleOp, **choices: str) -> None:
        space = self.hosts.engine.space
        receipts = self.hosts.engine.apply([space.action(op, slot=space.slot_config.slot_ids[0], **choices)])
        assert receipts[0].done, receipts[0].why

    def grow(self) -> None:
        """A seed TRAINING in the first slot, of the first blueprint with weights."""
        space = self.hosts.engine.space
        blueprint = next(name for name, size in zip(space.blueprints, space.params[0], strict=True) if size > 100)
        self.do(LifecycleOp.GERMINATE, blueprint=blueprint)
        self.do(LifecycleOp.ADVANCE)
        self.live(3)

    def blend(self) -> None:
        self.do(LifecycleOp.ADVANCE)
        self.live(2)


def host_digest(environment: Environment) -> str:
    """Of the weights of the host alone and of their moments."""
    moments = environment.optimiser.state
    return digest_of_state(
        [[name, param, dict(moments.get(param, {}))] for name, param in host_parameters(environment.model)]
    )


@dataclass(frozen=True)
class Case:
    """What came of one fault in one host. Steps are None where it never happened."""

    skipped_after: int | None  # steps until the first that the host, or the seed alone, did not take
    alarm_after: int | None
    untouched: bool  # by the step that the fault fell into: the host's weights, or of a seed's fault the seed's
    taken_back: bool
    right: bool  # to the very state of a good epoch from before the fault


def struck(bed: Bed, fault: Fault) -> Case:
    """One fault, from its first step to the host's return, or for `WATCHED` epochs."""
    environment = bed.environment
    vitals, at = environment.vitals, environment.vitals.steps
    skipped_after = alarm_after = None
    untouched = False
    mend: Mend | None = None
    for _ in range(WATCHED):
        environment.begin_epoch()
        with drawing_from(environment.draws):
            for index in range(environment.task.steps_per_epoch):
                touched = _seed_params(environment) if fault.grown is SeedStage.TRAINING else _host_params(environment)
                step = vitals.steps - at
                if mend is None:
                    mend, before = fault.strike(environment), [param.detach().clone() for param in touched]
                environment.train_batch(index)
                if step == 0:
                    mend()
                    untouched = all(map(_same, before, touched))
                if skipped_after is None and (environment.skipped or environment.seed_skips):
                    skipped_after = step
                if alarm_after is None and vitals.alarm is not None:
                    alarm_after = step
        environment.end_epoch()
        back = bed.review()
        if back is not None:
            right = back.restored_steps <= at and bed.known[back.restored_steps] == host_digest(environment)
            return Case(skipped_after, alarm_after, untouched, True, right)
    return Case(skipped_after, alarm_after, untouched, False, True)


def _host_params(environment: Environment) -> list[nn.Parameter]:
    return [param for _, param in host_parameters(environment.model)]


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7.0), other.detach().nan_to_num(7.0))


# --- the matrix -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One fault in all its hosts."""

    fault: str
    task: str
    cases: Sequence[Case]
    images: bool = True

    def middle(self, of: str) -> float | None:
        """Median of a latency in steps; None unless it happened in every case."""
        values = [getattr(case, of) for case in self.cases]
        return None if None in values else median(values)

    @property
    def wrong(self) -> int:
        return sum(not case.right for case in self.cases)

    @property
    def owed(self) -> bool:
        """Whether anything is promised but that no host goes where it should not."""
        return not FAULTS[self.fault].heals and (self.images or not FAULTS[self.fault].unlearns)

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        fault, alarm = FAULTS[self.fault], self.middle("alarm_after")
        if not self.owed:
            return self.wrong == 0
        if self.wrong or (fault.skip and not all(case.untouched and case.skipped_after == 0 for case in self.cases)):
            return False
        if fault.taken_back_in is None:
            return not any(case.taken_back for case in self.cases)
        return alarm is not None and alarm <= fault.taken_back_in


def matrix(task: Task, seeds: Sequence[int], faults: Sequence[str] = tuple(FAULTS)) -> list[Row]:
    """Every fault in a host of every seed; the hosts of one seed differ in the fault alone."""
    images = task.splits.train.inputs.is_floating_point()
    cases: dict[str, list[Case]] = {fault: [] for fault in faults if images or not FAULTS[fault].images}
    for seed in seeds:
        beds = _beds(task, seed)
        for fault, found in cases.items():
            state, known = beds[FAULTS[fault].grown]
            bed = Bed.on(task, seed)
            bed.hosts.load(state)
            bed.known |= known
            found.append(struck(bed, FAULTS[fault]))
    return [Row(fault, task.name, found, images) for fault, found in cases.items()]


def _beds(task: Task, seed: int) -> dict[SeedStage | None, tuple[dict[str, Any], dict[int, str]]]:
    """By what the seed is doing: the hosts put away, and what is known of them."""
    bed, beds = Bed.on(task, seed), {}
    stages: list[tuple[SeedStage | None, Callable[[], None]]] = [
        (None, lambda: bed.live(CALM)),
        (SeedStage.TRAINING, bed.grow),
        (SeedStage.BLENDING, bed.blend),
    ]
    for stage, reach in stages:
        reach()
        beds[stage] = bed.hosts.state(), dict(bed.known)
    return beds
