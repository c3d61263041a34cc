"""Questions in SQL, answered in a process of their own, so that a bad one hurts nobody, not even the next question.

    with QueryProcess(open_store, ["runs/20261120-140233-digits-a1b2c3"]) as process:
        answer = process.ask(Question("from churn limit 10"))

`open_store` is any function that can be imported by its name; what it returns is a `Source`: DuckDB tables and a way to
bring them up to date. It runs in a child process, which then shuts its doors (`sql_gate.lock`) and takes limits of the
kernel: memory, processor time, few files and none longer than nothing, no core dumps. A query that takes too long is
interrupted, and killed with its process if that does not help. A second process with the same tables is kept ready, so
that the next question is answered at once; each holds all tables in memory.

Read `QueryProcess`, then `_Child` (one process as seen from here), then `serve` (the inside of it).
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, final

import duckdb
import msgspec

from esper.karn.sql_gate import Answer, Question, ask, lock
from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError, EsperError

_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")  # tokens, proxies and the home folder stay outside
_DESCRIPTORS = 64
_SLACK_MIB = 768  # address space for stacks, the arenas of malloc, and rows on their way to Python
_TRIES = 3  # the process that is asked, the spare one, and a fresh one


class Source(Protocol):
    """What is asked: made in the child, and used there only."""

    @property
    def con(self) -> duckdb.DuckDBPyConnection: ...

    def refresh(self) -> int:
        """Bring the tables up to date and return how many events came; no file may be read by SQL, none be written."""


@dataclass(frozen=True)
class QueryLimits:
    """Of one question; loading and refreshing have a time of their own."""

    seconds: float = setting(5.0, above=0.0, high=3600, help="time after which a query is interrupted, in seconds")
    grace_s: float = setting(0.5, above=0.0, high=60, help="time that an interrupted query has to end, in seconds")
    cpu_s: int = setting(15, low=1, high=10_800, help="processor time of one query, in seconds of one core")
    memory_mib: int = setting(1024, low=64, help="memory of one query on top of the tables, in MiB")
    threads: int = setting(2, low=1, high=64, help="threads of one query")
    load_s: float = setting(120.0, above=0.0, help="longest time to load the tables or to refresh them, in seconds")

    def __post_init__(self) -> None:
        check_ranges(self)

    @staticmethod
    def lasting(seconds: float) -> QueryLimits:
        """With so much processor time that all threads can be at work for so long; ConfigError for a bad number."""
        limits = QueryLimits(seconds=seconds)
        return replace(limits, cpu_s=max(limits.cpu_s, math.ceil((limits.threads + 1) * seconds)))


@final
class QueryProcess:
    """`ask` from any thread, one question at a time; `close` leaves no process behind."""

    def __init__(self, load: Callable[[Any], Source], argument: object, limits: QueryLimits | None = None) -> None:
        """`load(argument)` runs in the child; `argument` is what JSON can say. Returns when the tables are there.

        ConfigError if they cannot be loaded.
        """
        self._job = _Job.of(load, argument, limits or QueryLimits())
        self._lock = threading.Lock()
        self._closed = False
        self._children = [_Child(self._job)]  # the one that is asked, and the spare one
        try:
            self._children[0].wait_until_loaded()
            self._keep_two()
        except BaseException as error:
            self.close()
            if isinstance(error, _LostError):
                raise ConfigError(f"tables: cannot be loaded: {error}") from None
            raise

    def ask(self, question: Question) -> Answer:
        """The answer, or a ConfigError in one sentence; either way the next question is as welcome."""
        with self._lock:
            assert not self._closed, "the process has been closed"
            self._keep_two()
            for _ in range(_TRIES):
                child = self._children[0]
                try:
                    return child.ask(question)
                except _LostError as lost:
                    why = str(lost)
                finally:
                    if child.spent:
                        self._children.remove(child)
                        child.kill()
                        self._keep_two()
            raise ConfigError(f"query: no process lives long enough to answer: {why}")

    def close(self) -> None:
        """Kill the processes and wait until they are gone; waits for a question that is being answered.

        Doing it twice is no harm.
        """
        with self._lock:
            self._closed = True
            while self._children:
                self._children.pop().kill()

    def _keep_two(self) -> None:
        while len(self._children) < 2:
            self._children.append(_Child(self._job))

    def __enter__(self) -> QueryProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- what goes through the pipe: JSON, because nothing that a child sends is trusted ---------------------------------


@dataclass(frozen=True)
class _Job:
    """What a child has to know, the first thing that it is sent."""

    module: str
    function: str
    argument: Any
    limits: QueryLimits
    parent: int  # process id

    @staticmethod
    def of(load: Callable[[Any], Source], argument: object, limits: QueryLimits) -> _Job:
        module, function = load.__module__, load.__qualname__
        importable = module != "__main__" and "<" not in function
        assert importable, f"{module}.{function} cannot be imported by its name"
        return _Job(module, function, argument, limits, os.getpid())


class _Ready(msgspec.Struct, tag="ready"):
    """The tables are loaded, or up to date, and the time of the query begins."""


class _Told(msgspec.Struct, tag="told"):
    answer: Answer


class _Refused(msgspec.Struct, tag="refused"):
    why: str  # one sentence
    last: bool = False  # the process is not to be asked again, and ends


_Frame = _Ready | _Told | _Refused


# ---- one process, from outside ---------------------------------------------------------------------------------------


class _LostError(Exception):
    """The process was gone before the query began, so another one can be asked."""


@final
class _Child:
    """A process that loads the tables as soon as it is made."""

    def __init__(self, job: _Job) -> None:
        self._limits = job.limits
        self._loaded = False
        self.spent = False
        """Not to be asked again."""
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "esper.karn.query_process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # of a server that speaks on it
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent alone
            )
        with suppress(OSError):  # a process that is gone at once is found out later
            self._pipe.send_bytes(msgspec.json.encode(job))

    def wait_until_loaded(self) -> None:
        if not self._loaded:
            self._until_ready()
            self._loaded = True

    def ask(self, question: Question) -> Answer:
        self.spent = True  # whatever goes wrong before the answer is here leaves it in the middle of something
        self.wait_until_loaded()
        try:
            self._pipe.send_bytes(msgspec.json.encode(question))
        except OSError:
            raise _LostError(self._end()) from None
        self._until_ready()
        try:
            frame = self._receive(self._limits.seconds + self._limits.grace_s)
        except TimeoutError:
            raise ConfigError(too_slow(self._limits)) from None
        except _LostError as lost:
            raise ConfigError(f"query: {lost}; ask for less at a time") from None
        if isinstance(frame, _Refused):
            self.spent = frame.last
            raise ConfigError(frame.why)
        assert isinstance(frame, _Told), "a question has one answer"
        self.spent = False
        return frame.answer

    def kill(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _until_ready(self) -> None:
        try:
            frame = self._receive(self._limits.load_s)
        except TimeoutError:
            raise ConfigError(f"tables: not loaded within {self._limits.load_s:g} s; open fewer runs at once") from None
        if isinstance(frame, _Refused):
            raise ConfigError(frame.why)
        assert isinstance(frame, _Ready), "a child says that it is ready before it tells anything"

    def _receive(self, seconds: float) -> _Frame:
        """The next frame; TimeoutError, or _LostError if the process is gone."""
        try:
            if not self._pipe.poll(seconds):
                raise TimeoutError
            frame: _Frame = msgspec.json.decode(self._pipe.recv_bytes(), type=_Frame)
            return frame
        except (EOFError, ConnectionError):
            raise _LostError(self._end()) from None

    def _end(self) -> str:
        """How a process ended that has let go of its pipe."""
        self._process.kill()  # no harm to one that is gone; one that is going must not keep us waiting
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"it took more than {self._limits.cpu_s} s of processor time"
        return "its process was killed" if code == -signal.SIGKILL else "its process broke down"


def too_slow(limits: QueryLimits) -> str:
    return f"query: stopped after {limits.seconds:g} s; narrow it with WHERE, or group before joining"


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


# ---- the same process, from inside -----------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Load, lock, then answer what comes through the pipe until its other end is closed."""
    pipe = Connection(descriptor)
    job = msgspec.json.decode(pipe.recv_bytes(), type=_Job)
    limits = job.limits
    threading.Thread(target=_end_with, args=(job.parent,), daemon=True).start()
    try:
        source: Source = attrgetter(job.function)(importlib.import_module(job.module))(job.argument)
    except EsperError as error:
        _send(pipe, _Refused(str(error), last=True))
        return
    lock(source.con, limits.memory_mib, limits.threads)
    _take_limits(limits)
    _send(pipe, _Ready())
    with suppress(EOFError):
        while True:
            question = msgspec.json.decode(pipe.recv_bytes(), type=Question)
            for frame in _frames(source, question, limits):
                _send(pipe, frame)
                if isinstance(frame, _Refused) and frame.last:
                    return


def _send(pipe: Connection, frame: _Frame) -> None:
    pipe.send_bytes(msgspec.json.encode(frame))


def _frames(source: Source, question: Question, limits: QueryLimits) -> Iterator[_Frame]:
    _allow_cpu(math.ceil(limits.load_s * limits.threads))
    try:
        source.refresh()
    except EsperError as error:
        yield _Refused(str(error), last=True)
        return
    yield _Ready()
    _allow_cpu(limits.cpu_s)
    yield _answer(source.con, question, limits)


def _answer(con: duckdb.DuckDBPyConnection, question: Question, limits: QueryLimits) -> _Told | _Refused:
    try:
        with closing(con.cursor()) as cursor, _interrupted_after(cursor, limits.seconds):
            return _Told(ask(cursor, question))
    except ConfigError as error:
        return _Refused(str(error))
    except duckdb.InterruptException:
        return _Refused(too_slow(limits))
    except RecursionError:
        return _Refused("query: nested too deeply; write it flatter")
    except (duckdb.OutOfMemoryException, MemoryError):
        return _Refused(f"query: needs more than {limits.memory_mib} MiB of memory; ask for less at a time", last=True)
    except (duckdb.InternalError, duckdb.FatalException):
        return _Refused("query: DuckDB breaks down on it; write it differently", last=True)


@contextmanager
def _interrupted_after(cursor: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupts what runs inside, again and again: an interrupt that falls between two statements is forgotten."""
    done = threading.Event()

    def watch() -> None:
        late = not done.wait(seconds)
        while late:
            cursor.interrupt()
            late = not done.wait(0.05)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _end_with(parent: int) -> None:
    """Ends this process within a second of its parent, whatever the main thread is doing.

    Not PR_SET_PDEATHSIG: that one strikes when the thread ends that started us, and servers start us from threads that
    come and go. A query that holds the interpreter all the time ends at its limit of processor time.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _take_limits(limits: QueryLimits) -> None:
    """For the rest of the life of this process; called once everything is loaded."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    if sys.platform == "linux":  # elsewhere the limit is not kept by the kernel, and DuckDB's own has to do
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + ((limits.memory_mib + _SLACK_MIB) << 20))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _allow_cpu(seconds: int) -> None:
    """Processor time from here on; at the end of it the kernel kills with SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
