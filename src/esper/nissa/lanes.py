"""What an episode looks like in a terminal: a lane of stages per slot over time, and the metric below."""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.nissa.progress import STAGE_MARKS

_BARS = "▁▂▃▄▅▆▇█"
LEGEND = "· empty  G germinated  T training  B blending  H holding  F fossilised (kept)  X pruned"


def lanes(reports: Sequence[HostReport]) -> list[str]:
    """One row per slot, one column per report of the host; then the validation metric, and what the letters mean."""
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


def _mark(report: HostReport, index: int) -> str:
    stage: SeedStage = report.slots[index].stage
    return STAGE_MARKS[stage][0]
