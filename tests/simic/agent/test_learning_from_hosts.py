"""Rounds of the main loop, with real sensors and masks, go through the whole learner."""

from __future__ import annotations

import math

import pytest
import torch
from tests.simic.agent.small import equal, host_round, policy_on, weights

from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.telemetry import ObservationsPayload, PpoUpdatedPayload
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.learner import Learner, NoLearner
from esper.simic.agent.ppo import PPO
from esper.simic.agent.rollout_buffer import Rollout

CONFIG = PPOConfig(epochs=2, minibatch=2, target_kl=None)


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
def test_two_rounds_are_learned_from_with_any_number_of_slots(slots):
    policy = policy_on(slots)
    learner: Learner = PPO(policy.network, CONFIG, seed=0, updates=2)
    before = weights(policy.network)

    for round_ in range(2):
        rollout = host_round(policy, envs=3, length=4, ends=[(1, 1)], gone={2: 3}, round_=round_)
        told, seen = learner.update(rollout)

        assert isinstance(told, PpoUpdatedPayload)
        assert isinstance(seen, ObservationsPayload)
        assert told.skipped == ""
        assert told.ratio_error <= 1e-5
        assert (told.sequences, told.steps) == (4, 11)
        assert (told.invalid_executed, told.all_masked) == (0, 0)
        assert [name for name, _ in told.op_values] == [op.name for op in LifecycleOp]
        assert {name for name, _ in told.entropy} <= set(HEADS)
    assert not equal(before, weights(policy.network))


def test_the_normalisers_take_in_each_step_once():
    policy = policy_on(3)
    PPO(policy.network, CONFIG, seed=0, updates=1).update(host_round(policy, envs=2, length=5, gone={1: 2}))

    assert float(policy.network.base_norm.count) == 7
    assert float(policy.network.slot_norm.count) == 7 * 3


def test_what_the_sensors_read_is_told_by_their_names():
    policy = policy_on(2)
    rollout = host_round(policy, envs=2, length=4)

    _, seen = PPO(policy.network, CONFIG, seed=0, updates=1).update(rollout)

    assert [row[0] for row in seen.sensors] == [sensor.name for sensor in (*HOST_SENSORS, *SLOT_SENSORS)]
    told = {name: row for name, *row in seen.sensors}
    mean, deviation, outside, at_limit = told["time_norm"]
    assert (mean, deviation) == (pytest.approx(1.5 / 4), pytest.approx(math.sqrt(1.25) / 4))
    assert outside == at_limit == 0.0
    dormant, ladder = told["stage_is_DORMANT"][0], told["internal_kind_is_CONV_LADDER"][0]
    assert (dormant, ladder) == (0.5, 0.5)


def test_a_sensor_out_of_its_range_or_off_the_policys_scale_is_noticed():
    policy = policy_on(2)
    learner = PPO(policy.network, CONFIG, seed=0, updates=2)
    learner.update(host_round(policy, envs=2, length=4))
    rollout = host_round(policy, envs=2, length=4)
    rollout.steps[0].sight.base[0, 0] = 50.0  # time, of 8 steps in all

    _, seen = learner.update(rollout)

    told = {name: row for name, *row in seen.sensors}
    assert told["time_norm"][2:] == [0.125, 0.125]


def test_the_learner_reads_every_step_from_the_round_and_none_from_the_weights():
    """Two learners on copies of a policy, one of which has been somewhere else since it decided: that one notices."""
    policy, other = policy_on(2), policy_on(2)
    rollout = host_round(policy, envs=2, length=4)
    with torch.no_grad():
        other.network.lstm.weight_hh_l0.add_(0.3)

    same, _ = PPO(policy.network, CONFIG, seed=0, updates=1).update(rollout)
    moved, _ = PPO(other.network, CONFIG, seed=0, updates=1).update(rollout)

    assert same.ratio_error <= 1e-5 < 1e-3 < moved.ratio_error


def test_more_environments_change_no_decision_of_the_first():
    policy = policy_on(3)

    alone, among_others = (host_round(policy, envs=envs, length=8) for envs in (1, 5))

    pairs = list(zip(alone.steps, among_others.steps, strict=True))
    assert all(torch.equal(one.choice.executed[0], more.choice.executed[0]) for one, more in pairs)
    assert len({step.choice.actions[0].as_names()["op"] for step in alone.steps}) > 1


def test_rules_learn_nothing_and_tell_nothing():
    assert NoLearner().update(Rollout()) == ()
