"""The hosts behind an environment: real ones and toys, with all of their state in hand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esper.gym.config import TOY, GrowthConfig
from esper.gym.toy.engine import CalmGovernor, ToyEngine, toy_task
from esper.runtime.tasks import make_task
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol
from esper.tolaria.setup import Setup


class Hosts(Protocol):
    """An engine, its governor, and the way to put both away and take them up again."""

    @property
    def engine(self) -> EngineProtocol: ...

    @property
    def governor(self) -> GovernorProtocol: ...

    def keys(self) -> Sequence[Hashable]:
        """Of each environment: where keys are equal, so are reports but for the numbers of environment and round.

        None where a state never comes twice.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that changes, between two steps; later steps do not write into it."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Everything as it was, bit for bit."""
        ...


@dataclass(frozen=True)
class RealHosts:
    """Networks that train."""

    engine: Engine
    governor: Governor

    def keys(self) -> Sequence[Hashable]:
        return (None,) * self.engine.setup.envs

    def state(self) -> dict[str, Any]:
        return LocalHosts(self.engine, self.governor).state()

    def load(self, state: dict[str, Any]) -> None:
        LocalHosts(self.engine, self.governor).load(state)


@dataclass(frozen=True)
class ToyHosts:
    """Arithmetic."""

    engine: ToyEngine
    governor: CalmGovernor

    def keys(self) -> Sequence[Hashable]:
        return self.engine.states

    def state(self) -> dict[str, Any]:
        return {"round": self.engine.round, "states": list(self.engine.states)}

    def load(self, state: dict[str, Any]) -> None:
        self.engine.round, self.engine.states = state["round"], list(state["states"])


def make_hosts(config: GrowthConfig, envs: int) -> Hosts:
    """Loads the task's data. Raises ConfigError for settings that cannot be run."""
    is_toy = config.task.name == TOY
    task = toy_task() if is_toy else make_task(config.task, config.data_seed)
    setup = Setup(
        task=task,
        envs=envs,
        episode_length=config.episode_length,
        seed=config.data_seed,
        body=config.body,
        gates=config.gates.counted_in(task.metric.point),
        engine=config.engine,
        governor=config.governor,
    )
    return ToyHosts(ToyEngine(setup), CalmGovernor()) if is_toy else RealHosts(Engine(setup), Governor(config.governor))
