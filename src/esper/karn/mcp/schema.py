"""What SQL can be asked of, in words: views, macros and tables, their columns with units, and examples.

All of it is the same for every run, and is read out of an empty store.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import cache
from typing import Final

from esper.karn.mcp.answers import ListedView, ViewColumn, ViewDescription, ViewList
from esper.karn.memory import open_memory
from esper.karn.phases import create_gates
from esper.karn.tables import TABLES
from esper.karn.views import views
from esper.leyline.errors import ConfigError, did_you_mean
from esper.leyline.telemetry import EVENTS
from esper.nissa.storage import shown

UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "seconds since 1970-01-01 UTC": ("ts",),
    "seconds": ("seconds", "phase_seconds"),
    "counts from 0": ("round", "episode", "env", "step", "update", "from_step", "to_step"),
    "steps (epochs of the host)": (
        "steps",
        "ladder_steps",
        "age",
        "age_at_prune",
        "mean_steps",
        "median_steps",
        "longest",
    ),
    "unit of the task's metric (`metric` and `unit` of `runs`)": (
        *("val_metric", "test_metric", "val_min", "val_max", "metric_before", "metric_1", "metric_5", "metric_20"),
        *(
            "contribution",
            "contribution_before",
            "contribution_after",
            "level_effect",
            "level_effect_sem",
            "gain_20",
            "gain",
        ),
    ),
    "sign * test metric - rent * doublings": ("j", "mean_j"),
    "log2 of the parameters over those of the bare host": ("doublings",),
    "unit of the metric, taken off for parameters": ("rent", "rent_change"),
    "share, 0 to 1": (
        *("share", "share_of_acting", "possible_share", "done_share", "uniform_share", "outside_share"),
        *("saturated_share", "probability", "clip_fraction", "concentration", "alpha"),
    ),
    "normalised entropy: 1 chose evenly, 0 always the same": ("entropy",),
    "correlation, -1 to 1": ("return_and_j", "return_and_metric"),
    "changes of level per step of a live ladder seed": ("level_change_rate",),
    "floating-point operations of the episode so far": ("flops", "flops_wasted"),
    "bit i: choice i was possible": ("op_mask", "slot_mask"),
    "null, or the team of an A/B run": ("g",),
}
_UNIT_OF = {column: unit for unit, columns in UNITS.items() for column in columns}

EXAMPLES: Final[Mapping[str, str]] = {
    "runs": "select run, status, seed, test_metric, params from runs order by started",
    "rounds": "select round, test_metric, reward_mean, params from rounds order by round",
    "episodes": "select round, avg(j) as j, avg(params) as params from episodes group by round order by round",
    "env_steps": "select op, count(*) as n, avg(reward) as reward from env_steps group by op order by n desc",
    "slot_steps": "select slot, stage, count(*) as steps from slot_steps group by all order by slot, steps desc",
    "lifecycle": "from lifecycle where event = 'pruned' order by round, env, step",
    "lifecycle_spans": "select stage, next_stage, count(*) as n from lifecycle_spans group by all order by n desc",
    "stage_durations": "select blueprint_id, stage, mean_steps from stage_durations order by all",
    "level_changes": "select from_level, to_level, count(*) as n, avg(gain_20) as gain_20 from level_changes "
    "where cause = 'op' group by all order by all",
    "churn": "select round, avg(level_change_rate) as rate, count(*) filter (thrash) as thrashing from churn "
    "group by round order by round",
    "decisions": "select episode, step, decision, refused_by, possible_ops from decisions where not done",
    "action_mix": "select round, choice, share, possible_share from action_mix where head = 'op' order by all",
    "head_health": "select update, head, entropy from head_health where collapsed order by update, head",
    "reward_long": "select term, sum(value) as total from reward_long group by term order by total desc",
    "rent_roi": "select blueprint_id, level, gain, rent, roi from rent_roi where on_frontier order by rent",
    "blueprint_stats": "select blueprint_id, germinated, share, contribution from blueprint_stats order by share desc",
    "slot_usage": "select slot, germinated, fossilized, share from slot_usage order by slot_index",
    "surface_usage": "select surface, germinated, share from surface_usage order by share desc",
    "ppo_updates": "select update, explained_variance, approx_kl, clip_fraction from ppo_updates order by update",
    "op_values": "select op, arg_max(value, update) as last_value from op_values group by op order by last_value desc",
    "observations": "select sensor, max(outside_share) as outside from observations group by sensor "
    "order by outside desc",
    "governor": "select reason, count(*) as n from governor group by reason order by n desc",
    "ddp_divergence": "select round, rank, kind, field, value, all_values from ddp_divergence order by ts",
    "calibration": "select run, return_and_j, return_and_metric from calibration",
    "throughput": "select phase, sum(phase_seconds) as seconds from throughput group by phase order by seconds desc",
    "internal_usage": "select round, share, uniform_share from internal_usage order by round",
    "entropy_collapse": "select head, max(in_a_row) as longest from entropy_collapse group by head order by head",
    "series": "from series((select min(run) from runs), 'val_metric', null, null, null, 50)",
    "compare": "from compare((select list(run) from runs where controller = 'ppo'), "
    "(select list(run) from runs where controller = 'heuristic'))",
}
"""A question that each view is for. Every run that is asked about is in the tables, and no other."""

_TABLES: Final[Mapping[str, tuple[str, str]]] = {
    "manifest": ("run", "What was started where, with all settings as JSON in `config`."),
    "slots": ("run x slot", "Where seeds can be planted."),
    "choices": ("run x head x choice", "What could be chosen."),
    "integrity": ("writer", "What was lost or could not be read."),
    "bad_lines": ("line", "Lines that are no event of this schema; their text is data."),
    "gates": (
        "run x gate",
        "The phase-0 gates, every run by itself, when it was opened; the tool `gates` is up to date.",
    ),
    "ops": ("operation", "What can be done, and its price."),
    "stages": ("stage", "Stages of a seed."),
    "heads": ("head", "Parts of a decision."),
    "internal_kinds": ("kind", "Kinds of ladders within seeds."),
    "students_t": ("number of values", "How many standard errors their mean's 95 % interval reaches to each side."),
    "event_types": ("event", "Names of events on the wire and of their tables."),
}


@cache
def view_list() -> ViewList:
    """Everything, each with what it answers."""
    found = [ListedView(view.name, view.kind, view.grain, view.summary) for view in views()]
    found += [ListedView(name, "table", grain, summary) for name, (grain, summary) in _TABLES.items()]
    for table in TABLES:
        about = " ".join((EVENTS[table.event].__dict__.get("__doc__") or "").split())
        told = f"What the event {table.event.value} says. {about}".strip()
        also = f"`{table.name}` also has what a later attempt of the run has replaced."
        found.append(ListedView(f"live_{table.name}", "view", "event", f"{told} {also}"))
    return ViewList(tuple(found))


def describe(name: str) -> ViewDescription:
    """One of them. ConfigError for a name that there is not."""
    listed = {view.name: view for view in view_list().views}
    listed |= {table.name: listed[f"live_{table.name}"] for table in TABLES}
    if name not in listed:
        raise ConfigError(f"view {shown(repr(name))}: there is none{did_you_mean(name, listed) or '; see list_views'}")
    view = listed[name]
    columns = tuple(ViewColumn(column, kind, _UNIT_OF.get(column)) for column, kind in _columns()[name])
    whole = [] if view.kind == "macro" else [f"from {name} limit 20"]
    examples = [*([EXAMPLES[name]] if name in EXAMPLES else []), *whole]
    return ViewDescription(name, view.kind, view.grain, view.summary, columns, tuple(examples))


def schema_text() -> str:
    """Everything on one page."""
    parts = ["Tables and views of a run for the tool `query`; DuckDB's SQL, one SELECT at a time.\n"]
    for view in view_list().views:
        columns = ", ".join(f"{column} {kind}" for column, kind in _columns()[view.name])
        grain = f" [one row: {view.grain}]" if view.grain else ""
        parts.append(f"{view.kind} {view.name}{grain}: {view.summary}\n    {columns}\n")
    parts += ["Units, by the names of columns:", *(f"{unit}: {', '.join(names)}" for unit, names in UNITS.items())]
    return "\n".join(parts)


@cache
def _columns() -> dict[str, list[tuple[str, str]]]:
    """Names and types of the columns of all of them, from the database itself."""
    with closing(open_memory([])) as store:
        create_gates(store.con)
        names = [name for (name,) in store.con.execute("SELECT table_name FROM information_schema.tables").fetchall()]
        calls = {name: name for name in names}
        calls |= {"series": "series('', 'reward', null, null, null, 1)", "compare": "compare([''], [''])"}
        return {
            name: [
                (str(column), str(kind)) for column, kind, *_ in store.con.execute(f"DESCRIBE FROM {call}").fetchall()
            ]
            for name, call in calls.items()
        }
