"""`esper exam`: can the learned policy grow better than rules, and better than the best schedule that looks at nothing?

PPO trains beside two random searches, for the best fixed schedule and for the best settings of the heuristic, each with
as many episodes. Then all of them and the host never grown are judged on hosts that none has seen, the same for all:
a few hosts of each of many seeds, and a seed counts once.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esper.leyline.config import encode
from esper.leyline.errors import ConfigError
from esper.leyline.task import Metric
from esper.nissa.run_folder import RunFolder, resolve
from esper.scripts.arms import Arm, joint_digest, processes, save
from esper.scripts.cli import warn
from esper.scripts.config import EsperConfig
from esper.scripts.exam_arms import Arms, HostResult, RunResult, make_arm, seed_for, under
from esper.scripts.exam_searches import menu_of, search_schedule, tune_heuristic
from esper.scripts.exam_tables import PPO, RIVALS, SHUFFLED, Exam, as_dict, report
from esper.scripts.presets import PRESETS
from esper.scripts.resumable import asked_before, fresh_folder, refuse_settings
from esper.scripts.runner import NEVER, prepare
from esper.scripts.sources import POLICY, POLICY_FILE, SCHEDULE
from esper.scripts.train import add_common, configure
from esper.simic.experiments.schedules import Menu
from esper.tamiyo.config import HeuristicConfig

KIND = "exam"
ROUNDS: Mapping[str, int] = {"digits_scale": 80, "digits_mix": 60}
"""Rounds of 8 environments and 30 epochs that take one core about 25 minutes."""
OTHER_ROUNDS, ENVS, SEEDS = 40, 8, 20
HOSTS_OF_A_SEED = 2
"""Sensors are shuffled between the two. More hosts of a seed would say less than hosts of more seeds: those of a seed
share data and test set, and what they come to is correlated (measured: up to 0.36)."""
QUICK = {"rounds": 2, "envs": 2, "episode_length": 9, "hosts": 2}
SETTINGS = (
    *("task", "rounds", "envs", "hosts", "episode_length", "seed", "blueprints", "data", "data_dir", "quick"),
    *("preset", "config_json", "set"),
)
"""What cannot be given again to an exam that goes on."""
SCHEDULE_FILE, HEURISTIC_FILE = "schedule.json", "heuristic.json"
HEURISTIC = "heuristic"
ON_SEED = "-seed"
"""Between the name of what is judged and the number of the held-out seed, in the names of arms."""

EXAMPLES = """examples:
  esper exam --task digits_scale
  esper exam --task digits_mix --rounds 40 --blueprints conv_light conv_ladder
  esper exam --task digits --quick                       a stand-in, to see what it is like
  esper exam --resume latest                             go on where it was stopped
"""


@dataclass(frozen=True)
class Plan:
    """What `run.json` holds besides the settings, so that an exam can go on."""

    task: str
    hosts: int  # held-out seeds
    quick: bool
    command_line: tuple[str, ...]


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "exam",
        help="did PPO learn to grow? against rules and the best fixed schedule, on hosts that it has not seen",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", help="what to examine on; see esper list tasks")
    parser.add_argument("--resume", metavar="RUN", help="go on with an exam; finished arms are not run again")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds that PPO trains; each search gets as many")
    parser.add_argument("--envs", type=int, metavar="N", help=f"environments of a round ({ENVS})")
    parser.add_argument(
        "--hosts", type=int, metavar="N", help=f"held-out seeds of hosts, {HOSTS_OF_A_SEED} hosts of each ({SEEDS})"
    )
    parser.add_argument("--episode-length", type=int, metavar="N", help="host epochs of every arm")
    parser.add_argument("--seed", type=int, metavar="N", help="everything follows from it (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)")
    parser.add_argument("--blueprints", nargs="+", metavar="BLUEPRINT", help="what may germinate")
    parser.add_argument("--data", help="cifar10 or synthetic, for the cifar tasks")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with downloaded data")
    parser.add_argument("--quick", action="store_true", help="a few short episodes: a stand-in")
    add_common(parser)
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: must be at least 1")
    if args.resume is not None:
        refuse_settings(args, KIND, SETTINGS, "--jobs")
        return go_on(resolve(Path("runs"), args.resume), args)
    plan, config = _begun(args)
    return _run(plan, config, lambda: fresh_folder(config, f"exam-{plan.task}", KIND, plan), args)


def go_on(path: Path, args: argparse.Namespace) -> int:
    """Takes up an exam that was begun."""
    plan, config = asked_before(path, KIND, Plan)
    return _run(plan, config, lambda: RunFolder.open_existing(path), args)


def _run(plan: Plan, config: EsperConfig, hold: Callable[[], RunFolder], args: argparse.Namespace) -> int:
    with closing(prepare(under(config, PPO))) as prepared:  # what is wrong is said before a folder is made
        metric, menu = prepared.engine.setup.task.metric, menu_of(config, prepared.engine)
        warn(prepared.warnings, args.quiet)
    quiet = args.quiet or args.no_progress
    with hold() as held, processes(args.jobs) as pool:
        exam, runs = examine(plan, config, metric, menu, held.path, Arms(pool, args.jobs, quiet))
        text = report(exam, plan.command_line)
        save(held.path / "table.md", text + "\n")
        save(held.path / "table.json", json.dumps(as_dict(exam), indent=2) + "\n")
    if not args.quiet:
        print(text)
    print(f"run: {held.path}")
    print(f"digest: sha256:{joint_digest(runs)}")
    return 0


def examine(
    plan: Plan, config: EsperConfig, metric: Metric, menu: Menu, top: Path, arms: Arms
) -> tuple[Exam, list[RunResult]]:
    """Trains and searches side by side, then judges; also all runs that this took."""
    with ThreadPoolExecutor(2) as side_by_side:  # the work is done in processes
        searching = side_by_side.submit(search_schedule, config, menu, top, arms)
        tuning = side_by_side.submit(tune_heuristic, config, menu, top, arms)
        # Who is to be taught by the heuristic waits until it is worth imitating.
        taught = config.ppo.teacher.rule == HEURISTIC
        lessons = with_heuristic(config, tuning.result().found.best) if taught else config
        learner = make_arm(PPO, config.run.seed, under(lessons, PPO), top)
        learning = arms.start(learner, told=True)
    (training,), scheduled, tuned = arms.wait({learning: learner}), searching.result(), tuning.result()
    schedule, policy = top / SCHEDULE_FILE, Path(training.run) / "checkpoints" / POLICY_FILE
    save(schedule, json.dumps([scheduled.found.best]) + "\n")
    save(top / HEURISTIC_FILE, json.dumps(encode(tuned.found.best), indent=2) + "\n")
    judge, rule = under(config, f"{POLICY}{policy}"), under(config, HEURISTIC)
    contestants = {
        PPO: judge,
        SHUFFLED: replace(judge, policy=replace(judge.policy, shuffle_sensors=True)),
        "schedule": under(config, f"{SCHEDULE}{schedule}"),
        HEURISTIC: with_heuristic(rule, tuned.found.best),
        "periodic": under(config, "periodic"),
        NEVER: under(config, NEVER),
    }
    runs = arms.run([arm for name, each in contestants.items() for arm in judged_arms(name, each, plan.hosts, top)])
    hosts = _by_arm(runs)
    operations = fmean(host.operations for host in hosts[PPO])
    lots = replace(config.policy, random=replace(config.policy.random, operations=operations))
    runs += arms.run(judged_arms("random", replace(under(config, "random"), policy=lots), plan.hosts, top))
    stand_in = "a few short episodes (--quick)" if plan.quick else ""
    exam = Exam(
        task=plan.task,
        metric=metric,
        rent=config.reward.rent,
        stand_in=stand_in,
        hosts=_by_arm(runs),
        training=training,
        teacher=config.ppo.teacher,
        scheduled=scheduled,
        tuned=tuned,
    )
    assert set(exam.hosts) == {PPO, SHUFFLED, *RIVALS}
    return exam, [training, *scheduled.stages, *tuned.stages, *runs]


def with_heuristic(config: EsperConfig, settings: HeuristicConfig) -> EsperConfig:
    """The same with these settings of the heuristic."""
    return replace(config, policy=replace(config.policy, heuristic=settings))


def judged_arms(name: str, config: EsperConfig, seeds: int, top: Path) -> list[Arm]:
    """Runs on the held-out hosts: one per seed, thus per split of the data, on all hosts of that seed."""
    alone = replace(config, run=replace(config.run, envs=HOSTS_OF_A_SEED, rounds=1, shared_init=False))
    held_out = [seed_for(config, "held-out", index) for index in range(seeds)]
    return [make_arm(f"{name}{ON_SEED}{index}", seed, alone, top) for index, seed in enumerate(held_out, start=1)]


def _by_arm(runs: Sequence[RunResult]) -> dict[str, list[HostResult]]:
    hosts: dict[str, list[HostResult]] = {}
    for run in runs:
        hosts.setdefault(run.name.rpartition(ON_SEED)[0], []).extend(run.hosts)
    return hosts


def _begun(args: argparse.Namespace) -> tuple[Plan, EsperConfig]:
    if args.task is None:
        raise ConfigError("--task: which one? see esper list tasks, or go on with an exam: --resume RUN")
    if args.preset is None and args.task in PRESETS:
        args.preset = args.task
    usual = QUICK if args.quick else {"rounds": ROUNDS.get(args.task, OTHER_ROUNDS), "envs": ENVS, "hosts": SEEDS}
    for flag, value in usual.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    if args.hosts < 2:
        raise ConfigError(f"--hosts {args.hosts}: an interval needs at least 2")
    config = configure(args)
    if config.run.ab_test is not None:
        raise ConfigError("run.ab_test: an exam has arms of its own; leave it out")
    if config.run.envs < 2:
        raise ConfigError(f"run.envs: {config.run.envs}; schedules are compared side by side, use 2 or more")
    return Plan(config.task.name, args.hosts, args.quick, tuple(args.command_line)), config
