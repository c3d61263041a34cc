"""How often something may be done, so that it takes no more than its share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Allows the next one when it can be paid for, as far as the dearest of the last two tells."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        """share: of the time since now."""
        self._share, self._clock, self._began = share, clock, clock()
        self._spent = 0.0
        self._last = (0.0, 0.0)

    @property
    def allows(self) -> bool:
        return self._share > 0.0 and self._spent + max(self._last) <= self._share * (self._clock() - self._began)

    @property
    def in_credit(self) -> bool:
        """Whether one more is bearable that is worth it, be it dear."""
        return self._share > 0.0 and self._spent <= self._share * (self._clock() - self._began)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done in the block is paid for, also where it fails."""
        began = self._clock()
        try:
            yield
        finally:
            cost = self._clock() - began
            self._spent += cost
            self._last = self._last[1], cost
