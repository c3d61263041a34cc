"""`esper show RUN`: one screen about a run: what was grown, when, what it cost, what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

import duckdb

from esper.leyline.stages import SeedStage
from esper.leyline.statistics import estimate, points_of
from esper.nissa.lanes import LEGEND, bars
from esper.nissa.progress import STAGE_MARKS
from esper.nissa.storage import shown
from esper.scripts.columns import cells, plain

_OF = "run = $1 and g is not distinct from $2"


def screen(con: duckdb.DuckDBPyConnection, run: str) -> str:
    """The screen of one run, whatever state it is in. `con`: a database with all views."""
    groups = con.execute("select distinct g from live_env_step where run = ? order by g", [run]).fetchall()
    parts = [_head(con, run)]
    for (group,) in groups or [(None,)]:
        parts += [] if group is None else [f"Group {shown(group)}:"]
        parts += _of_group(con, [run, group])
    return "\n".join(part for part in parts if part).rstrip()


def _of_group(con: duckdb.DuckDBPyConnection, line: Sequence[str | None]) -> list[str]:
    """What came of a run, or of one of the two learners of an A/B run. line: run and group."""
    for sql in (
        f"select round, env from episodes where {_OF} order by round desc, j desc nulls last, env limit 1",
        f"select round, env from live_env_step where {_OF} order by round desc, env limit 1",  # none is finished yet
    ):
        if best := con.execute(sql, line).fetchone():
            return [_outcome(con, line), _learning(con, line), *_host(con, line, *best)]
    return [_outcome(con, line), "nothing has been told of a step yet"]


def _head(con: duckdb.DuckDBPyConnection, run: str) -> str:
    task, controller, seed, started, status, reason, done, rounds, seconds, complete = _row(
        con,
        "select task, controller, seed, started, status, reason, rounds_done, rounds, seconds, complete from runs "
        "where run = ?",
        run,
    )
    told = (task, controller, seed, started, status, rounds)
    task, controller, seed, started, status, rounds = map(_known, told)
    took = "" if seconds is None else f", {seconds:.0f} s"
    lines = [
        shown(run),
        f"{task} under {controller}, seed {seed}, started {started}",
        f"{status}{f' ({shown(reason)})' if reason else ''} after {done} of {rounds} rounds{took}",
    ]
    if not complete:
        lines.append("! lines of this run are missing on the disk; `from integrity` says which")
    return "\n".join(lines) + "\n"


def _outcome(con: duckdb.DuckDBPyConnection, line: Sequence[str | None]) -> str:
    """Means over the episodes of the last round, with 95 % intervals where there are several."""
    rows = con.execute(
        "select test_metric, j, host_params, params, doublings, flops, flops_wasted, rollbacks, refused, operations "
        f"from episodes where {_OF} and round = (select max(round) from episodes where {_OF})",
        line,
    ).fetchall()
    if not rows:
        return "no episode has come to its end\n"
    metric, unit = map(_known, _row(con, "select metric, unit from manifest where run = ?", line[0]))
    losses = con.execute(
        f"select test_loss from episodes where {_OF} and round = (select max(round) from episodes where {_OF}) "
        "and test_loss is not null",
        line,
    ).fetchall()
    test, j, host, params, doublings, flops, wasted, rollbacks, refused, operations = (
        [value for value in column if value is not None] for column in zip(*rows, strict=True)
    )
    if not test:
        return f"all {len(rows)} hosts of the last round diverged\n"
    spent, lost = sum(flops), sum(wasted)
    return (
        f"What it brought: test {metric} {_shown(test, unit)} {unit}; worth {_shown(j, unit)} after rent "
        f"({len(rows)} host{'s' if len(rows) > 1 else ''} of the last round)\n{_perplexity(unit, losses)}"
        f"What it cost:    {_mean(host):.0f} -> {_mean(params):.0f} parameters ({_mean(doublings):+.2f} doublings), "
        f"{spent / len(rows) / 1e9:.1f} GFLOPs each, {lost / spent if spent else 0:.0%} of them wasted\n"
        f"How it went:     {_mean(operations):.1f} operations per host, {_mean(refused):.1f} refused, "
        f"{sum(rollbacks)} rollbacks\n"
    )


def _learning(con: duckdb.DuckDBPyConnection, line: Sequence[str | None]) -> str:
    updates = con.execute(
        f"select explained_variance, approx_kl, clip_fraction, ratio_error from ppo_updates where {_OF} "
        "order by update",
        line,
    ).fetchall()
    if not updates:
        return ""
    rounds = con.execute(f"select reward_mean from rounds where {_OF} order by round", line).fetchall()
    means = [mean for (mean,) in rounds]
    tenth = max(1, len(means) // 10)
    explained, kl, clipped, _ = updates[-1]
    return (
        f"What it learned: mean return {_mean(means[:tenth]):.2f} in the first tenth of the rounds, "
        f"{_mean(means[-tenth:]):.2f} in the last\n"
        f"                 last update: explained variance {cells([explained])[0]}, KL {cells([kl])[0]}, clipped "
        f"{cells([clipped])[0]}; largest ratio error {max(row[3] for row in updates):.1g}\n"
    )


def _host(con: duckdb.DuckDBPyConnection, line: Sequence[str | None], round_: int, env: int) -> list[str]:
    """The lanes of one host, one column per step, and its seeds."""
    where, names = f"{_OF} and round = $3 and env = $4", [*line, round_, env]
    lines = [f"The best host of the last round (round {round_}, environment {env}), one column per step:"]
    slots: dict[str, str] = {}
    for slot, stage in con.execute(
        f"select slot, stage from slot_steps where {where} order by slot_index, step", names
    ).fetchall():
        slots[slot] = slots.get(slot, "") + STAGE_MARKS[SeedStage[stage]][0]
    lines += [f"  {slot:<8}{lane}" for slot, lane in slots.items()]
    metrics = con.execute(f"select val_metric from live_env_step where {where} order by step", names).fetchall()
    lines += [f"  {'metric':<8}{bars([metric for (metric,) in metrics])}", f"  {LEGEND}", ""]
    seeds = con.execute(
        f"""with born as (select seed_id, slot_id, blueprint_id, step, params from live_seed_germinated where {where}),
        kept as (select seed_id, step, internal_level, params from live_seed_fossilized where {where}),
        gone as (select seed_id, step, initiator from live_seed_pruned where {where}),
        brought as (select seed_id, arg_max(metric, step) as metric from live_seed_cf
            where {where} and against = 'off' group by seed_id)
        select b.slot_id, b.blueprint_id, b.step, case when k.step is not null then 'kept at ' || k.step
            when g.step is not null then 'pruned at ' || g.step || ' by ' || g.initiator else 'alive' end,
            k.internal_level, coalesce(k.params, b.params), m.metric
        from born b left join kept k using (seed_id) left join gone g using (seed_id)
        left join brought m using (seed_id)
        order by b.step, b.slot_id""",
        names,
    ).fetchall()
    if not seeds:
        return [*lines, "Nothing was planted in it.\n"]
    (unit,) = _row(con, "select unit from manifest where run = ?", names[0])
    counted_in = points_of(None if unit is None else shown(unit))
    head = ("slot", "blueprint", "planted", "what became of it", "level", "parameters", f"brought ({counted_in})")
    return [*lines, plain((head, [cells(row) for row in seeds])) + "\n"]


def _known(text: object) -> str:
    """What a run says of itself, for a terminal."""
    return "–" if text is None else shown(text)


def _row(con: duckdb.DuckDBPyConnection, sql: str, run: int | str | None) -> tuple[Any, ...]:
    found = con.execute(sql, [run]).fetchone()
    assert found is not None, f"{run} is in the database"
    return found


def _mean(values: Sequence[float]) -> float:
    return estimate(values).mean


def _shown(values: Sequence[float], unit: str) -> str:
    if not values:
        return "–"
    found, digits = estimate(values), 2 if unit == "%" else 4
    return f"{found.mean:.{digits}f}" + ("" if found.half_width is None else f" ± {found.half_width:.{digits}f}")


def _perplexity(unit: str, losses: Sequence[tuple[float]]) -> str:
    """A line with exp of the loss in nats, where the metric is in bits; nothing elsewhere."""
    if unit != "bits" or not losses:
        return ""
    return f"Perplexity:      {estimate([exp(loss) for (loss,) in losses]).mean:.2f} equally likely characters\n"
