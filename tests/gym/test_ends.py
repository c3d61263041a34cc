"""How episodes end: at a horizon, with a host that is taken back, together with others and in a vector that resets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tests.gym.small import SMALL, WAITING, break_host, digits, lot, toy

from esper.gym import GrowthEnv, GrowthVectorEnv
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS
from esper.leyline.telemetry import GovernorRollbackPayload, GovernorStepsSkippedPayload
from esper.tamiyo.baselines import draw

TWICE = {"governor": {"max_rollbacks": 2}}


def test_a_host_that_breaks_is_terminated_with_finite_numbers() -> None:
    env = digits()
    env.reset(seed=0)
    env.step(WAITING)
    break_host(env)

    obs, reward, terminated, truncated, info = env.step(WAITING)

    assert (terminated, truncated, info["rolled_back"], info["horizon_end"]) == (True, False, True, False)
    assert np.isfinite(obs["obs"]).all()
    assert obs in env.observation_space
    assert np.isfinite(reward)
    assert reward < 0
    with pytest.raises(ResetNeeded):
        env.step(WAITING)


def test_a_host_that_is_given_up_waits_for_the_others_and_earns_nothing() -> None:
    envs = GrowthVectorEnv(2, **SMALL, episode_length=3)
    envs.reset(seed=0)
    waits = np.zeros((2, len(HEADS)), dtype=np.int64)
    break_host(envs)

    steps = [envs.step(waits) for _ in range(3)]

    assert [terminated.tolist() for _, _, terminated, _, _ in steps] == [[True, False], [True, False], [True, True]]
    assert [reward[0] for _, reward, *_ in steps[1:]] == [0.0, 0.0]
    assert steps[0][-1]["_outcome"].tolist() == [True, False]
    assert steps[2][-1]["_outcome"].tolist() == [False, True]
    with pytest.raises(ResetNeeded):
        envs.step(waits)


def test_a_horizon_that_is_no_end_is_a_truncation_and_a_broken_host_is_not() -> None:
    envs = GrowthVectorEnv(2, horizon_end="truncated", episode_length=2, **SMALL)
    envs.reset(seed=0)
    waits = np.zeros((2, len(HEADS)), dtype=np.int64)
    envs.step(waits)
    break_host(envs)

    _, _, terminated, truncated, _ = envs.step(waits)

    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])
    single = toy(horizon_end="truncated", episode_length=1)
    single.reset(seed=0)
    assert single.step(waits[0])[2:4] == (False, True)


def plain(value: Any) -> Any:
    """Arrays as lists and keys in order, all the way down."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in sorted(value.items())}
    return [plain(each) for each in value] if isinstance(value, np.ndarray | list | tuple) else value


@pytest.mark.parametrize("horizon_end", ["terminated", "truncated"])
def test_hosts_that_reset_in_the_same_step_do_so_as_gymnasiums_own_vector_of_them(horizon_end: str) -> None:
    settings_ = {"task": {"name": "toy"}, "episode_length": 3, "horizon_end": horizon_end}
    ours = GrowthVectorEnv(1, autoreset_mode=AutoresetMode.SAME_STEP, **settings_)
    theirs = SyncVectorEnv([lambda: GrowthEnv(**settings_)], autoreset_mode=AutoresetMode.SAME_STEP)
    luck = lot(0)

    told = [[plain(part) for part in envs.reset(seed=4)] for envs in (ours, theirs)]
    assert repr(told[0]) == repr(told[1])  # NaN is not equal to itself
    for _ in range(7):
        action = np.array([draw(ours.core.scene.legal[0], luck).indices])
        one, other = ([plain(part) for part in envs.step(action)] for envs in (ours, theirs))
        assert repr(one) == repr(other)


def test_a_host_that_is_given_up_in_same_step_mode_ends_with_the_others() -> None:
    envs = GrowthVectorEnv(
        2, autoreset_mode=AutoresetMode.SAME_STEP, horizon_end="truncated", episode_length=3, **SMALL
    )
    envs.reset(seed=0)
    break_host(envs)

    steps = [envs.step(np.zeros((2, len(HEADS)), dtype=np.int64)) for _ in range(3)]

    assert [step[2].tolist() for step in steps] == [[False, False], [False, False], [True, False]]
    assert [step[3].tolist() for step in steps] == [[False, False], [False, False], [False, True]]
    assert steps[2][4]["epoch"].tolist() == [0, 0]
    assert steps[2][4]["final_info"]["epoch"].tolist()[1] == 3


def test_hosts_do_not_reset_a_step_later() -> None:
    with pytest.raises(ConfigError, match="same step or not at all"):
        GrowthVectorEnv(1, autoreset_mode=AutoresetMode.NEXT_STEP, task={"name": "toy"})


# --- hosts that are taken back and go on ------------------------------------------------------------------------------


def test_a_host_that_is_taken_back_ends_its_episode_and_goes_on_in_another() -> None:
    env = digits(6, horizon_end="truncated", **TWICE)
    env.reset(seed=0)
    env.step(WAITING)
    break_host(env)

    last, reward, terminated, truncated, info = env.step(WAITING)
    with pytest.raises(ResetNeeded):
        env.step(WAITING)
    first, begun = env.reset()

    assert (terminated, truncated, info["rolled_back"], info["outcome"]["length"]) == (True, False, True, 2)
    assert info["reward_terms"]["rollback"] == -10
    assert reward == pytest.approx(sum(info["reward_terms"].values()))
    assert [type(event) for event in info["events"]] == [GovernorStepsSkippedPayload, GovernorRollbackPayload]
    assert begun["epoch"] == info["epoch"] == 2  # the same host, with what time is left
    assert all(np.array_equal(last[name], first[name]) for name in last)
    assert begun["op_counts"].sum() == 0
    ends = [env.step(WAITING) for _ in range(4)]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in ends] == [(False, False)] * 3 + [
        (False, True)  # the horizon is an interruption to this episode, whatever ended the one before
    ]
    assert [info["reward_terms"]["rollback"] for *_, info in ends] == [0.0] * 4
    outcome = ends[-1][-1]["outcome"]
    assert outcome["length"] == 4
    assert outcome["return"] == pytest.approx(sum(reward for _, reward, *_ in ends))


def test_the_last_rollback_of_a_host_is_its_end() -> None:
    env = digits(6, horizon_end="truncated", **TWICE)
    env.reset(seed=0)
    seeds = []
    for _ in range(2):
        break_host(env)
        *_, terminated, truncated, info = env.step(WAITING)
        assert (terminated, truncated, info["reward_terms"]["rollback"]) == (True, False, -10)
        _, begun = env.reset()
        seeds.append(begun["epoch"])

    assert seeds == [1, 0]  # taken back once it goes on, taken back twice there is a new host


def test_a_seed_options_or_an_unfinished_episode_bring_a_new_host() -> None:
    for how in ({"seed": 3}, {"options": {"host_seed": 3}}):
        env = digits(6, **TWICE)
        env.reset(seed=0)
        break_host(env)
        env.step(WAITING)
        assert env.reset(**how)[1]["epoch"] == 0
    env.step(WAITING)
    assert env.reset()[1]["epoch"] == 0


def test_a_rollback_at_the_horizon_is_terminated_and_over() -> None:
    env = digits(1, horizon_end="truncated", **TWICE)
    env.reset(seed=0)
    break_host(env)

    *_, terminated, truncated, info = env.step(WAITING)

    assert (terminated, truncated, info["rolled_back"], info["horizon_end"]) == (True, False, True, True)
    assert env.reset()[1]["epoch"] == 0


def test_a_host_of_a_vector_that_is_taken_back_goes_on_with_the_next_step() -> None:
    envs = GrowthVectorEnv(2, horizon_end="truncated", episode_length=5, governor={"max_rollbacks": 3}, **SMALL)
    envs.reset(seed=0)
    waits = np.stack([WAITING] * 2)
    steps = []
    for step in range(5):
        if step in (1, 2):
            break_host(envs)
        steps.append(envs.step(waits))

    assert [terminated.tolist() for _, _, terminated, _, _ in steps] == [
        [False, False],
        [True, False],
        [True, False],
        [False, False],
        [False, False],
    ]
    assert [truncated.tolist() for _, _, _, truncated, _ in steps] == [[False, False]] * 4 + [[True, True]]
    assert [infos["reward_terms"]["rollback"][0] for *_, infos in steps] == [0, -10, -10, 0, 0]
    ended = {step: infos["outcome"]["length"].tolist() for step, (*_, infos) in enumerate(steps) if "outcome" in infos}
    assert ended == {1: [2, 0], 2: [1, 0], 4: [2, 5]}  # 0: no outcome


def test_in_a_vector_the_last_rollback_is_terminated_and_padded_to_the_end_of_the_round() -> None:
    envs = GrowthVectorEnv(2, horizon_end="truncated", episode_length=4, **TWICE, **SMALL)
    envs.reset(seed=0)
    grow = np.array(envs.core.space.action("GERMINATE", slot="r0c0", blueprint="norm").indices)
    steps = []
    for step in range(4):
        if step < 2:
            break_host(envs)
        steps.append(envs.step(np.stack([grow if step == 3 else WAITING, WAITING])))

    assert [terminated.tolist() for _, _, terminated, _, _ in steps] == [[True, False]] * 4
    assert [truncated.tolist() for _, _, _, truncated, _ in steps] == [[False, False]] * 3 + [[False, True]]
    assert [reward[0] != 0.0 for _, reward, *_ in steps] == [True, True, False, False]
    assert not steps[3][-1]["action_valid"][0]
    assert steps[3][-1]["executed_action"][0].tolist() == WAITING.tolist()
    assert all(envs.core.over)


@pytest.mark.parametrize("horizon_end", ["terminated", "truncated"])
def test_a_vector_that_resets_in_the_same_step_goes_on_as_gymnasiums_own_vector_of_one_does(horizon_end: str) -> None:
    settings_ = {"episode_length": 4, "horizon_end": horizon_end, **TWICE, **SMALL}
    single = GrowthEnv(**settings_)
    ours = GrowthVectorEnv(1, autoreset_mode=AutoresetMode.SAME_STEP, **settings_)
    theirs = SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.SAME_STEP)

    told = [[plain(part) for part in envs.reset(seed=4)] for envs in (ours, theirs)]
    assert repr(told[0]) == repr(told[1])
    for step in range(9):
        if step in (1, 5, 6):  # once in the first round, twice in the second, which that ends
            break_host(ours)
            break_host(single)
        one, other = ([plain(part) for part in envs.step(WAITING[None])] for envs in (ours, theirs))
        assert repr(one) == repr(other)
        assert one[2][0] == (step in (1, 5, 6) or (step == 3 and horizon_end == "terminated"))


def test_a_vector_that_resets_in_the_same_step_leaves_the_other_hosts_alone() -> None:
    envs = GrowthVectorEnv(2, autoreset_mode=AutoresetMode.SAME_STEP, episode_length=4, **TWICE, **SMALL)
    envs.reset(seed=0)
    break_host(envs)

    obs, _, terminated, _, infos = envs.step(np.stack([WAITING] * 2))

    assert terminated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False]
    assert np.array_equal(infos["final_obs"][0]["obs"], obs["obs"][0])
    assert infos["final_info"]["rolled_back"].tolist() == [True, False]
    assert infos["rolled_back"].tolist() == [False, False]
    assert infos["op_counts"].sum(axis=1).tolist() == [0, 1]
    assert infos["epoch"].tolist() == [1, 1]
