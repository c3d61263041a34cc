"""All settings of a run in one value, and the order in which they are laid over each other.

default < preset < --config-json < flags < --set. Every section's fields live beside the code they configure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esper.kasmina.config import BodyConfig
from esper.kasmina.gates import GatesConfig
from esper.leyline.config import apply, parse_assignments, read_json
from esper.leyline.errors import ConfigError
from esper.nissa.config import TelemetryConfig
from esper.runtime.config import TaskConfig
from esper.scripts.presets import PRESETS
from esper.simic.agent.config import PPOConfig
from esper.simic.rewards.config import RewardConfig
from esper.simic.training.config import RunConfig
from esper.tamiyo.config import PolicyConfig
from esper.tolaria.config import EngineConfig, GovernorConfig


@dataclass(frozen=True)
class EsperConfig:
    """The roots of `--set root.name=value`."""

    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    governor: GovernorConfig = field(default_factory=GovernorConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        if self.ppo.gamma != self.reward.gamma:
            raise ConfigError(
                f"reward.gamma: {self.reward.gamma:g}, but ppo.gamma is {self.ppo.gamma:g}; potentials telescope only "
                "under the learner's own discount, so set both alike"
            )


def assemble(
    preset: str | None, config_json: str | None, flags: Mapping[str, Any], assignments: Sequence[str]
) -> EsperConfig:
    """The settings of a run. Raises ConfigError, one line, for whatever does not exist or fit."""
    layers: list[Mapping[str, Any]] = []
    if preset is not None:
        layers.append(PRESETS[preset].settings)
    if config_json is not None:
        layers.append(_from_file(config_json))
    layers += [flags, parse_assignments(EsperConfig, assignments)]
    return apply(EsperConfig(), *layers)


def _from_file(path: str) -> Mapping[str, Any]:
    """The settings in a JSON file; the manifest of a run holds them under `config`, so it reruns that run."""
    data = read_json(path)
    return data["config"] if "schema_version" in data and isinstance(data.get("config"), dict) else data
