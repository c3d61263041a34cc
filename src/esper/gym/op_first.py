"""Exact masks for any library: a decision in two or three steps, each under masks that depend on what came before.

First the operation; then the slot and the arguments with it, or after it where slots differ in the blueprints they
take. A library that draws its heads independently cannot draw an impossible combination then.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from esper.gym.dialects import Bits, by_head, first_only
from esper.gym.env import GrowthEnv
from esper.gym.observations import Observation
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp
from esper.tamiyo.policy.action_masks import Mask


class OpFirst(gymnasium.Wrapper[Observation, NDArray[np.int64], Observation, NDArray[np.int64]]):
    """Over a `GrowthEnv`. Spaces stay the same but for `obs["obs"]`, which ends with what has been chosen so far:
    one-hot the operation, then one-hot the slot; zeros before the choice.

    All heads but those of the present phase stand at what was chosen, or at their first choice. No time passes and
    nothing is earned until the decision is complete; `info["phase"]` says what is to be chosen next: 0 the operation.
    """

    def __init__(self, env: gymnasium.Env[Observation, NDArray[np.int64]]) -> None:
        """Raises ConfigError where observations have another layout than `flat`."""
        super().__init__(env)
        inner = env.unwrapped
        assert isinstance(inner, GrowthEnv), "OpFirst goes around a GrowthEnv"
        self._inner = inner
        space = inner.core.space
        self._sizes = space.head_sizes
        alike = len(set(space.fits)) == 1
        self._phases = (HEADS[:1], HEADS[1:]) if alike else (HEADS[:1], HEADS[1:2], HEADS[2:])
        self._phase_of = {head: index for index, heads in enumerate(self._phases) for head in heads}
        self._chosen, self._phase = dict.fromkeys(HEADS, 0), 0
        self._seen: Observation = {}
        self._info: dict[str, Any] = {}
        seen = env.observation_space
        assert isinstance(seen, spaces.Dict)
        if "obs" not in seen.spaces:
            raise ConfigError("OpFirst: adds to flat observations; make the environment with observation='flat'")
        sensors = seen["obs"]
        assert isinstance(sensors, spaces.Box)
        more = self._sizes["op"] + self._sizes["slot"]
        low, high = (np.append(bound, np.full(more, end)) for bound, end in ((sensors.low, 0.0), (sensors.high, 1.0)))
        self.observation_space = spaces.Dict(
            {"obs": spaces.Box(low.astype(np.float32), high.astype(np.float32)), "action_mask": seen["action_mask"]}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """A new host, and its first decision."""
        self._seen, self._info = self.env.reset(seed=seed, options=options)
        self._chosen, self._phase = dict.fromkeys(HEADS, 0), 0
        return self._observation(), self._told(self._info)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Takes the heads of this phase out of `action`; acts when the decision is complete."""
        for head in self._phases[self._phase]:
            self._chosen[head] = int(action[HEADS.index(head)])
        self._phase += 1
        op = LifecycleOp(self._chosen["op"])
        if OPS[op].heads and self._phase < len(self._phases):  # WAIT is complete at once
            return self._observation(), 0.0, False, False, self._told(self._info)
        whole = np.array([self._chosen[head] for head in HEADS], dtype=np.int64)
        self._seen, reward, terminated, truncated, self._info = self.env.step(whole)
        self._chosen, self._phase = dict.fromkeys(HEADS, 0), 0
        return self._observation(), reward, terminated, truncated, self._told(self._info)

    def action_masks(self) -> NDArray[np.bool_]:
        """All heads' exact masks side by side, in this phase."""
        return self._mask().astype(np.bool_)

    def _mask(self) -> Bits:
        return np.array([free for head in HEADS for free in self._of_head(head)], dtype=np.int8)

    def _of_head(self, head: str) -> Mask:
        if self._phase_of[head] < self._phase:
            return tuple(index == self._chosen[head] for index in range(self._sizes[head]))
        if self._phase_of[head] > self._phase:
            return first_only(self._sizes[head])
        legal = self._inner.core.scene.legal[0]
        if head == "op":
            return legal.op
        op = LifecycleOp(self._chosen["op"])
        if head not in OPS[op].heads:
            return first_only(self._sizes[head])
        # Where slots differ in what fits them, the slot has been chosen; where they do not, any will do.
        return legal.head_mask(head, op, self._chosen["slot"])

    def _observation(self) -> Observation:
        chosen = [np.zeros(self._sizes[head], dtype=np.float32) for head in ("op", "slot")]
        for row, head in zip(chosen, ("op", "slot"), strict=True):
            if self._phase_of[head] < self._phase:
                row[self._chosen[head]] = 1.0
        return {"obs": np.concatenate((self._seen["obs"], *chosen)), "action_mask": self._mask()}

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"action_mask": by_head(self._mask(), self._inner.core.sizes), "phase": self._phase}
