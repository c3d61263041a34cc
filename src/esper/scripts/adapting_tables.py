"""The table of a comparison beside a frozen host, and what it says in words.

Sizes differ, so a difference of the metric is claimed between arms alone whose added parameters are within 10 % of each
other; for all others there is J, which prices parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from esper.leyline.statistics import Estimate, estimate
from esper.leyline.task import Metric
from esper.scripts.arms import ArmResult, by_seed
from esper.scripts.tables import (
    BASE,
    GROWN,
    TITLES,
    Column,
    best_of,
    columns_of,
    difference,
    mean_of,
    present,
    shown,
    winner,
)
from esper.simic.rewards.terms import worth

ALIKE = 0.1  # added parameters that differ by no more than this share count as equal


def columns(metric: Metric, rent: float) -> tuple[Column, ...]:
    """Those of every comparison, with the parameters that were added and J."""
    arm, tested, gained, _, exported, *cost = columns_of(metric)
    added = Column("added parameters", lambda results, name: f"{_added(results, name):.0f}")
    return (arm, tested, gained, added, exported, Column(f"J ({metric.points})", _j_of(metric, rent)), *cost)


def judged(results: Sequence[ArmResult], metric: Metric, rent: float) -> list[str]:
    """What the table says about the grown arms, a sentence per rival."""
    kept = ", ".join(str(row.fossilized) for row in by_seed(results, GROWN))
    doubling = f"{rent:g} {metric.points} per doubling of the parameters"
    lines = [
        f"Seeds kept for good by the heuristic, run by run: {kept}. J = test {metric.name}, "
        f"{'' if metric.higher_is_better else 'less being better, thus negative, '}less {doubling}."
    ]
    priced = _priced(results, metric, rent)
    for ours in (GROWN, "policy"):
        for rival in present(results) if by_seed(results, ours) else ():
            if rival not in (ours, GROWN):
                lines.append(
                    f"- {TITLES[ours]} against {TITLES[rival]}: {_said(results, priced, ours, rival, metric)}."
                )
    best = best_of(priced, sign=1.0)
    return [*lines, winner(results, metric) + ("" if best is None else f" Best mean J: {TITLES[best[0]]}.")]


def _said(results: Sequence[ArmResult], priced: Sequence[ArmResult], ours: str, rival: str, metric: Metric) -> str:
    told = _in_words("J", _gained(priced, ours, rival), metric, better=1)
    if not alike(_added(results, ours), _added(results, rival)):
        return f"{told}; sizes differ, so the metric alone is not compared"
    return f"{told}; {_in_words(metric.name, _gained(results, ours, rival), metric, better=int(metric.sign))}"


def _gained(results: Sequence[ArmResult], ours: str, rival: str) -> Estimate | None:
    return difference(results, ours, rival, lambda row: row.test_metric)


def alike(one: float, other: float) -> bool:
    """Whether the larger of two numbers of parameters is at most 10 % above the smaller one; 0 is like nothing."""
    return min(one, other) > 0 and max(one, other) <= (1 + ALIKE) * min(one, other)


def _in_words(what: str, gain: Estimate | None, metric: Metric, better: int) -> str:
    if gain is None:
        return f"no verdict on {what}, a run is missing or diverged"
    interval = f"{what} {gain.mean:+.{metric.digits}f}"
    if gain.low is None or gain.high is None:
        return f"{interval}, one seed gives no verdict"
    interval += f" [{gain.low:+.{metric.digits}f}, {gain.high:+.{metric.digits}f}]"
    return f"{interval}, {({1: 'better', -1: 'worse', 0: 'no clear difference'})[gain.says * better]}"


def _plain_size(results: Sequence[ArmResult]) -> dict[int, int]:
    """Parameters of the host alone, by seed: what is built in from the start counts as a host's elsewhere."""
    return {row.seed: row.host_params for row in by_seed(results, BASE)}


def _added(results: Sequence[ArmResult], name: str) -> float:
    plain = _plain_size(results)
    return mean_of(results, name, lambda row: row.params - plain[row.seed])


def _priced(results: Sequence[ArmResult], metric: Metric, rent: float) -> list[ArmResult]:
    """The same results with J in the place of the test metric."""
    plain = _plain_size(results)
    return [replace(row, test_metric=_j(row, plain[row.seed], metric, rent)) for row in results]


def _j(row: ArmResult, plain: int, metric: Metric, rent: float) -> float | None:
    return None if row.test_metric is None else worth(metric.sign, row.test_metric, plain, row.params, rent)


def _j_of(metric: Metric, rent: float) -> Callable[[Sequence[ArmResult], str], str]:
    def cell(results: Sequence[ArmResult], name: str) -> str:
        found = [
            row.test_metric for row in by_seed(_priced(results, metric, rent), name) if row.test_metric is not None
        ]
        return shown(estimate(found), metric.digits) if found else "–"

    return cell
