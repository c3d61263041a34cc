"""`esper mcp`: lets an agent ask about runs, read-only, over the Model Context Protocol on standard streams."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from esper.leyline.errors import ConfigError, ExitCode


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser("mcp", help="lets an agent ask about runs, read-only", description=command.__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    """Speaks the Model Context Protocol on standard input and output until its input is closed."""
    try:
        from esper.karn.mcp.desk import Desk
        from esper.karn.mcp.server import serve
    except ModuleNotFoundError as missing:
        raise ConfigError(f"mcp: needs {missing.name}; pip install 'esper[mcp]'") from None
    # The SDK waits for its input to be closed before it lets an exception out. There is nothing to tidy up: the
    # processes that answer questions end by themselves when this one is gone.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    desk = Desk(args.root)
    serve(desk)
    if not desk.close():  # a thread that waits for an answer would keep us here
        sys.stderr.flush()
        os._exit(int(ExitCode.DONE))
    return int(ExitCode.DONE)


def _leave(signal_: int, _frame: FrameType | None) -> None:
    os._exit(128 + signal_)  # ExitCode.INTERRUPTED, ExitCode.TERMINATED
