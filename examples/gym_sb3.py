"""Somebody else's PPO on the toy world: MaskablePPO of sb3-contrib, with exact masks through `OpFirst`.

.venv/bin/python -m pip install sb3-contrib
.venv/bin/python examples/gym_sb3.py
"""

from __future__ import annotations

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_util import make_vec_env

from esper.gym import OpFirst


def world() -> gymnasium.Env:
    """One decision is two steps: the operation, then its arguments under that operation's masks."""
    return OpFirst(gymnasium.make("Esper/Toy-v0"))


def main(steps: int = 30_000, episodes: int = 50) -> float:
    """Trains, and returns the mean return of the likeliest decisions; growing nothing is worth 28.3, the best 65.8."""
    torch.set_num_threads(1)
    envs = make_vec_env(world, n_envs=8, seed=0)
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=192, batch_size=256, gamma=1.0, ent_coef=0.01, seed=0)
    model.learn(steps)
    mean, spread = evaluate_policy(model, envs, n_eval_episodes=episodes)
    print(f"after {steps} steps: {mean:.1f} points, standard deviation {spread:.1f} over {episodes} episodes")
    return mean


if __name__ == "__main__":
    main()
