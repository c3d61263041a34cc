"""What every command line here shares: errors are one line, and each kind has its exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import NoReturn

from esper.leyline.errors import EsperError, ExitCode

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_S = 30
"""After a signal; a disk that hangs does not keep us."""
Command = Callable[[argparse.Namespace], int]


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Parses, runs, and reports errors."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        args = parser.parse_args(argv)
        args.command_line = list(argv)
        command: Command = args.run_command
        return command(args)
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
        return int(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == ExitCode.TERMINATED:
            print("esper: terminated", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("esper: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        sys.stderr.close()
        return int(ExitCode.DONE)


def warn(texts: Iterable[str], quiet: bool) -> None:
    """A line on stderr for each, or nothing."""
    for text in texts:
        if not quiet:
            print(f"esper: {text}", file=sys.stderr, flush=True)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Ends what runs here by an exception, which leaves time to save; whoever signals again does not want to wait."""
    for each in _SIGNALS:
        signal.signal(each, _leave)
    signal.signal(signal.SIGALRM, lambda _alarm, frame: _leave(number, frame))
    signal.alarm(_LONGEST_S)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(int(ExitCode.TERMINATED))


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED)
