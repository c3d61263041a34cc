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

    def __init__(self, store: Store, treatment: Sequence[str], control: Sequence[str]) -> None:
        self._store, self._treatment, self._control = store, treatment, control
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
        keep(self.con, "verdict", "place INTEGER", list(enumerate(gates(self.con, self._treatment, self._control))))


def load(cohorts: Sequence[Sequence[str]]) -> Judged:
    """cohorts: the folders of the treatment and those of the control, which may be none. ConfigError if lines miss."""
    treatment, control = ([Path(folder) for folder in cohort] for cohort in cohorts)
    names = [[Named.of(folder).run for folder in cohort] for cohort in (treatment, control)]
    return Judged(open_memory([*treatment, *control]), *names)
