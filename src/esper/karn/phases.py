"""The gates of each phase of the roadmap, put to cohorts of runs. Read `PHASES` first; questions stand elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from esper.karn import gates as steps
from esper.karn import surface_gates as surfaces
from esper.karn.verdicts import INCOMPLETE, Question, Verdict, answers, keep

PHASES: Mapping[int, tuple[Question, ...]] = {
    0: steps.GATES,  # growing in small steps
    1: (surfaces.quality_per_rent, surfaces.placement, surfaces.small_steps, steps.entropy),  # a lattice of surfaces
    2: (steps.roi, surfaces.overshoot, surfaces.kept_seeds, surfaces.rollbacks_by_surface),  # both sides of a pool
}


def gates(
    con: duckdb.DuckDBPyConnection, treatment: Sequence[str], control: Sequence[str] = (), phase: int = 0
) -> tuple[Verdict, ...]:
    """The answers of all gates of a phase, in order. Raises ConfigError for a run of which lines are missing."""
    return answers(PHASES[phase], con, treatment, control)


def create_gates(con: duckdb.DuckDBPyConnection) -> None:
    """A table `gates` with every complete run judged by itself by the gates of phase 0, so that SQL can ask for it."""
    runs = con.execute(
        f"select distinct run from live_env_step where run not in ({INCOMPLETE}) order by run"
    ).fetchall()
    keep(con, "gates", "run VARCHAR", [(run, gate) for (run,) in runs for gate in gates(con, [run])])
