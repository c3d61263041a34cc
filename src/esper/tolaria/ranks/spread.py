"""Environments spread over ranks: what `workers.py` does with processes of one machine, rank 0 has a share itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from esper.leyline.errors import ConfigError, RanksError
from esper.leyline.faults import fault
from esper.tolaria.engine import Engine
from esper.tolaria.ranks.stragglers import Stragglers
from esper.tolaria.ranks.watch import Watch
from esper.tolaria.setup import Setup
from esper.tolaria.share import Build, Share, work
from esper.tolaria.workers import Peer, WorkerEngine, answered, shares_of

_VERDICT_S = 2.0  # for the watch to notice a death


def shares_of_ranks(envs: int, world: int) -> list[range]:
    """The environments of each rank. Raises ConfigError where they cannot be dealt out evenly."""
    if envs % world:
        raise ConfigError(
            f"run.envs: {envs} environments cannot be dealt out evenly to {world} ranks; use a multiple of {world}"
        )
    return shares_of(envs, world)


def spread_engine(setup: Setup, lines: dict[int, Connection], watch: Watch, straggler: float) -> WorkerEngine:
    """On rank 0. lines: one to each other rank, where `answer` runs."""
    own, *others = shares_of_ranks(setup.envs, len(lines) + 1)
    here = Own(setup, own, watch)
    remote = [Remote(rank, share, lines[rank], watch) for rank, share in enumerate(others, start=1)]
    peers: Sequence[Peer] = [here, *remote]
    slow = Stragglers(straggler)
    return WorkerEngine(Engine(setup, ()), peers, lambda: slow.judge([here.took_s, *(peer.took_s for peer in remote)]))


def answer(line: Connection, watch: Watch, setup: Setup, numbers: range) -> None:
    """On every other rank: does what rank 0 asks for its environments until it asks no more."""
    build: Build = lambda: setup  # noqa: E731
    work(Timed(line, watch), build, numbers)


class Timed:
    """A line whose answers say how long they took, and that are told to the watch."""

    def __init__(self, line: Connection, watch: Watch) -> None:
        self._line, self._watch = line, watch
        self._began: float | None = None

    def recv(self) -> Any:
        request = self._line.recv()
        if self._began is None:  # requests without an answer belong to the next one that has one
            self._began = time.monotonic()
        return request

    def send(self, found: Any, /) -> None:
        fault("ranks.answer")
        took_s = 0.0 if self._began is None else time.monotonic() - self._began
        self._began = None
        self._watch.beat()
        self._line.send((found, took_s))


class Remote:
    """A rank, as rank 0 sees it. `took_s`: what its last answer took it, in seconds."""

    def __init__(self, rank: int, numbers: range, line: Connection, watch: Watch) -> None:
        self.numbers, self.took_s = numbers, 0.0
        self._rank, self._line, self._watch = rank, line, watch

    def send(self, method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            self._line.send((method, arguments))
        except OSError as error:
            raise self._gone() from error

    def handles(self, has_answered: bool) -> Sequence[Connection | int]:
        return [] if has_answered else [self._line]

    def read(self) -> Any:
        try:
            found, self.took_s = self._line.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        return answered(f"rank {self._rank}", found)

    def part(self) -> None:
        """The rank ends with the run: see `Watch.close`."""

    def end(self, grace_s: float) -> None:
        """Likewise."""

    def _gone(self) -> RanksError:
        return self._watch.trouble_within(_VERDICT_S) or RanksError("died", [self._rank], f"rank {self._rank} died")


class Own:
    """Rank 0's share, which it works on when it is asked for the answer, thus while the others work on theirs."""

    def __init__(self, setup: Setup, numbers: range, watch: Watch) -> None:
        self.numbers, self.took_s = numbers, 0.0
        self._share, self._watch = Share(setup, numbers), watch
        self._asked: deque[Callable[[], object]] = deque()

    def send(self, method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._asked.append(partial(method, self._share, *arguments))

    def handles(self, _has_answered: bool) -> Sequence[Connection | int]:
        return []

    def read(self) -> Any:
        found, began = None, time.monotonic()
        while self._asked:
            found = self._asked.popleft()()
        self.took_s = time.monotonic() - began
        self._watch.beat()
        return found

    def part(self) -> None:
        """There is no process to end."""

    def end(self, grace_s: float) -> None:
        """Likewise."""
