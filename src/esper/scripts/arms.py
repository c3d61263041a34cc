"""Arms: one training run each, in a process of its own, told apart by name and seed."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from esper.nissa.progress import Progress
from esper.nissa.run_folder import RunFolder
from esper.scripts.config import EsperConfig
from esper.scripts.runner import Finished, prepare, run_training


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
    """An arm under `top/arms/` with its own seed."""
    seeded = replace(config, run=replace(config.run, seed=seed, envs=1, rounds=1))
    return Arm(name, seed, seeded, top / "arms" / f"{name.replace('_', '-')}-s{seed}")


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


@contextmanager
def workers(jobs: int, quiet: bool) -> Iterator[Runner]:
    """Runs lists of arms in `jobs` processes of one thread each; results come back in the order of the arms."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run_all(arms: Iterable[Arm]) -> list[ArmResult]:
            futures = {pool.submit(_in_worker, arm): arm for arm in arms}
            try:
                _report(futures, quiet)
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield run_all


def _in_worker(arm: Arm) -> ArmResult:
    return run_arm(arm)[0]


def _report(futures: dict[Future[ArmResult], Arm], quiet: bool) -> None:
    for count, future in enumerate(as_completed(futures), start=1):
        result = future.result()
        if not quiet:
            score = "diverged" if result.test_metric is None else f"test {result.test_metric:.1f}"
            line = f"  {count}/{len(futures)}  {futures[future].title}: {score}, {result.cpu_seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)


def by_seed(results: Sequence[ArmResult], name: str) -> list[ArmResult]:
    """The results of one arm, ordered by seed."""
    return sorted((result for result in results if result.name == name), key=lambda result: result.seed)
