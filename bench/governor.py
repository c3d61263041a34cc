"""What does the governor find, how soon, and what does it leave alone? `python -m bench.governor`, in `make chaos`.

Nine faults in hosts of several seeds (`governor_faults.py`), two in policies, and healthy steps of every task
(`governor_healthy.py`). A row whose promise was not kept makes the exit code 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tests.simic.agent.small import jumble_network, ppo_for, round_of
from tests.support import small_task

from bench.governor_faults import Row, matrix
from bench.governor_healthy import Lived, lived
from esper.leyline.task import Task
from esper.runtime.tasks import make_task

HOSTS = {
    "digits": {"batch_size": 32, "epoch_items": 16 * 32},
    "stdlib_lm": {"batch_size": 8, "epoch_items": 16 * 8, "width": 24, "heads": 2, "context": 16},
}
"""One of images under SGD and one of text under AdamW and a warm-up, made small."""


def host(name: str) -> Task:
    return make_task(small_task(name, **HOSTS[name]), 0)


def fault_table(rows: Sequence[Row]) -> str:
    lines = [
        "| fault | task | hosts | first step not taken after | alarm after (median) | taken back | elsewhere | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        back = sum(case.taken_back for case in row.cases)
        shown = (_steps(row.middle("skipped_after")), _steps(row.middle("alarm_after")))
        verdict = "NO" if not row.kept else "yes" if row.owed else "nothing owed"
        cells = (row.fault, row.task, len(row.cases), *shown, back, row.wrong, verdict)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _steps(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


@dataclass(frozen=True)
class PolicyRow:
    """What became of policies that were spoilt."""

    fault: str
    undone: int  # the update that the fault fell into
    restored_after: Sequence[int]  # updates, of each policy that went back to a good one
    policies: int

    @property
    def kept(self) -> bool:
        return self.undone == len(self.restored_after) == self.policies


def policies(seeds: Sequence[int]) -> list[PolicyRow]:
    """A broken weight, and a step size that is far too large."""
    rows = []
    for fault in ("NaN in a policy's weight", "a policy's learning rate x 1000"):
        undone, restored = 0, []
        for seed in seeds:
            network = jumble_network(seed)
            ppo = ppo_for(network, seed)
            for round_ in range(4):
                assert not ppo.learn(round_of(network, seed=10 * seed + round_)).skipped
            if "NaN" in fault:
                with torch.no_grad():
                    network.actor[-1].weight[0, 0] = torch.nan
            else:
                ppo.config = replace(ppo.config, lr=1.0, max_grad_norm=100.0)
            for after in range(3):
                told = ppo.learn(round_of(network, seed=1000 + after))
                undone += after == 0 and bool(told.skipped)
                if told.restored_update is not None:
                    restored.append(after)
                    break
        rows.append(PolicyRow(fault, undone, restored, len(seeds)))
    return rows


def policy_table(rows: Sequence[PolicyRow]) -> str:
    lines = ["| fault | policies | update undone | gone back after updates | kept |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        back = ", ".join(map(str, sorted(set(row.restored_after)))) or "–"
        cells = (row.fault, row.policies, row.undone, back, "yes" if row.kept else "NO")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def healthy_table(done: Sequence[Lived]) -> str:
    """By controller; the bound is of the rate of false rollbacks, at 95 %."""
    lines = [
        "| controller | tasks | episodes | steps | operations done | not taken | suspicions | rollbacks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for controller in sorted({each.wanted.controller for each in done}):
        of = [each for each in done if each.wanted.controller == controller]
        sums = [sum(getattr(each, name) for each in of) for name in ("steps", "operations", "skipped", "suspicions")]
        back = sum(len(each.rollbacks) for each in of)
        cells = (controller, len({each.wanted.task for each in of}), len(of), *sums, back)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.governor", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="hosts that meet each fault (5); 0: no faults"
    )
    parser.add_argument("--tasks", nargs="+", default=list(HOSTS), choices=HOSTS, help="whose hosts meet the faults")
    parser.add_argument("--steps", type=int, default=100_000, metavar="N", help="healthy steps (100000)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, metavar="M", help="stop the healthy steps after that"
    )
    parser.add_argument("--kept", type=Path, metavar="FILE", help="healthy episodes that are there already; grows")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes for the healthy steps (1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    kept = True
    if args.seeds:
        seeds = range(args.seeds)
        rows = [row for name in args.tasks for row in matrix(host(name), seeds)]
        learners = policies(seeds)
        print(fault_table(rows), policy_table(learners), sep="\n\n", flush=True)
        kept = all(row.kept for row in (*rows, *learners))
    if args.steps:
        done = lived(args.steps, args.kept, args.jobs, time.monotonic() + 60 * args.minutes)
        print(healthy_table(done))
        for each in done:
            for why in each.rollbacks:
                print(f"taken back without need: {each.wanted}: {why}", file=sys.stderr)
        kept = kept and not any(each.rollbacks for each in done)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
