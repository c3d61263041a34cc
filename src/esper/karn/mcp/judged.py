"""Runs judged together, as one cohort against another: the table `verdict`, made in the process that holds the tables.

What is judged are whole runs: lines that are missing on the disk could be those that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import duckdb

from esper.karn.manifests import Named
from esper.karn.memory import open_memory
from esper.karn.phases import gates
from esper.karn.store import Store
from esper.karn.verdicts import keep


@final
class Judged:
    """The tables of all these runs, and `verdict`, which is of the moment when something was told last."""

    def __init__(self, store: Store, treatment: Sequence[str], control: Sequence[str], phase: int) -> None:
        self._store, self._treatment, self._control, self._phase = store, treatment, control, phase
        self._judge()

    @property
    def con(self) -> duckdb.DuckDBPyConnection:
        return self._store.con

    def refresh(self) -> int:
        events = self._store.refresh()
        if events:
            self._judge()
        return events

    def _judge(self) -> None:
        found = gates(self.con, self._treatment, self._control, self._phase)
        keep(self.con, "verdict", "place INTEGER", list(enumerate(found)))


def load(asked: Sequence[Sequence[str]]) -> Judged:
    """asked: folders of the treatment, those of the control, which may be none, and the phase. ConfigError if lines
    miss."""
    *cohorts, (phase,) = asked
    treatment, control = ([Path(folder) for folder in cohort] for cohort in cohorts)
    ours, theirs = ([Named.of(folder).run for folder in cohort] for cohort in (treatment, control))
    return Judged(open_memory([*treatment, *control]), ours, theirs, int(phase))
