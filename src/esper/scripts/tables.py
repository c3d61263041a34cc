"""The tables that comparisons print, in Markdown, and what they say in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.leyline.statistics import Estimate, estimate, paired_difference
from esper.leyline.task import Metric
from esper.scripts.arms import ArmResult, by_seed

TITLES: dict[str, str] = {
    "static": "never grown",
    "heuristic": "grown: heuristic",
    "periodic": "grown: periodic",
    "random": "grown: random",
    "policy": "grown: the learned policy",
    "scratch": "final topology from scratch",
    "uniform_below": "widened, nearest below",
    "uniform_above": "widened, nearest above",
}
"""What the arms are called, in the order of the rows."""

BASE = "static"
GROWN = "heuristic"


def comparison_table(results: Sequence[ArmResult], metric: Metric) -> str:
    """A row per arm: test metric and loss with 95 % intervals, size and cost as means."""
    head = (
        "arm",
        f"test {metric.name} ({metric.unit})",
        f"against {TITLES[BASE]}",
        "test loss (nats)",
        "exported parameters",
        "training GFLOPs",
        "CPU seconds",
    )
    lines = [_row(head), _row(("---", *["---:"] * (len(head) - 1)))]
    for name in _present(results):
        lines.append(_row(_cells(results, name, metric)))
    return "\n".join(lines)


def _cells(results: Sequence[ArmResult], name: str, metric: Metric) -> tuple[str, ...]:
    rows = by_seed(results, name)
    tests = [row.test_metric for row in rows if row.test_metric is not None]
    losses = [row.test_loss for row in rows if row.test_loss is not None]
    lost = len(rows) - len(tests)
    shown = _shown(estimate(tests), metric.digits) if tests else "–"
    return (
        TITLES[name],
        shown + (f" ({lost} diverged)" if lost else ""),
        "" if name == BASE else _signed(difference(results, name, BASE, lambda row: row.test_metric), metric.digits),
        _shown(estimate(losses), 3) if losses else "–",
        f"{estimate([row.params for row in rows]).mean:.0f}",
        f"{estimate([row.flops / 1e9 for row in rows]).mean:.1f}",
        f"{estimate([row.cpu_seconds for row in rows]).mean:.1f}",
    )


def difference(
    results: Sequence[ArmResult], ours: str, theirs: str, value: Callable[[ArmResult], float | None]
) -> Estimate | None:
    """Paired by seed; None where a value is missing on either side."""
    first = [value(row) for row in by_seed(results, ours)]
    second = [value(row) for row in by_seed(results, theirs)]
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    if not pairs or len(pairs) < len(first):
        return None
    return paired_difference([one for one, _ in pairs], [two for _, two in pairs])


def verdicts(results: Sequence[ArmResult], metric: Metric) -> list[str]:
    """What the table says about growing under the heuristic, a sentence per rival."""
    present, grown = _present(results), by_seed(results, GROWN)
    kept = ", ".join(str(row.fossilized) for row in grown)
    lines = [f"Seeds kept for good, run by run: {kept}."]
    for rival in present:
        if rival != GROWN:
            gain = difference(results, GROWN, rival, lambda row: row.test_metric)
            lines.append(f"- Against {TITLES[rival]}: {_in_words(gain, metric)}.")
    lines.append(_winner(results, present, metric))
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


def _winner(results: Sequence[ArmResult], present: Sequence[str], metric: Metric) -> str:
    means = {}
    for name in present:
        tests = [row.test_metric for row in by_seed(results, name) if row.test_metric is not None]
        if tests:
            means[name] = estimate(tests).mean
    if not means:
        return "Every run diverged."
    best = max(means, key=lambda name: metric.sign * means[name])
    return f"Best mean: {TITLES[best]}, {means[best]:.{metric.digits}f} {metric.unit}."


def _present(results: Sequence[ArmResult]) -> list[str]:
    names = {result.name for result in results}
    return [name for name in TITLES if name in names]


def _shown(value: Estimate, digits: int) -> str:
    text = f"{value.mean:.{digits}f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.{digits}f}"


def _signed(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{value.mean:+.{digits}f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
