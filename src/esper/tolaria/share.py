"""What runs in a worker process: an engine and a governor over some of a run's environments. `workers.py` asks it.

A message is a method of `Share` and its arguments; what the method returns is the answer. Messages hold no tensors:
those would travel as open files, and a worker can end before they are read.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.errors import EsperError
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import Payload
from esper.tolaria.engine import Engine, Outcome
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.setup import Setup

Build = Callable[[], Setup]
"""Makes the setup anew in each process, because tasks hold functions that cannot be sent. It is pickled itself."""


@dataclass(frozen=True)
class Measured:
    """What a worker has to tell after an epoch."""

    reports: list[HostReport]
    begun: list[Payload]  # what time brought about
    found: list[Payload]  # what measurement brought about
    flops: list[int]


@dataclass(frozen=True)
class Reviewed:
    """What a worker's governor has decided."""

    verdicts: list[Verdict]
    settled: list[HostReport] | None  # None where every host is healthy


@dataclass(frozen=True)
class Crash:
    """An error that only a bug can cause, in words."""

    text: str


class Share:
    """One worker's part of a run. A method that returns None is not answered."""

    def __init__(self, setup: Setup, numbers: Sequence[int]) -> None:
        self.engine, self.governor = Engine(setup, numbers), Governor(setup.governor)

    def reset(self, round_: int) -> list[HostReport]:
        return self.engine.reset(round_)

    def begin(self) -> None:
        self.governor.begin(self.engine)

    def apply(self, choices: Sequence[tuple[int, ...]]) -> list[Receipt]:
        return self.engine.apply([FactoredAction(indices, self.engine.space) for indices in choices])

    def train_epoch(self) -> None:
        self.engine.train_epoch()

    def measure(self) -> Measured:
        begun = self.engine.events()
        return Measured(self.engine.measure(), begun, self.engine.events(), self.engine.flops())

    def review(self) -> Reviewed:
        measured: tuple[HostReport, ...] = ()  # where all are healthy these would stand, which the main process has
        verdicts, settled = self.governor.review(self.engine, measured)
        return Reviewed(verdicts, settled or None)

    def reports(self) -> list[HostReport]:
        return self.engine.reports()

    def flops(self) -> list[int]:
        return self.engine.flops()

    def outcomes(self) -> list[Outcome]:
        return self.engine.outcomes()

    def digests(self) -> list[str]:
        return self.engine.digests()

    def models(self) -> list[bytes]:
        """What `unpacked` reads."""
        return [packed(model) for model in self.engine.models()]

    def state(self) -> bytes:
        """Likewise."""
        return packed(LocalHosts(self.engine, self.governor).state())

    def load(self, state: bytes) -> list[HostReport]:
        return LocalHosts(self.engine, self.governor).load(unpacked(state))


def packed(state: dict[str, Any]) -> bytes:
    """Tensors and primitives as a message."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(message: bytes) -> dict[str, Any]:
    """The inverse, on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(message), map_location="cpu")
    return state


class Line(Protocol):
    """Where requests come from and answers go."""

    def recv(self) -> Any: ...

    def send(self, answer: Any, /) -> None: ...


def serve(pipe: Connection, build: Build, numbers: Sequence[int]) -> None:
    """The life of a worker process."""
    end_with_the_parent()
    torch.set_num_threads(1)
    work(pipe, build, numbers)


def work(line: Line, build: Build, numbers: Sequence[int]) -> None:
    """Does what it is asked until nobody is left to ask."""
    try:
        share = Share(build(), numbers)
        for method, arguments in requests(line):
            answer = method(share, *arguments)
            if answer is not None:
                _reply(line, answer)
    except EsperError as error:
        _reply(line, error)
    except Exception as error:
        _reply(line, Crash(traceback.format_exc()))
        raise SystemExit(1) from error


def _reply(line: Line, answer: Any) -> None:
    with suppress(ConnectionError):  # nobody listens any more, which the next request will show
        line.send(answer)


def requests(line: Line) -> Iterator[Any]:
    """Until nobody is left to ask."""
    with suppress(EOFError, ConnectionError):
        while True:
            yield line.recv()


def end_with_the_parent() -> None:
    """From now on this process ends when its parent does, also in the middle of an epoch, which can take minutes."""
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
