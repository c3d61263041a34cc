"""What all doors of gymnasium open onto: hosts, governor, reward, masks and sensors, and no learning.

`GrowthCore.reset`, then `step` with one row of head indices per environment until every environment is over.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.gym.config import GrowthConfig
from esper.gym.dialects import Bits, bounds, marginal, sensed
from esper.gym.worlds import make_hosts
from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.simic.rewards.rewards import ModeReward, StepScore
from esper.tamiyo.controller import wait
from esper.tamiyo.policy.action_masks import LegalActions, possible

_REMEMBERED = 1 << 16
View = tuple[LegalActions, NDArray[np.float32], Bits]
"""Of one environment: what is possible, its sensors [D] and its marginal mask [M]."""


@dataclass(frozen=True)
class Scene:
    """All environments at one moment."""

    reports: Sequence[HostReport]
    legal: Sequence[LegalActions]
    obs: NDArray[np.float32]  # [E, D] within the bounds of the sensors
    mask: Bits  # [E, M]


@dataclass(frozen=True)
class Turn:
    """What one step did to one environment."""

    action: FactoredAction  # what was executed
    valid: bool  # it is what was asked for
    receipt: Receipt
    score: StepScore
    reward: float  # the score, less the penalty for what could not be done
    verdict: Verdict
    ended: bool  # with this step


class GrowthCore:
    """E environments in lockstep; every one is over after `episode_length` steps, or when its host was given up."""

    def __init__(self, config: GrowthConfig, envs: int) -> None:
        """Raises ConfigError for settings that cannot be run."""
        self.config, self.envs = config, envs
        self.hosts = make_hosts(config, envs)
        self.engine, self.governor = self.hosts.engine, self.hosts.governor
        self.space = self.engine.space
        self.reward = ModeReward(config.reward)
        self._views: dict[Hashable, View] = {}
        self._low, self._high = bounds(self.space)
        self._wait = wait(self.space)
        self.sizes = tuple(self.space.head_sizes.values())  # of the heads
        # Until the first reset there is nothing to go on with.
        self.over, self.returns, self.lengths = [True] * envs, [0.0] * envs, [0] * envs
        self.given_up = [False] * envs
        self.scene: Scene

    def reset(self, round_: int) -> Scene:
        """New hosts. All that is random about them comes from streams named by `round_` and the environment."""
        reports = self.engine.reset(round_)
        self.governor.begin(self.engine)
        self.over, self.returns, self.lengths = [False] * self.envs, [0.0] * self.envs, [0] * self.envs
        self.given_up = [False] * self.envs
        return self._look(reports)

    @property
    def interrupted(self) -> list[bool]:
        """Which environments, once over, are truncated: those that reach the horizon, where it is no end."""
        return [self.config.horizon_end == "truncated" and not given_up for given_up in self.given_up]

    def step(self, choices: NDArray[np.integer[Any]]) -> tuple[Scene, list[Turn]]:
        """choices: [E, heads]. What is impossible in combination is executed as WAIT; so is everything once over.

        Raises ConfigError for indices that the heads do not have.
        """
        self._check(choices)
        before = self.scene.reports
        asked = [self.space.from_indices(row) for row in choices.tolist()]
        valid = [masks.allows(action) for masks, action in zip(self.scene.legal, asked, strict=True)]
        actions = [action if is_valid else self._wait for action, is_valid in zip(asked, valid, strict=True)]
        receipts = self.engine.apply(actions)
        self.engine.train_epoch()
        after = self.engine.measure()
        verdicts, settled = self.governor.review(self.engine, after)
        scores, _ = self.reward(before, actions, receipts, after, settled, verdicts)
        self.engine.events()  # nobody listens; they would pile up
        done = zip(actions, valid, receipts, scores, settled, verdicts, strict=True)
        turns = [self._turn(env, *parts) for env, parts in enumerate(done)]
        return self._look(settled), turns

    def _turn(
        self,
        env: int,
        action: FactoredAction,
        valid: bool,
        receipt: Receipt,
        score: StepScore,
        settled: HostReport,
        verdict: Verdict,
    ) -> Turn:
        was_over = self.over[env]
        reward = score.total - (0.0 if valid or was_over else self.config.invalid_penalty)
        self.given_up[env] |= not was_over and not verdict.healthy
        self.over[env] = settled.epoch >= settled.episode_length or verdict.ended
        self.returns[env] += reward
        self.lengths[env] += not was_over
        return Turn(action, valid, receipt, score, reward, verdict, ended=self.over[env] and not was_over)

    def _check(self, choices: NDArray[np.integer[Any]]) -> None:
        want = (self.envs, len(self.sizes))
        if choices.shape != want or (choices < 0).any() or (choices >= self.sizes).any():
            raise ConfigError(f"action: {choices.tolist()} is not {want} indices below {list(self.sizes)}")

    def state(self) -> dict[str, Any]:
        """All that changes: loaded into a core of the same settings, the same choices lead to the same numbers."""
        return {
            "hosts": self.hosts.state(),
            "over": list(self.over),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "given_up": list(self.given_up),
        }

    def load(self, state: dict[str, Any]) -> Scene:
        """Goes on from `state`."""
        self.hosts.load(state["hosts"])
        for name in ("over", "returns", "lengths", "given_up"):
            setattr(self, name, list(state[name]))
        return self._look(self.engine.reports())

    def _look(self, reports: Sequence[HostReport]) -> Scene:
        """What is to be seen; of states that come again, remembered."""
        keys = self.hosts.keys()
        views = [self._views.get(key) for key in keys]
        unknown = [env for env, view in enumerate(views) if view is None]
        if len(self._views) > _REMEMBERED:
            self._views.clear()
        for env, view in zip(unknown, self._views_of([reports[env] for env in unknown]), strict=True):
            views[env] = view
            if keys[env] is not None:
                self._views[keys[env]] = view
        found = [view for view in views if view is not None]
        legal, obs, mask = zip(*found, strict=True)
        self.scene = Scene(reports, legal, np.stack(obs), np.stack(mask))
        return self.scene

    def _views_of(self, reports: Sequence[HostReport]) -> list[View]:
        if not reports:
            return []
        legal = possible(reports, self.space)
        obs = np.clip(sensed(reports, self.space), self._low, self._high)  # float32 may round past a bound
        return list(zip(legal, obs, map(marginal, legal), strict=True))
