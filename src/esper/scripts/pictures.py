"""What a finished run looks like in a terminal: lanes of stages over time, and a table of results."""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.nissa.progress import STAGE_MARKS
from esper.scripts.runner import Finished
from esper.simic.agent.rollout_buffer import Rollout

_BARS = "▁▂▃▄▅▆▇█"
LEGEND = "· empty  G germinated  T training  B blending  H holding  F fossilised (kept)  X pruned"


def summary(finished: Finished) -> str:
    """Lanes of the first environment, then what came of every environment."""
    last = finished.rounds[-1]
    lines = [*lanes(last.rollout, 0), "", *outcome_lines(finished)]
    return "\n".join(lines)


def lanes(rollout: Rollout, env: int) -> list[str]:
    """One row per slot, one column per epoch; then the validation metric, and what was decided."""
    reports = [step.sight.reports[env] for step in rollout.steps]
    rows = []
    for index, slot in enumerate(reports[0].slots):
        marks = "".join(_mark(report, index) for report in reports)
        planted = [report.slots[index].blueprint_id for report in reports if report.slots[index].blueprint_id]
        rows.append(f"  {slot.slot_id:<8}{marks}  {planted[-1] if planted else ''}".rstrip())
    metrics = [report.val_metric for report in reports]
    rows.append(f"  {'metric':<8}{bars(metrics)}")
    rows.append(f"  {LEGEND}")
    return rows


def bars(values: Sequence[float | None]) -> str:
    """A bar per value between the least and the greatest; a space where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    top = len(_BARS) - 1
    return "".join(" " if v is None else _BARS[round((v - low) / span * top) if span > 0 else top] for v in values)


def outcome_lines(finished: Finished) -> list[str]:
    """One line per environment of the last round."""
    last, metric = finished.rounds[-1], finished.metric
    lines = []
    for outcome, decisions in zip(last.outcomes, last.rollout.decisions(), strict=True):
        acted = sum(decision["op"] != LifecycleOp.WAIT.name for decision in decisions)
        if outcome.test_metric is None:
            lines.append(f"  env {outcome.env}: diverged, the governor gave it up; {acted} decisions")
            continue
        kept = ", ".join(f"{graft.blueprint_id} in {graft.slot_id}" for graft in outcome.topology) or "nothing"
        lines.append(
            f"  env {outcome.env}: test {metric.name} {outcome.test_metric:.1f} {metric.unit}, "
            f"loss {outcome.test_loss:.3f}; {outcome.host_params} -> {outcome.params} parameters; "
            f"kept {kept}; {acted} decisions besides WAIT"
        )
    return lines


def _mark(report: HostReport, index: int) -> str:
    stage: SeedStage = report.slots[index].stage
    return STAGE_MARKS[stage][0]
