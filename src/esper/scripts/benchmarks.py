"""`esper bench`: the benchmarks of a checkout, which are not part of the installed package."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from esper.leyline.errors import ConfigError

CHECKOUT = Path(__file__).parents[3]


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser("bench", help="time esper against plainly written code")
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="files of bench/; all if none is given")
    parser.add_argument("--quick", action="store_true", help="fewer samples: a first look, no claim")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder for the JSON file; default bench/results")
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    """Returns the exit code of `python -m bench`: 1 if a bound was missed. Raises ConfigError without a checkout."""
    if not (CHECKOUT / "bench" / "__main__.py").is_file():
        raise ConfigError("bench: the benchmarks are in the source repository; clone it and run `make bench` there")
    flags = ["--quick"] if args.quick else []
    if args.results is not None:
        flags += ["--results", str(args.results.resolve())]
    asked = [sys.executable, "-m", "bench", *flags, *args.question]
    return subprocess.run(asked, check=False, cwd=CHECKOUT).returncode
