"""The `esper` command: finds the subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from esper.leyline.errors import ConfigError
from esper.scripts.cli import OneLineParser, run

COMMANDS = {
    "train": "train",
    "resume": "resume",
    "compare": "compare",
    "exam": "exam",
    "experiment": "experiment",
    "demo": "demo",
    "list": "shelves",
    "bench": "benchmarks",
    "runs": "memory",
    "show": "memory",
    "sql": "memory",
    "gates": "memory",
    "export": "memory",
    "report": "report",
    "sanctum": "sanctum",
    "mcp": "mcp_server",
}
"""Which module has which command. Only that one is imported: some need torch, which takes a second, and some do not."""

_EXTRAS = {"duckdb": "mcp", "plotly": "web"}
"""Packages that not every installation has, and what to install for them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (`leyline/errors.py`)."""
    given = sys.argv[1:] if argv is None else argv
    asked = COMMANDS.get(given[0]) if given else None
    parser = OneLineParser(prog="esper", description="Neural networks that grow while they train.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in dict.fromkeys(COMMANDS.values()) if asked is None else (asked,):
        _add(module, commands)
    return run(parser, given)


def _add(module: str, commands: Any) -> None:
    """The commands of a module; where a package that they need is missing, each says so when it is asked for."""
    try:
        found = import_module(f"esper.scripts.{module}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        for name in (name for name, its_module in COMMANDS.items() if its_module == module):
            _add_missing(name, error.name, commands)
    else:
        found.add_to(commands)


def _add_missing(name: str, package: str, commands: Any) -> None:
    def refuse(_args: argparse.Namespace) -> NoReturn:
        raise ConfigError(f"{name}: needs {package}; pip install 'esper[{_EXTRAS[package]}]'")

    parser = commands.add_parser(name, help=f"needs {package}, which is not installed", add_help=False)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    parser.set_defaults(run_command=refuse)


if __name__ == "__main__":
    sys.exit(main())
