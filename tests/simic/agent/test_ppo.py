"""What must hold of an update whatever is learned, on policies with opinions, where a mistake shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.simic.agent.small import (
    Jumble,
    equal,
    every_choice,
    furthest,
    jumble_network,
    jumbles,
    normalising_network,
    policy_weights,
    ppo_for,
    round_of,
    weights,
)
from tests.simic.collector import collect, network_for
from tests.simic.games import Gamble

from esper.leyline.randomness import stream
from esper.leyline.telemetry import PpoUpdatedPayload
from esper.simic.agent.batch import Batch
from esper.tamiyo.networks.factored_lstm import Inputs, TamiyoNetwork

ROUNDING = 1e-5


# --- what was done is what is learned from -------------------------------------------------------------------------


def test_before_its_first_step_the_learner_finds_the_probabilities_with_which_was_decided():
    """Two rounds with an update between them; about a third of the choices possible; episodes of 1 to 9 steps."""
    network = jumble_network()
    ppo = ppo_for(network, lr=1e-2)

    told = [ppo.learn(round_of(network, envs=12, seed=seed)) for seed in range(3)]

    assert all(each.ratio_error <= ROUNDING for each in told)
    assert all(each.invalid_executed == each.all_masked == 0 for each in told)
    assert told[-1].approx_kl > 1e-3


def test_without_the_masks_of_the_round_the_learner_would_find_others():
    network = jumble_network()
    batch = round_of(network, envs=12)

    told = ppo_for(network).learn(replace(batch, possible=every_choice(batch)))

    assert told.ratio_error > 0.3


def test_without_the_memory_the_learner_would_find_others():
    """As if every step began a sequence."""
    network = jumble_network()
    batch = round_of(network, envs=12)

    told = ppo_for(network).learn(batch.cut(torch.ones_like(batch.valid)))

    assert told.ratio_error > 1e-3


def drifting(network: TamiyoNetwork, level: float) -> Batch:
    """A round in which everything reads higher by `level`."""
    games = jumbles(12, seed=int(level))
    for game in games:
        look = game._look
        game._look = lambda game=game, look=look: (look(), setattr(game, "base", [x + level for x in game.base]))
    return collect(network, games, stream(int(level), "play"))


def test_a_drift_of_what_is_seen_is_taken_in_after_an_update_and_never_within():
    network = normalising_network()
    ppo = ppo_for(network)

    for level in range(4):
        batch = drifting(network, float(level))
        before = network.base_norm.mean.clone()
        told = ppo.learn(batch)

        assert told.ratio_error <= ROUNDING
        assert not torch.equal(network.base_norm.mean, before)
    everything = [drifting(jumble_network(), 0.0)]
    assert network.base_norm.count > everything[0].valid.sum()


def test_statistics_that_moved_between_deciding_and_learning_would_be_noticed():
    network = normalising_network()
    ppo = ppo_for(network)
    ppo.learn(drifting(network, 0.0))
    batch = drifting(network, 3.0)

    network.update_statistics(batch.inputs, batch.valid)

    assert ppo.learn(batch).ratio_error > 1e-3


# --- padding and neighbours ----------------------------------------------------------------------------------------


def with_garbage(batch: Batch, steps: int) -> Batch:
    """The same sequences with more padding, of noise, absurd numbers and impossible masks."""
    generator = torch.Generator().manual_seed(9)

    def garbage(values: torch.Tensor) -> torch.Tensor:
        shape = (steps, *values.shape[1:])
        if values.dtype.is_floating_point:
            more = 1e3 * torch.randn(shape, generator=generator, dtype=values.dtype)
        else:
            more = torch.zeros(shape, dtype=values.dtype)
        return torch.cat((values, more))

    return batch.map(garbage, batch.horizon)


@pytest.mark.parametrize("settings", [{}, {"baseline": "group"}, {"clip_mode": "per_head"}, {"value_norm": False}])
def test_padding_changes_nothing_that_is_learned_or_told(settings):
    batch = round_of(jumble_network(), envs=6)
    plain, padded = jumble_network(), jumble_network()

    told = ppo_for(plain, **settings).learn(batch)
    told_of_padded = ppo_for(padded, **settings).learn(with_garbage(batch, 5))

    assert told == told_of_padded
    assert equal(weights(plain), weights(padded))


def test_padding_full_of_nan_changes_nothing_either():
    batch = round_of(jumble_network(), envs=6)
    plain, padded = jumble_network(), jumble_network()
    hole = ~batch.valid
    poisoned = replace(
        batch,
        reward=batch.reward.masked_fill(hole, torch.nan),
        value=batch.value.masked_fill(hole, torch.nan),
        log_prob=batch.log_prob.masked_fill(hole, torch.nan),
    )
    assert hole.any()

    assert ppo_for(plain).learn(batch) == ppo_for(padded).learn(poisoned)
    assert equal(weights(plain), weights(padded))


def test_what_one_sequence_sees_moves_no_other():
    network = jumble_network()
    batch = round_of(network, envs=5)
    shaken = batch.inputs.base.clone()
    shaken[:, 2] += 5.0
    blank = network.blank_memory(5)

    before = network(batch.inputs, blank)
    after = network(Inputs(shaken, batch.inputs.slots, batch.inputs.blueprints), blank)

    others = [0, 1, 3, 4]
    assert torch.equal(before.row[:, others], after.row[:, others])
    assert not torch.equal(before.row[:, 2], after.row[:, 2])


def test_another_game_at_the_end_changes_no_decision_of_the_first():
    """Uniform numbers are drawn per round here, so the first game is compared greedily."""
    network = jumble_network()

    few, many = (collect(network, jumbles(envs), None) for envs in (1, 4))

    steps = int(few.valid.sum())
    assert torch.equal(few.decisions[:steps, 0], many.decisions[:steps, 0])


# --- units ---------------------------------------------------------------------------------------------------------


def learned_weights(
    make: Any, change: Any, updates: int = 3, **settings: Any
) -> tuple[dict[str, torch.Tensor], list[PpoUpdatedPayload]]:
    """The weights of the policy after a few updates on games whose rewards are changed by a function."""
    games = [make(index) for index in range(16)]
    first = games[0]
    network = network_for(first.table, len(first.base), len(first.slots[0]), 16)
    ppo, generator, told = ppo_for(network, minibatch=4, **settings), stream(0, "play"), []
    for _ in range(updates):
        batch = collect(network, games, generator)
        told.append(ppo.learn(replace(batch, reward=change(batch.reward))))
    return policy_weights(network), told


@pytest.mark.parametrize(("make", "shift"), [(Gamble, 5.0), (Jumble, 0.0)])
def test_the_unit_of_rewards_does_not_matter(make, shift):
    """100 times the reward, and where episodes are one step 5 more: the same policy."""
    plain, told = learned_weights(make, lambda reward: reward)
    scaled, told_of_scaled = learned_weights(make, lambda reward: 100 * reward + shift)
    other, _ = learned_weights(make, lambda reward: -reward)

    assert furthest(plain, scaled) < 1e-4
    assert furthest(plain, other) > 1e-3
    for one, two in zip(told, told_of_scaled, strict=True):
        assert two.value_mean == pytest.approx(100 * one.value_mean + shift, rel=1e-4)
        assert two.value_loss == pytest.approx(one.value_loss, rel=1e-3)


def test_one_step_alone_teaches_nothing_and_breaks_nothing():
    network = jumble_network()
    batch = round_of(network, envs=4)
    one = batch.only(torch.tensor([0])).map(lambda values: values[:1], None)
    kept = weights(network)

    told = ppo_for(network, entropy=(0.0,), value=0.0).learn(one)

    assert told.skipped == ""
    assert told.steps == 1
    assert told.policy_loss == 0.0
    assert torch.equal(kept["actor.2.weight"], network.actor[-1].weight)
