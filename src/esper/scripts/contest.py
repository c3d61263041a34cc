"""What a comparison is on one kind of task: which arms it has, and what its table and verdict say.

`growing.py` has the one for hosts that learn, `adapting.py` the one for hosts that are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.leyline.task import Metric
from esper.scripts.arms import ArmResult, Runner
from esper.scripts.config import EsperConfig
from esper.scripts.tables import Column


@dataclass(frozen=True)
class Stage:
    """Where a contest takes place."""

    seeds: Sequence[int]
    slots: Sequence[str]  # of the task's host
    top: Path  # the comparison's folder
    run_all: Runner
    policy_rounds: int | None  # rounds that a policy trains; None for the contest's own number


@dataclass(frozen=True)
class Played:
    """What came out, and what a reader of the table has to know."""

    results: list[ArmResult]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contest:
    """One kind of comparison.

    settle: fills in what the comparison itself chooses where the settings do not say. tunes: whether a learning rate is
    looked for with the host never grown. judge: from the results and the price of a doubling of the parameters.
    """

    settle: Callable[[EsperConfig], EsperConfig]
    tunes: bool
    has_policy: bool
    play: Callable[[EsperConfig, Stage], Played]
    columns: Callable[[Metric, float], Sequence[Column]]
    judge: Callable[[Sequence[ArmResult], Metric, float], list[str]]
