"""How two versions are timed against each other: in one process, on one thread, taking turns, after a warm-up.

Times are CPU time of the process, all its threads together: on a machine that others use too, wall time tells more
about them than about us. What matters by the wall clock (`events.py`) is measured by it.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

Work = Callable[[], object]

ENOUGH_S = 0.02  # shortest sample; below it the scheduler is heard
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Effort:
    """How much measuring an answer gets."""

    pairs: int  # samples of each version, of things as short as a training step
    runs: int  # samples of each version of a whole run
    bursts: int  # of events


FULL, QUICK = Effort(pairs=41, runs=13, bursts=7), Effort(pairs=7, runs=3, bursts=2)


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


def compare(what: str, plain: Work, ours: Work, bound: float | None, pairs: int) -> Finding:
    """The time of `ours` over the time of `plain`, in pairs of samples taken right after each other.

    Neighbours on the machine slow both halves of a pair alike, so the ratio is steadier than either time.
    """
    repeats = max(1, round(ENOUGH_S / min(_sample(plain, 1) for _ in range(3))))
    for _ in range(2):
        _sample(ours, repeats), _sample(plain, repeats)
    return ratio_of(what, [(_sample(plain, repeats), _sample(ours, repeats)) for _ in range(pairs)], bound)


def ratio_of(what: str, pairs: Sequence[tuple[float, float]], bound: float | None) -> Finding:
    """The median over pairs (seconds of the plain version, seconds of ours) of how much longer ours takes."""
    ratios = [ours / plain for plain, ours in pairs]
    samples = {"plain_s": [plain for plain, _ in pairs], "ours_s": [ours for _, ours in pairs]}
    return Finding(what, statistics.median(ratios), "x", bound, noise_of(ratios), samples)


def noise_of(values: Sequence[float]) -> float:
    """Half width of a 95 % interval of the median, from the quartiles as if the values were normal."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.96 * 1.253 * (high - low) / 1.349 / len(values) ** 0.5


def settle_the_machine() -> None:
    """One thread; and freed memory is kept, as it is in any longer run.

    glibc hands the top of its heap back to the system depending on what happened to be freed before, and getting it
    again, page by page, can cost more than the convolutions that use it (a validation pass took 3.6 or 6.4 ms).
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        with suppress(OSError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
            libc.mallopt(_MMAP_THRESHOLD, 1 << 25)


def _sample(work: Work, repeats: int) -> float:
    """Seconds of one call, the mean of `repeats` calls."""
    began = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - began) / repeats
