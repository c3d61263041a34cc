"""Means with intervals, and paired differences: what may be claimed from a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # scipy.stats has it too, and takes a second to import

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half_width` of its 95 % interval is None where one seed gives none."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width

    @property
    def says(self) -> int:
        """+1 where the whole interval is above 0, -1 where it is below, 0 where it holds 0 or does not exist."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval; the values are one per seed and finite."""
    assert values, "an estimate needs at least one value"
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, None, n)
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(n), n)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of ours - theirs, seed by seed."""
    return estimate([one - other for one, other in zip(ours, theirs, strict=True)])


def seed_means(values: Iterable[tuple[int, float]]) -> list[float]:
    """From values with the seed of each, the mean of every seed, in the order in which seeds first appear.

    Hosts of one seed share data and test set, so that an interval over hosts would claim more than they show.
    """
    found: dict[int, list[float]] = {}
    for seed, value in values:
        found.setdefault(seed, []).append(value)
    return [statistics.fmean(each) for each in found.values()]


def points_of(unit: str | None) -> str:
    """What differences of a figure with this unit are counted in: points of a percentage, else the unit itself."""
    return "points" if unit is None or unit == "%" else unit


_POINT: Mapping[str | None, float] = {"%": 1.0, "bits": 0.02}
# Bits per character: a prior, no measurement. A doubling of the parameters, 3 points, has to save 0.06 of them.


def point_in(unit: str | None) -> float:
    """How much of this unit counts like a point of accuracy, in prices, in limits and in what deciders see.

    1 for a unit that has no rate of exchange, and where no unit is named.
    """
    return _POINT.get(unit, 1.0)
