"""Arms: one training run each, in a process of its own, told apart by name and seed."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from esper.leyline.errors import WorkerDiedError
from esper.nissa.progress import Progress
from esper.nissa.run_folder import ARMS, RunFolder
from esper.scripts.config import EsperConfig
from esper.scripts.runner import Finished, prepare, run_training


def alone(arm: Arm) -> ArmResult:
    """An arm that is a run like any other, in silence."""
    return run_arm(arm)[0]


@dataclass(frozen=True)
class Arm:
    """What to run, and where its folder goes. `train` does it, in another process."""

    name: str
    seed: int
    config: EsperConfig
    folder: Path
    train: Callable[[Arm], ArmResult] = alone

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


def under(config: EsperConfig, controller: str) -> EsperConfig:
    """The settings with another controller."""
    return replace(config, run=replace(config.run, controller=controller))


def make_arm(name: str, seed: int, config: EsperConfig, top: Path) -> Arm:
    """An arm in a folder of its own below `top`, with its own seed."""
    seeded = replace(config, run=replace(config.run, seed=seed, envs=1, rounds=1))
    return Arm(name, seed, seeded, top / ARMS / f"{name.replace('_', '-')}-s{seed}")


def run_arm(arm: Arm, progress: Progress | None = None) -> tuple[ArmResult, Finished]:
    """Runs it here, silently unless a progress line is given."""
    prepared = prepare(arm.config)
    with RunFolder.create_in(arm.folder) as folder:
        finished = run_training(prepared, folder, Progress(quiet=True) if progress is None else progress)
    return result_of(arm, finished), finished


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
                    futures[pool.submit(arm.train, arm)] = arm
                _report(futures, quiet)
                return [future.result() for future in futures]
            except BrokenProcessPool:
                raise WorkerDiedError(post_mortem(futures, jobs)) from None

        yield run_all


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """`jobs` processes; whatever ends the block early ends them at once."""
    others, context = set(multiprocessing.active_children()), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_leave_ctrl_c_to_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process


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
