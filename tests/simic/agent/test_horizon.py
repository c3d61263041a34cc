"""What comes after the horizon: nothing, or what the critic expects (CleanRL #198, Pardo et al. 2018)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.simic.agent.small import host_round, hosts, policy_on
from tests.simic.collector import Player
from tests.simic.games import Game, only_ops

from esper.simic.agent.batch import Batch, Horizon
from esper.simic.agent.config import PPOConfig
from esper.tamiyo.networks.factored_lstm import Inputs
from esper.tamiyo.policy.features import observe

LENGTH, GAMMA = 8, 0.9


class Steady(Game):
    """1 a step, eight times, whatever is done; the time is not seen."""

    table = only_ops(2)
    base = (1.0,)

    def begin(self) -> None:
        self.step = 0

    def act(self, decision: object) -> tuple[float, bool]:
        self.step += 1
        return 1.0, self.step == LENGTH


class Timed(Steady):
    """The time is seen."""

    @property
    def base(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.step / LENGTH,)


def value_at_first(make: type[Game], ends: str, value_norm: bool) -> float:
    """What the critic says of the first step after 150 rounds, in points."""
    config = PPOConfig(
        lr=3e-3, epochs=4, minibatch=16, gamma=GAMMA, horizon_end=ends, value_norm=value_norm, target_kl=None
    )
    player = Player(make, config, envs=16, size=16)
    for _ in range(150):
        batch = player.collect()
        last = batch.inputs.map(lambda values: values[-1])
        last = Inputs(torch.ones_like(last.base), last.slots, last.blueprints)
        player.ppo.learn(replace(batch, horizon=Horizon(last, torch.ones(16, dtype=torch.bool))))
    return float(player.ppo.scale.points(player.collect().value[0, 0]))


@pytest.mark.parametrize("value_norm", [True, False])
def test_an_interrupted_episode_is_worth_as_much_as_if_it_went_on_for_ever(value_norm: bool) -> None:
    assert value_at_first(Steady, "truncated", value_norm) == pytest.approx(1 / (1 - GAMMA), rel=0.02)


@pytest.mark.parametrize("value_norm", [True, False])
def test_an_episode_that_is_over_is_worth_what_it_paid(value_norm: bool) -> None:
    assert value_at_first(Timed, "terminated", value_norm) == pytest.approx((1 - GAMMA**LENGTH) / (1 - GAMMA), rel=0.02)


def test_only_sequences_that_nothing_else_ended_go_on_behind_the_horizon() -> None:
    policy = policy_on(slots=2)
    rollout = host_round(policy, envs=4, length=6, ends=[(1, 2), (2, 5)], gone={3: 4})
    rollout.horizon = observe(hosts(policy.space, 4, 6, 6), policy.space)

    batch = Batch.of(rollout, policy.network)

    assert batch.env[0].tolist() == [0, 1, 1, 2, 3]
    assert batch.valid.sum(0).tolist() == [6, 3, 3, 6, 4]
    assert batch.horizon is not None
    assert batch.horizon.open.tolist() == [True, False, True, False, False]


def test_what_is_seen_behind_the_horizon_stands_right_after_each_sequence() -> None:
    policy = policy_on(slots=2)
    rollout = host_round(policy, envs=2, length=6, ends=[(1, 1)])
    rollout.horizon = observe(hosts(policy.space, 2, 6, 6), policy.space)
    batch = Batch.of(rollout, policy.network)

    inputs, index = batch.beyond()

    assert rollout.horizon.base is not None
    assert index.tolist() == [6, 2, 4]
    for column, (env, steps) in enumerate([(0, 6), (1, 2), (1, 4)]):
        assert torch.equal(inputs.base[:steps, column], batch.inputs.base[:steps, column])
        assert torch.equal(inputs.base[steps, column], rollout.horizon.base[env])
