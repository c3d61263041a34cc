"""Environments spread over local processes, with the interface of `Engine` and `Governor`: `--workers N`.

Start with `engine_and_governor`. Every worker holds an `Engine` and a `Governor` over its share of the environments;
this process asks all of them at once and puts the answers together in the order of environments, so that the numbers
are the same for any N. To spread another call of the engine, write a method in `share.py` and ask for it in
`WorkerEngine`. Workers are processes of this machine here, and ranks in `ranks/spread.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.errors import ConfigError, EsperError, WorkerDiedError
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import Payload
from esper.tolaria.engine import Engine, Outcome
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import BY_NUMBER, Hosts, LocalHosts
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol
from esper.tolaria.ranks.leading import LeadingEngine, LeadingHosts
from esper.tolaria.share import Build, Crash, Measured, Reviewed, Share, packed, serve, unpacked

T = TypeVar("T")
_GRACE_S = 0.5  # for a worker to end by itself


def engine_and_governor(build: Build, workers: int) -> tuple[EngineProtocol, GovernorProtocol]:
    """Both for one run, in this process where one worker is enough. Raises ConfigError for a setup that cannot run."""
    if workers == 1:
        setup = build()
        return Engine(setup), Governor(setup.governor)
    return local_workers(build, workers), WorkerGovernor()


def local_workers(build: Build, workers: int) -> WorkerEngine:
    """Returns while the workers still start. Raises ConfigError for a setup that cannot run, and starts none."""
    here, started = Engine(build(), ()), list[Worker]()
    engine = WorkerEngine(here, started)
    shares = shares_of(here.setup.envs, workers)
    try:
        for number, share in enumerate(shares, start=1):
            started.append(_start(f"worker {number} of {workers}", build, share))
    except BaseException:
        engine.close()
        raise
    return engine


def default_workers(envs: int, cores: int | None = None) -> int:
    """The largest divisor of `envs` that is not above the cores that this process may use."""
    usable = _cores() if cores is None else cores
    return max(count for count in range(1, envs + 1) if envs % count == 0 and count <= usable)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shares_of(envs: int, workers: int) -> list[range]:
    """The environments of each worker: neighbours, and as many for each as for any other, give or take one."""
    if not 1 <= workers <= envs:
        raise ConfigError(f"run.workers: {workers} for {envs} environments; use 1 to {envs}")
    return [range(*pair) for pair in pairwise(envs * worker // workers for worker in range(workers + 1))]


class Peer(Protocol):
    """Who trains some of the environments, as the process sees it that runs the main loop."""

    @property
    def numbers(self) -> range:
        """Its environments."""
        ...

    def send(self, method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Asks for a method of its `Share`, and does not wait."""
        ...

    def handles(self, has_answered: bool, /) -> Sequence[Connection | int]:
        """What becomes ready when there is an answer, or word of its death; nothing for one that works while read."""
        ...

    def read(self) -> Any:
        """Its answer, or its error."""
        ...

    def part(self) -> None:
        """Nothing more will be asked."""
        ...

    def end(self, grace_s: float) -> None:
        """Ends it where it does not end by itself in time."""
        ...


@dataclass(frozen=True)
class Worker:
    """One worker process, as the main process sees it."""

    name: str  # for messages
    numbers: range  # its environments
    pipe: Connection
    process: BaseProcess

    def handles(self, has_answered: bool) -> Sequence[Connection | int]:
        return [self.process.sentinel] if has_answered else [self.pipe, self.process.sentinel]

    def part(self) -> None:
        self.pipe.close()

    def end(self, grace_s: float) -> None:
        """In the middle of its work if need be."""
        self.process.join(grace_s)
        self.process.kill()
        self.process.join()

    def send(self, method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        with suppress(ConnectionError):  # why a worker is gone is said where its answer is awaited
            self.pipe.send((method, arguments))

    def read(self) -> Any:
        """What a dead worker had still to say, its error above all, is read before its death is met."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        return answered(self.name, answer)

    def _death(self) -> WorkerDiedError:
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        cause = f" ({signal.strsignal(-code)})" if code < 0 else ""
        return WorkerDiedError(
            f"{self.name} died with exit code {code}{cause}; run again, with fewer --workers if memory ran out"
        )


def answered(name: str, answer: Any) -> Any:
    """What a peer sends back, or the error that it has met."""
    if isinstance(answer, EsperError):
        raise answer
    if isinstance(answer, Crash):
        raise RuntimeError(f"{name} failed:\n{answer.text}")
    return answer


class WorkerEngine:
    """`Engine` over several processes. After an error of any kind nothing is left to do but `close` it."""

    def __init__(self, here: Engine, workers: Sequence[Peer], judge: Callable[[], list[Payload]] = list) -> None:
        """here: an engine of no environments. judge: has something to tell once all have answered."""
        self.setup, self.specs, self.space = here.setup, here.specs, here.space
        self._told: list[Payload] = []
        self._flops: list[int] | None = None  # None where work has been done since they were told
        self._workers, self._judge = workers, judge

    def reset(self, round_: int) -> list[HostReport]:
        """New hosts for a round."""
        self._flops = None
        return _joined(self._ask(Share.reset, round_))

    def begin_watch(self) -> None:
        """The governors' `begin`."""
        self._tell(Share.begin)

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]:
        """One action per environment."""
        assert len(actions) == self.setup.envs, f"{len(actions)} actions for {self.setup.envs} environments"
        self._flops = None
        for worker in self._workers:
            worker.send(Share.apply, ([actions[number].indices for number in worker.numbers],))
        return _joined(self._answers())

    def train_epoch(self) -> None:
        """Begins one host epoch of every environment that is still going; the next question waits for its end."""
        self._flops = None
        self._tell(Share.train_epoch)

    def measure(self) -> list[HostReport]:
        """Validates every environment, contributions included."""
        parts: list[Measured] = self._ask(Share.measure)
        self._told += [*_joined(part.begun for part in parts), *_joined(part.found for part in parts)]
        self._flops = _joined(part.flops for part in parts)
        return _joined(part.reports for part in parts)

    def review(self, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        """The governors' `review`."""
        parts: list[Reviewed] = self._ask(Share.review)
        settled = [
            [after[number] for number in worker.numbers] if part.settled is None else part.settled
            for worker, part in zip(self._workers, parts, strict=True)
        ]
        return _joined(part.verdicts for part in parts), _joined(settled)

    def reports(self) -> list[HostReport]:
        return _joined(self._ask(Share.reports))

    def events(self) -> list[Payload]:
        """What time and measurement brought about since the last call, up to the last `measure`."""
        told, self._told = self._told, []
        return told

    def flops(self) -> list[int]:
        """Work of each environment so far."""
        if self._flops is None:
            self._flops = _joined(self._ask(Share.flops))
        return self._flops

    def outcomes(self) -> list[Outcome]:
        """As of `Engine`."""
        return _joined(self._ask(Share.outcomes))

    def digests(self) -> list[str]:
        return _joined(self._ask(Share.digests))

    def models(self) -> list[dict[str, Any]]:
        """On the CPU, wherever the workers have them."""
        return [unpacked(message) for message in _joined(self._ask(Share.models))]

    def states(self) -> list[dict[str, Any]]:
        """What `LocalHosts.state` gives, of each worker."""
        return [unpacked(message) for message in self._ask(Share.state)]

    def load(self, share: Callable[[Sequence[int]], dict[str, Any]]) -> list[HostReport]:
        """`LocalHosts.load` in every worker. share: the part of a state that is of these environments."""
        self._flops = None
        for worker in self._workers:
            worker.send(Share.load, (packed(share(worker.numbers)),))
        return _joined(self._answers())

    def close(self) -> None:
        """Ends the workers: those that wait do so by themselves, the others are killed in the middle of their work."""
        for worker in self._workers:
            worker.part()
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))

    def _tell(self, method: Callable[..., object], *arguments: Any) -> None:
        for worker in self._workers:
            worker.send(method, arguments)

    def _ask(self, method: Callable[..., T], *arguments: Any) -> list[T]:
        """One answer per worker; they work at the same time."""
        self._tell(method, *arguments)
        return self._answers()

    def _answers(self) -> list[Any]:
        """Waits for all; a worker that dies ends the waiting at once, even one that has answered already."""
        answers = {place: worker.read() for place, worker in enumerate(self._workers) if not worker.handles(False)}
        while len(answers) < len(self._workers):
            handles = {place: worker.handles(place in answers) for place, worker in enumerate(self._workers)}
            ready = wait(list(chain.from_iterable(handles.values())))
            for place, worker in enumerate(self._workers):
                if any(handle in ready for handle in handles[place]):
                    answers[place] = worker.read()
        self._told += self._judge()
        return [answers[place] for place in range(len(self._workers))]


class WorkerGovernor:
    """The governor of a `WorkerEngine`: every worker has one of its own, because snapshots stay where hosts are."""

    def begin(self, engine: WorkerEngine) -> None:
        """New episodes."""
        engine.begin_watch()

    def review(self, engine: WorkerEngine, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        """A verdict on every environment, and the reports once the verdicts have been carried out."""
        return engine.review(after)


@dataclass(frozen=True)
class WorkerHosts:
    """`Hosts` of several processes."""

    engine: WorkerEngine

    def state(self) -> dict[str, Any]:
        """As of `LocalHosts`, whose states of all workers it puts together."""
        parts = self.engine.states()
        merged = {what: {env: of for part in parts for env, of in part[what].items()} for what in BY_NUMBER}
        return {**parts[0], **merged}

    def load(self, state: dict[str, Any]) -> list[HostReport]:
        def share(numbers: Sequence[int]) -> dict[str, Any]:
            return {**state, **{what: {env: state[what][env] for env in numbers} for what in BY_NUMBER}}

        return self.engine.load(share)


def hosts_of(engine: EngineProtocol, governor: GovernorProtocol) -> Hosts:
    """Of what `engine_and_governor` made."""
    if isinstance(engine, WorkerEngine):
        return WorkerHosts(engine)
    if isinstance(engine, LeadingEngine):
        return LeadingHosts(engine)
    assert isinstance(engine, Engine), f"{type(engine).__name__} cannot be put away"
    assert isinstance(governor, Governor), f"{type(governor).__name__} cannot be put away"
    return LocalHosts(engine, governor)


def _start(name: str, build: Build, numbers: range) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    title = f"{name} (environment{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))})"
    process = context.Process(target=serve, args=(theirs, build, numbers), name=name, daemon=True)
    resource_tracker.ensure_running()  # or else the first process started starts it, which lets interrupts in again
    with _without_interrupts():
        process.start()
    theirs.close()  # so that its end is an end of file here
    return Worker(title, numbers, ours, process)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started in the block never sees Ctrl-C, which the terminal sends to all; the main process ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _joined(parts: Iterable[Iterable[T]]) -> list[T]:
    return list(chain.from_iterable(parts))
