"""`python -m bench [QUESTION ...] [--quick]`: asks the questions of this folder, one per file, and keeps the answers.

Prints a table against the bounds and writes all samples to `bench/results/`. Exit code 1 if a bound was missed.
To add a question write a file with `answer(effort)` that names it in its first line, and enter it in `QUESTIONS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import (
    eval_batch,
    events,
    gate_cost,
    ladder_levels,
    leave_one_out,
    memory,
    memory_queries,
    memory_store,
    memory_telemetry,
    run,
    sanctum,
    spread,
    step,
    step_language,
    toy,
)
from bench.measuring import FULL, QUICK, Finding, settle_the_machine
from esper.scripts.manifest import commit

QUESTIONS: dict[str, ModuleType] = {
    "step": step,
    "run": run,
    "leave_one_out": leave_one_out,
    "ladder_levels": ladder_levels,
    "events": events,
    "gate_cost": gate_cost,
    "memory": memory,
    "eval_batch": eval_batch,
    "memory_store": memory_store,
    "memory_queries": memory_queries,
    "memory_telemetry": memory_telemetry,
    "sanctum": sanctum,
    "toy": toy,
    "step_language": step_language,
    "spread": spread,
}
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Times esper against plainly written code.")
    parser.add_argument("question", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="fewer samples: a first look, no claim")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the JSON file")
    args = parser.parse_args(argv)
    unknown = [name for name in args.question if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question {unknown[0]!r}; there are {', '.join(QUESTIONS)}")
    settle_the_machine()
    answers: dict[str, list[Finding]] = {}
    for name in args.question or QUESTIONS:
        print(f"\n{name}: {_question(QUESTIONS[name])}", flush=True)
        answers[name] = QUESTIONS[name].answer(QUICK if args.quick else FULL)
        print("\n".join(map(_line, answers[name])), flush=True)
    path = _save(args.results, answers, args.quick)
    missed = sum(finding.missed for findings in answers.values() for finding in findings)
    print(f"\n{missed or 'no'} bound{'' if missed == 1 else 's'} missed; all samples: {path}")
    return 1 if missed else 0


def _question(module: ModuleType) -> str:
    assert module.__doc__ is not None
    return module.__doc__.splitlines()[0]


def _line(finding: Finding) -> str:
    shown = f"{finding.value:.3f}" if finding.unit == "x" else f"{finding.value:.1f}"
    noise = f"±{finding.noise:.3f}" if finding.noise else ""
    bound = "" if finding.bound is None else f"at most {finding.bound:.3g}"
    verdict = "" if finding.bound is None else "MISSED" if finding.missed else "kept"
    return f"  {finding.what:<70}{shown:>9} {finding.unit:<7}{noise:<8} {bound:<13} {verdict}".rstrip()


def _save(folder: Path, answers: Mapping[str, Sequence[Finding]], quick: bool) -> Path:
    """Everything in one new file."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "quick": quick,
        "commit": commit() or "unknown",
        "machine": _machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "answers": {
            name: [asdict(finding) | {"missed": finding.missed} for finding in findings]
            for name, findings in answers.items()
        },
    }
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":")[1].strip() if named else model
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {"system": platform.platform(), "cpu": model, "cores": os.cpu_count(), "load": load, "threads": 1}


if __name__ == "__main__":
    sys.exit(main())
