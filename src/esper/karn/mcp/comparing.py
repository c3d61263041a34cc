"""Two sets of runs side by side: means and differences by the macro `compare`, and which settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.karn.gates import LATE
from esper.karn.manifests import Named
from esper.karn.mcp.answers import ROOM, ComparedRun, Comparison, Measure
from esper.karn.mcp.desk import Desk, tables_of
from esper.karn.verdicts import INCOMPLETE, no_verdict

_RUNS = (
    "select run, status, seed, task, floor($late * rounds_done)::INT as first, rounds_done - 1 as last "
    "from runs order by run"
)
_SETTINGS = (
    "with told as (select m.run, substr(t.fullkey, 3) as setting, coalesce(t.atom::VARCHAR, 'null') as value "
    "from manifest m, json_tree(m.config) t where t.type not in ('OBJECT', 'ARRAY')) "
    "select setting, list_sort(list(distinct value) filter (list_contains($a, run))) as a, "
    "list_sort(list(distinct value) filter (list_contains($b, run))) as b from told "
    "where setting <> 'run.seed' group by setting having a is distinct from b order by setting"
)

Side = Sequence[Mapping[str, Any]]


def compare(desk: Desk, a: Sequence[Path], b: Sequence[Path]) -> Comparison:
    """ConfigError for a run of which lines are missing: it deserves no verdict."""
    tables = tables_of(list(dict.fromkeys([*a, *b])))
    for (run,) in desk.rows(tables, INCOMPLETE).rows:
        raise no_verdict(run)
    found = desk.rows(tables, _RUNS, {"late": LATE}, chars=4 * ROOM)
    told = {row["run"]: row for row in (dict(zip(found.columns, cells, strict=True)) for cells in found.rows)}
    names = [[Named.of(folder).run for folder in side] for side in (a, b)]
    ours, theirs = ([told[name] for name in side] for side in names)
    sides = {"a": names[0], "b": names[1]}
    return Comparison(
        a=_compared(ours),
        b=_compared(theirs),
        measures=tuple(Measure(*row) for row in desk.rows(tables, "from compare($a, $b)", sides).rows),
        settings=desk.rows(tables, _SETTINGS, sides, chars=ROOM // 3),
        warnings=tuple(_warnings(ours, theirs)),
    )


def _compared(side: Side) -> tuple[ComparedRun, ...]:
    return tuple(
        ComparedRun(
            run["run"], run["status"], run["seed"], f"{run['first']} to {run['last']}" if run["last"] >= 0 else "none"
        )
        for run in side
    )


def _warnings(ours: Side, theirs: Side) -> list[str]:
    shared = {run["seed"] for run in ours} & {run["seed"] for run in theirs} - {None}
    found = []
    if not shared:
        found.append("the two sides share no seed: their means are compared unpaired, without an interval")
    elif len(shared) == 1:
        found.append("one seed on both sides gives no interval: any difference may be noise")
    tasks = sorted({str(run["task"]) for run in (*ours, *theirs)})
    if len(tasks) > 1:
        found.append(f"different tasks: {', '.join(tasks)}")
    both = sorted({run["run"] for run in ours} & {run["run"] for run in theirs})
    if both:
        found.append(f"on both sides: {', '.join(both)}")
    unfinished = [run["run"] for run in (*ours, *theirs) if run["status"] != "done"]
    if unfinished:
        found.append(f"not finished: {', '.join(dict.fromkeys(unfinished))}")
    return found
