"""One index per decision: every possible decision is in the list once, and the masks are exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from tests.gym.small import digits, lot, toy

from esper.gym import FlatActions, GrowthEnv
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS
from esper.tamiyo.baselines import draw


def test_the_checks_of_gymnasium_and_of_sb3_find_nothing() -> None:
    env = FlatActions(gymnasium.make("Esper/Toy-v0").unwrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")  # it is a wrapper
        check_env(env)
        check_env_for_sb3(env)


@pytest.mark.parametrize("make", [toy, digits], ids=["toy", "digits"])
def test_every_decision_that_fits_its_slot_is_listed_once(make: Callable[[], GrowthEnv]) -> None:
    space = make().core.space
    sizes = [range(size) for size in space.head_sizes.values()]
    every = {action.indices for action in map(space.from_indices, product(*sizes)) if action.fits}

    listed = [decision.indices for decision in FlatActions(make()).decisions]

    assert listed[0] == (0,) * len(HEADS)
    assert len(listed) == len(set(listed))
    assert set(listed) == every


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_masks_are_exact_and_an_index_does_what_its_heads_do(seed: int) -> None:
    env, plain, luck = FlatActions(toy()), toy(), lot(seed)
    obs, info = env.reset(seed=seed)
    plain.reset(seed=seed)
    index_of = {decision.indices: index for index, decision in enumerate(env.decisions)}
    for _ in range(12):
        legal = plain.core.scene.legal[0]
        expected = [legal.allows(decision) for decision in env.decisions]
        assert env.action_masks().tolist() == expected == obs["action_mask"].astype(bool).tolist()
        assert np.array_equal(info["action_mask"], obs["action_mask"])
        assert expected[env.action_space.sample(mask=info["action_mask"])]
        action = draw(legal, luck)
        obs, reward, over, _, info = env.step(index_of[action.indices])
        assert (reward, over) == plain.step(np.array(action.indices))[1:3]
        assert info["action_valid"]
        assert info["executed_action"].tolist() == list(action.indices)


def test_what_is_not_possible_is_a_wait() -> None:
    env = FlatActions(toy())
    env.reset(seed=0)

    *_, info = env.step(int(np.flatnonzero(~env.action_masks())[0]))

    assert not info["action_valid"]
    assert info["executed_action"].tolist() == [0] * len(HEADS)
    with pytest.raises(ConfigError, match=f"{len(env.decisions)} is not an index below"):
        env.step(len(env.decisions))


def test_more_decisions_than_a_learner_can_have_outputs_for_are_refused() -> None:
    # 72 blends of each of three blueprints (4 styles, 3 tempos, 3 targets, 2 slots), and what is done to seeds.
    count = 1 + 3 * 72 + 2 * (3 * 4 * 5) + 2 * (4 * 5) + 4 * 2

    assert FlatActions(toy(), largest=count).action_space.n == count
    with pytest.raises(ConfigError, match=f"FlatActions: {count} decisions, more than {count - 1}"):
        FlatActions(toy(), largest=count - 1)
