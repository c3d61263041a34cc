"""Settings of the controllers. Times are fractions of the episode, so that one setting serves every task."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.leyline.config import check_ranges, setting


@dataclass(frozen=True)
class HeuristicConfig:
    """The rule-based controller. Evidence is counted in standard errors, never in a task's units."""

    prefer: tuple[str, ...] = setting(
        (
            *("conv_ladder", "conv_heavy", "channel_ladder", "conv_light", "bottleneck", "depthwise", "conv_small"),
            *("lora_ladder", "mlp", "attn_head_ladder", "lora_large", "mlp_small", "lora"),
            *("attention", "norm"),
        ),
        help="blueprints in the order in which they are tried",
    )
    warm_up: float = setting(0.03, low=0.0, high=1.0, help="time before the first seed")
    latest: float = setting(0.1, low=0.0, high=1.0, help="time after which a seed is planted, plateau or not")
    plateau: float = setting(0.05, low=0.0, help="relative gain of validation loss per epoch below which to plant")
    plateau_epochs: int = setting(2, low=1, help="epochs over which the gain is averaged")
    keep_evidence: float = setting(2.0, low=0.0, help="standard errors of loss gained that make a seed worth keeping")
    prune_evidence: float = setting(3.0, low=0.0, help="standard errors of loss lost that condemn a blending seed")
    grow_evidence: float = setting(1.0, low=0.0, help="standard errors of loss that a rung must bring to stay")
    patience: float = setting(0.1, low=0.0, high=1.0, help="time a held seed gets after its first verdict")
    tempo: float = setting(0.1, low=0.0, high=1.0, help="time for a blend; the nearest offered tempo is taken")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PeriodicConfig:
    """Grows by the clock and asks nothing."""

    interval: float = setting(0.15, above=0.0, high=1.0, help="time between germinations")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class RandomConfig:
    """Decides by lot."""

    operations: float | None = setting(
        None, low=0.0, help="operations per episode, on average; as often as lots fall if not given"
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class NetworkConfig:
    """The learned policy's network."""

    size: int = setting(512, low=1, help="width of the features and of the LSTM")
    slot_size: int = setting(64, low=1, help="width of the layer that scores a slot")
    embedding: int = setting(8, low=1, help="numbers that stand for a blueprint")
    prior: float = setting(
        1.0, low=0.0, high=10.0, help="how far an untrained policy leans to small seeds, and to finish what it begins"
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PolicyConfig:
    """Settings of whoever decides."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    greedy: bool | None = setting(None, help="take the likeliest choice, draw none; on unless the policy is learning")
    shuffle_sensors: bool = setting(
        False, help="a learned policy sees another environment than it acts on, to tell whether it looks at all"
    )
    heuristic: HeuristicConfig = field(default_factory=HeuristicConfig)
    periodic: PeriodicConfig = field(default_factory=PeriodicConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
