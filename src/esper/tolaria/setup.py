"""What all environments of a run have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from esper.kasmina.config import BodyConfig
from esper.kasmina.gates import GatesConfig
from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.leyline.task import Task
from esper.tolaria.config import EngineConfig, GovernorConfig
from esper.tolaria.crew import Crew

_SHARED = frozenset({"draw", "init", "order", "augment"})


@dataclass(frozen=True)
class Setup:
    """The task and how it is run; travels whole."""

    task: Task
    envs: int
    episode_length: int  # host epochs
    seed: int
    shared_init: bool = False  # environments of a round share their draw, initialisation, data order and augmentation
    apart: int = 0  # rounds at the start in which they share nothing all the same
    body: BodyConfig = field(default_factory=BodyConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    start: Mapping[str, object] | None = None  # state_dict of a grown model that every host starts from
    start_name: str = ""  # what the error calls it
    crew: Crew | None = None  # ranks that train each host together with this process; None where it is alone

    def __post_init__(self) -> None:
        if self.start is not None and self.task.draw is not None:
            raise ConfigError(
                f"run.start_from: the hosts of {self.task.name!r} differ from episode to episode, so that none fits "
                f"{self.start_name}; start without it"
            )

    def of_episode(self, round_: int, env: int) -> Setup:
        """The setup with the task of one episode: a family's draw comes from the episode's own stream."""
        if self.task.draw is None:
            return self
        task = self.task.member(Streams(self, round_, env).of("draw"))
        return replace(self, task=replace(task, splits=task.splits.to(torch.device(self.engine.device))))


@dataclass(frozen=True)
class Streams:
    """The named random streams of one environment in one round."""

    setup: Setup
    round: int
    env: int

    def of(self, purpose: str, epoch: int = 0, rollbacks: int = 0) -> torch.Generator:
        """The generator for a purpose: `draw`, `init`, `order`, `augment` (perhaps shared), `training` or `growth`.

        rollbacks: how often the host has been taken back, so that it does not meet the same draws again.
        """
        shared = self.setup.shared_init and self.round >= self.setup.apart
        env = -1 if shared and purpose in _SHARED else self.env
        again = (rollbacks,) if rollbacks else ()
        return stream(self.setup.seed, purpose, self.round, env, epoch, *again)

    def order(self, epoch: int, count: int, rollbacks: int = 0) -> Tensor:
        """[count] int64: indices of the training items of an epoch, whole permutations one after the other."""
        generator, size = self.of("order", epoch, rollbacks), len(self.setup.task.splits.train)
        permutations = [torch.randperm(size, generator=generator) for _ in range(-(-count // size))]
        return torch.cat(permutations)[:count].to(self.setup.engine.device)
