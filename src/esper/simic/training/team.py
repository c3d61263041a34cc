"""Who takes part in a run, and what a round comes to: what the main loop is handed and hands back."""

from __future__ import annotations

from dataclasses import dataclass

from esper.simic.agent.learner import Learner
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.rewards import Reward
from esper.simic.training.publishing import Publisher
from esper.tamiyo.controller import Controller
from esper.tolaria.engine import Outcome
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol


@dataclass(frozen=True)
class Team:
    """Who takes part in a run."""

    engine: EngineProtocol
    governor: GovernorProtocol
    controller: Controller
    learner: Learner
    reward: Reward
    publisher: Publisher


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    outcomes: list[Outcome]
    rollout: Rollout
