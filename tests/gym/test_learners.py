"""Somebody else's learners on the toy world: they must find far more than lots do, and than they knew at first."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType

import gymnasium
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_util import make_vec_env

from esper.gym import OpFirst

EXAMPLES = Path(__file__).parents[2] / "examples"
MARGIN = 8.0  # points; growing nothing is worth 28.3, lots 28.4 with a deviation of 2.5, the best policy 65.8


def by_lot(episodes: int) -> float:
    """The mean return of possible decisions drawn evenly."""
    env, returns = world(), []
    env.action_space.seed(0)
    for seed in range(episodes):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample(mask=info["action_mask"]))
        returns.append(info["outcome"]["return"])
    return fmean(returns)


def world() -> gymnasium.Env:
    return OpFirst(gymnasium.make("Esper/Toy-v0"))


@pytest.mark.slow
def test_maskable_ppo_learns_to_grow_in_the_toy_world() -> None:
    torch.set_num_threads(1)
    envs = make_vec_env(world, n_envs=8, seed=0)
    settings = {"n_steps": 96, "batch_size": 192, "ent_coef": 0.02, "learning_rate": 1e-3, "gamma": 1.0}
    model = MaskablePPO("MultiInputPolicy", envs, seed=0, stats_window_size=10_000, **settings)

    model.learn(12_000)

    returns = [episode["r"] for episode in model.ep_info_buffer]
    first, last = fmean(returns[:50]), fmean(returns[-50:])
    assert last > by_lot(100) + MARGIN
    assert last > first + MARGIN


@pytest.mark.slow
def test_the_example_on_one_page_learns_to_grow() -> None:
    curve = example("gym_cleanrl").main(updates=60)

    assert fmean(curve[-5:]) > by_lot(100) + 2 * MARGIN
    assert fmean(curve[-5:]) > fmean(curve[:5]) + 2 * MARGIN


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
