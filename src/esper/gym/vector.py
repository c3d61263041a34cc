"""Many growing hosts as one `gymnasium.vector.VectorEnv`, trained in one process.

All hosts begin a round together, and live through it in lockstep. Read the docstring of the class for how they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from esper.gym.config import GrowthConfig, changed, read_options
from esper.gym.core import GrowthCore, Scene, Turn
from esper.gym.dialects import action_space_of
from esper.gym.env import ROUNDS, renewed
from esper.gym.infos import info_of, outcome_of, side_by_side
from esper.gym.observations import Observation, observation_of, observation_space_of
from esper.leyline.config import apply
from esper.leyline.errors import ConfigError
from esper.leyline.reports import HostReport
from esper.nissa.lanes import lanes

Vector = tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class GrowthVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """`num_envs` hosts; further keyword arguments are the settings of `config.GrowthConfig`.

    Host i sees the random streams of environment i, so that more hosts change nothing for those that were there; host 0
    lives exactly as in a `GrowthEnv` of the same seed.

    By default (`AutoresetMode.DISABLED`) nothing resets by itself: call `reset` when all hosts are over.
    - At the horizon all are over: terminated, or truncated with `horizon_end="truncated"`.
    - A host that the governor gives up is terminated with that step, and stays so: it waits at reward 0 for the others,
      and what it is told to do is nothing. It is not begun anew, for it would be at another time than its round.
    - A host that is taken back and not given up (`governor={"max_rollbacks": 2}` or more) is terminated with that step
      alone. The observation beside is that of the restored host, with which its next episode begins: the next step is
      that episode's first, no reset is needed.

    With `AutoresetMode.SAME_STEP` observations and infos of a step that ends an episode are `final_obs` and
    `final_info`, and those of the next episode stand in their place: for a host that was taken back the same
    observation, at the end of a round that of a new host. A host that was given up is terminated only then, so that its
    padding belongs to the episode that it ended.
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
        self.single_observation_space = observation_space_of(self.core.space, self._base.observation)
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
        return self._observation(scene), self._infos(scene, [None] * self.num_envs)

    def step(self, actions: NDArray[np.int64]) -> Vector:
        """actions: [num_envs, heads]. Raises ResetNeeded when all hosts are over, unless they reset by themselves."""
        if all(self.core.over):
            raise ResetNeeded("all episodes are over; call reset()")
        scene, turns = self.core.step(np.asarray(actions))
        self._past.append(list(scene.reports))
        infos = self._infos(scene, turns)
        for env, turn in enumerate(turns):
            if turn.end.now:
                infos = self._add_info(infos, {"outcome": outcome_of(self.core, scene, env)}, env)
        obs, rewards = self._observation(scene), np.array([turn.reward for turn in turns])
        terminated = np.array([turn.end.terminated for turn in turns])
        truncated = np.array([turn.end.truncated for turn in turns])
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            if all(self.core.over):
                obs, infos = self._begun_anew(obs, infos)
            else:
                terminated &= ~np.array(self.core.over)
                infos = self._gone_on(obs, infos, turns)
        return obs, rewards, terminated, truncated, infos

    def _begun_anew(self, obs: Observation, infos: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """New hosts, with the last observations and infos of the old ones beside them."""
        ends = np.empty(self.num_envs, dtype=object)
        ends[:] = [self._row(obs, env) for env in range(self.num_envs)]
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        fresh, begun = self.reset()
        ended = {"final_obs": ends, "_final_obs": everyone, "final_info": infos, "_final_info": everyone.copy()}
        return fresh, begun | ended

    def _gone_on(self, obs: Observation, infos: dict[str, Any], turns: list[Turn]) -> dict[str, Any]:
        """The infos, with those of another episode for hosts that were taken back, and how the last one ended."""
        core, scene, back = self.core, self.core.scene, np.flatnonzero(self.core.taken_back).tolist()
        if not back:
            return infos
        ended = {env: info_of(core, scene, env, turns[env]) | {"outcome": outcome_of(core, scene, env)} for env in back}
        core.go_on()
        infos = self._infos(scene, [None if env in back else turn for env, turn in enumerate(turns)])
        for env, info in ended.items():
            infos = self._add_info(infos, {"final_obs": self._row(obs, env), "final_info": info}, env)
        return infos

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
        return self._observation(scene), self._infos(scene, [None] * self.num_envs)

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
        return observation_of(scene.obs, scene.mask, scene.legal, self._base.observation)

    def _row(self, obs: Observation, env: int) -> Observation:
        return {name: rows[env].copy() for name, rows in obs.items()}

    def _infos(self, scene: Scene, turns: Sequence[Turn | None]) -> dict[str, Any]:
        return side_by_side([info_of(self.core, scene, env, turn) for env, turn in enumerate(turns)])
