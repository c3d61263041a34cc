"""All hosts on all ranks: rank 0 runs the main loop and leads, the others do the same to replicas of its hosts.

Nothing is answered: what ranks have to know of each other they sum up or compare (`replicas.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import Payload
from esper.tolaria.engine import Outcome
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.ranks.group import Group
from esper.tolaria.ranks.replicas import Replicas
from esper.tolaria.ranks.stragglers import Stragglers
from esper.tolaria.setup import Setup
from esper.tolaria.share import Share, packed, requests


class Replica:
    """What every rank does with its hosts when rank 0 says so; rank 0 with its own."""

    def __init__(self, setup: Setup, group: Group, crew: Replicas) -> None:
        """setup: with this crew in it."""
        self.share = Share(setup, range(setup.envs))
        self._group, self._crew = group, crew

    def train_epoch(self) -> list[float]:
        """Seconds that each rank has worked."""
        began, waited_s = time.perf_counter(), self._crew.waited_s
        self.share.train_epoch()
        worked_s = time.perf_counter() - began - (self._crew.waited_s - waited_s)
        return self._group.gather(worked_s)

    def agree(self) -> None:
        """On everything that training changes."""
        self._crew.agree_on_weights(self.share.engine.environments)


def follow(line: Connection, replica: Replica) -> None:
    """On every other rank than 0: does what that one does until it does no more."""
    for method, arguments in requests(line):
        method(replica if method in _OWN else replica.share, *arguments)


_OWN = frozenset({Replica.train_epoch, Replica.agree})


class LeadingEngine:
    """Rank 0's engine, whose calls the other ranks repeat."""

    def __init__(self, replica: Replica, lines: Sequence[Connection], straggler: float) -> None:
        self.replica, self._engine = replica, replica.share.engine
        self.setup, self.specs, self.space = self._engine.setup, self._engine.specs, self._engine.space
        self._lines, self._slow, self._told = lines, Stragglers(straggler), list[Payload]()

    @property
    def ranks(self) -> int:
        return len(self._lines) + 1

    def tell(self, method: Callable[..., object], *arguments: Any) -> None:
        """All other ranks do this now; so has this one to."""
        for line in self._lines:
            line.send((method, arguments))

    def reset(self, round_: int) -> list[HostReport]:
        self.tell(Share.reset, round_)
        return self._engine.reset(round_)

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]:
        self.tell(Share.apply, [action.indices for action in actions])
        return self._engine.apply(actions)

    def train_epoch(self) -> None:
        self.tell(Replica.train_epoch)
        self._told += self._slow.judge(self.replica.train_epoch())

    def measure(self) -> list[HostReport]:
        self.tell(Share.measure)
        return self._engine.measure()

    def reports(self) -> list[HostReport]:
        return self._engine.reports()

    def events(self) -> list[Payload]:
        told, self._told = self._told, []
        return [*told, *self._engine.events()]

    def flops(self) -> list[int]:
        return self._engine.flops()

    def outcomes(self) -> list[Outcome]:
        return self._engine.outcomes()

    def digests(self) -> list[str]:
        return self._engine.digests()

    def models(self) -> list[dict[str, Any]]:
        return self._engine.models()

    def close(self) -> None:
        """The other ranks end with the run: see `Watch.close`."""


class LeadingGovernor:
    """Rank 0's governor, whose reviews the other ranks repeat."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor

    def begin(self, engine: LeadingEngine) -> None:
        engine.tell(Share.begin)
        engine.replica.share.begin()

    def review(self, engine: LeadingEngine, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        engine.tell(Share.review)
        return self.governor.review(engine.replica.share.engine, after)


@dataclass(frozen=True)
class LeadingHosts:
    """`Hosts` of all ranks, of which rank 0's stand for all."""

    engine: LeadingEngine

    def state(self) -> dict[str, Any]:
        """Raises LifecycleDivergence where they cannot."""
        self.engine.tell(Replica.agree)
        self.engine.replica.agree()
        return self._local.state()

    def load(self, state: dict[str, Any]) -> list[HostReport]:
        self.engine.tell(Share.load, packed(state))
        return self._local.load(state)

    @property
    def _local(self) -> LocalHosts:
        share = self.engine.replica.share
        return LocalHosts(share.engine, share.governor)
