"""What all environments of a run have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from esper.kasmina.config import BodyConfig
from esper.kasmina.gates import GatesConfig
from esper.leyline.randomness import stream
from esper.leyline.task import Task
from esper.tolaria.config import EngineConfig, GovernorConfig

_SHARED = frozenset({"init", "order", "augment"})


@dataclass(frozen=True)
class Setup:
    """The task and how it is run; travels whole."""

    task: Task
    envs: int
    episode_length: int  # host epochs
    seed: int
    shared_init: bool = False  # environments of a round share initialisation, data order and augmentation
    body: BodyConfig = field(default_factory=BodyConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    start: Mapping[str, object] | None = None  # state_dict of a grown model that every host starts from
    start_name: str = ""  # what the error calls it


@dataclass(frozen=True)
class Streams:
    """The named random streams of one environment in one round."""

    setup: Setup
    round: int
    env: int

    def of(self, purpose: str, epoch: int = 0) -> torch.Generator:
        """The generator for a purpose: `init`, `order` and `augment` (perhaps shared), `training` or `growth`."""
        env = -1 if self.setup.shared_init and purpose in _SHARED else self.env
        return stream(self.setup.seed, purpose, self.round, env, epoch)
