"""How two versions are timed against each other: in one process, on one thread, taking turns, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Work = Callable[[], object]

ENOUGH_S = 0.02  # shortest sample; below it the clock and the scheduler are heard


@dataclass(frozen=True)
class Effort:
    """How much measuring an answer gets."""

    pairs: int = 41  # samples of each version
    warm_ups: int = 3  # samples of each version that are thrown away


FULL, QUICK = Effort(), Effort(pairs=7, warm_ups=1)


@dataclass(frozen=True)
class Finding:
    """One measured value, and the bound that it has to keep; no bound: for information."""

    what: str
    value: float
    unit: str
    bound: float | None
    noise: float  # half width of the median's 95 % interval: a smaller difference says nothing
    samples: dict[str, list[float]]  # everything that was measured, in order

    @property
    def missed(self) -> bool:
        return self.bound is not None and self.value > self.bound


def compare(what: str, plain: Work, ours: Work, bound: float | None, effort: Effort) -> Finding:
    """The time of `ours` over the time of `plain`: the median over pairs of samples taken right after each other.

    Neighbours on the machine slow both halves of a pair alike, so the ratio is steadier than either time.
    """
    repeats = max(1, round(ENOUGH_S / _best_time(plain)))
    for _ in range(effort.warm_ups):
        _sample(plain, repeats), _sample(ours, repeats)
    pairs = [(_sample(plain, repeats), _sample(ours, repeats)) for _ in range(effort.pairs)]
    ratios = [mine / theirs for theirs, mine in pairs]
    samples = {"plain_s": [pair[0] for pair in pairs], "ours_s": [pair[1] for pair in pairs]}
    return Finding(what, statistics.median(ratios), "x", bound, noise_of(ratios), samples)


def noise_of(values: Sequence[float]) -> float:
    """Half width of a 95 % interval of the median, from the quartiles as if the values were normal."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.96 * 1.253 * (high - low) / 1.349 / len(values) ** 0.5


def _best_time(work: Work) -> float:
    return min(_sample(work, 1) for _ in range(3))


def _sample(work: Work, repeats: int) -> float:
    """Seconds of one call, the mean of `repeats` calls."""
    began = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - began) / repeats
