"""What is shown and told beside it: two layouts of the same numbers, counts of operations, and what happened."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from tests.gym.small import QUICK, SMALL, WAITING, break_host, digits, legal_action, lot, toy

from esper.gym import GrowthVectorEnv, OpFirst
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp
from esper.leyline.telemetry import GovernorRollbackPayload, SeedGerminatedPayload, SeedStageChangedPayload
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import encode


@pytest.mark.parametrize("name", ["Esper/Toy-v0", "Esper/Digits-v0"])
def test_the_checks_find_nothing_where_slots_are_shown_apart(name: str) -> None:
    env = gymnasium.make(name, episode_length=2, observation="slots").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # sb3 advises against every table; policies that take slots apart are what this one is for.
        warnings.filterwarnings("ignore", message="Your observation .* has an unconventional shape")
        check_env(env)
        check_env_for_sb3(env)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_slots_apart_are_the_same_numbers_and_the_exact_masks(seed: int) -> None:
    env, flat, luck = toy(observation="slots"), toy(), lot(seed)
    obs, _ = env.reset(seed=seed)
    same, _ = flat.reset(seed=seed)
    for _ in range(12):
        reports = env.core.scene.reports
        base, slots, blueprints = encode(reports, env.core.space)
        kinds = 2 + len(env.core.space.blueprints)  # none, other, and each by name
        assert obs in env.observation_space
        assert np.array_equal(obs["base"], base[0])
        assert np.array_equal(obs["slots"][:, :-kinds], slots[0])
        assert obs["slots"][:, -kinds:].argmax(axis=1).tolist() == blueprints[0].tolist()
        assert obs["slot_mask_by_op"].tolist() == [
            [int(free) for free in row] for row in possible(reports, env.core.space)[0].slot_by_op
        ]
        assert obs["slot_valid"].tolist() == [1, 1]
        assert np.array_equal(np.concatenate((obs["base"], obs["slots"].ravel())), same["obs"])
        assert np.array_equal(obs["action_mask"], same["action_mask"])
        action = legal_action(env, luck)
        obs, *_ = env.step(action)
        same, *_ = flat.step(action)


def test_the_relevance_of_a_head_is_whether_it_makes_a_difference() -> None:
    env = toy(observation="slots")
    obs, _ = env.reset(seed=0)
    space = env.core.space

    for op in LifecycleOp:
        for column, head in enumerate(HEADS):
            indices = [int(op)] + [0] * (len(HEADS) - 1)
            plain = space.from_indices(indices)
            indices[column] = (indices[column] + 1) % space.head_sizes[head]
            assert (space.from_indices(indices) != plain) == bool(obs["head_relevance"][op, column])


def test_a_vector_shows_slots_apart_host_by_host() -> None:
    envs = GrowthVectorEnv(3, task={"name": "toy"}, observation="slots", episode_length=2)
    obs, _ = envs.reset(seed=0)

    assert obs in envs.observation_space
    obs, *_ = envs.step(np.stack([WAITING] * 3))
    assert obs in envs.observation_space
    assert obs["slots"].shape[:2] == (3, 2)
    assert obs["head_relevance"].shape == (3, len(OPS), len(HEADS))


def test_layouts_that_do_not_exist_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="observation: 'slot' is not one of flat, slots; did you mean 'slots'"):
        toy(observation="slot")
    with pytest.raises(ConfigError, match="make the environment with observation='flat'"):
        OpFirst(toy(observation="slots"))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_operations_are_counted_where_they_were_done(seed: int) -> None:
    env, luck = toy(), lot(seed)
    env.reset(seed=seed)
    counted = [0] * len(LifecycleOp)
    for _ in range(12):
        *_, info = env.step(legal_action(env, luck))
        counted[info["executed_action"][0]] += int(info["op_done"])
        assert info["op_counts"].tolist() == counted
    assert env.reset()[1]["op_counts"].tolist() == [0] * len(LifecycleOp)


def test_what_happened_to_a_host_is_told_with_the_step_in_which_it_did() -> None:
    env = digits(8)
    _, info = env.reset(seed=0)
    assert info["events"] == ()
    grow = np.array(env.core.space.action("GERMINATE", slot="r0c1", blueprint="norm").indices)
    advance = np.array(env.core.space.action("ADVANCE", slot="r0c1").indices)

    *_, planted = env.step(grow)
    *_, advanced = env.step(advance)
    break_host(env)
    *_, broken = env.step(WAITING)

    kinds = [[type(event) for event in info["events"]] for info in (planted, advanced, broken)]
    assert SeedGerminatedPayload in kinds[0]
    assert SeedGerminatedPayload not in kinds[1]
    (entered,) = [event for event in advanced["events"] if isinstance(event, SeedStageChangedPayload)]
    assert entered.slot_id == "r0c1"
    assert GovernorRollbackPayload in kinds[2]


def test_events_of_a_vector_are_those_of_each_host() -> None:
    body = {**QUICK, "auto_advance": ["G1", "G2", "G3"]}
    envs = GrowthVectorEnv(2, episode_length=5, body=body, **SMALL)
    envs.reset(seed=0)
    grow = np.array(envs.core.space.action("GERMINATE", slot="r0c1", blueprint="norm").indices)

    *_, planted = envs.step(np.stack([WAITING, grow]))
    later = [envs.step(np.stack([WAITING, WAITING]))[-1]["events"] for _ in range(4)]

    assert SeedGerminatedPayload in [type(event) for event in planted["events"][1]]
    assert {event.env_id for event in planted["events"][1]} == {1}
    assert [told[0] for told in (planted["events"], *later)] == [()] * 5
    by_time = [event for told in later for event in told[1]]  # nobody has decided anything
    assert SeedStageChangedPayload in [type(event) for event in by_time]
    assert {event.env_id for event in by_time} == {1}
