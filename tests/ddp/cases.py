"""What each rank of a pair does in the tests of hosts that all ranks train: functions of its group, sent by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.support import bring, find_healthy
from tests.tolaria.small import QUICK, toy
from tests.tolaria.test_hosts import Case
from torch import Tensor

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.blueprints.channels import channel_groups
from esper.kasmina.ladder import Ladder
from esper.leyline.errors import LifecycleDivergence, RanksError
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.randomness import drawing_from
from esper.leyline.stages import SeedStage
from esper.tolaria.config import GovernorConfig
from esper.tolaria.crew import Crew
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.ranks.fleet import code_and_data
from esper.tolaria.ranks.group import Group, refuse_differences
from esper.tolaria.ranks.leading import Replica
from esper.tolaria.ranks.lifecycle import lifecycle_of
from esper.tolaria.ranks.replicas import Replicas
from esper.tolaria.setup import Setup

BODY = replace(QUICK, blueprints=("conv_ladder", "conv_light", "norm"), ladder_start=2)
RARELY = 10**6  # steps between comparisons of weights, where they are not what is tested


def engine_of(crew: Crew | None, **governor: Any) -> Engine:
    """With one host, whose first round has begun."""
    engine = Engine(Setup(toy(), 1, 12, 0, body=BODY, crew=crew, governor=GovernorConfig(**governor)))
    engine.reset(0)
    return engine


def noticed(act: Callable[[], object]) -> LifecycleDivergence:
    """What is raised."""
    try:
        act()
    except LifecycleDivergence as error:
        return error
    raise AssertionError("nothing was noticed")


# --- operations -------------------------------------------------------------------------------------------------

STAGES = {
    LifecycleOp.WAIT: SeedStage.TRAINING,
    LifecycleOp.GERMINATE: SeedStage.DORMANT,
    LifecycleOp.ADVANCE: SeedStage.GERMINATED,
    LifecycleOp.PRUNE: SeedStage.TRAINING,
    LifecycleOp.SET_ALPHA_TARGET: SeedStage.HOLDING,
    LifecycleOp.FOSSILIZE: SeedStage.HOLDING,
    LifecycleOp.GROW_INTERNAL: SeedStage.TRAINING,
    LifecycleOp.SHRINK_INTERNAL: SeedStage.TRAINING,
}
"""A stage in which the operation is possible."""


def brought(group: Group, stage: SeedStage) -> Engine:
    """A host with a ladder of this stage in its first slot."""
    engine = engine_of(Replicas(group, RARELY))
    plant(engine.environments[0], stage)
    return engine


def plant(environment: Environment, stage: SeedStage) -> None:
    with drawing_from(environment.growth):
        slot = bring(environment.model.slots["r0c0"], stage, blueprint="conv_ladder")
        if stage is SeedStage.HOLDING:
            slot.step_epoch()  # long enough held to be kept
    if slot.state is not None:
        find_healthy(slot)
        slot.state.age = 5
    environment._structure_changed(())


def action(engine: Engine, op: LifecycleOp) -> FactoredAction:
    return engine.space.action(op, **({} if op is LifecycleOp.WAIT else {"slot": "r0c0", "alpha_target": "half"}))


def after_operation(group: Group, op: LifecycleOp) -> tuple[bool, dict[str, str], dict[str, str]]:
    """Whether it was done, and the lifecycle of all slots before and after it."""
    engine = brought(group, STAGES[op])
    before = lifecycle_of(engine.environments)
    (receipt,) = engine.apply([action(engine, op)])
    return receipt.done, before, lifecycle_of(engine.environments)


def with_another_level(group: Group, op: LifecycleOp) -> tuple[LifecycleDivergence, bool]:
    """What is raised where rank 1 has another level, or a seed, and whether nothing has changed by then."""
    engine = brought(group, STAGES[op])
    environment = engine.environments[0]
    if group.rank == 1:
        seed = environment.model.slots["r0c0"].seed
        if isinstance(seed, Ladder):
            seed.shrink()
        else:
            plant(environment, SeedStage.GERMINATED)
    before = engine.digests()
    return noticed(lambda: engine.apply([action(engine, op)])), engine.digests() == before


def with_another_decision(group: Group) -> LifecycleDivergence:
    engine = brought(group, SeedStage.DORMANT)
    name = "norm" if group.rank == 1 else "conv_light"
    return noticed(lambda: engine.apply([engine.space.action("GERMINATE", slot="r0c0", blueprint=name)]))


def with_another_stream(group: Group) -> LifecycleDivergence:
    """Rank 1 would draw other weights for the same seed."""
    engine = brought(group, SeedStage.DORMANT)
    if group.rank == 1:
        engine.environments[0].growth.manual_seed(99)
    return noticed(lambda: engine.apply([action(engine, LifecycleOp.GERMINATE)]))


def with_a_frozen_parameter(group: Group) -> LifecycleDivergence:
    """Rank 1 would have fewer gradients to add up, which would end the process from within torch."""
    engine = engine_of(Replicas(group, RARELY))
    if group.rank == 1:
        next(engine.environments[0].model.parameters()).requires_grad_(False)
    return noticed(engine.train_epoch)


def with_other_data(group: Group) -> RanksError:
    """One pixel of one image is another on rank 1."""
    task = toy()
    if group.rank == 1:
        task.splits.val.inputs[0, 0, 0, 0] += 1
    setup = Setup(task, 1, 12, 0)
    try:
        refuse_differences(group.gather(code_and_data(setup)))
    except RanksError as error:
        return error
    raise AssertionError("nothing was noticed")


def life_by_lot(group: Group, case: Case) -> list[str]:
    """Reports, verdicts and digests of a life with operations and rollbacks; weights are compared every epoch."""
    plain = case.hosts()
    engine = Engine(replace(plain.engine.setup, crew=Replicas(group, 4)))
    hosts = LocalHosts(engine, plain.governor)
    engine.reset(0)
    hosts.governor.begin(engine)
    return case.play(hosts, case.steps)


def groupings(_group: Group, counts: Sequence[int]) -> list[tuple[tuple[range, ...], tuple[bool, ...], list[int]]]:
    """Of each count of channels its groups, the mask of every other one, and the parameters of each rung."""
    found = []
    for count in counts:
        spec = InjectionSpec("r0c0", count, "NCHW", InjectionSurface.BLOCK_END, 0, 0, 0)
        ladder = BLUEPRINTS["channel_ladder"].build(spec)
        assert isinstance(ladder, Ladder)
        ladder.set_active([index % 2 == 0 for index in range(len(ladder.rungs))])
        sizes = [sum(param.numel() for param in rung.parameters()) for rung in ladder.rungs]
        found.append((channel_groups(count), ladder.active, sizes))
    return found


# --- one host, all ranks ----------------------------------------------------------------------------------------


def grown_life(crew: Crew | None) -> Engine:
    """Six epochs with a ladder that is heard and a seed that has only begun, from before their first step on."""
    engine = engine_of(crew)
    environment = engine.environments[0]
    plant(environment, SeedStage.BLENDING)
    for index in range(6):
        if index == 2:
            (receipt,) = engine.apply([engine.space.action("GERMINATE", slot="r0c1", blueprint="conv_light")])
            assert receipt.done, receipt.why
        if index == 3:
            (receipt,) = engine.apply([engine.space.action("ADVANCE", slot="r0c1")])
            assert receipt.done, receipt.why
        engine.train_epoch()
        engine.measure()
    return engine


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in engine.environments[0].model.named_parameters()}


def weights_after_growth(group: Group, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[str]]:
    with all_in(dtype):
        engine = grown_life(Replicas(group, 1))
        return weights(engine), engine.digests()


@contextmanager
def all_in(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made in the block are of this type."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def gradients_of_seeds(crew: Crew | None) -> dict[str, Tensor]:
    """Of one batch, of every parameter that was born by growth."""
    engine = engine_of(crew)
    environment = engine.environments[0]
    plant(environment, SeedStage.BLENDING)
    environment.begin_epoch()
    found: dict[str, Tensor] = {}
    environment.optimiser.step = lambda: found.update(  # type: ignore[method-assign]
        {
            name: param.grad.clone()
            for name, param in environment.model.named_parameters()
            if param.grad is not None and "slots" in name
        }
    )
    environment.train_batch(0)
    return found


def gradients_on_ranks(group: Group) -> dict[str, Tensor]:
    return gradients_of_seeds(Replicas(group, RARELY))


def with_a_drift(group: Group, every: int, after: int) -> tuple[LifecycleDivergence, int]:
    """A weight of rank 1 moves by an ulp after so many steps; what is raised, and how many steps later."""
    engine = engine_of(Replicas(group, every))
    environment = engine.environments[0]
    train_batch, taken = environment.train_batch, list[int]()

    def disturbed(index: int) -> None:
        train_batch(index)
        taken.append(index)
        if len(taken) == after and group.rank == 1:
            weight = next(environment.model.parameters()).data.view(-1)[:1]
            weight.copy_(torch.nextafter(weight, weight + 1))

    environment.train_batch = disturbed  # type: ignore[method-assign]
    error = noticed(lambda: [engine.train_epoch() for _ in range(4)])
    return error, len(taken) - after


def seconds_of_an_epoch(group: Group) -> list[float]:
    """What each rank has worked, where each of the four batches takes rank 1 a tenth of a second."""
    crew, task = Replicas(group, RARELY), toy()
    if group.rank == 1:
        plain = task.loss

        def slow(outputs: Tensor, targets: Tensor) -> Tensor:
            time.sleep(0.1)
            return plain(outputs, targets)

        task = replace(task, loss=slow)
    replica = Replica(Setup(task, 1, 12, 0, body=BODY, crew=crew), group, crew)
    replica.share.reset(0)
    return replica.train_epoch()


@dataclass(frozen=True)
class Spoilt:
    """What came of an epoch in which the losses of rank 1 alone were spoilt."""

    healthy: bool  # says the governor
    rollbacks: int
    skipped: int  # steps of the epoch
    untouched: bool  # weights, by the epoch
    digests: list[str]  # after the governor's review


def with_spoilt_losses(group: Group, factor: float) -> Spoilt:
    """The losses of rank 1's items are multiplied by this in the fourth epoch."""
    engine = engine_of(Replicas(group, 1), explosion=3.0, snapshot_steps=4, bless_steps=4)
    environment, governor = engine.environments[0], Governor(engine.setup.governor)
    governor.begin(engine)
    for _ in range(3):
        engine.train_epoch()
        governor.review(engine, engine.measure())
    before, healthy = weights(engine), environment.task
    if group.rank == 1:
        environment.task = replace(healthy, loss=lambda outputs, targets: factor * healthy.loss(outputs, targets))
    engine.train_epoch()
    environment.task, skipped = healthy, environment.skipped
    after = weights(engine)
    untouched = all(torch.equal(before[name], value) for name, value in after.items())
    (verdict,), _ = governor.review(engine, engine.measure())
    return Spoilt(verdict.healthy, environment.rollbacks, skipped, untouched, engine.digests())
