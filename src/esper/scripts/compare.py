"""`esper compare`: did growing pay? Every arm on the same seeds, one table, and a verdict in words.

Arms: the host never grown (`static`), grown under rules, the grown run's final topology from scratch, and hosts widened
uniformly to the nearest parameter counts below and above. One learning rate for all of them, tuned for `static`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esper.leyline.errors import ConfigError
from esper.leyline.task import Metric
from esper.nissa.run_folder import RunFolder
from esper.runtime.tasks import TASKS, recipe_of, widened_tasks
from esper.scripts.arms import Arm, ArmResult, Runner, by_seed, joint_digest, make_arm, save, workers
from esper.scripts.cli import warn
from esper.scripts.config import EsperConfig
from esper.scripts.presets import PRESETS
from esper.scripts.resumable import asked_before, fresh_folder
from esper.scripts.runner import prepare
from esper.scripts.tables import comparison_table, verdicts
from esper.scripts.train import add_common, configure

KIND = "compare"
GROWN = "heuristic"
RULES = ("static", GROWN, "periodic", "random")
AFTER = ("scratch", "uniform_below", "uniform_above")
LR_FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the task's own rate
LR_FIRST = (2, 5)  # those tried at first; the others while the best is at an edge
TUNING_SEEDS = (1_000_001, 1_000_002)  # never among the compared ones

EXAMPLES = """examples:
  esper compare --task digits_clutter --seeds 5
  esper compare --task digit_pairs --seeds 5 --jobs 2
  esper compare --task cifar_baseline --data synthetic --seeds 3 --episode-length 20
"""


@dataclass(frozen=True)
class Plan:
    """What `run.json` holds besides the settings, so that a comparison can go on."""

    seeds: int
    command_line: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    task: str
    metric: Metric
    lr: float
    lr_scores: dict[float, float]  # learning rate -> validation metric of the never-grown host
    results: list[ArmResult]
    seconds: float


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "compare",
        help="did growing pay? grown, never grown, from scratch and widened hosts in one table",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="what to compare on; see esper list tasks")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="paired repetitions (5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)")
    parser.add_argument("--lr", dest="task_lr", type=float, help="this learning rate instead of a tuned one")
    parser.add_argument("--episode-length", type=int, metavar="N", help="host epochs of every arm")
    parser.add_argument("--blueprints", nargs="+", metavar="BLUEPRINT", help="what may germinate")
    parser.add_argument("--data", help="cifar10 or synthetic, for the cifar tasks")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with downloaded data")
    add_common(parser)
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    if args.seeds < 1 or args.jobs < 1:
        raise ConfigError(f"--seeds {args.seeds} --jobs {args.jobs}: both must be at least 1")
    if args.preset is None and args.task in PRESETS:
        args.preset = args.task
    config = configure(args)
    plan = Plan(args.seeds, tuple(args.command_line))
    return _run(plan, config, lambda: fresh_folder(config, f"{KIND}-{config.task.name}", KIND, plan), args)


def go_on(path: Path, args: argparse.Namespace) -> int:
    """Takes up a comparison that was begun."""
    plan, config = asked_before(path, KIND, Plan)
    return _run(plan, config, lambda: RunFolder.open_existing(path), args)


def _run(plan: Plan, config: EsperConfig, hold: Callable[[], RunFolder], args: argparse.Namespace) -> int:
    with closing(prepare(_under(config, GROWN))) as prepared:
        metric = prepared.engine.setup.task.metric
        warn(prepared.warnings, args.quiet)
    began = time.monotonic()
    with hold() as folder:
        with workers(args.jobs, args.quiet or args.no_progress) as run_all:
            lr = config.task.lr
            scores: dict[float, float] = {}
            if lr is None and not TASKS[config.task.name].learns:
                lr = recipe_of(config.task).lr  # nothing in the never-grown host learns at any rate
            elif lr is None:
                lr, scores = tune(config, metric, folder.path, run_all)
            tuned = replace(config, task=replace(config.task, lr=lr))
            results = compare(tuned, range(config.run.seed, config.run.seed + plan.seeds), folder.path, run_all)
        found = Comparison(config.task.name, metric, lr, scores, results, time.monotonic() - began)
        report = render(found, plan.command_line)
        save(folder.path / "table.md", report + "\n")
        save(folder.path / "table.json", json.dumps(_as_dict(found), indent=2) + "\n")
    if not args.quiet:
        print(report)
    print(f"run: {folder.path}")
    print(f"digest: sha256:{joint_digest(results)}")
    return 0


def tune(config: EsperConfig, metric: Metric, top: Path, run_all: Runner) -> tuple[float, dict[float, float]]:
    """The learning rate under which the never-grown host validates best, on seeds of its own; all that was tried.

    Further rates are tried while the best is at an edge, so that it lies between two that are worse.
    """
    base, (first, last) = recipe_of(config.task).lr, LR_FIRST
    rates = [float(f"{base * factor:.3g}") for factor in LR_FACTORS]
    scores = _scores_of(range(first, last), rates, config, metric, top, run_all)
    while True:
        best = max(range(first, last), key=lambda index: scores[index])
        if best == first > 0:
            first, further = first - 1, first - 1
        elif best == last - 1 < len(rates) - 1:
            last, further = last + 1, last
        else:
            return rates[best], {rates[index]: metric.sign * scores[index] for index in range(first, last)}
        scores |= _scores_of([further], rates, config, metric, top, run_all)


def _scores_of(
    indices: Sequence[int], rates: Sequence[float], config: EsperConfig, metric: Metric, top: Path, run_all: Runner
) -> dict[int, float]:
    """Index of a rate -> what the never-grown host comes to, more being better."""
    arms = []
    for index in indices:
        at_rate = _under(replace(config, task=replace(config.task, lr=rates[index])), "static")
        arms += [make_arm(f"tune-lr{index}", seed, at_rate, top) for seed in TUNING_SEEDS]
    results, scores = run_all(arms), {}
    for index in indices:
        values = [result.val_metric for result in by_seed(results, f"tune-lr{index}")]
        # A rate that diverges on any seed is out.
        known = [metric.sign * value for value in values if value is not None]
        scores[index] = sum(known) / len(known) if len(known) == len(values) else float("-inf")
    return scores


def compare(config: EsperConfig, seeds: Sequence[int], top: Path, run_all: Runner) -> list[ArmResult]:
    """All arms on all seeds, at the learning rate in `config`."""
    first = [make_arm(rule, seed, _under(config, rule), top) for seed in seeds for rule in RULES]
    results = run_all(first)
    second: list[Arm] = []
    for grown in by_seed(results, GROWN):
        second += after_growing(config, grown, top)
    return results + run_all(second)


def after_growing(config: EsperConfig, grown: ArmResult, top: Path) -> list[Arm]:
    """The arms that need to know what was grown: its topology from scratch, and as many parameters by width."""
    static = _under(config, "static")
    scratch = replace(static, run=replace(static.run, topology_from=grown.run))
    wider = widened_tasks(config.task, grown.params) or ()
    return [
        make_arm("scratch", grown.seed, scratch, top),
        *(
            make_arm(name, grown.seed, replace(static, task=task), top)
            for name, task in zip(("uniform_below", "uniform_above"), wider, strict=False)
        ),
    ]


def render(found: Comparison, command_line: Sequence[str]) -> str:
    """The table, how it came about, and the verdict in words."""
    seeds = len(by_seed(found.results, "static"))
    tuned = ", ".join(f"{rate:g}: {score:.{found.metric.digits}f}" for rate, score in found.lr_scores.items())
    how = f"one learning rate for all, {found.lr:g}" + (f", tuned for the never-grown host ({tuned})" if tuned else "")
    return "\n".join(
        [
            f"`esper {' '.join(command_line)}`: {seeds} paired seeds, {how}; {found.seconds:.0f} s",
            "",
            comparison_table(found.results, found.metric),
            "",
            *verdicts(found.results, found.metric),
        ]
    )


def _under(config: EsperConfig, controller: str) -> EsperConfig:
    return replace(config, run=replace(config.run, controller=controller))


def _as_dict(found: Comparison) -> dict[str, Any]:
    return {
        "task": found.task,
        "metric": found.metric.name,
        "unit": found.metric.unit,
        "lr": found.lr,
        "lr_scores": {f"{rate:g}": score for rate, score in found.lr_scores.items()},
        "seconds": found.seconds,
        "results": [result.as_dict() for result in found.results],
    }
