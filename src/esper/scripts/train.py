"""`esper train WHO`: one run under one controller."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper.leyline.config import describe
from esper.leyline.errors import ConfigError, DivergedError
from esper.nissa.progress import Progress
from esper.nissa.run_folder import RunFolder, resolve
from esper.scripts.cli import OneLineParser, run, warn
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.going_on import Resume
from esper.scripts.pictures import summary
from esper.scripts.ranks import fleet_of, meet, trainers_of
from esper.scripts.resumable import refuse_settings, settings_in
from esper.scripts.runner import Prepared, prepare, run_training
from esper.scripts.sanctum import open_beside
from esper.tolaria.ranks.fleet import Fleet
from esper.tolaria.ranks.meeting import Meeting

EXAMPLES = """examples:
  esper train ppo --preset digits --rounds 6 --envs 4    learn how to grow; the policy is checkpoints/policy.pt
  esper train policy:latest --preset digits              let it grow a network
  esper train heuristic --task digits --episode-length 24
  esper train heuristic --task cifar_scale --data synthetic --slots r0c0 r0c1 --max-seeds 2 --blueprints conv_ladder
  esper train random --task digit_pairs --envs 4 --seed 7 --set engine.gradient_samples=4
  esper train script:latest --task digits               repeat a run's decisions
  esper train --config-json runs/latest/run.json         rerun a run
  esper train ppo --preset digits --sanctum              watch it grow
  esper train --resume latest                            go on with a run that was stopped or killed
  torchrun --nproc-per-node 2 -m esper.scripts.train ppo --envs 4      environments spread over two ranks

slots are named r0c0, r0c1, r0c2, ... in the order of execution; `esper list tasks` shows each host's.
every setting: esper list settings
"""

FLAGS: dict[str, str] = {  # destination of a flag -> setting
    "who": "run.controller",
    "task": "task.name",
    "slots": "body.slots",
    "surfaces": "body.surfaces",
    "max_seeds": "body.max_seeds",
    "blueprints": "body.blueprints",
    "episode_length": "run.episode_length",
    "envs": "run.envs",
    "rounds": "run.rounds",
    "seed": "run.seed",
    "device": "engine.device",
    "data": "task.data",
    "data_dir": "task.data_dir",
    "task_lr": "task.lr",
    "lr": "ppo.lr",
    "ppo_epochs": "ppo.epochs",
    "reward_mode": "reward.mode",
    "ab_test": "run.ab_test",
    "workers": "run.workers",
    "download": "task.download",
    "start_from": "run.start_from",
    "topology_from": "run.topology_from",
}


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "train",
        help="train hosts under a controller",
        description="Trains hosts under a controller and leaves a run folder behind.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(run_command=command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `esper train`; each stands for a setting."""
    parser.add_argument(
        "who", nargs="?", metavar="WHO", help="ppo, policy:RUN, script:RUN or a rule: esper list controllers"
    )
    add_sanctum(parser)
    helps = {row.path: row.help for row in describe(EsperConfig)}
    for flag, path in FLAGS.items():
        if flag in ("who", "task_lr"):
            continue
        name, text = "--" + flag.replace("_", "-"), f"{helps[path]} ({path})"
        if flag in ("slots", "surfaces", "blueprints"):
            parser.add_argument(name, nargs="+", metavar=flag[:-1].upper(), help=text)
        elif flag == "download":
            parser.add_argument(name, action="store_true", default=None, help=text)
        elif flag == "lr":
            parser.add_argument(name, type=float, metavar="RATE", help=text)
        elif flag in ("max_seeds", "episode_length", "envs", "rounds", "seed", "ppo_epochs", "workers"):
            parser.add_argument(name, type=int, metavar="N", help=text)
        else:
            parser.add_argument(name, metavar=flag.rsplit("_", maxsplit=1)[-1].upper(), help=text)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed")
    add_strict(parser)
    add_common(parser)


def add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict-resume", action="store_true", help="go on only where it comes to the same, bit for bit"
    )


def add_sanctum(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sanctum", action="store_true", help="the screen of `esper sanctum` beside it; q closes it, training goes on"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Where settings come from, and how much is shown."""
    parser.add_argument("--preset", help="settings to start from; see esper list presets")
    parser.add_argument("--config-json", metavar="FILE", help="settings from a JSON file, or from a run's run.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. task.lr=0.1")
    parser.add_argument("--quiet", action="store_true", help="nothing but the last two lines")
    parser.add_argument("--no-progress", action="store_true", help="no progress line")


def configure(args: argparse.Namespace) -> EsperConfig:
    """The settings that a command line asks for."""
    layer: dict[str, Any] = {}
    values = vars(args)
    given = {path: values[flag] for flag, path in FLAGS.items() if flag in values and values[flag] is not None}
    for path, value in given.items():
        section, name = path.split(".")
        layer.setdefault(section, {})[name] = value
    return assemble(args.preset, args.config_json, layer, args.set)


def command(args: argparse.Namespace) -> int:
    if args.resume is not None:
        refuse_settings(args, "train", (*FLAGS, "preset", "config_json", "set"), "--workers", but="workers")
        return go_on(resolve(Path("runs"), args.resume), args, meet())
    if args.strict_resume:
        raise ConfigError("--strict-resume: is for a run that goes on; give --resume RUN too")
    meeting = meet()
    begun = None if meeting is None else meeting.begun()
    if begun is not None:  # the launcher has started all ranks again
        return go_on(Path(begun), args, meeting)
    config = configure(args)
    with fleet_of(meeting, config) as fleet:
        # Whatever is wrong with the settings is said before a folder is made.
        prepared = prepare(config, trainers_of(fleet))
        warn(prepared.warnings, args.quiet)
        label = f"{config.task.name}-{config.run.controller.split(':')[0]}".replace("_", "-")
        with RunFolder.create(Path(config.run.root), label) as folder:
            return _run(prepared, folder, args, fleet)


def go_on(path: Path, args: argparse.Namespace, meeting: Meeting | None) -> int:
    """Takes up a run that was begun. meeting: of the ranks that do it, if they do."""
    config = settings_in(path / "run.json")
    workers = config.run.workers if args.workers is None else args.workers
    config = replace(config, run=replace(config.run, workers=workers))
    with fleet_of(meeting, config) as fleet, RunFolder.open_existing(path) as folder:
        return _run(prepare(config, trainers_of(fleet)), folder, args, fleet)


def _run(prepared: Prepared, folder: RunFolder, args: argparse.Namespace, fleet: Fleet | None) -> int:
    if fleet is not None:
        fleet.begin(folder.path.absolute())
    screen = open_beside(folder.path, alone=fleet is None) if args.sanctum else None
    try:
        with Progress(quiet=args.quiet or args.no_progress or screen is not None) as progress:
            finished = run_training(prepared, folder, progress, Resume(strict=args.strict_resume))
    except BaseException as error:
        if screen is not None:
            screen.end()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            print(f"esper: to go on: esper resume {folder.path}", file=sys.stderr)
        raise
    if screen is not None:
        screen.wait()
    if not args.quiet:
        print(summary(finished))
    print(f"run: {finished.folder}")
    print(f"digest: sha256:{finished.digest}")
    if all(outcome.diverged for outcome in finished.rounds[-1].outcomes):
        raise DivergedError("the governor gave up every host: their losses diverge; try a smaller task.lr")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m esper.scripts.train WHO`, the same as `esper train WHO`."""
    parser = OneLineParser(prog="esper train", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(run_command=command)
    return run(parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
