"""The `esper` command: finds the subcommand, and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from esper.leyline.errors import EsperError, ExitCode

Command = Callable[[argparse.Namespace], int]


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (`leyline/errors.py`)."""
    from esper.scripts import compare, demo, shelves, train  # torch takes a second to import

    parser = OneLineParser(prog="esper", description="Neural networks that grow while they train.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (train, compare, demo, shelves):
        module.add_to(commands)
    return run(parser, sys.argv[1:] if argv is None else argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Parses, runs, and reports errors."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        args = parser.parse_args(argv)
        args.command_line = list(argv)
        command: Command = args.run_command
        return command(args)
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("esper: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        sys.stderr.close()
        return int(ExitCode.DONE)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))


if __name__ == "__main__":
    sys.exit(main())
