"""How long does a reader wait for an answer about a run of a million steps?

Ten questions that `esper show`, `esper report`, `esper gates` and the MCP server put to the views, `ASKED` below. The
run is that of `memory_store.py`, opened once; the questions take turns, and the first answers count as much as others.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench.measuring import Effort, Finding, noise_of
from bench.memory_store import STEPS, generate
from esper.karn.memory import open_memory
from esper.karn.store import Store

BOUND_MS = 500.0  # of the 95th percentile, on two cores
_TURNS = 3  # of all ten questions in a burst

ASKED = {
    "show: what the last round brought": """
        select test_metric, j, params, flops, rollbacks, refused from episodes
        where run = $run and round = (select max(round) from episodes where run = $run)""",
    "show: what stood in the slots of a host": """
        select slot, stage from slot_steps where run = $run and round = 800 and env = 3 order by slot_index, step""",
    "report: operations from round to round": """
        select max(round), choice, sum(n) from action_mix where run = $run and head = 'op'
        group by choice, round // 3 order by 1""",
    "report: what rewards were made of": """
        select max(round), term, sum(value) from reward_long where run = $run group by term, round // 3 order by 1""",
    "report: gain and rent of seeds": "from rent_roi where run = $run order by blueprint_id, level",
    "gates: use of internal operations": """
        select sum(internal), sum(acting), sum(uniform_share * steps) / sum(steps) from internal_usage
        where run = $run and late""",
    "gates: what growing by a level brought": """
        select gain_20_per_1k from level_changes where run = $run and cause = 'op' and to_level > from_level""",
    "gates: thrash": """
        select sum(changes), sum(ladder_steps), sum(abs(net_level_change)) from churn where run = $run""",
    "MCP: the seeds of an episode": "from lifecycle where run = $run and episode = 4000 order by step, n",
    "MCP: the metric over all steps": "from series($run, 'val_metric', null, null, null, 100)",
}
"""By who asks and for what."""


def answer(effort: Effort) -> list[Finding]:
    waited = defaultdict[str, list[float]](list)  # milliseconds by the wall clock, since waiting counts
    worked = defaultdict[str, list[float]](list)  # the same of CPU, of all threads together
    p95 = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "made-up"
        generate(folder, STEPS)
        with open_memory([folder]) as store:
            for _ in range(effort.bursts):
                burst = []
                for name, sql in [*ASKED.items()] * _TURNS:
                    wall_ms, cpu_ms = _asked(store, sql)
                    waited[name].append(wall_ms)
                    worked[name].append(cpu_ms)
                    burst.append(wall_ms)
                p95.append(statistics.quantiles(burst, n=20)[18])
    return [
        Finding("ten questions, 95th percentile", statistics.median(p95), "ms", BOUND_MS, noise_of(p95), {"ms": p95}),
        *(
            Finding(name, statistics.median(ms), "ms", None, noise_of(ms), {"wall_ms": ms, "cpu_ms": worked[name]})
            for name, ms in waited.items()
        ),
    ]


def _asked(store: Store, sql: str) -> tuple[float, float]:
    """Milliseconds, by the wall clock and of CPU, until all rows are here."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = store.con.execute(sql, {"run": "made-up"}).fetchall()
    found = 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)
    assert rows, f"nothing is found by {sql}"
    return found
