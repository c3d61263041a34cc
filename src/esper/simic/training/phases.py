"""Where the time of a round went: wall-clock seconds per phase of the main loop, in its own words.

Worker processes train while the loop waits for their measurements, so with them training stands under `measure`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """Call `on` when a phase is over; what has passed since the last call was spent on it."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        """seconds: what an earlier process has spent on this round."""
        self.seconds: dict[str, float] = dict(seconds or {})
        self._since = time.perf_counter()

    def on(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now
