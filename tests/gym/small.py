"""What tests of environments need: small ones, lots, and a way to break a host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from esper.gym import GrowthEnv, GrowthVectorEnv
from esper.leyline.factored_actions import HEADS
from esper.tamiyo.baselines import draw

SMALL: dict[str, Any] = {"task": {"name": "digits", "widths": [4, 4, 4], "epoch_items": 128}}
WAITING = np.zeros(len(HEADS), dtype=np.int64)
QUICK = {"min_training": 0.0, "min_holding": 0.0, "embargo": 0.0, "min_prune_age": 0.0}


def toy(**settings_: Any) -> GrowthEnv:
    return GrowthEnv(**{"task": {"name": "toy"}, "body": {"max_seeds": 1}, **settings_})


def digits(length: int = 6, **settings_: Any) -> GrowthEnv:
    return GrowthEnv(**{**SMALL, "episode_length": length, "body": QUICK, **settings_})


def legal_action(env: GrowthEnv, lot: torch.Generator) -> np.ndarray:
    return np.array(draw(env.core.scene.legal[0], lot).indices)


def lot(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def play(env: GrowthEnv, steps: int, seed: int) -> list[Any]:
    """Legal decisions by lot, and all that came of them."""
    luck, told = lot(seed), []
    for _ in range(steps):
        obs, reward, over, _, info = env.step(legal_action(env, luck))
        told.append((obs["obs"].tobytes(), reward, over, info["metric"], info["op_done"], env.core.engine.flops()))
        told.append(env.core.engine.digests())
        if env.core.taken_back[0]:
            env.reset()
    return told


def break_host(env: GrowthEnv | GrowthVectorEnv) -> None:
    """The first host's weights are no numbers any more, so that its next epoch is taken back."""
    with torch.no_grad():
        next(env.core.engine.environments[0].model.host.parameters()).fill_(torch.nan)
