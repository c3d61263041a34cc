"""The divergence detector: one environment's losses and gradient norms, step by step, compared with their own past.

Read `Detector.take` first. Everything is a ratio: losses are compared as logarithms, or in units of their own size
where they are not all positive, so that no constant belongs to a task. All spans are optimiser steps, which an epoch
may have few or many of.

- burst: 4 of the last 6 steps are far off, or could not be taken at all.
- level: the median of 24 steps stays above the best one of late, by a factor and by its noise, three checks in a row.

While something looks suspicious the baseline is frozen. A change of structure moves losses by itself, so that a host on
probation is excused what is well below the loss that it opened with, and more where a seed was taken from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, median_low
from typing import Any

from esper.tolaria.config import GovernorConfig

BURST, OF_LAST = 4, 6  # steps
LEVEL, EVERY = 24, 8  # steps
RECENT = 24  # checks that the best level is sought in
OPENING = 8  # steps that say how an untrained host does
NOISES = 5.0  # standard errors of a median
ODD = 2.0  # deviations of a loss from which on a gradient that is far off counts
QUIET = 0.05  # share of the opening loss below which no loss is an illness: a converged host may spike by any factor
FAR = 3.0  # deviations at which a loss is far off that is above the opening loss, so that all that was learned is gone
WORSE = 1.5  # over the opening loss: the same where something that was heard is heard less
HALF = 0.5  # of the opening loss: a level below it is excused where a seed is planted or blended in
LOST = 1.15  # over its best: a level that is above the opening loss is a rise from here on, also in a probation
_DEVIATION = 1.4826  # of a normal distribution, over its median absolute deviation
_OF_MEDIAN = 1.2533 / math.sqrt(LEVEL)  # standard error of a median, over the deviation


@dataclass(frozen=True)
class Evidence:
    """Why a host is held to be ill."""

    detector: str  # `nonfinite`, `burst`, `level` or `validation`
    reason: str
    loss: float | None = None
    baseline: float | None = None  # the median that the loss was compared with
    z_loss: float | None = None  # robust deviations above the baseline
    z_grad: float | None = None
    limit: float | None = None  # what z_loss, or for `level` the loss, had to stay below


@dataclass
class Baseline:
    """Clean steps, newest last."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, loss: float, norm: float, most: int) -> None:
        self.losses, self.norms = [*self.losses, loss][-most:], [*self.norms, norm][-most:]


class Detector:
    """What is known of one environment's steps."""

    def __init__(self, config: GovernorConfig) -> None:
        self.config = config
        self.steps = 0  # that were tried in this episode; never goes back
        self.opening: list[float] = []
        self.alarm: Evidence | None = None
        self.probation = 0  # clean steps that are left of it
        self.cut = False  # something was taken away in it, so that losses rise without anything being wrong
        self.past, self.fresh = Baseline(), Baseline()  # before the probation, and since
        self._begin_watch()

    def _begin_watch(self) -> None:
        self.recent: deque[float] = deque(maxlen=LEVEL)
        self.hits: deque[bool] = deque(maxlen=OF_LAST)
        self.levels: deque[tuple[float, float]] = deque(maxlen=RECENT)  # median and its standard error
        self.failing = 0  # checks of the level, in a row

    @property
    def suspicious(self) -> bool:
        """Something is odd: nothing is learned from it, no snapshot is trusted and no operation is let through."""
        return self.alarm is not None or sum(self.hits) >= 2 or self.failing > 0

    def take(self, loss: float, norm: float) -> bool:
        """Looks at a step before the optimiser does; returns whether it may be taken."""
        self.steps += 1
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.hits.append(not finite or self._far_off(loss, norm))
        spike = finite and self.config.spike_z > 0.0 and self._z_loss(loss) > self.config.spike_z
        if finite and not spike:
            self._learn(loss, norm)
        if self.alarm is None:
            self.alarm = self._conclusion(loss, norm, finite)
        return finite and not spike

    def mutated(self, cut: bool = False) -> None:
        """The structure has changed: a probation begins, or begins anew. cut: something is heard less than before."""
        if self.probation == 0:
            self.fresh, self.cut = Baseline(), False
        self.cut |= cut
        self.probation = self.config.probation_steps

    def kept(self) -> dict[str, Any]:
        """What a snapshot keeps of the past, so that a restored host is compared with its own."""
        return {"past": asdict(self.past), "levels": list(self.levels)}

    def go_back(self, kept: dict[str, Any]) -> None:
        """To what a snapshot kept. The count of steps and the opening stay."""
        self._begin_watch()
        self.alarm, self.probation, self.cut = None, 0, False
        self.past, self.fresh = Baseline(**kept["past"]), Baseline()
        self.levels.extend(tuple(level) for level in kept["levels"])

    def state_dict(self) -> dict[str, Any]:
        """Primitives; `load_state_dict` is the exact inverse."""
        own = {name: getattr(self, name) for name in ("steps", "probation", "cut", "failing")}
        spans = {name: list(getattr(self, name)) for name in ("opening", "recent", "hits", "levels")}
        alarm = None if self.alarm is None else asdict(self.alarm)
        return {**own, **spans, "alarm": alarm, "past": asdict(self.past), "fresh": asdict(self.fresh)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._begin_watch()
        self.steps, self.probation, self.failing = saved["steps"], saved["probation"], saved["failing"]
        self.cut = saved["cut"]
        self.opening = list(saved["opening"])
        self.recent.extend(saved["recent"])
        self.hits.extend(saved["hits"])
        self.levels.extend(tuple(level) for level in saved["levels"])
        self.alarm = None if saved["alarm"] is None else Evidence(**saved["alarm"])
        self.past, self.fresh = Baseline(**saved["past"]), Baseline(**saved["fresh"])

    # --- one step -----------------------------------------------------------------------------------------------

    def _z_loss(self, loss: float) -> float:
        """Robust deviations of a loss above the past; 0 where there is none to compare with."""
        past = self.past.losses
        return deviation(loss, past, self.config.floor) if len(past) >= self.config.warmup else 0.0

    def _z_grad(self, norm: float) -> float:
        """The same of a gradient's norm."""
        past = self.past.norms
        return deviation(norm, past, self.config.floor) if len(past) >= self.config.warmup else 0.0

    def _far_off(self, loss: float, norm: float) -> bool:
        opening = self._opening_loss()
        if opening is not None and loss > self.config.explosion * opening:
            return True
        past = self.past.losses
        if len(past) < self.config.warmup or _surely_near(loss, past, self.config.floor):
            return False
        z_loss = self._z_loss(loss)
        if opening is not None:
            if loss > (WORSE if self.cut else 1.0) * opening:
                return z_loss > FAR
            if self.probation or loss < QUIET * opening:
                return False
        return z_loss > self.config.burst_z or (z_loss > ODD and self._z_grad(norm) > self.config.burst_z)

    def _opening_loss(self) -> float | None:
        """What an untrained host loses; None where that is no measure, since losses are not all positive."""
        return median(self.opening) if self.opening and min(self.opening) > 0.0 else None

    def _learn(self, loss: float, norm: float) -> None:
        if len(self.opening) < OPENING and not self.hits[-1]:
            self.opening.append(loss)
        self.recent.append(loss)
        if self.steps % EVERY == 0 and len(self.recent) == LEVEL:
            self._check_level()
        if self.hits[-1] or self.suspicious:
            return
        if self.probation == 0:
            self.past.add(loss, norm, self.config.window)
            return
        self.fresh.add(loss, norm, self.config.window)
        self.probation -= 1
        if self.probation == 0:  # passed: this is how the host does now
            self.past, self.fresh, self.cut = self.fresh, Baseline(), False
            self.levels.clear()

    def _check_level(self) -> None:
        """The level of late joins the others, or is the next in a row of too high ones."""
        level = median(self.recent)
        best, its_noise = min(self.levels, default=(level, 0.0))
        ruler = _ruler([*self.recent, best])
        noise = _OF_MEDIAN * _spread([ruler(loss) for loss in self.recent])
        above = ruler(level) - ruler(best)
        opening = self._opening_loss()
        untrained = opening is not None and level > opening  # all that was learned is gone
        least = (1.0 if self.cut else HALF) if self.probation else QUIET
        excused = opening is not None and level < least * opening
        ratio = LOST if untrained else self.config.level_ratio
        if above > max(math.log(ratio), NOISES * max(noise, its_noise)) and not excused:
            self.failing += 1
            return
        self.failing = 0
        self.levels.append((level, noise))

    def _conclusion(self, loss: float, norm: float, finite: bool) -> Evidence | None:
        if sum(self.hits) >= BURST:
            known = self.past.losses
            return Evidence(
                detector="burst" if finite else "nonfinite",
                reason=f"{sum(self.hits)} of {len(self.hits)} training steps were far off or not finite",
                loss=loss if finite else None,
                baseline=median(known) if known else None,
                z_loss=self._z_loss(loss) if finite else None,
                z_grad=self._z_grad(norm) if finite else None,
                limit=self.config.burst_z,
            )
        if self.failing >= self.config.level_checks:
            best = min(self.levels)[0]
            return Evidence(
                detector="level",
                reason="the training loss stays above its best level",
                loss=median(self.recent),
                baseline=best,
                z_loss=self._z_loss(loss) if finite else None,
                z_grad=self._z_grad(norm) if finite else None,
                limit=best + (self.config.level_ratio - 1.0) * abs(best),
            )
        return None


def deviation(value: float, past: Sequence[float], floor: float) -> float:
    """How many robust standard deviations `value` lies above the median of `past`; `floor` is the least deviation."""
    ruler = _ruler(past)
    known = [ruler(each) for each in past]
    return (ruler(value) - median(known)) / max(_spread(known), floor)


def _surely_near(value: float, past: Sequence[float], floor: float) -> bool:
    """Whether the deviation is at most `ODD` for the least spread already: true of nearly all, and soon known."""
    ruler = _ruler(past)
    return ruler(value) - ruler(median_low(past)) <= ODD * floor


def _spread(values: Sequence[float]) -> float:
    middle = median(values)
    return _DEVIATION * median(abs(value - middle) for value in values)


def _ruler(past: Sequence[float]) -> Callable[[float], float]:
    """Logarithms of positive numbers; others in units of their own size, near which the two agree."""
    if min(past) > 0.0:
        return _log
    unit = median(abs(value) for value in past)
    return (lambda value: value / unit) if unit > 0.0 else (lambda _value: 0.0)


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
