"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # gates are judged where DuckDB is installed
    from esper.karn.verdicts import Verdict

Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]
"""Head and rows."""


def plain(table: Table) -> str:
    """Columns padded with spaces, every row on one line."""
    head, *rows = [tuple(map(printable, row)) for row in (table[0], *table[1])]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Text from a run for a terminal: signs that would move its cursor, or command it, are spelled out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def cells(row: Sequence[Any]) -> tuple[str, ...]:
    """A row as text: numbers with six digits, and a dash for what was not measured."""
    return tuple("–" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row)


def markdown(table: Table) -> str:
    """The same for README, where a test compares it."""
    head, rows = table
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def gate_rows(found: Sequence[Verdict]) -> Table:
    """A row per gate: verdict, value with its interval, limit, how many were counted, and why."""
    rows = [
        (
            gate.name,
            {True: "pass", False: "FAIL", None: "not judged"}[gate.passed],
            "–" if gate.value is None else f"{gate.value:.4g}",
            "" if gate.low is None or gate.high is None else f"[{gate.low:.4g}, {gate.high:.4g}]",
            gate.limit,
            str(gate.n),
            gate.note,
        )
        for gate in found
    ]
    return ("gate", "verdict", "value", "95 % interval", "limit", "n", "note"), rows
