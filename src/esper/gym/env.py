"""One growing host as a `gymnasium.Env`: one step is one decision and one epoch of the host.

The action is one index per head, in the order of `leyline/factored_actions.HEADS`; `env.unwrapped.core.space` gives the
indices their names. Masks are told in four dialects: `obs["action_mask"]`, `info["action_mask"]`, `action_masks()` and
`slot_mask_by_op()`. For learners that choose one index there is `FlatActions`, for exact masks head by head `OpFirst`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from esper.gym.config import GrowthConfig, changed, read_options
from esper.gym.core import GrowthCore, Scene
from esper.gym.dialects import action_space_of
from esper.gym.infos import info_of, outcome_of
from esper.gym.observations import Observation, observation_names, observation_of, observation_space_of
from esper.leyline.config import apply
from esper.leyline.errors import ConfigError
from esper.leyline.reports import HostReport
from esper.nissa.lanes import lanes

ROUNDS = 1 << 31
"""Resets draw one of so many names of random streams."""


class GrowthEnv(gymnasium.Env[Observation, NDArray[np.int64]]):
    """One host; keyword arguments are the settings of `config.GrowthConfig`.

    An episode ends in one of three ways.
    - At the horizon: terminated, since the observation holds the time; truncated with `horizon_end="truncated"`.
    - With the step after which the governor took the host back for the last time: terminated, and paid for once. That
      is the first time by default.
    - With `governor={"max_rollbacks": 2}` or more, also with each step after which it was taken back before:
      terminated, and paid for once. The next `reset()` without seed or options then hands out the restored host as
      another episode, with what time is left: its first observation is the last one of the episode before. A reset with
      a seed or options, or at any other time, brings a new host.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        """Raises ConfigError for settings that do not exist or cannot be run."""
        self.render_mode = render_mode
        self._base = apply(GrowthConfig(), settings)
        self._config = self._base
        self.core = GrowthCore(self._base, envs=1)
        self.action_space = action_space_of(self.core.space)
        self.observation_space = observation_space_of(self.core.space, self._base.observation)
        self._past: list[HostReport] = []

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Of every number in `obs["obs"]`, or in `obs["base"]` and then `obs["slots"]`."""
        return observation_names(self.core.space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """A new host, or the one that was just taken back: see the class.

        Options: `config.Options`; they hold until the next new host. Raises ConfigError for an option that does not
        exist, or that would change the shape of the spaces.
        """
        super().reset(seed=seed)
        if self.core.taken_back[0] and seed is None and not options:
            self.core.go_on()
            return self._observation(self.core.scene), info_of(self.core, self.core.scene, 0, None)
        drawn = int(self.np_random.integers(ROUNDS))  # also where it is not used, so that options move no stream
        asked = read_options(options)
        self.core, self._config = renewed(self.core, self._config, changed(self._base, asked))
        scene = self.core.reset(drawn if asked.host_seed is None else asked.host_seed)
        self._past = [scene.reports[0]]
        return self._observation(scene), info_of(self.core, scene, 0, None)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One decision and one epoch. Raises ResetNeeded when the episode is over."""
        if self.core.over[0] or self.core.taken_back[0]:
            raise ResetNeeded("the episode is over; call reset()")
        scene, (turn,) = self.core.step(np.asarray(action)[None])
        self._past.append(scene.reports[0])
        info = info_of(self.core, scene, 0, turn)
        if turn.end.now:
            info["outcome"] = outcome_of(self.core, scene, 0)
        return self._observation(scene), turn.reward, turn.end.terminated, turn.end.truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """All heads' masks side by side, as sb3-contrib asks for them."""
        return np.array(self.core.scene.mask[0], dtype=np.bool_)

    def slot_mask_by_op(self) -> NDArray[np.bool_]:
        """[operations, slots] where each operation is possible: exact, where the marginal masks are optimistic."""
        return np.array(self.core.scene.legal[0].slot_by_op)

    def get_state(self) -> dict[str, Any]:
        """All that changes. `set_state` goes on from it, bit for bit, in an environment of the same settings."""
        return {"core": self.core.state(), "config": self._config, "np_random": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Goes on from `get_state`, as often as wanted. Returns what `reset` would."""
        self.core, self._config = renewed(self.core, self._config, state["config"])
        scene = self.core.load(state["core"])
        self.np_random.bit_generator.state = state["np_random"]
        self._past = [scene.reports[0]]
        return self._observation(scene), info_of(self.core, scene, 0, None)

    def render(self) -> str | None:
        """The episode so far, a lane per slot."""
        return "\n".join(lanes(self._past)) if self.render_mode == "ansi" else None

    def close(self) -> None:
        self.core.engine.close()

    def _observation(self, scene: Scene) -> Observation:
        rows = observation_of(scene.obs, scene.mask, scene.legal, self._base.observation)
        return {name: row[0] for name, row in rows.items()}


def renewed(core: GrowthCore, was: GrowthConfig, config: GrowthConfig) -> tuple[GrowthCore, GrowthConfig]:
    """The core for these settings: the same one where they are the same.

    Raises ConfigError where its spaces would have another shape, which an environment cannot change.
    """
    if config == was:
        return core, was
    fresh = GrowthCore(config, core.envs)
    if fresh.space.head_sizes != core.space.head_sizes:
        sizes = f"{list(fresh.space.head_sizes.values())}, the environment's {list(core.space.head_sizes.values())}"
        raise ConfigError(f"options: the heads would have sizes {sizes}; make another environment")
    return fresh, config
