"""Two sets of runs side by side: means, differences paired by seed, and which settings differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from esper.karn.gates import INCOMPLETE, LATE, no_verdict
from esper.karn.manifests import Named
from esper.karn.mcp.answers import ROOM, ComparedRun, Comparison, Measure
from esper.karn.mcp.desk import Desk, tables_of
from esper.leyline.statistics import estimate

MEASURES = (
    *("test_metric", "val_metric", "j", "reward", "params", "doublings", "fossilized", "operations", "refused"),
    *("rollbacks", "flops", "flops_wasted"),
)
"""Columns of the view `episodes`."""

_RUNS = (
    "select r.run, r.status, r.seed, r.task, floor($late * r.rounds_done)::INT as first, r.rounds_done - 1 as last, "
    f"{', '.join(f'avg(e.{name}) as {name}' for name in MEASURES)} "
    "from runs r left join episodes e on e.run = r.run and e.round >= floor($late * r.rounds_done) "
    "group by all order by r.run"
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
    return Comparison(
        a=_compared(ours),
        b=_compared(theirs),
        measures=tuple(measure for name in MEASURES if (measure := _measure(name, ours, theirs)) is not None),
        settings=desk.rows(tables, _SETTINGS, {"a": names[0], "b": names[1]}, chars=ROOM // 3),
        warnings=tuple(_warnings(ours, theirs)),
    )


def _compared(side: Side) -> tuple[ComparedRun, ...]:
    return tuple(
        ComparedRun(
            run["run"], run["status"], run["seed"], f"{run['first']} to {run['last']}" if run["last"] >= 0 else "none"
        )
        for run in side
    )


def _measure(name: str, ours: Side, theirs: Side) -> Measure | None:
    """None where one side has no such number."""
    a, b = _by_seed(name, ours), _by_seed(name, theirs)
    if not a or not b:
        return None
    shared = sorted(seed for seed in a.keys() & b.keys() if seed is not None)
    means = fmean(a.values()), fmean(b.values())
    if not shared:
        return Measure(name, *means, means[0] - means[1], None, None, 0)
    found = estimate([a[seed] - b[seed] for seed in shared])
    return Measure(name, *means, found.mean, found.low, found.high, found.n)


def _by_seed(name: str, side: Side) -> dict[int | None, float]:
    """The mean over the runs of each seed; what is missing or not finite is left out."""
    values: dict[int | None, list[float]] = defaultdict(list)
    for run in side:
        if isinstance(run[name], int | float):
            values[run["seed"]].append(run[name])
    return {seed: fmean(numbers) for seed, numbers in values.items()}


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
