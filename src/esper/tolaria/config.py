"""Settings of the engine and of the governor."""

from __future__ import annotations

from dataclasses import dataclass

from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """How hosts are trained and measured."""

    device: str = setting("cpu", help="cpu, cuda or cuda:N")
    compile: bool = setting(False, help="torch.compile host segments and seeds, each by itself")
    gradient_samples: int = setting(2, low=1, help="batches per epoch at which gradient norms are read")
    probe_items: int = setting(64, low=1, help="validation items on which an operation's effect is measured")
    measure_fossils: bool = setting(False, help="leave-one-out for fossilised seeds too")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class GovernorConfig:
    """When a host is taken back. Losses are compared with the run's own past; spans are optimiser steps."""

    window: int = setting(96, low=8, help="clean steps that a step is compared with")
    warmup: int = setting(32, low=4, help="clean steps before which only explosions and numbers not finite count")
    floor: float = setting(0.1, above=0.0, help="least deviation of the logarithm of losses and gradient norms")
    burst_z: float = setting(6.0, low=2.0, help="robust deviations above its past at which a step is far off")
    level_ratio: float = setting(1.6, above=1.0, help="loss over its best level that counts as a rise, if it stays")
    level_checks: int = setting(3, low=1, help="checks of the level in a row, eight steps apart, that make it an alarm")
    explosion: float = setting(20.0, above=1.0, help="loss over that of the untrained host at which a step is far off")
    spike_z: float = setting(0.0, low=0.0, help="deviations at which a lone step is skipped; 0 skips none")
    probation_steps: int = setting(48, low=1, help="clean steps that a change of structure is watched for")
    seed_patience: int = setting(48, low=1, help="steps in a row that a seed's gradient may be not finite")
    snapshot_steps: int = setting(24, low=1, help="least steps between snapshots, which are taken between epochs")
    bless_steps: int = setting(32, low=0, help="steps without suspicion after which a snapshot is good")
    ring: int = setting(3, low=1, help="good snapshots that are kept")
    cool_down_steps: int = setting(48, low=0, help="steps after a rollback until the learning rate is whole again")
    cool_down_lr: float = setting(0.5, above=0.0, high=1.0, help="share of the learning rate right after a rollback")
    escalation_steps: int = setting(
        192, low=0, help="a rollback this soon after another goes one snapshot further back"
    )
    max_rollbacks: int = setting(3, low=1, help="rollbacks of one episode after which it ends")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.warmup > self.window:
            raise ConfigError(f"governor.warmup: {self.warmup} steps do not fit into the window of {self.window}")
