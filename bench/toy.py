"""How long does a step of the toy world take behind gymnasium, masks, infos and resets included?

Every sample is a fresh environment, so that nothing is remembered from the sample before. Decisions are drawn before
the clock starts: what a learner, or gymnasium's own `sample`, takes to choose is not the world's. By lot nearly every
state is met for the first time, and its reports, sensors and masks are made by the code that real hosts go through;
whoever plays well, or waits, meets few. The bound is for those; the other figure is for information.
"""

from __future__ import annotations

import statistics
import time

import gymnasium
import numpy as np
from numpy.typing import NDArray

from bench.measuring import Effort, Finding, noise_of
from esper.gym import GrowthEnv, GrowthVectorEnv
from esper.gym.toy.engine import ToyEngine
from esper.gym.toy.world import EPISODE_LENGTH, best
from esper.leyline.factored_actions import HEADS
from esper.leyline.randomness import stream
from esper.tamiyo.baselines import draw

EPISODES, HOSTS = 100, 8
BOUND_US = 100.0  # per step: 10,000 a second

Decisions = NDArray[np.int64]
"""[episodes, steps, heads], or [episodes, steps, hosts, heads]."""


def answer(effort: Effort) -> list[Finding]:
    waiting = np.zeros((EPISODES, EPISODE_LENGTH, len(HEADS)), dtype=np.int64)
    many = np.zeros((EPISODES, EPISODE_LENGTH, HOSTS, len(HEADS)), dtype=np.int64)
    played_well, drawn = _best(), _drawn()
    return [
        _finding("waiting", [_one(waiting) for _ in range(effort.runs)], BOUND_US),
        _finding("the best policy", [_one(played_well) for _ in range(effort.runs)], BOUND_US),
        _finding(f"waiting, {HOSTS} hosts in one process", [_many(many) for _ in range(effort.runs)], BOUND_US),
        _finding("by lot among what is possible", [_one(drawn) for _ in range(effort.runs)], None),
    ]


def _finding(what: str, times: list[float], bound: float | None) -> Finding:
    return Finding(what, statistics.median(times), "µs/step", bound, noise_of(times), {"us": times})


def _best() -> Decisions:
    env = _env()
    engine, space = env.core.engine, env.core.space
    assert isinstance(engine, ToyEngine)
    episodes = []
    for episode in range(EPISODES):
        env.reset(seed=episode)
        lines = best(engine.states[0].world)
        waits = [{"op": "WAIT"}] * (EPISODE_LENGTH - len(lines))
        episodes.append([space.action(**line).indices for line in (*lines, *waits)])
    return np.array(episodes, dtype=np.int64)


def _drawn() -> Decisions:
    env, lot = _env(), stream(0, "lot")
    episodes = []
    for episode in range(EPISODES):
        env.reset(seed=episode)
        steps = []
        for _ in range(EPISODE_LENGTH):
            steps.append(draw(env.core.scene.legal[0], lot).indices)
            env.step(np.array(steps[-1]))
        episodes.append(steps)
    return np.array(episodes, dtype=np.int64)


def _one(decisions: Decisions) -> float:
    """Microseconds of CPU time per step."""
    env = _env()
    began = time.process_time()
    for episode, steps in enumerate(decisions):
        env.reset(seed=episode)
        for action in steps:
            env.step(action)
    return (time.process_time() - began) * 1e6 / (EPISODES * EPISODE_LENGTH)


def _many(decisions: Decisions) -> float:
    """Microseconds of CPU time per step of one host."""
    envs = gymnasium.make_vec("Esper/Toy-v0", HOSTS)
    assert isinstance(envs, GrowthVectorEnv)
    began = time.process_time()
    for episode, steps in enumerate(decisions):
        envs.reset(seed=episode)
        for actions in steps:
            envs.step(actions)
    return (time.process_time() - began) * 1e6 / (EPISODES * EPISODE_LENGTH * HOSTS)


def _env() -> GrowthEnv:
    env = gymnasium.make("Esper/Toy-v0").unwrapped
    assert isinstance(env, GrowthEnv)
    return env
