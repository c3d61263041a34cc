"""Environments of gymnasium: both libraries' checks, four dialects of masks that agree, exact resume, own luck."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from tests.gym.small import break_host, digits, legal_action, lot, play, toy

from esper.gym import GrowthEnv, GrowthVectorEnv, OpFirst
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp
from esper.tamiyo.baselines import draw
from esper.tamiyo.policy.action_masks import possible

IDS = {"Esper/Toy-v0": 12, "Esper/Digits-v0": 2, "Esper/DigitsScale-v0": 2}  # with episode lengths for tests


@pytest.mark.parametrize("name", IDS)
def test_the_checks_of_gymnasium_and_of_sb3_find_nothing(name: str) -> None:
    env = gymnasium.make(name, episode_length=IDS[name]).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        check_env_for_sb3(env)


@pytest.mark.parametrize("name", IDS)
def test_make_vec_gives_the_environment_of_one_process(name: str) -> None:
    envs = gymnasium.make_vec(name, num_envs=2, episode_length=1)

    obs, infos = envs.reset(seed=0)

    assert isinstance(envs, GrowthVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert obs in envs.observation_space
    assert len(infos["action_mask"]) == 2


def test_actions_are_in_the_documented_order_of_heads() -> None:
    env = toy()

    assert env.action_space.nvec.tolist() == [env.core.space.head_sizes[head] for head in HEADS]
    assert len(env.observation_names) == env.observation_space["obs"].shape[0]
    assert len(set(env.observation_names)) == len(env.observation_names)


# --- masks ----------------------------------------------------------------------------------------------------------


def union_by_brute_force(env: GrowthEnv) -> list[int]:
    """Of all possible decisions, varied head by head; a head that nobody uses has its first choice."""
    space, legal = env.core.space, env.core.scene.legal[0]
    sizes = list(space.head_sizes.values())
    seen: list[set[int]] = [set() for _ in HEADS]
    for op, slot, head in product(LifecycleOp, range(sizes[1]), range(2, len(HEADS))):
        for choice in range(sizes[head]):
            rest = (choice if other == head else 0 for other in range(2, len(HEADS)))
            action = space.from_indices((int(op), slot, *rest))
            if legal.allows(action):
                for index, name in enumerate(HEADS):
                    if (name == "op" or name in OPS[op].heads) and index in (0, 1, head):
                        seen[index].add(action.indices[index])
    return [int(index in (kept or {0})) for kept, size in zip(seen, sizes, strict=True) for index in range(size)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_four_dialects_tell_the_same_masks(seed: int) -> None:
    env, luck = toy(), lot(seed)
    obs, info = env.reset(seed=seed)
    for _ in range(12):
        flat = obs["action_mask"].tolist()
        assert np.concatenate(info["action_mask"]).tolist() == flat
        assert env.action_masks().tolist() == [bool(bit) for bit in flat] == get_action_masks(env).tolist()
        assert flat == union_by_brute_force(env)
        exact = possible(env.core.scene.reports, env.core.space)[0]
        assert env.slot_mask_by_op().tolist() == [list(row) for row in exact.slot_by_op]
        assert env.action_space.sample(mask=info["action_mask"]) in env.action_space
        obs, _, _, _, info = env.step(legal_action(env, luck))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_mask_beside_an_observation_is_that_of_the_next_action(length: int) -> None:
    envs, luck = GrowthVectorEnv(3, task={"name": "toy"}, body={"max_seeds": 1}, episode_length=length), lot(0)
    for episode in range(4):
        obs, infos = envs.reset(seed=episode)
        for step in range(length):
            legal = possible(envs.core.engine.reports(), envs.core.space)
            assert envs.core.scene.legal == tuple(legal)
            assert envs.slot_mask_by_op().tolist() == [[list(row) for row in masks.slot_by_op] for masks in legal]
            assert np.array_equal(obs["action_mask"], [np.concatenate(mask) for mask in infos["action_mask"]])
            chosen = [draw(masks, luck) for masks in legal]
            obs, _, terminated, truncated, infos = envs.step(np.array([action.indices for action in chosen]))
            assert infos["action_valid"].all()
            assert infos["executed_action"].tolist() == [list(action.indices) for action in chosen]
            assert terminated.tolist() == [step == length - 1] * 3
            assert not truncated.any()


def test_an_impossible_combination_is_a_wait_that_says_so_and_may_cost() -> None:
    env = toy(invalid_penalty=0.5)
    env.reset(seed=0)
    prune = np.array(env.core.space.action("FOSSILIZE", slot="r0c0").indices)
    plain = toy()
    plain.reset(seed=0)

    _, reward, _, _, info = env.step(prune)
    _, waited, *_ = plain.step(np.zeros(len(HEADS), dtype=np.int64))

    assert not info["action_valid"]
    assert info["executed_action"].tolist() == [0] * len(HEADS)
    assert reward == pytest.approx(waited - 0.5)


def test_indices_that_no_head_has_are_refused() -> None:
    env = toy()
    env.reset(seed=0)

    with pytest.raises(ConfigError, match="action: "):
        env.step(np.array([8, 0, 0, 0, 0, 0, 0, 0]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_independent_draws_under_op_first_are_never_impossible(seed: int) -> None:
    env = OpFirst(toy())
    env.action_space.seed(seed)
    obs, info = env.reset(seed=seed)
    acted, over = 0, False
    while not over:
        assert obs in env.observation_space
        assert np.array_equal(env.action_masks(), np.concatenate(info["action_mask"]).astype(bool))
        phase = info["phase"]
        obs, reward, over, _, info = env.step(env.action_space.sample(mask=info["action_mask"]))
        if info["phase"] == 0:
            acted += 1
            assert info["action_valid"]
        else:
            assert (phase, reward) == (0, 0.0)
    assert acted == 12


def test_op_first_passes_the_checks_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_for_sb3(OpFirst(toy()))


# --- resuming and randomness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [toy, digits], ids=["toy", "digits"])
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_state_goes_on_bit_for_bit_as_often_as_wanted(make: Callable[[], GrowthEnv], when: int, seed: int) -> None:
    env = make()
    env.reset(seed=seed)
    play(env, when, seed)
    state = env.get_state()

    first = play(env, 3, seed=9)
    env.set_state(state)
    again = play(env, 3, seed=9)
    other = make()
    other.reset(seed=77)
    other.set_state(state)

    assert first == again == play(other, 3, seed=9)
    assert np.array_equal(env.reset()[0]["obs"], other.reset()[0]["obs"])


def test_a_governor_goes_on_from_its_own_memory() -> None:
    env = digits(8, governor={"max_rollbacks": 3})
    env.reset(seed=0)
    play(env, 4, seed=0)
    state = env.get_state()
    break_host(env)
    first = play(env, 3, seed=1)
    env.set_state(state)
    break_host(env)

    assert first == play(env, 3, seed=1)


def test_one_more_host_and_the_global_generators_change_nothing() -> None:
    settings_ = {"task": {"name": "digits", "widths": [4, 4, 4], "epoch_items": 128}, "episode_length": 3}
    one, two, single = GrowthVectorEnv(1, **settings_), GrowthVectorEnv(2, **settings_), GrowthEnv(**settings_)
    grow = np.array(one.core.space.action("GERMINATE", slot="r0c0", blueprint="conv_light").indices)
    told: list[list[Any]] = []
    for envs in (one, two, single):
        torch.manual_seed(len(told))
        np.random.seed(len(told))
        before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
        envs.reset(seed=5)
        steps = []
        for action in (grow, np.zeros_like(grow), np.zeros_like(grow)):
            batch = action if envs is single else np.stack([action, np.zeros_like(action)][: envs.num_envs])
            obs, reward, *_ = envs.step(batch)
            row = obs["obs"] if envs is single else obs["obs"][0]
            steps.append((row.tobytes(), float(reward if envs is single else reward[0])))
        told.append([*steps, envs.core.engine.digests()[0]])
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()

    assert told[0] == told[1] == told[2]


def test_a_seed_fixes_all_resets_that_follow_and_another_one_moves_them() -> None:
    env = digits(1)

    first = [env.reset(seed=1)[0], env.reset()[0]]
    weights = env.core.engine.digests()
    again = [env.reset(seed=1)[0], env.reset()[0]]

    assert all(np.array_equal(a["obs"], b["obs"]) for a, b in zip(first, again, strict=True))
    assert env.core.engine.digests() == weights
    env.reset(seed=2)
    assert env.core.engine.digests() != weights
    env.reset(options={"host_seed": 3})
    fixed = env.core.engine.digests()
    env.reset(seed=9, options={"host_seed": 3})
    assert env.core.engine.digests() == fixed


def test_infos_have_the_same_keys_at_every_step_and_the_layout_of_gymnasium() -> None:
    envs, single = GrowthVectorEnv(2, task={"name": "toy"}), toy()
    _, infos = envs.reset(seed=0)
    _, info = single.reset(seed=0)
    expected: dict[str, Any] = {}
    for env in range(2):
        expected = envs._add_info(expected, info, env)

    assert infos.keys() == expected.keys()
    assert {key: type(value) for key, value in infos.items()} == {key: type(value) for key, value in expected.items()}
    *_, stepped = single.step(np.zeros(len(HEADS), dtype=np.int64))
    assert stepped.keys() == info.keys()
    assert stepped["reward_terms"].keys() == info["reward_terms"].keys()


def test_episodes_can_be_recorded_by_gymnasiums_own_wrapper() -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("Esper/Toy-v0", episode_length=1))
    env.reset(seed=0)

    *_, info = env.step(np.zeros(len(HEADS), dtype=np.int64))

    assert info["episode"]["r"] == pytest.approx(info["outcome"]["return"])


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_and_options_that_do_not_exist_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"episode_lenght.*did you mean 'episode_length'"):
        GrowthEnv(episode_lenght=3)
    env = toy()
    with pytest.raises(ConfigError, match=r"options.slot: no such option.*did you mean 'slots'"):
        env.reset(options={"slot": ["r0c0"]})
    with pytest.raises(ConfigError, match="the heads would have sizes"):
        env.reset(options={"slots": ["r0c0"]})
    with pytest.raises(ConfigError, match="num_envs: 0"):
        GrowthVectorEnv(0)


def test_on_language_prices_are_in_bits_that_count_like_points() -> None:
    """A point is 0.02 bits, so that rent is 0.06 for a doubling."""
    task = {"name": "stdlib_lm", "epoch_items": 16, "context": 16}
    env = GrowthEnv(episode_length=4, task=task, gates={"min_contribution": 1.5}, reward={"mode": "shaped"})

    assert env.core.reward.config.rent == pytest.approx(0.06)
    assert env.core.reward.config.rollback == pytest.approx(0.2)
    assert env.core.engine.setup.gates.min_contribution == pytest.approx(0.03)
    env.reset(seed=0)
    plant = env.core.space.action("GERMINATE", slot="r0c0", blueprint="norm")
    *_, info = env.step(np.array(plant.indices))
    assert info["reward_terms"]["intervention"] == pytest.approx(-0.02 * OPS[LifecycleOp.GERMINATE].price)


def test_another_task_of_the_same_shape_is_an_option_of_one_episode() -> None:
    env = GrowthEnv(task={"name": "digits", "epoch_items": 64}, episode_length=1)

    env.reset(seed=0, options={"task": "digit_pairs"})
    assert env.core.engine.setup.task.name == "digit_pairs"
    env.reset(seed=0)
    assert env.core.engine.setup.task.name == "digits"


def test_the_picture_has_a_lane_for_every_slot() -> None:
    env = toy(render_mode="ansi")
    env.reset(seed=0)
    env.step(np.zeros(len(HEADS), dtype=np.int64))

    assert [line.split()[0] for line in env.render().splitlines()][:3] == ["r0c0", "r0c1", "metric"]
    assert toy().render() is None
