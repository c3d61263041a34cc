"""Two ranks that live as long as a module's tests: real processes, real gloo. `Pair.ask` has both run a function.

A process takes seconds to start, a question milliseconds, so that many cases share one pair.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from esper.leyline.errors import RanksError
from esper.tolaria.ranks.group import Group
from esper.tolaria.ranks.meeting import Meeting, Place
from esper.tolaria.ranks.watch import Watch

WORLD = 2


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def place(rank: int, port: int, world: int = WORLD) -> Place:
    return Place(rank, world, rank, "127.0.0.1", port, attempt=0, launched=False)


@dataclass(frozen=True)
class Failed:
    """What a case has raised on one rank."""

    error: Exception


class Pair:
    """The main process's end."""

    def __init__(self) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ask(self, case: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `case(group, *arguments)` comes to on each rank: an answer, or a `Failed`."""
        for pipe in self._pipes:
            pipe.send((case, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(60), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        return answers

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            process.kill()


def _serve(pipe: Connection, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    meeting = Meeting(place(rank, port), timeout_s=60)
    watch = Watch(rank, meeting.lines("pulse"), timeout_s=60)
    watch.start()
    group = Group(meeting, watch, "cpu")
    with suppress(EOFError):
        while True:
            case, arguments = pipe.recv()
            try:
                pipe.send(case(group, *arguments))
            except (RanksError, AssertionError) as error:
                pipe.send(Failed(error))
    os._exit(0)
