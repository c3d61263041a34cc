"""Ranks that take far longer than the others for the same work are told of; who hangs is `watch.py`'s to find."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from esper.leyline.telemetry import Payload, RanksTroubledPayload

LEAST_S = 1.0
"""By which a rank is later than others before anyone is warned."""


class Stragglers:
    """Finds ranks that take far longer than the others, and tells of each once."""

    def __init__(self, factor: float) -> None:
        """factor: times the median of the others."""
        self._factor = factor
        self._told: set[int] = set()

    def judge(self, seconds: Sequence[float]) -> list[Payload]:
        """seconds: what each rank took for the same work, in the order of ranks."""
        found: list[Payload] = []
        for rank, own in enumerate(seconds):
            usual = statistics.median(other for place, other in enumerate(seconds) if place != rank)
            if rank not in self._told and own > self._factor * usual and own - usual > LEAST_S:
                self._told.add(rank)
                text = f"rank {rank} took {own:.1f} s for what took the others {usual:.1f}"
                found.append(RanksTroubledPayload(kind="slow", ranks=(rank,), text=text))
        return found
