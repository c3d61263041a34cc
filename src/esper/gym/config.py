"""Settings of an environment: keyword arguments of `gymnasium.make`, section by section as on the command line.

`gymnasium.make("Esper/Digits-v0", episode_length=8, body={"slots": ["r0c0"]}, reward={"mode": "shaped"})`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from esper.gym.observations import LayoutName
from esper.kasmina.config import BodyConfig
from esper.kasmina.gates import GatesConfig
from esper.leyline.config import apply, check_ranges, setting
from esper.leyline.errors import ConfigError, did_you_mean
from esper.runtime.config import TaskConfig
from esper.simic.rewards.config import RewardConfig
from esper.tolaria.config import EngineConfig, GovernorConfig

TOY = "toy"
"""The task name of the toy world, which no other command knows."""


@dataclass(frozen=True)
class GrowthConfig:
    """What an environment is.

    Prices and limits are in points: of accuracy, or of another metric what counts like one (`Metric.point`).
    """

    episode_length: int = setting(12, low=1, help="host epochs of one episode, with one decision each")
    data_seed: int = setting(0, low=0, help="how the task's data is split; hosts are drawn anew at every reset")
    invalid_penalty: float = setting(0.0, low=0.0, help="points for an impossible combination, which is a WAIT")
    horizon_end: Literal["terminated", "truncated"] = setting(
        "terminated", help="what the horizon is to a learner: the end, or an interruption to bootstrap through"
    )
    observation: LayoutName = setting("flat", help="layout of observations: see `observations.py`")
    task: TaskConfig = field(default_factory=TaskConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    # By default a host that had to be taken back is given up, so that every reset brings a new one.
    governor: GovernorConfig = field(default_factory=lambda: GovernorConfig(max_rollbacks=1))
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Options:
    """`reset(options=...)`: another task or other slots of the same shape, or hosts that are the same every time."""

    task: str | None = None
    slots: tuple[str, ...] | None = None
    host_seed: int | None = None


_NO_OPTIONS = Options()


def read_options(options: Mapping[str, Any] | None) -> Options:
    """Raises ConfigError for an option that does not exist."""
    if not options:
        return _NO_OPTIONS
    known = tuple(Options.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise ConfigError(
                f"options.{name}: no such option; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
    return apply(_NO_OPTIONS, options, path="options")


def changed(config: GrowthConfig, options: Options) -> GrowthConfig:
    """The settings with what the options change in them."""
    layers: list[Mapping[str, Any]] = []
    if options.task is not None:
        layers.append({"task": {"name": options.task}})
    if options.slots is not None:
        layers.append({"body": {"slots": list(options.slots)}})
    return apply(config, *layers) if layers else config
