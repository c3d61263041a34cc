"""What DuckDB hands to Python, as plain values that JSON can say, and none of them too long to read.

    plain_row((date(2026, 11, 20), Decimal("1.50"), float("nan")))   # ("2026-11-20", 1.5, "nan")

Dates, times, intervals and blobs become text; so do NaN, infinities and whole numbers that a double cannot hold. A cell
that is too long is cut and says how long it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, final

CELL_CHARS = 2_000
_DEEPEST = 20  # lists in lists that are shown
_AROUND = 6  # characters that an item takes besides its text
_EXACT = 2**53  # readers of JSON keep whole numbers as doubles


def plain_row(raw: Sequence[object], longest_cell: int = CELL_CHARS) -> tuple[Any, ...]:
    """Each cell as None, bool, int, float, str, or a list or dict of them."""
    return tuple(_plain(value, _Room(longest_cell)) for value in raw)


@final
class _Room:
    """Characters that one cell may still take."""

    def __init__(self, chars: int) -> None:
        self.left = chars


def _plain(value: object, room: _Room, depth: int = 0) -> Any:
    """What JSON can say. Text and lists are cut where the room ends, and say how long they were.

    NaN, infinities and numbers that a double cannot hold become text, and so do dates, intervals and blobs.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, list | tuple):
        return _plain_list(value, room, depth)
    if isinstance(value, dict):
        return _plain_dict(value, room, depth)
    if isinstance(value, bytes):
        text = _cut_blob(value, room.left)
    else:
        text = cut(value.isoformat() if isinstance(value, date | time) else str(value), room.left)
    room.left -= len(text)
    return text


def _plain_list(values: Sequence[object], room: _Room, depth: int) -> list[Any]:
    told: list[Any] = []
    for value in values:
        if room.left <= 0 or depth == _DEEPEST:
            return [*told, f"… ({len(values)} items)"]
        room.left -= _AROUND
        told.append(_plain(value, room, depth + 1))
    return told


def _plain_dict(values: Mapping[Any, object], room: _Room, depth: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for key, value in values.items():
        if room.left <= 0 or depth == _DEEPEST:
            return {**told, "…": f"{len(values)} entries"}
        name = str(_plain(key, room, depth + 1))
        room.left -= _AROUND
        told[name] = _plain(value, room, depth + 1)
    return told


def _cut_blob(blob: bytes, longest: int) -> str:
    """A blob as DuckDB writes it: ASCII as it stands, `\\x00` for what cannot be printed."""
    longest = max(longest, 0)
    text = "".join(chr(b) if 32 <= b < 127 and b not in b"\\'\"" else f"\\x{b:02X}" for b in blob[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}… ({len(blob)} bytes)"


def cut(text: str, longest: int) -> str:
    longest = max(longest, 0)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"
