"""Many growing hosts as one `gymnasium.vector.VectorEnv`, trained in one process.

All hosts begin and end together. By default nothing resets by itself (`AutoresetMode.DISABLED`): call `reset` when all
are over. A host that the governor gives up earlier is terminated then, and waits at reward 0 for the others; it is not
reset by itself, for it would be at another time than the rest of its round. With `AutoresetMode.SAME_STEP` the last
step of a round resets all hosts, its own observations and infos are `final_obs` and `final_info`, and a host that was
given up earlier is terminated only then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from esper.gym.config import GrowthConfig, changed, read_options
from esper.gym.core import GrowthCore, Scene
from esper.gym.dialects import action_space_of, observation_space_of
from esper.gym.env import ROUNDS, Observation, renewed
from esper.gym.infos import info_of, outcome_of, side_by_side
from esper.leyline.config import apply
from esper.leyline.errors import ConfigError
from esper.leyline.reports import HostReport
from esper.nissa.lanes import lanes

Vector = tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class GrowthVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """`num_envs` hosts; further keyword arguments are the settings of `config.GrowthConfig`.

    Host i sees the random streams of environment i, so that more hosts change nothing for those that were there; host 0
    lives exactly as in a `GrowthEnv` of the same seed.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
        **settings: Any,
    ) -> None:
        """Raises ConfigError for settings that do not exist or cannot be run, and for `AutoresetMode.NEXT_STEP`."""
        if num_envs < 1:
            raise ConfigError(f"num_envs: {num_envs} hosts; give at least 1")
        if autoreset_mode not in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
            raise ConfigError(f"autoreset_mode: {autoreset_mode}; hosts reset in the same step or not at all")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self._base = apply(GrowthConfig(), settings)
        self._config = self._base
        self.core = GrowthCore(self._base, num_envs)
        self.single_action_space = action_space_of(self.core.space)
        self.single_observation_space = observation_space_of(self.core.space)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._past: list[list[HostReport]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """New hosts, all of them. Options: `config.Options`; `reset_mask` may be given and must be all True."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(ROUNDS))
        asked = read_options(self._without_mask(options or {}))
        self.core, self._config = renewed(self.core, self._config, changed(self._base, asked))
        scene = self.core.reset(drawn if asked.host_seed is None else asked.host_seed)
        self._past = [list(scene.reports)]
        return self._observation(scene), self._infos(scene, None)

    def step(self, actions: NDArray[np.int64]) -> Vector:
        """actions: [num_envs, heads]. Raises ResetNeeded when all hosts are over, unless they reset by themselves."""
        if all(self.core.over):
            raise ResetNeeded("all episodes are over; call reset()")
        scene, turns = self.core.step(np.asarray(actions))
        self._past.append(list(scene.reports))
        infos = self._infos(scene, turns)
        for env, turn in enumerate(turns):
            if turn.ended:
                infos = self._add_info(infos, {"outcome": outcome_of(self.core, scene, env)}, env)
        rewards, over = np.array([turn.reward for turn in turns]), np.array(self.core.over)
        truncated = over & self.core.interrupted
        obs = self._observation(scene)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            if not over.all():
                over, truncated = np.zeros_like(over), np.zeros_like(over)
            else:
                obs, infos = self._begun_anew(obs, infos)
        return obs, rewards, over & ~truncated, truncated, infos

    def _begun_anew(self, obs: Observation, infos: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """New hosts, with the last observations and infos of the old ones beside them."""
        ends = np.empty(self.num_envs, dtype=object)
        ends[:] = [{name: rows[env] for name, rows in obs.items()} for env in range(self.num_envs)]
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        fresh, begun = self.reset()
        ended = {"final_obs": ends, "_final_obs": everyone, "final_info": infos, "_final_info": everyone.copy()}
        return fresh, begun | ended

    def action_masks(self) -> NDArray[np.bool_]:
        """[num_envs, sum of head sizes]."""
        return self.core.scene.mask.astype(np.bool_)

    def slot_mask_by_op(self) -> NDArray[np.bool_]:
        """[num_envs, operations, slots]."""
        return np.array([legal.slot_by_op for legal in self.core.scene.legal])

    def get_state(self) -> dict[str, Any]:
        """As of `GrowthEnv`."""
        return {"core": self.core.state(), "config": self._config, "np_random": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """As of `GrowthEnv`."""
        self.core, self._config = renewed(self.core, self._config, state["config"])
        scene = self.core.load(state["core"])
        self.np_random.bit_generator.state = state["np_random"]
        self._past = [list(scene.reports)]
        return self._observation(scene), self._infos(scene, None)

    def render(self) -> tuple[str, ...] | None:
        """The episodes so far."""
        if self.render_mode != "ansi":
            return None
        return tuple("\n".join(lanes(past)) for past in zip(*self._past, strict=True))

    def close_extras(self, **_kwargs: Any) -> None:
        self.core.engine.close()

    def _without_mask(self, options: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in options.items() if name != "reset_mask"}
        if len(rest) < len(options) and not np.all(options["reset_mask"]):
            raise ConfigError("options.reset_mask: all hosts of a round begin together; reset all of them")
        return rest

    def _observation(self, scene: Scene) -> Observation:
        return {"obs": scene.obs.copy(), "action_mask": scene.mask.copy()}

    def _infos(self, scene: Scene, turns: list[Any] | None) -> dict[str, Any]:
        each = range(self.num_envs)
        return side_by_side([info_of(self.core, scene, env, None if turns is None else turns[env]) for env in each])
