"""Who takes part in a run: what the main loop is handed."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.simic.agent.learner import Learner
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.rewards import Reward
from esper.simic.training.keeping import Keeper, Moment, NoKeeper
from esper.simic.training.phases import Phases
from esper.simic.training.publishing import Publisher
from esper.tamiyo.controller import Controller
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
    keeper: Keeper = field(default_factory=NoKeeper)

    def begin(self, round_: int, envs: int) -> Moment:
        """New hosts, all environments at the start of their episodes; or where an earlier process left the round."""
        left_off = self.keeper.left_off()
        if left_off is not None:
            return left_off
        spent = Phases()
        reports, memory = self.engine.reset(round_), self.controller.blank_memory(envs)
        self.governor.begin(self.engine)
        spent.on("reset")
        return Moment(reports, memory, Rollout(), spent)
