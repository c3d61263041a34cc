"""The tables that comparisons print, in Markdown, and what they say in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from esper.leyline.statistics import Estimate, estimate, paired_difference
from esper.leyline.task import Metric
from esper.scripts.arms import ArmResult, by_seed

TITLES: dict[str, str] = {
    "static": "never grown",
    "heuristic": "grown: heuristic",
    "periodic": "grown: periodic",
    "random": "grown: random",
    "policy": "grown: the learned policy",
    "rank_4": "rank 4 everywhere",
    "rank_8": "rank 8 everywhere",
    "rank_16": "rank 16 everywhere",
    "rank_32": "rank 32 everywhere",
    "adalora": "AdaLoRA",
    "scratch": "final topology from scratch",
    "uniform_below": "widened, nearest below",
    "uniform_above": "widened, nearest above",
}
"""What the arms are called, in the order of the rows."""

BASE = "static"
GROWN = "heuristic"


@dataclass(frozen=True)
class Column:
    """One column of a comparison: its head, and what it says of an arm, given all results."""

    head: str
    cell: Callable[[Sequence[ArmResult], str], str]


def columns_of(metric: Metric) -> tuple[Column, ...]:
    """Test metric and loss with 95 % intervals, size and cost as means."""
    return (
        Column("arm", lambda _, name: TITLES[name]),
        Column(f"test {metric.name} ({metric.unit})", partial(_tested, digits=metric.digits)),
        Column(f"against {TITLES[BASE]}", partial(_gained, digits=metric.digits)),
        Column("test loss (nats)", _lost),
        Column("exported parameters", lambda all_, name: f"{mean_of(all_, name, lambda row: row.params):.0f}"),
        Column("training GFLOPs", lambda all_, name: f"{mean_of(all_, name, lambda row: row.flops / 1e9):.1f}"),
        Column("CPU seconds", lambda all_, name: f"{mean_of(all_, name, lambda row: row.cpu_seconds):.1f}"),
    )


def comparison_table(results: Sequence[ArmResult], metric: Metric, columns: Sequence[Column] | None = None) -> str:
    """A row per arm; the columns are those of the metric if not given."""
    columns = columns_of(metric) if columns is None else columns
    lines = [_row([column.head for column in columns]), _row(("---", *["---:"] * (len(columns) - 1)))]
    lines += [_row([column.cell(results, name) for column in columns]) for name in present(results)]
    return "\n".join(lines)


def mean_of(results: Sequence[ArmResult], name: str, value: Callable[[ArmResult], float]) -> float:
    return estimate([value(row) for row in by_seed(results, name)]).mean


def _tested(results: Sequence[ArmResult], name: str, digits: int) -> str:
    rows = by_seed(results, name)
    tests = [row.test_metric for row in rows if row.test_metric is not None]
    seeds = len(by_seed(results, BASE))
    fewer = f" ({len(rows)} of {seeds} seeds)" if len(rows) < seeds else ""
    diverged = f" ({len(rows) - len(tests)} diverged)" if len(tests) < len(rows) else ""
    return (shown(estimate(tests), digits) if tests else "–") + fewer + diverged


def _gained(results: Sequence[ArmResult], name: str, digits: int) -> str:
    return "" if name == BASE else _signed(difference(results, name, BASE, lambda row: row.test_metric), digits)


def _lost(results: Sequence[ArmResult], name: str) -> str:
    losses = [row.test_loss for row in by_seed(results, name) if row.test_loss is not None]
    return shown(estimate(losses), 3) if losses else "–"


def difference(
    results: Sequence[ArmResult], ours: str, theirs: str, value: Callable[[ArmResult], float | None]
) -> Estimate | None:
    """Of the seeds that both ran on, paired; None where there is none, or where a value is missing on either side."""
    first, second = ({row.seed: value(row) for row in by_seed(results, name)} for name in (ours, theirs))
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    if not known or len(known) < len(pairs):
        return None
    return paired_difference([one for one, _ in known], [two for _, two in known])


def verdicts(results: Sequence[ArmResult], metric: Metric) -> list[str]:
    """What the table says about growing under the heuristic, a sentence per rival."""
    arms, grown = present(results), by_seed(results, GROWN)
    kept = ", ".join(str(row.fossilized) for row in grown)
    lines = [f"Seeds kept for good, run by run: {kept}."]
    for rival in arms:
        if rival != GROWN:
            gain = difference(results, GROWN, rival, lambda row: row.test_metric)
            lines.append(f"- Against {TITLES[rival]}: {_in_words(gain, metric)}.")
    lines.append(winner(results, metric))
    return lines


def _in_words(gain: Estimate | None, metric: Metric) -> str:
    if gain is None:
        return "no verdict, a run diverged"
    digits = metric.digits
    what = metric.name if metric.name.startswith(metric.points) else f"{metric.points} of {metric.name}"
    size = f"{gain.mean:+.{digits}f} {what}"
    if gain.half_width is None:
        return f"{size} on one seed, which gives no interval and no verdict"
    interval = f"{size} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
    won = gain.says * int(metric.sign)
    return {1: f"growing won, {interval}", -1: f"growing lost, {interval}", 0: f"no clear difference, {interval}"}[won]


def winner(results: Sequence[ArmResult], metric: Metric) -> str:
    """The arm with the best mean of the metric, in a sentence."""
    found = best_of(results, metric.sign)
    if found is None:
        return "Every run diverged."
    name, mean = found
    return f"Best mean: {TITLES[name]}, {mean:.{metric.digits}f} {metric.unit}."


def best_of(results: Sequence[ArmResult], sign: float) -> tuple[str, float] | None:
    """The arm with the best mean of what stands as the test metric, and that mean; None where every run diverged."""
    means = {}
    for name in present(results):
        tests = [row.test_metric for row in by_seed(results, name) if row.test_metric is not None]
        if tests:
            means[name] = estimate(tests).mean
    if not means:
        return None
    best = max(means, key=lambda name: sign * means[name])
    return best, means[best]


def present(results: Sequence[ArmResult]) -> list[str]:
    """The arms that ran, in the order of the rows."""
    names = {result.name for result in results}
    return [name for name in TITLES if name in names]


def shown(value: Estimate, digits: int) -> str:
    """A mean and half its interval."""
    text = f"{value.mean:.{digits}f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.{digits}f}"


def _signed(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{value.mean:+.{digits}f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
