"""The views of `views.sql`: what each answers, in its own words, and how they come into a database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import duckdb

_STATEMENT = re.compile(
    r"((?:^--[^\n]*\n)+)create (view|macro) (\w+)(.*?);\s*$",
    re.MULTILINE | re.DOTALL,
)
_GRAIN = re.compile(r"^\[([^\]]+)\] ")


@dataclass(frozen=True)
class View:
    """One statement of `views.sql`."""

    name: str
    kind: str  # `view` or `macro`
    grain: str  # what one row is; empty for a macro
    summary: str  # what it answers
    sql: str


@cache
def views() -> tuple[View, ...]:
    """In the order of the file, which is an order in which they can be made."""
    text = files("esper.karn").joinpath("views.sql").read_text()
    return tuple(_view(*found) for found in _STATEMENT.findall(text))


def create_views(con: duckdb.DuckDBPyConnection) -> None:
    """Makes them all over the tables of a `Store`."""
    for view in views():
        con.execute(view.sql)


def _view(comment: str, kind: str, name: str, rest: str) -> View:
    words = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
    grain = _GRAIN.match(words)
    return View(
        name=name,
        kind=kind,
        grain="" if grain is None else grain[1],
        summary=words if grain is None else words[grain.end() :],
        sql=f"create {kind} {name}{rest}",
    )
