"""Growing hosts as environments of gymnasium. `import esper.gym` registers them; to add one write a line below.

import gymnasium
import esper.gym

env = gymnasium.make("Esper/Toy-v0")                  # one host: GrowthEnv (`env.py`)
envs = gymnasium.make_vec("Esper/Digits-v0", 8)       # eight in one process: GrowthVectorEnv (`vector.py`)

What is shown is in `observations.py`, what `info` tells in `infos.py`. Around a `GrowthEnv` go `OpFirst`, for exact
masks head by head, and `FlatActions`, for learners that choose one index.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from esper.gym.config import TOY
from esper.gym.env import GrowthEnv
from esper.gym.flat_actions import FlatActions
from esper.gym.op_first import OpFirst
from esper.gym.toy.engine import TOY_BODY
from esper.gym.toy.world import EPISODE_LENGTH
from esper.gym.vector import GrowthVectorEnv
from esper.leyline.config import encode

__all__ = ["FlatActions", "GrowthEnv", "GrowthVectorEnv", "OpFirst"]


def _register(name: str, task: str, **settings: Any) -> None:
    gymnasium.register(
        id=f"Esper/{name}-v0",
        entry_point="esper.gym.env:GrowthEnv",
        vector_entry_point="esper.gym.vector:GrowthVectorEnv",
        kwargs={"task": {"name": task}, **settings},
    )


_register("Digits", "digits", episode_length=12)
_register("DigitsScale", "digits_scale", episode_length=24)
_register("Toy", TOY, episode_length=EPISODE_LENGTH, body=encode(TOY_BODY))
