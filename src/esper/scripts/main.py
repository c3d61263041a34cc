"""The `esper` command: finds the subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from esper.scripts.cli import OneLineParser, run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (`leyline/errors.py`)."""
    from esper.scripts import benchmarks, compare, demo, exam, shelves, train  # torch takes a second to import

    parser = OneLineParser(prog="esper", description="Neural networks that grow while they train.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (train, compare, exam, demo, shelves, benchmarks):
        module.add_to(commands)
    return run(parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
