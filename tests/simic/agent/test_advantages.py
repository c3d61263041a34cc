"""Advantages against their definition, and baselines and units against hand calculation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simic.agent.small import jumble_network, round_of
from torch import Tensor

from esper.simic.agent.advantages import (
    ValueScale,
    against_the_others,
    discounted_returns,
    explained_variance,
    gae,
    standardised,
)

share = st.floats(0.0, 1.0)


def padded(columns: list[list[float]], filling: float = 0.0) -> Tensor:
    length = max(map(len, columns))
    return torch.tensor([[*column, *[filling] * (length - len(column))] for column in columns], dtype=torch.float64).T


def definition(reward: list[float], value: list[float], gamma: float, lam: float) -> list[float]:
    """Sums of discounted surprises, every one written out; nothing comes after the last step."""
    after = [*value[1:], 0.0]
    surprise = [r + gamma * ahead - v for r, v, ahead in zip(reward, value, after, strict=True)]
    return [sum((gamma * lam) ** k * later for k, later in enumerate(surprise[t:])) for t in range(len(reward))]


numbers = st.floats(-10, 10)
episodes = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(episodes, share, share, st.sampled_from([0.0, 77.0, math.nan]))
def test_each_sequence_gets_the_advantages_of_its_definition_whatever_stands_in_the_padding(found, gamma, lam, filling):
    rewards = [[reward for reward, _ in episode] for episode in found]
    values = [[value for _, value in episode] for episode in found]
    valid = padded([[1.0] * len(episode) for episode in found]) > 0

    advantage = gae(padded(rewards, filling), padded(values, filling), valid, gamma, lam)

    for column, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        expected = definition(reward, value, gamma, lam)
        assert advantage[: len(reward), column].tolist() == pytest.approx(expected, abs=1e-9)
    assert not advantage[~valid].any()


def test_the_horizon_ends_a_sequence_for_good():
    """Reward 1 a step at discount 0.9: (1 - 0.9^K) / 0.1 to come at first, not 10 as if it went on."""
    reward, valid = torch.ones(20, 1, dtype=torch.float64), torch.ones(20, 1, dtype=torch.bool)

    returns = discounted_returns(reward, valid, 0.9)

    assert float(returns[0, 0]) == pytest.approx((1 - 0.9**20) / 0.1)
    assert float(returns[-1, 0]) == 1.0


def test_no_value_of_another_state_enters_at_the_end():
    reward, value = padded([[0.0, 5.0]]), padded([[100.0, 1.0]])

    advantage = gae(reward, value, torch.ones(2, 1, dtype=torch.bool), 1.0, 0.0)

    assert advantage[:, 0].tolist() == [1.0 - 100.0, 5.0 - 1.0]


def test_what_would_have_come_after_the_end_is_discounted_step_by_step():
    reward, valid = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[True, True], [True, True], [True, False]])

    returns = discounted_returns(reward, valid, 0.5, torch.tensor([8.0, 16.0], dtype=torch.float64))

    assert returns.tolist() == [[1.0, 4.0], [2.0, 8.0], [4.0, 0.0]]


# --- baselines ----------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_mean_of_the_other_environments_at_the_same_step():
    reward = torch.tensor([[1.0, 4.0, 7.0], [2.0, 6.0, 0.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    time = torch.tensor([[0, 0, 0], [1, 1, 1]])

    found = against_the_others(reward, valid, time)

    assert found[0].tolist() == [1 - 5.5, 4 - 4.0, 7 - 2.5]
    assert found[1, :2].tolist() == [2 - 6.0, 6 - 2.0]


def test_a_sequence_that_goes_on_after_a_rollback_is_compared_at_the_steps_of_the_round():
    """The second column is the rest of an environment's episode: its first step is step 1 of the round."""
    reward = torch.tensor([[1.0, 10.0], [3.0, 0.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [True, False]])
    time = torch.tensor([[0, 1], [1, 2]])

    found = against_the_others(reward, valid, time)

    assert found[0].tolist() == [1.0, 10.0 - 3.0]
    assert float(found[1, 0]) == 3.0 - 10.0


# --- standardising ------------------------------------------------------------------------------------------------


def test_standardised_over_what_counts_alone():
    advantage = torch.tensor([[1.0, 3.0, 1000.0]], dtype=torch.float64)

    found = standardised(advantage, torch.tensor([[True, True, False]]))

    assert found.tolist() == [[-1.0, 1.0, 0.0]]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("advantages", [[5.0], [5.0, 5.0, 5.0]])
def test_where_nothing_differs_nothing_is_better(advantages):
    advantage = torch.tensor([advantages], dtype=torch.float64)

    assert not standardised(advantage, torch.ones_like(advantage, dtype=torch.bool)).any()
    assert not standardised(advantage, torch.zeros_like(advantage, dtype=torch.bool)).any()


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])  # variance 3.5

    assert explained_variance(returns - 7, returns) == 1.0
    assert explained_variance(torch.zeros(4), returns) == 0.0
    assert explained_variance(torch.tensor([1.0, 2.0, 3.0, 4.0]), returns) == pytest.approx(1 - 0.75 / 3.5)
    assert explained_variance(torch.zeros(4), torch.ones(4)) is None


# --- the critic's unit ----------------------------------------------------------------------------------------------


def test_the_first_batch_sets_the_unit_and_later_ones_move_it():
    first = ValueScale().taken_in(torch.tensor([1.0, 3.0], dtype=torch.float64))
    second = first.taken_in(torch.tensor([6.0, 6.0], dtype=torch.float64))

    assert (first.mean, first.deviation) == (2.0, 1.0)
    assert second.mean == 4.0
    assert second.deviation == pytest.approx(math.sqrt((5 + 36) / 2 - 16))
    assert first.points(first.unit(torch.tensor([7.5]))).tolist() == [7.5]


def test_returns_that_never_differ_have_a_unit_too():
    scale = ValueScale().taken_in(torch.full((4,), 3.0, dtype=torch.float64))

    assert scale.unit(torch.tensor([3.0])).tolist() == [0.0]
    assert torch.isfinite(scale.unit(torch.tensor([4.0]))).all()


def test_a_change_of_unit_changes_nothing_that_the_critics_say():
    network = jumble_network()
    batch, blank = round_of(network), network.blank_memory(6)
    one, other = ValueScale(3.0, 13.0, 1), ValueScale(-40.0, 2500.0, 2)
    before = network(batch.inputs, blank)

    network.rescale_values(*one.change_to(other))

    after = network(batch.inputs, blank)
    assert torch.allclose(other.points(after.value), one.points(before.value), atol=1e-4)
    assert torch.allclose(other.points(after.op_values), one.points(before.op_values), atol=1e-4)
    assert torch.equal(after.row, before.row)
