"""Settings of rewards. Points are of accuracy; for another metric prices have to be counted in its unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from esper.leyline.config import check_ranges, setting
from esper.simic.rewards.modes import MODES

PRICES = ("rent", "price_scale", "shock", "churn", "rollback", "divergence")
"""The settings that are in points."""


@dataclass(frozen=True)
class RewardConfig:
    """What counts, and what it costs."""

    mode: str = setting("basic", choices=MODES, help="a mode of `esper list rewards`")
    rent: float = setting(3.0, low=0.0, high=1e3, help="points per doubling of the host's parameters")
    alpha_weighted_rent: bool = setting(
        False, help="progress counts a seed's active parameters times its alpha; off: in full from its planting on"
    )
    price_scale: float = setting(1.0, low=0.0, high=1e3, help="factor on the prices of `esper list ops`")
    shock: float = setting(
        0.2, low=0.0, high=1e3, help="points for alpha going from 0 to 1 at once in as much as the host"
    )
    churn: float = setting(
        0.05, low=0.0, high=1e3, help="points for pruning a newborn seed or taking back a level change"
    )
    young: float = setting(0.2, low=0.0, high=1.0, help="time over which pruning a seed gets free of churn")
    rollback: float = setting(10.0, low=0.0, high=1e3, help="points for a step that the governor had to take back")
    divergence: float = setting(10.0, low=0.0, high=1e3, help="points for a host lost for good or past measuring")
    gamma: float = setting(1.0, above=0.0, high=1.0, help="discount of the potential; must be the learner's")

    def __post_init__(self) -> None:
        check_ranges(self)

    def counted_in(self, point: float) -> RewardConfig:
        """The same prices in a unit of which `point` counts like a point of accuracy (`Metric.point`)."""
        return replace(self, **{name: point * vars(self)[name] for name in PRICES})
