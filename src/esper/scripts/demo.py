"""`esper demo`: grows a network on real digits under a rule, then learns how to grow, and says whether it paid."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esper.nissa.progress import Progress
from esper.nissa.run_folder import ARMS, RunFolder
from esper.scripts.arms import Arm, ArmResult, joint_digest, make_arm, play, run_arm
from esper.scripts.cli import warn
from esper.scripts.config import EsperConfig
from esper.scripts.pictures import chosen, lanes
from esper.scripts.resumable import asked_before, fresh_folder
from esper.scripts.runner import Finished, prepare
from esper.scripts.sources import POLICY, POLICY_FILE
from esper.scripts.tables import comparison_table, verdicts
from esper.scripts.teams import PPO_NAME
from esper.scripts.train import add_common, configure

KIND = "demo"
GROWN, NEVER, SCRATCH, LEARNED = "heuristic", "static", "scratch", "policy"


@dataclass(frozen=True)
class Plan:
    """What `run.json` holds besides the settings, so that a demo can go on."""

    command_line: tuple[str, ...]


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser("demo", help="grow a small network on real digits, about a minute")
    parser.add_argument("--seed", type=int, metavar="N", help="another network, another split of the digits")
    add_common(parser)
    parser.set_defaults(run_command=command, preset="demo")


def command(args: argparse.Namespace) -> int:
    config = configure(args)
    return _run(config, lambda: fresh_folder(config, KIND, KIND, Plan(tuple(args.command_line))), args)


def go_on(path: Path, args: argparse.Namespace) -> int:
    """Takes up a demo that was begun."""
    _, config = asked_before(path, KIND, Plan)
    return _run(config, lambda: RunFolder.open_existing(path), args)


def _run(config: EsperConfig, hold: Callable[[], RunFolder], args: argparse.Namespace) -> int:
    with closing(prepare(config)) as prepared:  # what is wrong with the settings is said before a folder is made
        warn(prepared.warnings, args.quiet)
    with hold() as folder:
        grown = make_arm(GROWN, config.run.seed, config, folder.path)
        with Progress(quiet=args.quiet or args.no_progress) as progress:
            result, finished = run_arm(grown, progress)
            results = [result, *_rivals(config, result, folder.path, progress)]
            lessons = play(_learning_arm(config, folder.path), progress)
            learned, at_work = run_arm(_policy_arm(config, lessons.folder, folder.path), progress)
            results.append(learned)
        if not args.quiet:
            metric = finished.metric
            print(f"A host of {result.host_params} parameters, grown on scikit-learn's digits under a rule.")
            print("One column is one epoch, one row a slot:\n")
            print("\n".join(lanes(finished.rounds[-1].rollout, 0)) + "\n")
            print("\n".join(_told_of_learning(lessons, at_work)) + "\n")
            print(comparison_table(results, metric) + "\n")
            print("\n".join(verdicts(results, metric)))
            print("\nWhat happened when: esper show latest; in pictures: esper report latest --html report.html.")
            print(f"The grown network: {grown.folder / 'checkpoints'}.")
            print("More seeds and rivals: esper compare --task digit_pairs --seeds 5.\n")
    print(f"run: {folder.path}")
    print(f"digest: sha256:{joint_digest(results)}")
    return 0


def _rivals(config: EsperConfig, grown: ArmResult, top: Path, progress: Progress) -> list[ArmResult]:
    """The same host never grown, and the grown one's topology from scratch."""
    static = replace(config, run=replace(config.run, controller=NEVER))
    scratch = replace(static, run=replace(static.run, topology_from=grown.run))
    arms = [make_arm(NEVER, grown.seed, static, top), make_arm(SCRATCH, grown.seed, scratch, top)]
    return [run_arm(arm, progress)[0] for arm in arms]


def _learning_arm(config: EsperConfig, top: Path) -> Arm:
    """A short PPO training, of as many rounds and environments as the preset says."""
    seed = config.run.seed
    learning = replace(config, run=replace(config.run, controller=PPO_NAME))
    return Arm(PPO_NAME, seed, learning, top / ARMS / f"{PPO_NAME}-s{seed}")


def _policy_arm(config: EsperConfig, learned: Path, top: Path) -> Arm:
    """One network grown by what was learned."""
    controller = f"{POLICY}{learned / 'checkpoints' / POLICY_FILE}"
    return make_arm(LEARNED, config.run.seed, replace(config, run=replace(config.run, controller=controller)), top)


def _told_of_learning(lessons: Finished, at_work: Finished) -> list[str]:
    first, last = (fmean(round_.rollout.returns()) for round_ in (lessons.rounds[0], lessons.rounds[-1]))
    episodes = sum(len(round_.outcomes) for round_ in lessons.rounds)
    rollout = at_work.rounds[-1].rollout
    rent = lessons.config.reward.rent
    return [
        f"Then a policy learned by PPO, from {episodes} episodes, how to grow such a host. It is paid the accuracy in",
        f"points, less {rent:g} for every doubling of the parameters: {first:.1f} on average in the first round,",
        f"{last:.1f} in the last. Taking its likeliest choices it made of a new host:\n",
        *lanes(rollout, 0),
        f"\nIt chose {chosen(rollout, 0)}.",
    ]
