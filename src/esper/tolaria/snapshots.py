"""Snapshots of one host: taken as candidates, good only once enough steps without suspicion have followed.

There is always a good one: the untrained host is the first. Each is sealed with a digest, so that what is restored is
what was taken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from esper.leyline.errors import DivergedError
from esper.tolaria.config import GovernorConfig
from esper.tolaria.digest import digest_of_state
from esper.tolaria.environment import Environment, Snapshot


@dataclass
class Ring:
    """The good snapshots of a host, oldest first, and those that may become good."""

    config: GovernorConfig
    good: deque[Snapshot]
    candidates: list[Snapshot] = field(default_factory=list)

    @classmethod
    def around(cls, environment: Environment) -> Ring:
        """With the host as it is now, before its first step."""
        config = environment.setup.governor
        return cls(config, deque([_sealed(environment.snapshot())], maxlen=config.ring))

    def remember(self, environment: Environment) -> None:
        """Call after an epoch. What came shortly before a suspicion is never called good."""
        vitals = environment.vitals
        if vitals.suspicious:
            self.candidates = []
            return
        for snapshot in [each for each in self.candidates if each.steps + self.config.bless_steps <= vitals.steps]:
            self.candidates.remove(snapshot)
            self.good.append(snapshot)
        if vitals.steps >= self.newest.steps + self.config.snapshot_steps:
            self.candidates.append(_sealed(environment.snapshot()))

    def go_back(self, further: bool, before: int | None) -> Snapshot:
        """The snapshot to restore; what is younger is forgotten, and the oldest is always kept.

        further: the newest has not helped. before: optimiser steps that the snapshot may have at most. One that is not
        as it was taken is passed over; raises DivergedError where none is.
        """
        self.candidates = []
        if further and len(self.good) > 1:
            self.good.pop()
        while before is not None and self.good[-1].steps > before and len(self.good) > 1:
            self.good.pop()
        while _digest(self.good[-1]) != self.good[-1].digest:
            self.good.pop()
            if not self.good:
                raise DivergedError("no snapshot of an ill host is as it was taken: memory fails; use another machine")
        return self.good[-1]

    @property
    def newest(self) -> Snapshot:
        """The last one taken, good or not yet."""
        return self.candidates[-1] if self.candidates else self.good[-1]


def _sealed(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, digest=_digest(snapshot))


def _digest(snapshot: Snapshot) -> str:
    return digest_of_state([snapshot.model, snapshot.optimiser])
