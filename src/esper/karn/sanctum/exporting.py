"""The rows behind a panel as a CSV file, written beside the screen. Nothing is written over."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from esper.karn.plain import plain_row
from esper.karn.sanctum.history import History
from esper.nissa.storage import reason, shown


def export(
    history: History, sql: str, bound: Mapping[str, Any], folder: Path, name: str, said: Callable[[str], None]
) -> None:
    """Asks for the rows; `said` is told, in another thread, where they are or why they are not."""

    def job(con: duckdb.DuckDBPyConnection) -> bool:
        said(write(con, sql, bound, folder, name))
        return True

    history.ask(("export", object()), job)


def write(con: duckdb.DuckDBPyConnection, sql: str, bound: Mapping[str, Any], folder: Path, name: str) -> str:
    """One sentence: how many rows went where, or why none did."""
    asked = con.execute(sql, dict(bound))
    head, rows = [column[0] for column in asked.description or ()], asked.fetchall()
    stem = re.sub(r"[^\w.-]+", "-", name)
    for number in range(1_000):
        path = folder / f"{stem}{f'-{number}' if number else ''}.csv"
        try:
            with path.open("x", newline="", encoding="utf-8") as file:
                told = csv.writer(file)
                told.writerow(head)
                told.writerows(plain_row(row) for row in rows)
        except FileExistsError:
            continue
        except OSError as error:
            return f"{shown(path)}: {reason(error)}"
        return f"{len(rows)} rows: {shown(path)}"
    return f"{shown(folder)}: too many files are called {stem}"
