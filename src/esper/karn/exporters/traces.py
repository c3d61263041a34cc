"""The curves of runs, for tools that know no slots and no seeds. Read `SECTIONS`: it is all that exporters write.

    for trace in traces(open_memory([Path("runs/20261120-140233-digits-a1b2c3")]).con):
        trace.config["task"], trace.points[0].values["rounds/val_metric"]

A curve is called `section/name`. Names are the columns of the views in `views.sql`, so that a curve here and the answer
of `esper sql` are called alike, or names from the run: heads, operations, terms of the reward, phases of the loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import duckdb


@dataclass(frozen=True)
class Section:
    """Curves that belong together. `sql` gives run, g, round, place, name and value."""

    name: str
    axis: str  # what `place` counts from 0: `round`, `episode` or `update`
    sql: str


def _columns(view: str, place: str, without: str) -> str:
    """A curve for each column of a view but those that say where a row belongs, or hold no number."""
    return f"""from (
            select run, g, round, {place} as place, columns(* exclude (run, g, round, {without}))::double from {view}
        ) unpivot (value for name in (columns(* exclude (run, g, round, place))))"""


def _rows(view: str, place: str, name: str, value: str) -> str:
    """A curve for each name in a view of one row per name."""
    return f"select run, g, round, {place} as place, {name} as name, {value} as value from {view}"


SECTIONS = (
    Section("rounds", "round", _columns("rounds", "round", "ts")),
    Section("episodes", "episode", _columns("episodes", "episode", "episode, env, outcome, drawn")),
    Section("ppo", "update", _columns("ppo_updates", "update", "ts, update, skipped, imitated, op_values")),
    Section("head_entropy", "update", _rows("head_health", "update", "head", "entropy")),
    Section("head_kl", "update", _rows("head_health", "update", "head", "kl")),
    Section("head_clip_fraction", "update", _rows("head_health", "update", "head", "clip_fraction")),
    Section("head_grad_norm", "update", _rows("head_health", "update", "head", "grad_norm")),
    Section("op_values", "update", _rows("op_values", "update", "op", "value")),
    Section("phase_seconds", "round", _rows("throughput", "round", "phase", "phase_seconds")),
    Section(  # the share of all decisions, done or refused; an operation that was not asked for has 0
        "operations",
        "round",
        """select s.run, s.g, s.round, s.round as place, o.op as name, avg((s.op = o.op)::int) as value
        from env_steps s cross join ops o group by all""",
    ),
    Section(  # the mean over a round's episodes; a term that was nowhere in a round has 0
        "reward",
        "round",
        """select r.run, r.g, r.round, r.round as place, t.term as name, coalesce(sum(l.value), 0) / r.episodes as value
        from rounds r join (select distinct run, term from reward_long) t using (run)
        left join reward_long l on l.run = r.run and l.g is not distinct from r.g and l.round = r.round
            and l.term = t.term
        group by r.run, r.g, r.round, r.episodes, t.term""",
    ),
    Section(  # the mean over a round's ladders
        "churn",
        "round",
        """select run, g, round, round as place, 'level_change_rate' as name, avg(level_change_rate) as value
        from churn group by all""",
    ),
)


@dataclass(frozen=True)
class Point:
    """All numbers of one round, episode or update."""

    axis: str
    place: int
    time_s: float  # when the round was finished, seconds since 1970
    values: Mapping[str, float]  # by `section/name`; what was not measured is left out, what was not finite is NaN


@dataclass(frozen=True)
class Trace:
    """What one policy did in one run."""

    run: str
    team: str | None  # of a run in which two policies are compared
    group_of: str | None  # the run whose arm this is
    status: str  # `running`, `done`, `interrupted`, `failed` or `died`
    started_s: float  # seconds since 1970; 0 where its first event is lost
    config: Mapping[str, Any]  # of the whole run, as nested tables; empty where it has not said
    points: tuple[Point, ...]  # in order of time

    @property
    def last_s(self) -> float:
        """When its last round was finished."""
        return self.points[-1].time_s if self.points else self.started_s

    @property
    def name(self) -> str:
        """The run's name, also fit for a path: a team's name comes from a file and may hold anything."""
        return self.run if self.team is None else f"{self.run}/team-{quote(self.team, safe='')}"


def traces(con: duckdb.DuckDBPyConnection) -> list[Trace]:
    """Of every run in the database, which needs the views; only rounds that are finished."""
    runs = con.execute(
        """select r.run, r.group_of, r.status, (select min(ts) from run_started s where s.run = r.run),
            coalesce(m.config, '{}')
        from runs r join manifest m using (run) order by r.run"""
    ).fetchall()
    points = _points(con)
    return [
        Trace(run, team, group_of, status, started or 0.0, json.loads(config), tuple(points.get((run, team), ())))
        for run, group_of, status, started, config in runs
        for team in sorted((team for name, team in points if name == run), key=str) or [None]
    ]


def _points(con: duckdb.DuckDBPyConnection) -> dict[tuple[str, str | None], list[Point]]:
    """By run and team."""
    numbers: dict[tuple[Any, ...], dict[str, float]] = {}
    for section in SECTIONS:
        rows = con.execute(
            f"""with told as ({section.sql})
            select r.ts, t.place, t.run, t.g, t.name, t.value::double
            from told t join rounds r on r.run = t.run and r.g is not distinct from t.g and r.round = t.round
            where t.value is not null and t.place is not null order by t.name"""
        ).fetchall()
        for time_s, place, run, team, name, value in rows:
            numbers.setdefault((time_s, section.axis, place, run, team), {})[f"{section.name}/{name}"] = value
    found: dict[tuple[str, str | None], list[Point]] = {}
    for (time_s, axis, place, run, team), values in sorted(numbers.items(), key=lambda item: item[0][:3]):
        found.setdefault((run, team), []).append(Point(axis, place, time_s, values))
    return found
