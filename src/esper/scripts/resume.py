"""`esper resume RUN`: goes on with whatever was stopped or killed, from the last step that was saved."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper.leyline.config import read_json
from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import resolve
from esper.scripts import compare, demo, exam, experiment, train
from esper.scripts.going_on import refuse_changes
from esper.scripts.ranks import meet
from esper.scripts.resumable import settings_in
from esper.scripts.train import add_sanctum, add_strict

EXAMPLES = """examples:
  esper resume latest                    a run, a demo, a comparison, an exam or an experiment
  esper resume 20261201-1402             the beginning of its id is enough
  esper resume latest --strict-resume    only where it comes to what it would have come to, bit for bit
"""

KINDS: Mapping[str, Callable[[Path, argparse.Namespace], int]] = {
    module.KIND: module.go_on for module in (compare, demo, exam, experiment)
}
"""Who goes on with a folder of several runs, by the name under which its plan stands in `run.json`."""


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "resume",
        help="go on with a run that was stopped or killed",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="its id, the beginning of it, 'latest', or a folder")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes for a run's hosts, if others than before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes for several runs")
    add_strict(parser)
    add_sanctum(parser)
    parser.add_argument("--quiet", action="store_true", help="nothing but the last two lines")
    parser.add_argument("--no-progress", action="store_true", help="no progress line")
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: must be at least 1")
    path = resolve(args.root, args.run)
    manifest = read_json(path / "run.json")
    kind = next((kind for kind in KINDS if kind in manifest), None)
    if kind is None:
        return train.go_on(path, args, meet())
    if args.workers is not None:
        raise ConfigError(f"--workers {args.workers}: is for one run, and {path} holds several; use --jobs")
    if args.sanctum:
        raise ConfigError(f"--sanctum: is for one run, and {path} holds several; watch them with esper sanctum")
    if args.strict_resume:
        refuse_changes(path, settings_in(path / "run.json"))
    return KINDS[kind](path, args)
