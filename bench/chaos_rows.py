"""A row of the table that `bench.chaos` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was done, how often, and what came of it."""

    what: str
    times: int
    outcome: str
    kept: bool  # the promise
