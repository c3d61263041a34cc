"""Names of slots: `r{row}c{col}`, e.g. `r0c2`. Plain boundaries are `r0c{i}`, lattices `r{layer}c{surface}`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from esper.leyline.errors import ConfigError

_CANONICAL = re.compile(r"r(0|[1-9][0-9]{0,2})c(0|[1-9][0-9]{0,2})")

Address = tuple[str, ...]
"""Where a slot is: the slot ids from the host inwards. Length 1 unless a seed has slots of its own."""


def format_slot_id(row: int, col: int) -> str:
    """`format_slot_id(0, 2) == "r0c2"`. Rows and columns run from 0 to 999."""
    if not (0 <= row <= 999 and 0 <= col <= 999):
        raise ConfigError(f"slot row {row}, column {col}: both must be between 0 and 999")
    return f"r{row}c{col}"


def validate_slot_id(slot_id: str) -> bool:
    """Whether `slot_id` is canonical (no leading zeros, at most three digits each)."""
    return _CANONICAL.fullmatch(slot_id) is not None


def parse_slot_id(slot_id: str, known: Iterable[str] = ()) -> tuple[int, int]:
    """`parse_slot_id("r0c2") == (0, 2)`; raises ConfigError, a ValueError, that lists the host's slots if given."""
    match = _CANONICAL.fullmatch(slot_id)
    if match is None:
        host = sorted(known, key=slot_sort_key)
        has = f" This host has {', '.join(host)}." if host else ""
        raise ConfigError(f"Invalid slot {slot_id!r}. Use canonical format: r0c0, r0c1, r0c2, ...{has}")
    return int(match[1]), int(match[2])


def slot_sort_key(slot_id: str) -> tuple[int, int]:
    """Row-major order, which is also the order of execution."""
    return parse_slot_id(slot_id)
