"""Runs as Weights & Biases shows them. Its own settings hold: WANDB_MODE, WANDB_DIR, WANDB_ENTITY and the rest.

Every section of curves has the axis of its own that `traces.py` gives it. Wall times are those of the run; the library
counts "relative time" from the export and lets nobody change that.
"""

from __future__ import annotations

from collections.abc import Sequence

import wandb

from esper.karn.exporters.traces import SECTIONS, Trace
from esper.leyline.errors import ConfigError
from esper.nissa.storage import shown


def write(traces: Sequence[Trace], project: str) -> None:
    """A new run for each; arms and teams of a run are a group. Raises ConfigError for what the library refuses."""
    try:
        for trace in traces:
            _write(trace, project)
    except wandb.Error as error:
        raise ConfigError(f"wandb: {shown(error)}") from error
    finally:
        wandb.teardown()


def _write(trace: Trace, project: str) -> None:
    run = wandb.init(
        project=project,
        name=trace.name,
        group=trace.group_of or (None if trace.team is None else trace.run),
        config=dict(trace.config),
        reinit="create_new",
        settings=_NOT_THIS_MACHINE,
    )
    if run.disabled:
        raise ConfigError("wandb: WANDB_MODE=disabled writes nothing; choose online or offline")
    for axis in dict.fromkeys(section.axis for section in SECTIONS):
        run.define_metric(axis, hidden=True)
    for section in SECTIONS:
        run.define_metric(f"{section.name}/*", step_metric=section.axis)
    for point in trace.points:
        run.log({point.axis: point.place, "_timestamp": point.time_s, **point.values})
    run.summary["status"] = trace.status
    run.finish(exit_code=0 if trace.status in ("done", "running") else 1)


_NOT_THIS_MACHINE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What is exported is the run: not the output, the code, the load or the name of the machine that exports it."""
