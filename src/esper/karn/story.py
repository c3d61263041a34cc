"""Runs in sentences: what ran and when, what was grown, what it cost, what it brought, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from esper.karn.figures.canvas import OF, OF_HOST, Subject, count, duration
from esper.karn.figures.comparison import Reached, reached, with_interval
from esper.leyline.statistics import estimate

EARLY = 0.2  # of the rounds; what a policy did then is what it began with
_NAMED = 4  # seeds that are told one by one
_ROUNDING = 1e-4  # by which a ratio of probabilities that is 1 may differ from it


def story(of: Subject) -> list[tuple[str, str]]:
    """(heading, sentences) about the first line."""
    parts = [("What ran", _ran(of)), ("What was grown", _grown(of))]
    found = reached(Subject(of.con, of.lines[:1], of.host))
    if not found:
        return [*parts, ("What it brought", "No episode has come to its end.")]
    return [*parts, ("What it cost", _cost(of, found[0])), ("What it brought", _brought(of, found[0]))]


def _ran(of: Subject) -> str:
    ((controller, task, seed, envs, length, started, host, status, reason, done, rounds, seconds),) = of.con.execute(
        "select m.controller, m.task, m.seed, m.envs, m.episode_length, m.started, m.host, r.status, r.reason, "
        "r.rounds_done, m.rounds, r.seconds from runs r join manifest m using (run) where run = $1",
        [of.lines[0].run],
    ).fetchall()
    took = "" if seconds is None else f" after {duration(seconds)}"
    why = f" ({reason})" if reason else ""
    began = " Status:" if started is None else f" Started {started.replace('T', ' ')} on {host},"
    if rounds is None:  # a folder that holds nothing but arms, or was only just begun
        return f"It has not said what it runs; {status}."
    so_far = _several(rounds, "round") if done == rounds else f"{done} of {_several(rounds, 'round')}"
    each = f"{_several(envs, 'episode')} of {_several(length, 'step')}"
    return f"{controller} on {task}, seed {seed}: {so_far} of {each}.{began} {status}{took}{why}."


def _grown(of: Subject) -> str:
    sql = "select sum(germinated), sum(fossilized), sum(pruned) from blueprint_stats where"
    ((planted, kept, pruned),) = of.rows(f"{sql} {OF}")
    if not planted or of.host is None:
        return "Nothing was planted."
    seeds = of.rows_of_host(
        "with ladders as (select seed_id from live_seed_germinated "
        f"where {OF_HOST} and internal_max_level > 1) "
        "select blueprint_id || if(seed_id in (from ladders), format(' at level {}', internal_level), '') || "
        f"format(' in {{}} (step {{}})', slot_id, step) from live_seed_fossilized where {OF_HOST} order by step"
    )
    names = [name for (name,) in seeds[:_NAMED]] + (["others"] if len(seeds) > _NAMED else [])
    return (
        f"{_several(planted, 'seed')} planted, {kept:.0f} kept, {pruned:.0f} pruned. "
        f"The host that is looked at below (round {of.host.round}, environment {of.host.env}) kept "
        f"{', '.join(names) or 'none'}."
    )


def _cost(of: Subject, found: Reached) -> str:
    ((wasted, rollbacks),) = of.rows(
        f"select sum(flops_wasted) / nullif(sum(flops), 0), sum(rollbacks) from episodes where {OF}"
    )
    lost = "" if wasted is None else f", {wasted:.0%} of them for what did not stay"
    time = "" if found.seconds is None else f" in {duration(found.seconds)}"
    return (
        f"{with_interval(found.doublings)} doublings of the host's parameters, to {count(found.params)} on average. "
        f"{count(found.flops)} FLOPs{time}{lost}; {_several(rollbacks, 'rollback')}."
    )


def _brought(of: Subject, found: Reached) -> str:
    if found.test is None:
        return f"Every host diverged: {found.over}."
    early = of.rows(
        f"select j from episodes join manifest using (run) where {OF} and round < floor($3 * rounds) and isfinite(j)",
        EARLY,
    )
    began = f" In the first fifth J was {with_interval(estimate([j for (j,) in early]), of.digits)}." if early else ""
    late = " of the last fifth of the rounds" if of.manifest("rounds") > 1 else ""
    return (
        f"Test {of.metric} {with_interval(found.test, of.digits)}, J {with_interval(found.j, of.digits)}: test metric "
        f"less rent, over {found.over}{late}.{began}"
    )


def _several(n: float, what: str) -> str:
    return f"{n:.0f} {what}" if n == 1 else f"{n:.0f} {what}s"


# --- what went wrong -----------------------------------------------------------------------------------------------


def problems(con: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> list[str]:
    """Why these runs, or what is told of them, should be read with care; a sentence each."""
    found = con.execute(
        """
        with ours as (select unnest($1) as run), told as (
            select run, 1 as kind, format('{} died: its process ended without a word', run) as what from runs
                where status = 'died'
            union all select run, 2, format('{} {}: {}', run, status, reason) from runs
                where status in ('failed', 'interrupted')
            union all select run, 3, format('{} is incomplete: {}', run, incomplete) from manifest
                where incomplete is not null
            union all select run, 4, format('{}: {} events of writer {} are missing', run, missing, writer)
                from integrity where missing > 0
            union all select run, 5, format('{}: {} lines of writer {} are no events; {}', run, bad_lines, writer,
                first_bad) from integrity where bad_lines > 0
            union all select run, 6, format('{}: the last {} bytes of writer {} are half a line', run, torn_bytes,
                writer) from integrity join manifest using (run) where torn_bytes > 0 and not running
            union all select run, 7, format('{}: {} decisions of update {} were forbidden by their masks', run,
                invalid_executed, update) from ppo_updates where invalid_executed > 0
            union all select run, 8, format('{}: at {} steps of update {} the masks forbade everything', run,
                all_masked, update) from ppo_updates where all_masked > 0
            union all select run, 9, format('{}: update {} began with a ratio that is off by {:.1e}', run, update,
                ratio_error) from ppo_updates where ratio_error > $2
            union all select run, 10, format('{}: update {} was skipped: {}', run, update, skipped) from ppo_updates
                where skipped is not null
            union all select run, 11, format('{} warned: {}', run, text) from live_log where level <> 'info'
        )
        select what from told join ours using (run) order by run, kind, what
        """,
        [list(runs), _ROUNDING],
    ).fetchall()
    return [what for (what,) in found]
