"""Runs judged together, as one cohort against another: the table `verdict`, made in the process that holds the tables.

What is judged are whole runs: lines that are missing on the disk could be those that matter.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import final

import duckdb

from esper.karn.gates import Gate, gates
from esper.karn.manifests import Named
from esper.karn.memory import open_memory
from esper.karn.store import Store
from esper.leyline.errors import ConfigError

INCOMPLETE = "select run from runs where not complete order by run limit 1"
_SQL = {str: "VARCHAR", float: "DOUBLE", bool: "BOOLEAN", int: "BIGINT"}


def _type(hint: type) -> str:
    (kind,) = {*(typing.get_args(hint) or (hint,))} - {NoneType}
    return _SQL[kind]


_COLUMNS = {name: _type(hint) for name, hint in typing.get_type_hints(Gate).items()}


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
        found = self.con.execute(INCOMPLETE).fetchone()
        if found is not None:
            raise no_verdict(found[0])
        columns = ", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS.items())
        self.con.execute(f"CREATE OR REPLACE TABLE verdict (place INTEGER, {columns})")
        for place, gate in enumerate(gates(self.con, self._treatment, self._control)):
            marks = ", ".join("?" * (len(_COLUMNS) + 1))
            self.con.execute(
                f"INSERT INTO verdict VALUES ({marks})", [place, *(getattr(gate, name) for name in _COLUMNS)]
            )


def no_verdict(run: str) -> ConfigError:
    return ConfigError(f"run {run}: lines of it are missing on the disk, so it deserves no verdict")


def load(cohorts: Sequence[Sequence[str]]) -> Judged:
    """cohorts: the folders of the treatment and those of the control, which may be none. ConfigError if lines miss."""
    treatment, control = ([Path(folder) for folder in cohort] for cohort in cohorts)
    names = [[Named.of(folder).run for folder in cohort] for cohort in (treatment, control)]
    return Judged(open_memory([*treatment, *control]), *names)
