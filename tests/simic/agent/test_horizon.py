"""What comes after the horizon: nothing, or what the critic expects (CleanRL #198, Pardo et al. 2018)."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from tests.simic.agent.small import host_round, hosts, policy_on
from tests.simic.collector import Player
from tests.simic.games import Game, only_ops

from esper.leyline.telemetry import PpoUpdatedPayload
from esper.simic.agent.advantages import ValueScale
from esper.simic.agent.batch import Batch, Horizon
from esper.simic.agent.config import PPOConfig
from esper.tamiyo.networks.factored_lstm import Inputs
from esper.tamiyo.policy.features import observe

LENGTH, GAMMA = 8, 0.9
FOR_EVER = 1 / (1 - GAMMA)  # what 1 a step is worth
PAID = [sum(GAMMA**k for k in range(LENGTH - step)) for step in range(LENGTH)]  # until the horizon, from each step on


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


def playing(make: type[Game] = Steady, **settings: Any) -> Player:
    """Two environments, which live through the same."""
    config = {"epochs": 1, "minibatch": 2, "gamma": GAMMA, "target_kl": None, "baseline": "none"} | settings
    return Player(make, PPOConfig(**config), envs=2, size=16)


def seen_beyond(batch: Batch, open_: bool = True) -> Batch:
    """With one more look at each game after its last step."""
    last = batch.inputs.map(lambda values: values[-1])
    last = Inputs(torch.ones_like(last.base), last.slots, last.blueprints)
    return replace(batch, horizon=Horizon(last, torch.full((batch.sequences,), open_)))


def told_by_a_critic(points: float, open_: bool = True, updates: int = 1, **settings: Any) -> PpoUpdatedPayload:
    """Of an update in which the critic says `points` of every step, the one behind the horizon too."""
    player = playing(**settings)
    ppo, last = player.ppo, player.network.critic[-1]
    ppo.updates, ppo.scale = updates, ValueScale(mean=3.0, square=13.0, batches=4)  # deviation 2
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_((points - 3.0) / 2.0)
    return ppo.learn(seen_beyond(player.collect(), open_))


def surprise(told: PpoUpdatedPayload) -> float:
    """Mean square, in points, of what the critic said from what it should have said."""
    return 2 * told.value_loss * told.value_deviation**2


either_unit = pytest.mark.parametrize("value_norm", [True, False])


@either_unit
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_an_interrupted_episode_is_worth_as_much_as_if_it_went_on_for_ever(value_norm: bool, lam: float) -> None:
    """Who says so has nothing to correct; who says anything else is told a share of the way there, and less late."""
    settings = {"horizon_end": "truncated", "value_norm": value_norm}

    assert surprise(told_by_a_critic(FOR_EVER, lam=lam, **settings)) == pytest.approx(0.0, abs=1e-9)
    for points in (4.0, 17.0):
        wrong = [(1 - GAMMA ** (LENGTH - step)) * (FOR_EVER - points) for step in range(LENGTH)]
        expected = fmean(each**2 for each in wrong)
        assert surprise(told_by_a_critic(points, lam=1.0, **settings)) == pytest.approx(expected, rel=1e-4)


@either_unit
@pytest.mark.parametrize(
    "settings",
    [
        {"horizon_end": "terminated"},
        {"horizon_end": "truncated", "open_": False},  # it had ended before the horizon
        {"horizon_end": "truncated", "updates": 0},  # a critic that has learned nothing expects nothing
    ],
)
def test_an_episode_that_is_over_is_worth_what_it_paid(value_norm: bool, settings: dict[str, Any]) -> None:
    told = told_by_a_critic(4.0, lam=1.0, value_norm=value_norm, **settings)

    assert surprise(told) == pytest.approx(fmean((4.0 - paid) ** 2 for paid in PAID), rel=1e-4)


@pytest.mark.parametrize(("ends", "worth"), [("truncated", FOR_EVER), ("terminated", fmean(PAID))])
def test_the_unit_of_values_is_of_all_that_episodes_are_worth(ends: str, worth: float) -> None:
    """Of the fifth batch, after four with a mean of 3."""
    assert told_by_a_critic(FOR_EVER, horizon_end=ends).value_mean == pytest.approx(3.0 + (worth - 3.0) / 5)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "ends", "worth"), [(Steady, "truncated", FOR_EVER), (Timed, "terminated", PAID[0])])
def test_the_critic_comes_to_say_what_an_episode_is_worth(make: type[Game], ends: str, worth: float) -> None:
    player = playing(make, horizon_end=ends, lr=3e-3, epochs=4)
    for _ in range(150):
        player.ppo.learn(seen_beyond(player.collect()))

    assert float(player.ppo.scale.points(player.collect().value[0, 0])) == pytest.approx(worth, rel=0.02)


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


def test_a_part_of_a_round_keeps_what_was_seen_behind_its_own_sequences() -> None:
    policy = policy_on(slots=2)
    rollout = host_round(policy, envs=3, length=6, ends=[(1, 1)])
    rollout.horizon = observe(hosts(policy.space, 3, 6, 6), policy.space)
    batch = Batch.of(rollout, policy.network)

    part = batch.only(torch.tensor([3, 1]))  # the last environment, and what the second was before its end

    assert part.horizon is not None
    assert rollout.horizon.base is not None
    assert part.horizon.open.tolist() == [True, False]
    assert torch.equal(part.horizon.inputs.base, rollout.horizon.base[[2, 1]])
