"""`esper experiment`: the documents' experiments, each with its cohorts of runs and what is asked of them.

phase0   do cheap, reversible steps pay? Three cohorts of PPO, and the gates
pack     the first experiment pack: each run and what the documents expect of it
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from esper.karn.memory import name_of, open_memory
from esper.karn.verdicts import Verdict
from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import RunFolder, resolve
from esper.scripts.arms import Arm, joint_digest, processes, save
from esper.scripts.cli import warn
from esper.scripts.cohorts import DOCUMENTED, EXPERIMENTS, TASK, Experiment, Found
from esper.scripts.columns import gate_rows, markdown
from esper.scripts.config import EsperConfig
from esper.scripts.exam_arms import Arms, RunResult, make_arm, seed_for, under
from esper.scripts.presets import PRESETS
from esper.scripts.resumable import asked_before, fresh_folder, refuse_settings
from esper.scripts.runner import prepare
from esper.scripts.sources import POLICY, POLICY_FILE
from esper.scripts.teams import PPO_NAME
from esper.scripts.train import add_common, configure

KIND = "experiment"
SETTINGS = (
    *("run", "task", "rounds", "envs", "episode_length", "seeds", "max_seeds", "data", "data_dir"),
    *("preset", "config_json", "set"),
)
"""What cannot be given again to an experiment that goes on."""

EXAMPLES = """examples:
  esper experiment phase0 --data synthetic --rounds 2 --seeds 2 --episode-length 12
  esper experiment phase0 --task digits_scale --rounds 40 --episode-length 24 --seeds 3
  esper experiment pack --run 1 3 --task digits_scale --rounds 20 --episode-length 24
  esper experiment phase0 --resume latest                        go on where it was stopped
"""


@dataclass(frozen=True)
class Plan:
    """What `run.json` holds besides the settings, so that an experiment can go on."""

    name: str
    seeds: int
    stand_in: str  # why it is not the documents' experiment; empty where it is
    command_line: tuple[str, ...]
    runs: tuple[int, ...] = ()  # of the pack

    @property
    def experiment(self) -> Experiment:
        return EXPERIMENTS[self.name]


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "experiment",
        help="the documents' experiments: cohorts with a control, and their gates",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=tuple(EXPERIMENTS), metavar="NAME", help=" or ".join(EXPERIMENTS))
    parser.add_argument("--run", type=int, nargs="+", metavar="N", help="runs of the pack (all of them)")
    parser.add_argument("--task", help=f"what hosts learn ({TASK}); another one is a stand-in")
    parser.add_argument("--resume", metavar="RUN", help="go on; finished runs are not run again")
    for flag, value in DOCUMENTED.items():
        parser.add_argument(f"--{flag.replace('_', '-')}", type=int, metavar="N", help=f"the documents say {value}")
    parser.add_argument("--seeds", type=int, metavar="N", help="policies per cohort (3); one gives no interval")
    parser.add_argument("--max-seeds", type=int, metavar="N", help="phase0: most seeds in a host at once (2)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)")
    parser.add_argument("--data", help="cifar10 or synthetic, for the cifar tasks")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with downloaded data")
    add_common(parser)
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: must be at least 1")
    if args.resume is not None:
        refuse_settings(args, KIND, SETTINGS, "--jobs")
        path = resolve(Path("runs"), args.resume)
        name = asked_before(path, KIND, Plan)[0].name
        if name != args.name:
            raise ConfigError(f"--resume: {args.resume} is the experiment {name}, not {args.name}")
        return go_on(path, args)
    plan, config = _begun(args)
    return _run(plan, config, lambda: fresh_folder(config, f"{plan.name}-{config.task.name}", KIND, plan), args)


def go_on(path: Path, args: argparse.Namespace) -> int:
    """Takes up an experiment that was begun."""
    plan, config = asked_before(path, KIND, Plan)
    return _run(plan, config, lambda: RunFolder.open_existing(path), args)


def _run(plan: Plan, config: EsperConfig, hold: Callable[[], RunFolder], args: argparse.Namespace) -> int:
    for cohort in plan.experiment.cohorts(config, plan.runs).values():  # what is wrong is said before a folder is made
        with closing(prepare(under(cohort, PPO_NAME))) as prepared:
            warn(prepared.warnings, args.quiet)
    quiet = args.quiet or args.no_progress
    with hold() as held, processes(args.jobs) as pool:
        runs = conduct(plan, config, held.path, Arms(pool, args.jobs, quiet))
        found = judge(plan, runs)
        text = report(plan, config, runs, found)
        save(held.path / "gates.md", text + "\n")
        save(held.path / "gates.json", json.dumps(_as_dict(found), indent=2) + "\n")
    if not args.quiet:
        print(text)
    print(f"run: {held.path}")
    print(f"digest: sha256:{joint_digest([run for each in runs.values() for run in each])}")
    return 0


def conduct(plan: Plan, config: EsperConfig, top: Path, arms: Arms) -> dict[str, list[RunResult]]:
    """Trains every policy, and lets it grow other hosts where that is asked. Keys: `both`, `both, greedy` and so on."""
    seeds = range(config.run.seed, config.run.seed + plan.seeds)
    cohorts = plan.experiment.cohorts(config, plan.runs)
    learners = {name: [_learner(name, seed, each, top) for seed in seeds] for name, each in cohorts.items()}
    learned = _played(learners, arms, told=True)
    if not plan.experiment.grows:
        return learned
    growers = {
        f"{name}, greedy": [_grower(name, index, run, cohorts[name], top) for index, run in enumerate(runs)]
        for name, runs in learned.items()
    }
    return learned | _played(growers, arms)


def _played(cohorts: Mapping[str, Sequence[Arm]], arms: Arms, told: bool = False) -> dict[str, list[RunResult]]:
    results = iter(arms.run([arm for group in cohorts.values() for arm in group], told))
    return {name: [next(results) for _ in group] for name, group in cohorts.items()}


def _learner(cohort: str, seed: int, config: EsperConfig, top: Path) -> Arm:
    return make_arm(f"{cohort}-s{seed}", seed, under(config, PPO_NAME), top)


def _grower(cohort: str, index: int, learned: RunResult, config: EsperConfig, top: Path) -> Arm:
    """The policy on one round of hosts that are the same for all cohorts, and that none has learned from."""
    policy = Path(learned.run) / "checkpoints" / POLICY_FILE
    alone = under(config, f"{POLICY}{policy}")
    apart = replace(alone, run=replace(alone.run, rounds=1, shared_init=False))
    return make_arm(f"{cohort}-greedy-s{learned.seed}", seed_for(config, "growing", index), apart, top)


def judge(plan: Plan, runs: Mapping[str, Sequence[RunResult]]) -> Found:
    """What the experiment asks of its cohorts."""
    folders = {name: [Path(run.run) for run in each] for name, each in runs.items()}
    with closing(open_memory([folder for each in folders.values() for folder in each])) as store:
        return plan.experiment.judge(store.con, {name: list(map(name_of, each)) for name, each in folders.items()})


def report(
    plan: Plan, config: EsperConfig, runs: Mapping[str, Sequence[RunResult]], found: Mapping[str, Sequence[Verdict]]
) -> str:
    """The whole of `gates.md`."""
    run = config.run
    minutes = sum(result.cpu_seconds for each in runs.values() for result in each) / 60
    lines = [f"**A stand-in for the documents' experiment: {plan.stand_in}.**", ""] if plan.stand_in else []
    lines.append(
        f"`esper {' '.join(plan.command_line)}`: {plan.seeds} policies per cohort, seeds {run.seed} to "
        f"{run.seed + plan.seeds - 1}, {run.rounds} rounds of {run.envs} hosts and {run.episode_length} epochs, "
        f"{minutes:.0f} CPU minutes. Values are means over seeds; [ ] are 95 % intervals."
    )
    if plan.seeds == 1:
        lines.append("One seed gives no interval, so no claim can be made from this table.")
    for name, answers in found.items():
        lines += ["", f"**{name}**", "", markdown(gate_rows(answers))]
    return "\n".join(lines)


def _as_dict(found: Mapping[str, Sequence[Verdict]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(gate) for gate in answers] for name, answers in found.items()}


def _begun(args: argparse.Namespace) -> tuple[Plan, EsperConfig]:
    experiment = EXPERIMENTS[args.name]
    runs = _asked_runs(args.name, experiment, args.run)
    if args.max_seeds is not None and experiment.max_seeds is None:
        raise ConfigError(f"--max-seeds {args.max_seeds}: every run of the {args.name} has its own; leave it out")
    if args.task is None:
        args.task = TASK
    if args.preset is None and args.task in PRESETS:
        args.preset = args.task
    shortened = [name for name, value in DOCUMENTED.items() if getattr(args, name) not in (None, value)]
    for name, value in DOCUMENTED.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.max_seeds = experiment.max_seeds if args.max_seeds is None else args.max_seeds
    seeds = 3 if args.seeds is None else args.seeds
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one policy per cohort")
    config = configure(args)
    if config.run.ab_test is not None:
        raise ConfigError("run.ab_test: an experiment has cohorts of its own; leave it out")
    reasons = [f"task {config.task.name}"] if config.task.name != TASK else []
    reasons += [f"{name.replace('_', ' ')} {getattr(config.run, name)}" for name in shortened]
    reasons += ["synthetic images"] if config.task.data == "synthetic" else []
    return Plan(args.name, seeds, ", ".join(reasons), tuple(args.command_line), runs), config


def _asked_runs(name: str, experiment: Experiment, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers in `--run`, in order and once each; all there are where none was asked for."""
    for number in asked or ():
        if number not in experiment.runs:
            there = ", ".join(map(str, experiment.runs)) or "none"
            raise ConfigError(f"--run {number}: no such run of {name}; there are {there}")
    return tuple(sorted(set(asked))) if asked else experiment.runs
