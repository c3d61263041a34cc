"""Questions put to cohorts of runs, and their answers: a number, its interval, its limit and a verdict.

`gates.py` and `outcomes.py` are lists of such questions. A verdict is None where there is nothing to judge, and `note`
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from math import isfinite
from statistics import fmean
from types import NoneType
from typing import Any, get_args, get_type_hints

import duckdb

from esper.leyline.errors import ConfigError
from esper.leyline.statistics import Estimate, estimate


@dataclass(frozen=True)
class Verdict:
    """One answer. `low` and `high` bound the value at 95 %, None where one seed gives no interval."""

    name: str
    asks: str
    value: float | None
    low: float | None
    high: float | None
    limit: str
    passed: bool | None
    n: int
    note: str = ""


BySeed = Mapping[str, float]
"""A number for each seed; a run that does not say its seed counts as one of its own, by its name."""


@dataclass(frozen=True)
class Cohorts:
    """Runs to be judged, and those they are compared with; none where nothing is compared."""

    con: duckdb.DuckDBPyConnection
    treatment: tuple[str, ...]
    control: tuple[str, ...] = ()

    def rows(self, sql: str, runs: Sequence[str], *more: object) -> list[tuple[Any, ...]]:
        """Rows of a query whose first parameter is the list of runs."""
        return self.con.execute(sql, [list(runs), *more]).fetchall()

    def by_seed(self, sql: str, runs: Sequence[str], *more: object) -> BySeed:
        """Finite numbers of a query of (run, number) rows, by the seeds of the runs: means where several have one."""
        seeds = dict(
            self.rows("select run, coalesce(seed::VARCHAR, run) from manifest where list_contains(?, run)", runs)
        )
        found: dict[str, list[float]] = {}
        for run, value in self.rows(sql, runs, *more):
            if value is not None and isfinite(value):
                found.setdefault(seeds[run], []).append(float(value))
        return {seed: fmean(values) for seed, values in found.items()}


Question = Callable[[Cohorts], Verdict]

INCOMPLETE = "select run from runs where not complete"


def answers(
    questions: Sequence[Question],
    con: duckdb.DuckDBPyConnection,
    treatment: Sequence[str],
    control: Sequence[str] = (),
) -> tuple[Verdict, ...]:
    """In the order of the questions. The database has the views of `views.sql`.

    Raises ConfigError for a run of which lines are missing on the disk: they could be those that matter.
    """
    cohorts = Cohorts(con, tuple(treatment), tuple(control))
    for (run,) in cohorts.rows(f"{INCOMPLETE} and list_contains(?, run)", [*treatment, *control]):
        raise no_verdict(run)
    return tuple(question(cohorts) for question in questions)


def no_verdict(run: str) -> ConfigError:
    """Why nothing is said about a run that `INCOMPLETE` finds."""
    return ConfigError(f"run {run}: lines of it are missing on the disk, so it deserves no verdict")


def keep(con: duckdb.DuckDBPyConnection, table: str, key: str, found: Sequence[tuple[object, Verdict]]) -> None:
    """Answers as a table, a column per field of `Verdict` behind the `key` column, which is given with its type."""
    columns = ", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS.items())
    con.execute(f"create or replace table {table} ({key}, {columns})")
    if found:
        marks = ", ".join("?" * (1 + len(_COLUMNS)))
        con.executemany(f"insert into {table} values ({marks})", [[of, *astuple(gate)] for of, gate in found])


def _sql_type(hint: Any) -> str:
    (kind,) = {*(get_args(hint) or (hint,))} - {NoneType}
    return {str: "VARCHAR", float: "DOUBLE", bool: "BOOLEAN", int: "BIGINT"}[kind]


_COLUMNS = {name: _sql_type(hint) for name, hint in get_type_hints(Verdict).items()}


def difference(ours: BySeed, theirs: BySeed) -> Estimate:
    """Treatment minus control, seed by seed; of the means, without an interval, where they share no seed."""
    assert ours, "there is something to compare"
    assert theirs, "there is something to compare it with"
    shared = sorted(ours.keys() & theirs.keys())
    if shared:
        return estimate([ours[seed] - theirs[seed] for seed in shared])
    return Estimate(fmean(ours.values()) - fmean(theirs.values()), None, len(ours))


def judge(
    name: str,
    asks: str,
    found: Estimate,
    limit: str,
    passes: Callable[[Estimate], bool | None],
    n: int,
    note: str = "",
) -> Verdict:
    """The verdict that `passes` reaches on what was found."""
    if found.half_width is None:
        note = f"{note}{'; ' if note else ''}one seed gives no interval"
    return Verdict(name, asks, found.mean, found.low, found.high, limit, passes(found), n, note)


def unjudged(name: str, asks: str, limit: str, note: str) -> Verdict:
    """What is said where there is nothing to judge."""
    return Verdict(name, asks, None, None, None, limit, None, 0, note)


def shown(found: Estimate) -> str:
    """A mean and its interval."""
    return f"{found.mean:+.3f}" + ("" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]")
