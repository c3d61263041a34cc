"""`esper report RUN [RUN ...]`: runs as one HTML file that needs nothing else, or one of its figures as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

from esper.karn.figures import PANELS, Nothing, Table, draw
from esper.karn.memory import folders_of, name_of, open_memory
from esper.karn.report import html, image
from esper.leyline.errors import ConfigError
from esper.nissa.storage import storage_errors
from esper.scripts.columns import plain

EXAMPLES = """examples:
  esper report latest --html out.html
  esper report 20261120-1402 20261120-1510 --html both.html
  esper report latest --figure lanes --image lanes.svg
"""


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "report",
        help="runs as one HTML file, or a figure as a picture",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help="its id, the beginning of it, 'latest', or a folder")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page; written anew if it exists")
    parser.add_argument("--figure", metavar="NAME", help="one figure; without RUN: all there are")
    parser.add_argument("--image", type=Path, metavar="FILE", help="where that figure goes, .png or .svg")
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    if not args.run:
        print(plain((("figure", "question"), [(name, panel.question) for name, panel in PANELS.items()])))
        return 0
    if (args.html is None) == (args.figure is None) or (args.figure is None) != (args.image is None):
        raise ConfigError("report: give --html FILE, or --figure NAME with --image FILE")
    folders = [folder for name in args.run for folder in folders_of(args.root, name)]
    with closing(open_memory(folders)) as store:
        runs = [name_of(folder) for folder in folders]
        if args.html is not None:
            page = html(store.con, runs, ", ".join(args.run))
            with storage_errors(args.html):
                args.html.write_text(page)
        else:
            _draw(store.con, runs, args.figure, args.image)
    print(args.html or args.image)
    return 0


def _draw(con: duckdb.DuckDBPyConnection, runs: Sequence[str], name: str, path: Path) -> None:
    drawn = draw(name, con, runs)
    if isinstance(drawn, Nothing):
        raise ConfigError(f"--figure {name}: {drawn.why}")
    if isinstance(drawn, Table):
        raise ConfigError(f"--figure {name}: is a table; it is in the page that --html writes")
    image(drawn, path)
