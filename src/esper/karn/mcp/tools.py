"""The tools: each method of `Tools` is one, its docstring and its arguments are what a client reads about it.

Every answer fits into `answers.MOST_CHARS`. A ConfigError is what the client did wrong, in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Literal, final

from msgspec import Meta

from esper.karn.manifests import Named
from esper.karn.mcp import catalogue, comparing, judged, schema, tailing
from esper.karn.mcp.answers import (
    MOST_ROWS,
    ROOM,
    Comparison,
    Explanation,
    Rows,
    RunDescription,
    RunList,
    Series,
    Tail,
    Verdicts,
    ViewDescription,
    ViewList,
    that_fit,
)
from esper.karn.mcp.desk import Desk, Tables, made, tables_of
from esper.karn.sql_gate import Question
from esper.karn.views import views
from esper.leyline.errors import ConfigError, did_you_mean
from esper.nissa.storage import shown

METRICS = tuple(re.findall(r"when '(\w+)' then", next(view.sql for view in views() if view.name == "series")))

Run = Annotated[str, Meta(description="Id of a run, the beginning of it, `RUN/arms/NAME`, or 'latest'.")]
Runs = Annotated[
    str | list[str],
    Meta(description="One run or several; a run with arms is all of them, `RUN/arms/NAM` those that begin so."),
]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Offset = Annotated[int, Meta(ge=0, le=10**12, description="Rows that are passed over: `next` of the answer before.")]
Limit = Annotated[int, Meta(ge=1, le=MOST_ROWS)]
Group = Annotated[str | None, Meta(description="Of an A/B run, whose episodes have the same numbers: which side.")]
Values = Annotated[
    dict[str, Any] | list[Any] | None,
    Meta(description="Values for `$name` or for `?` in the SQL; they are bound, so no quotes are needed."),
]


@final
class Tools:
    """What a client may call. Any thread may."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def all(self) -> tuple[Callable[..., object], ...]:
        return (
            *(self.list_runs, self.describe_run, self.list_views, self.describe_view, self.query, self.series),
            *(self.lifecycle, self.explain_step, self.compare_runs, self.gates, self.tail),
        )

    # ---- what there is

    def list_runs(
        self,
        status: Literal["running", "done", "interrupted", "failed", "died", "unreadable"] | None = None,
        limit: Limit = 20,
        offset: Offset = 0,
    ) -> RunList:
        """What ran, the newest first: id, status, task, controller, seed."""
        found = (run for run in catalogue.listed(self._desk.root) if status is None or run.status == status)
        wanted = list(islice(found, offset, offset + limit + 1))
        kept = that_fit(wanted[:limit])
        more = len(kept) < len(wanted)
        return RunList(tuple(kept), more, offset + len(kept) if more else None)

    def describe_run(self, run: Run = "latest", offset: Offset = 0) -> RunDescription:
        """What a run was, how it ended, whether lines of it are missing; for a single run also its slots, the choices
        that its controller had, and its settings. A run with arms is told arm by arm."""
        folders = self._desk.folders(run)
        tables = tables_of(folders)
        told = RunDescription(
            runs=self._desk.rows(tables, "from runs order by run", chars=ROOM // 3, offset=offset),
            integrity=self._desk.rows(tables, "from integrity order by run, writer", chars=ROOM // 8),
        )
        if len(folders) > 1:
            return told
        return replace(
            told,
            slots=self._desk.rows(tables, "select * exclude (run) from slots order by slot_index", chars=ROOM // 8),
            choices=self._desk.rows(
                tables,
                "select head, list(choice order by choice_index) as choices from choices group by head order by head",
                chars=ROOM // 8,
            ),
            settings=self._desk.rows(
                tables,
                "select substr(t.fullkey, 3) as setting, coalesce(t.atom::VARCHAR, 'null') as value "
                "from manifest m, json_tree(m.config) t where t.type not in ('OBJECT', 'ARRAY') order by t.id",
                chars=ROOM // 4,
            ),
        )

    def list_views(self) -> ViewList:
        """The views, tables and macros that SQL can ask, each with what it answers. The same for every run."""
        return schema.view_list()

    def describe_view(
        self, name: Annotated[str, Meta(description="Name of a view, table or macro, as in list_views.")]
    ) -> ViewDescription:
        """Columns, types and units of a view, and SQL to begin with."""
        return schema.describe(name)

    # ---- questions

    def query(
        self,
        sql: Annotated[str, Meta(description="One SELECT in DuckDB's SQL, or `from VIEW`.")],
        run: Runs = "latest",
        params: Values = None,
        max_rows: Limit = MOST_ROWS,
        offset: Offset = 0,
        explain: Annotated[bool, Meta(description="The plan instead of the answer.")] = False,
    ) -> Rows:
        """Asks one SELECT of the tables of the runs that are named; no other run is in them. Nothing can be changed,
        no file can be reached, and it is stopped after 5 seconds. Give an ORDER BY if you go on with `offset`."""
        values = tuple(params) if isinstance(params, list) else params or ()
        question = Question(sql, values, max_rows, ROOM, offset, explain)
        answer = self._desk.ask(self._desk.tables(run), question)
        names = tuple(column.name for column in answer.columns)
        return Rows(names, answer.rows, answer.truncated, answer.next_offset)

    def series(
        self,
        metric: Annotated[str, Meta(description=f"One of {', '.join(METRICS)}.")],
        run: Run = "latest",
        env: Annotated[Count | None, Meta(description="One environment; left out: all of them.")] = None,
        points: Annotated[int, Meta(ge=1, le=MOST_ROWS, description="Buckets at most.")] = 100,
    ) -> Series:
        """A metric over the steps of a run in buckets (smallest, mean, largest), never raw rows. Of an A/B run, over
        both sides together."""
        if metric not in METRICS:
            hint = did_you_mean(metric, METRICS) or f"; it is one of {', '.join(METRICS)}"
            raise ConfigError(f"metric {shown(repr(metric))}: is not kept at every step{hint}")
        folder = self._desk.folder(run)
        tables, name = tables_of([folder]), Named.of(folder).run
        sql = "from series($run, $metric, $env, null, null, $points)"
        buckets = self._desk.rows(tables, sql, {"run": name, "metric": metric, "env": env, "points": points})
        if not buckets.rows:
            of = "" if env is None else f" of environment {env}"
            raise ConfigError(f"run {name!r}: has told of no step{of}")
        ((unit,),) = self._desk.rows(tables, "select unit from manifest").rows
        return Series(metric, str(unit) if metric == "val_metric" and unit is not None else None, buckets)

    def lifecycle(
        self, episode: Count, run: Run = "latest", env: Count | None = None, group: Group = None, offset: Offset = 0
    ) -> Rows:
        """All that happened to the seeds of one episode, in order: planting, stages (`until_step`: the last step in
        it), gates, changes of level, contributions, pruning, fossilising, and what the governor took back."""
        tables, place = self._place(run, episode, env, group)
        return self._desk.rows(tables, _LIFECYCLE, place, offset=offset)

    def explain_step(
        self, episode: Count, step: Count, run: Run = "latest", env: Count | None = None, group: Group = None
    ) -> Explanation:
        """One decision: what was possible and what was chosen, the slots before and after it, what its reward was made
        of, and what came next."""
        tables, place = self._place(run, episode, env, group)
        here = "from {} where run = $run and g is not distinct from $group and episode = $episode and step"

        def ask(sql: str, share: int) -> Rows:
            return self._desk.rows(tables, sql, {**place, "step": step}, ROOM // share)

        found = ask(f"{here.format('decisions')} = $step", 6)
        if not found.rows:
            ((last,),) = self._desk.rows(tables, f"select max(step) {here.format('live_env_step')} >= 0", place).rows
            raise ConfigError(f"step {step}: episode {episode} of {place['run']!r} has steps 0 to {last}")
        possible = ask(
            f"select k.slot from (select run, slot_mask {here.format('live_env_step')} = $step) s "
            "join slots k using (run) where s.slot_mask >> k.slot_index & 1 = 1 order by k.slot_index",
            12,
        )
        return Explanation(
            decision=dict(zip(found.columns, found.rows[0], strict=True)),
            possible_slots=tuple(str(slot) for (slot,) in possible.rows),
            reward=ask(f"select term, value {here.format('reward_long')} = $step order by abs(value) desc", 12),
            slots=ask(
                "select step, slot, stage, alpha, level, slot_params, seed_id, blueprint_id, grad_ratio "
                f"{here.format('slot_steps')} between $step - 1 and $step order by step, slot_index",
                4,
            ),
            steps=ask(
                "select step, concat_ws(' ', op, slot, blueprint) as decision, done, reward, val_metric, val_loss, "
                f"effective_params {here.format('env_steps')} between $step - 1 and $step + 5 order by step",
                8,
            ),
            events=ask(f"from ({_LIFECYCLE}) where step between $step and $step + 5 order by step, writer, n", 4),
        )

    # ---- verdicts

    def compare_runs(self, a: Runs, b: Runs) -> Comparison:
        """Did it matter? Means over the last fifth of the rounds of each side, their differences a - b with a 95 %
        interval paired by seed, and which settings differ. Give each side several runs with seeds of their own: one
        seed gives no interval."""
        return comparing.compare(self._desk, self._desk.folders(a), self._desk.folders(b))

    def gates(
        self,
        run: Runs = "latest",
        vs: Annotated[str | list[str] | None, Meta(description="Runs to compare with, paired by seed.")] = None,
        phase: Annotated[
            Literal[0, 1, 2],
            Meta(description="0: growing in small steps; 1: a lattice of surfaces; 2: both sides of a pool."),
        ] = 0,
    ) -> Verdicts:
        """Pass or fail? The gates of a phase of the roadmap for the runs as one cohort, with values, intervals and
        limits, against a control where one is given. A failed gate blocks nothing."""
        cohorts = [self._desk.folders(run), [] if vs is None else self._desk.folders(vs)]
        told = (*(tuple(map(str, cohort)) for cohort in cohorts), (str(phase),))
        tables = Tables(judged.load, told, made([folder for cohort in cohorts for folder in cohort]))
        names, controls = (tuple(Named.of(folder).run for folder in cohort) for cohort in cohorts)
        return Verdicts(
            names, controls, self._desk.rows(tables, "select * exclude (place) from verdict order by place")
        )

    def tail(
        self,
        run: Run = "latest",
        types: Annotated[
            list[str] | None, Meta(description="Only these, such as seed.level or gov.rollback; left out: all.")
        ] = None,
        after: Annotated[
            str | None, Meta(description="`next` of the answer before; left out: begin with the last few events.")
        ] = None,
        limit: Limit = 20,
    ) -> Tail:
        """The newest events of a run, or those since an answer before: ask again with `after` to follow a live run."""
        return tailing.tail(self._desk, self._desk.folder(run), types, after, limit)

    # ---- places

    def _place(self, run: str, episode: int, env: int | None, group: str | None) -> tuple[Tables, dict[str, Any]]:
        """The tables of one run, and the parameters that name the episode. ConfigError if there is no such episode."""
        folder = self._desk.folder(run)
        tables, name = tables_of([folder]), Named.of(folder).run
        ((first, last, envs, groups),) = self._desk.rows(
            tables,
            "select min(episode), max(episode), list(distinct env) filter (episode = $episode), "
            "list_sort(list(distinct g) filter (episode = $episode and g is not null)) from live_env_step",
            {"episode": episode},
        ).rows
        if first is None:
            raise ConfigError(f"run {name!r}: has told of no step yet")
        if envs is None:
            raise ConfigError(f"episode {episode}: run {name!r} has episodes {first} to {last}")
        if env is not None and env not in envs:
            raise ConfigError(f"env {env}: episode {episode} of {name!r} was played in environment {envs[0]}")
        if groups and group not in groups:
            each = shown(", ".join(groups))
            raise ConfigError(f"group: episode {episode} of {name!r} was played by each of {each}; name one")
        if not groups and group is not None:
            raise ConfigError(f"group {shown(repr(group))}: run {name!r} has no groups")
        return tables, {"run": name, "group": group, "episode": episode}


_LIFECYCLE = (
    "select l.env, l.step, l.slot, l.seed_id, l.blueprint_id, l.event, l.what, "
    "case when s.steps > 0 then s.to_step end as until_step, l.writer, l.n "
    "from lifecycle l left join lifecycle_spans s on l.event = 'stage' and s.run = l.run and s.episode = l.episode "
    "and s.g is not distinct from l.g and s.slot = l.slot and s.from_step = l.step "
    "and l.what like '%-> ' || s.stage || ' by %' "
    "where l.run = $run and l.g is not distinct from $group and l.episode = $episode "
    "union all select env, step, null, null, null, 'rollback', concat_ws(' ', reason, 'after', decision), null, "
    "writer, n from governor where run = $run and g is not distinct from $group and episode = $episode "
    "order by step, writer, n"
)
"""Of one episode, in the order in which it was told."""
