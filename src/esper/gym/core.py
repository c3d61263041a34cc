"""What all doors of gymnasium open onto: hosts, governor, reward, masks and sensors, and no learning.

`GrowthCore.reset`, then `step` with one row of head indices per environment until every environment is over.

An episode is one sequence: from a reset, or from a rollback on, to the horizon or to a rollback. A host that was taken
back goes on in another episode, with what time is left; after `governor.max_rollbacks` of them it is over.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper.gym.config import GrowthConfig
from esper.gym.dialects import Bits, marginal
from esper.gym.observations import bounds, sensed
from esper.gym.worlds import make_hosts
from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import EnvPayload, Payload
from esper.simic.rewards.rewards import ModeReward, StepScore
from esper.tamiyo.controller import wait
from esper.tamiyo.policy.action_masks import LegalActions, Mask, possible

_REMEMBERED = 1 << 16
View = tuple[LegalActions, Bits, NDArray[np.float32]]
"""Of one environment: what is possible, its marginal mask [M] and its sensors [D]."""


@dataclass(frozen=True)
class Scene:
    """All environments at one moment."""

    reports: Sequence[HostReport]
    legal: Sequence[LegalActions]
    obs: NDArray[np.float32]  # [E, D] within the bounds of the sensors
    mask: Bits  # [E, M]


class End(Enum):
    """What a step was to the episode."""

    NONE = "it goes on"
    HORIZON = "its end"
    INTERRUPTION = "its end, where the horizon is none to a learner"
    ROLLBACK = "its end, since the governor took the host back"
    PADDING = "nothing: its host had been given up before"

    @property
    def now(self) -> bool:
        """Whether an episode ended with this step."""
        return self not in (End.NONE, End.PADDING)

    @property
    def truncated(self) -> bool:
        return self is End.INTERRUPTION

    @property
    def terminated(self) -> bool:
        """Also while a host that has been given up waits for the others."""
        return self not in (End.NONE, End.INTERRUPTION)


@dataclass(frozen=True)
class Turn:
    """What one step did to one environment."""

    action: FactoredAction  # what was executed
    valid: bool  # it is what was asked for
    receipt: Receipt
    score: StepScore
    reward: float  # the score, less the penalty for what could not be done; 0 once over
    verdict: Verdict
    events: tuple[Payload, ...]  # what happened to the host
    end: End


class Episode(NamedTuple):
    """What an episode has come to so far."""

    length: int = 0
    total: float = 0.0  # return
    op_counts: tuple[int, ...] = (0,) * len(LifecycleOp)  # operations done, WAIT among them


class GrowthCore:
    """E environments in lockstep; every one is over after `episode_length` steps, or when its host was given up."""

    def __init__(self, config: GrowthConfig, envs: int) -> None:
        """Raises ConfigError for settings that cannot be run."""
        self.config, self.envs = config, envs
        self.hosts = make_hosts(config, envs)
        self.engine, self.governor = self.hosts.engine, self.hosts.governor
        self.space = self.engine.space
        self._point = self.engine.setup.task.metric.point
        self.reward = ModeReward(config.reward.counted_in(self._point))
        self._views: dict[Hashable, View] = {}
        self._masks: dict[tuple[Mask, ...], tuple[LegalActions, Bits]] = {}
        self._low, self._high = bounds(self.space)
        self._wait = wait(self.space)
        self.sizes = tuple(self.space.head_sizes.values())  # of the heads
        # Until the first reset there is nothing to go on with.
        self.over, self.taken_back = [True] * envs, [False] * envs
        self.episodes = [Episode()] * envs
        self.scene: Scene

    def reset(self, round_: int) -> Scene:
        """New hosts. All that is random about them comes from streams named by `round_` and the environment."""
        reports = self.engine.reset(round_)
        self.governor.begin(self.engine)
        self.over, self.taken_back = [False] * self.envs, [False] * self.envs
        self.episodes = [Episode()] * self.envs
        return self._look(reports)

    def go_on(self) -> None:
        """Hosts that the last step took back begin another episode."""
        for env, waits in enumerate(self.taken_back):
            if waits:
                self.episodes[env], self.taken_back[env] = Episode(), False

    def step(self, choices: NDArray[np.integer[Any]]) -> tuple[Scene, list[Turn]]:
        """choices: [E, heads]. What is impossible in combination is executed as WAIT; so is everything once over.

        Raises ConfigError for indices that the heads do not have.
        """
        self._check(choices)
        self.go_on()
        before = self.scene.reports
        asked = [self.space.from_indices(row) for row in choices.tolist()]
        valid = [masks.allows(action) for masks, action in zip(self.scene.legal, asked, strict=True)]
        actions = [action if is_valid else self._wait for action, is_valid in zip(asked, valid, strict=True)]
        receipts = self.engine.apply(actions)
        self.engine.train_epoch()
        after = self.engine.measure()
        verdicts, settled = self.governor.review(self.engine, after)
        scores, _ = self.reward(before, actions, receipts, after, settled, verdicts)
        rewards = self._booked(receipts, scores, valid)
        ends = [self._end(env, *each) for env, each in enumerate(zip(settled, verdicts, strict=True))]
        events = self._events(receipts, verdicts)
        turns = zip(actions, valid, receipts, scores, rewards, verdicts, events, ends, strict=True)
        return self._look(settled), [Turn(*each) for each in turns]

    def _booked(self, receipts: Sequence[Receipt], scores: Sequence[StepScore], valid: Sequence[bool]) -> list[float]:
        """The rewards, as they are entered into the episodes; a host that is over earns nothing."""
        rewards = [0.0] * self.envs
        for env, (receipt, score, is_valid) in enumerate(zip(receipts, scores, valid, strict=True)):
            if not self.over[env]:
                rewards[env] = score.total - (0.0 if is_valid else self._point * self.config.invalid_penalty)
                length, total, op_counts = self.episodes[env]
                counted = list(op_counts)
                counted[receipt.op] += receipt.done
                self.episodes[env] = Episode(length + 1, total + rewards[env], tuple(counted))
        return rewards

    def _end(self, env: int, report: HostReport, verdict: Verdict) -> End:
        """Whether the step ended the episode; notes what comes of the host."""
        if self.over[env]:
            return End.PADDING
        at_horizon = report.epoch >= report.episode_length
        self.over[env] = at_horizon or verdict.ended
        self.taken_back[env] = not verdict.healthy and not self.over[env]
        if not verdict.healthy:
            return End.ROLLBACK
        if not at_horizon:
            return End.NONE
        return End.INTERRUPTION if self.config.horizon_end == "truncated" else End.HORIZON

    def _events(self, receipts: Sequence[Receipt], verdicts: Sequence[Verdict]) -> list[tuple[Payload, ...]]:
        """What happened to each host in this step: decisions first, then time and measuring, then the governor."""
        passed: list[list[Payload]] = [[] for _ in range(self.envs)]
        for event in self.engine.events():
            assert isinstance(event, EnvPayload), f"{event} is of no environment"
            passed[event.env_id].append(event)
        rows = zip(receipts, passed, verdicts, strict=True)
        return [(*receipt.events, *own, *verdict.events) for receipt, own, verdict in rows]

    def _check(self, choices: NDArray[np.integer[Any]]) -> None:
        want = (self.envs, len(self.sizes))
        if choices.shape != want or (choices < 0).any() or (choices >= self.sizes).any():
            raise ConfigError(f"action: {choices.tolist()} is not {want} indices below {list(self.sizes)}")

    def state(self) -> dict[str, Any]:
        """All that changes: loaded into a core of the same settings, the same choices lead to the same numbers."""
        return {
            "hosts": self.hosts.state(),
            "over": list(self.over),
            "taken_back": list(self.taken_back),
            "episodes": list(self.episodes),
        }

    def load(self, state: dict[str, Any]) -> Scene:
        """Goes on from `state`."""
        self.hosts.load(state["hosts"])
        self.over, self.taken_back = list(state["over"]), list(state["taken_back"])
        self.episodes = list(state["episodes"])
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
        legal, mask, obs = zip(*found, strict=True)
        self.scene = Scene(reports, legal, np.array(obs), np.array(mask))
        return self.scene

    def _views_of(self, reports: Sequence[HostReport]) -> list[View]:
        if not reports:
            return []
        obs = np.clip(sensed(reports, self.space), self._low, self._high)  # float32 may round past a bound
        return [(*self._masks_of(each), row) for each, row in zip(possible(reports, self.space), obs, strict=True)]

    def _masks_of(self, legal: LegalActions) -> tuple[LegalActions, Bits]:
        """The same masks as they were made before, and the marginal one: there are many states, and few sets of masks.

        What is remembered is small on purpose: Python's garbage collector looks at every object that stays.
        """
        known = self._masks.get(legal.slot_by_op)
        if known is None:
            known = self._masks[legal.slot_by_op] = legal, marginal(legal)
        return known
