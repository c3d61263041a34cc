"""The step gate: weights never see a step whose loss or gradient is not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support import same
from tests.tolaria.small import by_plan, cnn_host, do, engine_on, live, state_of, toy, waiting
from torch import Tensor, nn

from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.leyline.telemetry import GovernorStepsSkippedPayload, SeedPrunedPayload
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor

SEED_IN_TRAINING = (do("GERMINATE", blueprint="conv_light"), do("ADVANCE"))


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return torch.full_like(grads[0], torch.nan)


class Strike(nn.Module):
    """Does something to what passes, in the training steps that are named."""

    def __init__(self, *steps: int, how: str) -> None:
        super().__init__()
        self.steps, self.how, self.passed = steps, how, -1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.passed += 1
        if self.passed not in self.steps:
            return x
        changed: Tensor = Poisoned.apply(x) if self.how == "gradient" else x * torch.nan
        return changed


def struck(how: str, *steps: int, **recipe: Any) -> Task:
    """The toy task, whose host fails behind its first segment in these steps."""

    def make() -> nn.Module:
        host = cnn_host()
        host.segments[0] = nn.Sequential(host.segments[0], nn.BatchNorm2d(4), Strike(*steps, how=how))
        return host

    return toy(make_host=make, **recipe)


def weights(engine: Engine) -> dict[str, Any]:
    return {name: value for name, value in state_of(engine.environments[0]).items() if name.startswith("host.")}


@pytest.mark.parametrize("how", ["activation", "gradient"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_bad_step_leaves_weights_moments_and_running_statistics_as_they_were(how: str, optimiser: str) -> None:
    engine = engine_on(struck(how, *range(4, 8), optimiser=optimiser))
    live(engine, waiting, 1)
    (environment,) = engine.environments
    before = state_of(environment)

    engine.train_epoch()

    after = state_of(environment)
    kept = [name for name in before if name.startswith("host.")]
    assert kept
    assert same({name: after[name] for name in kept}, {name: before[name] for name in kept})
    assert environment.skipped == 4
    assert environment.train_loss is None


@pytest.mark.parametrize("how", ["activation", "gradient"])
def test_after_one_bad_step_the_others_of_the_epoch_are_taken_and_nobody_is_taken_back(how: str) -> None:
    engine = engine_on(struck(how, 5))
    governor = Governor(engine.setup.governor)
    governor.begin(engine)

    steps = live(engine, waiting, 3, governor)

    assert [verdict.healthy for step in steps for verdict in step.verdicts] == [True] * 3
    (told,) = [event for step in steps for verdict in step.verdicts for event in verdict.events]
    assert told == GovernorStepsSkippedPayload(env_id=0, skipped=1, steps=8)
    assert all(torch.isfinite(param).all() for param in engine.environments[0].model.parameters())


def test_a_seed_whose_gradient_is_not_finite_skips_its_own_step_and_not_the_hosts() -> None:
    bare, growing = engine_on(toy()), engine_on(toy())
    for engine in (bare, growing):
        plan = (None, None) if engine is bare else SEED_IN_TRAINING
        live(engine, by_plan(*plan), 2)
    seed = growing.environments[0].model.slots["r0c0"].seed
    assert seed is not None
    first = next(seed.parameters())
    first.data.view(-1)[0] = torch.nan
    before = [param.detach().clone() for param in seed.parameters()]

    for engine in (bare, growing):
        live(engine, waiting, 1)

    assert growing.environments[0].seed_skips == {"r0c0": 4}
    assert growing.environments[0].skipped == 0
    assert same(weights(growing), weights(bare))
    for param, old in zip(seed.parameters(), before, strict=True):
        assert torch.equal(param.detach().nan_to_num(7.0), old.nan_to_num(7.0))


def test_a_seed_that_cannot_learn_for_long_is_removed_and_its_host_goes_on() -> None:
    engine = engine_on(toy(), governor=GovernorConfig(seed_patience=8))
    governor = Governor(engine.setup.governor)
    live(engine, by_plan(*SEED_IN_TRAINING), 2, governor)
    seed = engine.environments[0].model.slots["r0c0"].seed
    assert seed is not None
    next(seed.parameters()).data.fill_(torch.nan)

    first, second = live(engine, waiting, 2, governor)

    assert [type(event) for event in first.verdicts[0].events] == [GovernorStepsSkippedPayload]
    pruned = [event for event in second.verdicts[0].events if isinstance(event, SeedPrunedPayload)]
    assert [(event.seed_id, event.initiator, event.env_id) for event in pruned] == [("r0c0.1", "governor", 0)]
    assert second.verdicts[0].healthy
    assert second.settled[0].slots[0].stage is SeedStage.PRUNED
    assert engine.environments[0].rollbacks == 0


@pytest.mark.parametrize(("spike_z", "skipped"), [(0.0, 0), (8.0, 1)])
def test_a_lone_spike_is_skipped_where_that_is_asked_for(spike_z: float, skipped: int) -> None:
    task = toy(items=160)  # ten steps an epoch
    engine = engine_on(task, governor=GovernorConfig(spike_z=spike_z))
    live(engine, waiting, 4)
    (environment,) = engine.environments
    calls: list[int] = []

    def spiking(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return task.loss(outputs, targets) * (1e3 if len(calls) == 3 else 1.0)

    environment.task = replace(environment.task, loss=spiking)
    environment.begin_epoch()
    for index in range(10):
        environment.train_batch(index)
    environment.end_epoch()

    assert environment.skipped == skipped
