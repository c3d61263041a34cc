"""One index per decision, for learners that know no MultiDiscrete: every decision that makes a difference, in a list.

Only heads that matter to an operation are counted out, and only blueprints that fit their slot. The masks are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from esper.gym.dialects import Bits
from esper.gym.env import GrowthEnv
from esper.gym.observations import Observation
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, ActionSpace, FactoredAction, LifecycleOp

LARGEST = 20_000
"""Decisions that a list may hold; a learner with an output for each would be lost in more."""


# Any, where an index is: gymnasium 1.4 gives the environment inside the types of the wrapper.
class FlatActions(gymnasium.Wrapper[Observation, Any, Observation, NDArray[np.int64]], RecordConstructorArgs):
    """Over a `GrowthEnv`: the action is an index into `decisions`; 0 is WAIT.

    `obs["action_mask"]`, `info["action_mask"]` and `action_masks()` are [decisions], 1 where a decision is possible.
    `decisions[i].as_names()` says what decision i is; `info["executed_action"]` stays one index per head.
    """

    def __init__(self, env: gymnasium.Env[Observation, NDArray[np.int64]], largest: int = LARGEST) -> None:
        """Raises ConfigError for an environment with more than `largest` decisions."""
        RecordConstructorArgs.__init__(self, largest=largest)
        gymnasium.Wrapper.__init__(self, env)
        inner = env.unwrapped
        assert isinstance(inner, GrowthEnv), "FlatActions goes around a GrowthEnv"
        self._inner = inner
        count = _count(inner.core.space)
        if count > largest:
            raise ConfigError(
                f"FlatActions: {count} decisions, more than {largest}; use fewer slots or blueprints, or OpFirst"
            )
        self.decisions = tuple(_every(inner.core.space))
        assert len(self.decisions) == count
        self._rows = np.array([decision.indices for decision in self.decisions], dtype=np.int64)
        self._ops, self._slots = self._rows[:, HEADS.index("op")], self._rows[:, HEADS.index("slot")]
        self._waits = self._ops == LifecycleOp.WAIT
        self.action_space = spaces.Discrete(count)
        seen = env.observation_space
        assert isinstance(seen, spaces.Dict)
        self.observation_space = spaces.Dict({**seen.spaces, "action_mask": spaces.MultiBinary(count)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """As of the environment."""
        return self._told(*self.env.reset(seed=seed, options=options))

    def step(self, action: np.int64) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Takes decision `action`, an index below the number of decisions."""
        if not 0 <= action < len(self.decisions):
            raise ConfigError(f"action: {action} is not an index below {len(self.decisions)}")
        obs, reward, terminated, truncated, info = self.env.step(self._rows[action])
        obs, info = self._told(obs, info)
        return obs, reward, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """[decisions]"""
        possible = np.array(self._inner.core.scene.legal[0].slot_by_op, dtype=np.bool_)
        free: NDArray[np.bool_] = possible[self._ops, self._slots] | self._waits
        return free

    def _told(self, obs: Observation, info: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        mask: Bits = self.action_masks().astype(np.int8)
        return obs | {"action_mask": mask}, info | {"action_mask": mask.copy()}


def _every(space: ActionSpace) -> Iterator[FactoredAction]:
    """Every decision that makes a difference, operation by operation."""
    for op in LifecycleOp:
        heads = OPS[op].heads
        for choices in product(*(space.choices(head) for head in heads)):
            decision = space.action(op, **dict(zip(heads, choices, strict=True)))
            if decision.fits:
                yield decision


def _count(space: ActionSpace) -> int:
    """How many `_every` would give."""
    sizes, total = space.head_sizes, 0
    for op in LifecycleOp:
        heads = OPS[op].heads
        rest = int(np.prod([sizes[head] for head in heads if head not in ("slot", "blueprint")], dtype=np.int64))
        places = sum(map(sum, space.fits)) if "blueprint" in heads else sizes["slot"] if "slot" in heads else 1
        total += places * rest
    return total
