"""The policy's guard: bad updates are undone, and a policy that keeps failing goes back to one that proved good."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from tests.simic.agent.small import adam_state, equal, flat_lesson, jumble_network, ppo_for, round_of, weights
from torch import Tensor

from esper.simic.agent.config import GuardConfig, TeacherConfig
from esper.simic.agent.losses import Opinion
from esper.simic.agent.policy_guard import UNTRAINED, failure
from esper.simic.agent.ppo import PPO
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork
from esper.tamiyo.policy.heads import likelihood

FAR_TOO_FAST = 3.0
NEAR = GuardConfig(max_kl=0.5)


def hasty(ppo: PPO) -> None:
    """From now on each of its updates throws the policy far."""
    ppo.config = replace(ppo.config, lr=1.0, max_grad_norm=FAR_TOO_FAST)


def learned(updates: int) -> tuple[PPO, TamiyoNetwork, list[dict[str, Tensor]]]:
    """A learner after so many updates that stand, and the weights that each of them left."""
    network = jumble_network()
    ppo, left = ppo_for(network, guard=NEAR), []
    for seed in range(updates):
        assert ppo.learn(round_of(network, seed=seed)).skipped == ""
        left.append(weights(network))
    return ppo, network, left


def test_an_update_that_moves_the_policy_too_far_is_undone_and_says_how_far():
    ppo, network, left = learned(2)
    moments, scale = adam_state(ppo), ppo.scale
    hasty(ppo)

    told = ppo.learn(round_of(network, seed=9))

    assert "nats per decision, and 0.5 are allowed" in told.skipped
    assert (told.failures, told.restored_update, told.approx_kl) == (1, None, None)
    assert equal(weights(network), left[-1])
    assert equal(adam_state(ppo), moments)
    assert ppo.scale == scale


@pytest.mark.parametrize(
    ("updates", "back_to"),
    # A policy is a candidate, and good once the second update after it stands; then the next one is a candidate.
    [(1, UNTRAINED), (2, UNTRAINED), (3, 0), (4, 0), (5, 2)],
)
def test_after_three_in_a_row_the_policy_goes_back_to_one_that_good_updates_followed(updates: int, back_to: int):
    untrained = weights(jumble_network())
    ppo, network, left = learned(updates)
    hasty(ppo)

    told = [ppo.learn(round_of(network, seed=20 + count)) for count in range(3)]

    assert [each.failures for each in told] == [1, 2, 3]
    assert [each.restored_update for each in told] == [None, None, back_to]
    assert equal(weights(network), untrained if back_to == UNTRAINED else left[back_to])


def test_moments_go_back_with_the_weights():
    ppo, network, _ = learned(1)
    moments, scale = adam_state(ppo), ppo.scale
    for seed in range(1, 4):
        ppo.learn(round_of(network, seed=seed))
    hasty(ppo)
    for seed in range(3):
        ppo.learn(round_of(network, seed=20 + seed))

    assert equal(adam_state(ppo), moments)
    assert ppo.scale == scale


def test_what_is_good_is_not_written_into_by_going_on_from_it():
    ppo, network, left = learned(3)
    for _ in range(2):
        config = ppo.config
        hasty(ppo)
        told = [ppo.learn(round_of(network, seed=20 + count)) for count in range(3)][-1]
        assert told.restored_update == 0
        assert equal(weights(network), left[0])
        ppo.config = config
        ppo.learn(round_of(network, seed=30))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_network_goes_back_at_once(bad: float):
    ppo, network, left = learned(3)
    with torch.no_grad():
        network.actor[-1].weight[0, 0] = bad

    told = ppo.learn(round_of(network, seed=9))

    assert told.skipped != ""
    assert told.restored_update == 0
    assert equal(weights(network), left[0])
    assert ppo.learn(round_of(network, seed=10)).skipped == ""


def test_an_update_after_which_nothing_is_free_any_more_is_undone():
    """All logits of a head but one fall by 100, and decisions are those of that policy, so that it has not moved."""
    network = jumble_network()
    before, lesson = flat_lesson(network, round_of(network))
    even = Opinion(torch.zeros_like(before.row), before.value.detach(), before.op_values.detach())
    certain = replace(even, row=100.0 * torch.arange(before.row.shape[1]).expand_as(before.row).float())
    found = likelihood(network.table, certain.row, lesson.possible, lesson.decisions)
    unmoved = replace(lesson, log_prob=found.joint)

    assert "the mean entropy fell from 1 to" in failure(network.table, even, certain, unmoved, GuardConfig())
    assert failure(network.table, certain, certain, unmoved, GuardConfig()) == ""


def test_a_policy_that_imitates_may_move_as_far_as_it_likes():
    network = jumble_network()
    ppo = ppo_for(network, teacher=TeacherConfig(rule="heuristic", rounds=1, epochs=3), guard=NEAR)
    hasty(ppo)

    told = ppo.learn(round_of(network))

    assert told.skipped == ""
    assert told.approx_kl is not None
    assert told.approx_kl > NEAR.max_kl


def test_a_learner_that_was_put_away_goes_back_to_where_it_would_have_gone():
    ppo, network, _ = learned(4)
    hasty(ppo)
    ppo.learn(round_of(network, seed=9))
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "ppo": ppo.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    other = jumble_network(seed=5)
    resumed = ppo_for(other, guard=NEAR)
    other.load_state_dict(saved["network"])
    resumed.load_state_dict(saved["ppo"])
    hasty(resumed)

    for count in range(3):
        mine, theirs = (each.learn(round_of(each.network, seed=20 + count)) for each in (ppo, resumed))
        assert (mine.failures, mine.restored_update) == (theirs.failures, theirs.restored_update)

    assert mine.failures == 1  # the two before it were the second and the third in a row
    assert equal(weights(network), weights(other))
    assert equal(adam_state(ppo), adam_state(resumed))
