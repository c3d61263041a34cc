"""Arms: one training run each, in a process of its own, told apart by name and seed.

What an arm came to stands in `result.json` in its folder. One without it was cut short, and goes on from its newest
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from esper.leyline.errors import CheckpointError, ExitCode, WorkerDiedError
from esper.leyline.files import write_whole
from esper.nissa.progress import Progress
from esper.nissa.run_folder import ARMS, RunFolder
from esper.nissa.storage import storage_errors
from esper.scripts.config import EsperConfig
from esper.scripts.runner import Finished, prepare, run_training
from esper.tolaria.share import end_with_the_parent

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
R = TypeVar("R")
RESULT = "result.json"


@dataclass(frozen=True)
class Arm:
    """What to run, and where its folder goes."""

    name: str
    seed: int
    config: EsperConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class ArmResult:
    """What one arm came to. Test figures are of the exported network; a diverged run has none."""

    name: str
    seed: int
    run: str
    digest: str
    val_metric: float | None
    test_metric: float | None
    test_loss: float | None
    host_params: int
    params: int
    fossilized: int
    flops: int
    flops_wasted: int
    cpu_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_arm(name: str, seed: int, config: EsperConfig, top: Path) -> Arm:
    """An arm in a folder of its own below `top`, with its own seed."""
    seeded = replace(config, run=replace(config.run, seed=seed, envs=1, rounds=1))
    return Arm(name, seed, seeded, top / ARMS / f"{name.replace('_', '-')}-s{seed}")


def play(arm: Arm, progress: Progress) -> Finished:
    """Runs it here, goes on with it where a process before this one was stopped, or reads what it has come to."""
    prepared = prepare(arm.config)
    with RunFolder.take(arm.folder) as folder:
        return run_training(prepared, folder, progress)


def run_arm(arm: Arm, progress: Progress | None = None) -> tuple[ArmResult, Finished]:
    """Silently, unless a progress line is given."""
    finished = play(arm, Progress(quiet=True) if progress is None else progress)
    return result_of(arm, finished), finished


def save(path: Path, text: str) -> None:
    """Complete or absent; going on writes the same again. Raises StorageError."""
    with storage_errors(path):
        write_whole(path, text.encode())


def save_result(arm: Arm, result: DataclassInstance) -> None:
    """From now on the arm is finished. Raises StorageError."""
    save(arm.folder / RESULT, json.dumps(asdict(result)) + "\n")


def saved_result(folder: Path) -> dict[str, Any] | None:
    """What `save_result` wrote; None for an arm that is not finished. Raises CheckpointError for anything else."""
    path = folder / RESULT
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not what an arm came to ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not what an arm came to ({type(found).__name__})")
    return found | {"run": str(folder)}  # where it is now


def result_of(arm: Arm, finished: Finished) -> ArmResult:
    """The figures of the arm's one environment."""
    outcome = finished.rounds[-1].outcomes[0]
    return ArmResult(
        name=arm.name,
        seed=arm.seed,
        run=str(finished.folder),
        digest=finished.digest,
        val_metric=outcome.val_metric,
        test_metric=outcome.test_metric,
        test_loss=outcome.test_loss,
        host_params=outcome.host_params,
        params=outcome.params,
        fossilized=outcome.fossilized,
        flops=outcome.ledger.total,
        flops_wasted=outcome.ledger.wasted,
        cpu_seconds=finished.cpu_seconds,
    )


Runner = Callable[[Iterable[Arm]], list[ArmResult]]


class Digested(Protocol):
    """The result of an arm, of whatever command."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def digest(self) -> str: ...


def joint_digest(results: Iterable[Digested]) -> str:
    """One digest of all arms, whatever the number of processes."""
    lines = sorted(f"{result.name} {result.seed} {result.digest}" for result in results)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def workers(jobs: int, quiet: bool) -> Iterator[Runner]:
    """Runs lists of arms in `jobs` processes of one thread each; results come back in the order of the arms.

    Whatever ends the block early ends the processes at once. Raises WorkerDiedError where one was killed.
    """
    with processes(jobs) as pool:

        def run_all(arms: Iterable[Arm]) -> list[ArmResult]:
            futures: dict[Future[ArmResult], Arm] = {}
            try:
                for arm in arms:
                    futures[_finished(arm) or pool.submit(_in_worker, arm)] = arm
                _report(futures, quiet)
                return [future.result() for future in futures]
            except BrokenProcessPool:
                raise WorkerDiedError(post_mortem(futures, jobs)) from None

        yield run_all


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """`jobs` processes; whatever ends the block early has them save what they hold and end."""
    others, context = set(multiprocessing.active_children()), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_obey_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _obey_the_parent() -> None:
    """In a process: end when it ends, stop when it says so, and leave Ctrl-C, which a terminal sends to all, to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    end_with_the_parent()


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a broken pool says it again, while we save
    raise SystemExit(int(ExitCode.TERMINATED))


def stoppable(work: Callable[P, R]) -> Callable[P, R]:
    """The same for a process of a pool, which would else begin with the next arm after it was stopped."""

    @wraps(work)
    def until_stopped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except SystemExit:
            os._exit(ExitCode.TERMINATED)

    return until_stopped


def _finished(arm: Arm) -> Future[ArmResult] | None:
    """The result of an earlier process."""
    found = saved_result(arm.folder)
    if found is None:
        return None
    done: Future[ArmResult] = Future()
    try:
        done.set_result(ArmResult(**found))
    except TypeError as error:
        raise CheckpointError(f"{arm.folder / RESULT}: not what an arm came to ({error})") from error
    return done


@stoppable
def _in_worker(arm: Arm) -> ArmResult:
    result = run_arm(arm)[0]
    save_result(arm, result)
    return result


def _report(futures: dict[Future[ArmResult], Arm], quiet: bool) -> None:
    for count, future in enumerate(as_completed(futures), start=1):
        result = future.result()
        if not quiet:
            score = "diverged" if result.test_metric is None else f"test {result.test_metric:.5g}"
            line = f"  {count}/{len(futures)}  {futures[future].title}: {score}, {result.cpu_seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)


def post_mortem(futures: Mapping[Future[Any], Arm], jobs: int) -> str:
    """What processes were doing when one was killed.

    Arms begin in their order, so those that ran are the first `jobs` of the ones without a result.
    """
    lost = [arm.title for future, arm in futures.items() if isinstance(future.exception(), BrokenProcessPool)]
    doing = f" while it trained {' or '.join(lost[:jobs])}" if lost else ""
    advice = f"give fewer than --jobs {jobs}" if jobs > 1 else "give a smaller host, --jobs is 1 already"
    return f"a worker process was killed{doing}; if memory ran out, {advice}"


def by_seed(results: Sequence[ArmResult], name: str) -> list[ArmResult]:
    """The results of one arm, ordered by seed."""
    return sorted((result for result in results if result.name == name), key=lambda result: result.seed)
