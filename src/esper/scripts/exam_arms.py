"""Arms of an exam: ordinary runs in processes of their own, each saved when it is finished and never run twice."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from esper.leyline.errors import CheckpointError, WorkerDiedError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.randomness import stream_seed
from esper.nissa.progress import Progress
from esper.nissa.run_folder import ARMS
from esper.scripts.arms import RESULT, Arm, play, post_mortem, save_result, saved_result, stoppable
from esper.scripts.config import EsperConfig
from esper.scripts.runner import Finished, prepare
from esper.simic.experiments.objective import judged
from esper.tolaria.engine import Outcome


@dataclass(frozen=True)
class HostResult:
    """What one host came to. J and test figures are of the exported network; see `objective.py`."""

    seed: int
    env: int
    drawn: list[list[str]]  # which member of a family of tasks it was
    j: float
    test_metric: float | None  # None where it diverged
    host_params: int
    params: int
    fossilized: int
    operations: int  # decisions besides WAIT
    flops: int


@dataclass(frozen=True)
class RunResult:
    """What one run came to: its hosts of the last round, and what every episode was worth in training."""

    name: str
    seed: int
    run: str
    digest: str
    returns: list[list[float]]  # [round][environment]: the sum of rewards, validation alone
    hosts: list[HostResult]
    seconds: float
    cpu_seconds: float

    @property
    def episodes(self) -> int:
        return sum(map(len, self.returns))

    def means(self) -> list[float]:
        """Of each round."""
        return [fmean(row) for row in self.returns]


class Arms:
    """Runs arms in the processes of `pool`; those that an earlier process has finished are read."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, quiet: bool) -> None:
        self._pool, self._jobs, self._quiet = pool, jobs, quiet

    def start(self, arm: Arm, told: bool = False) -> Future[RunResult]:
        """told: whether a line appears at each tenth of the way."""
        found = _finished(arm.folder)
        if found is None:
            try:
                return self._pool.submit(run_and_save, arm, told and not self._quiet)
            except BrokenProcessPool:
                raise WorkerDiedError(post_mortem({}, self._jobs)) from None
        done: Future[RunResult] = Future()
        done.set_result(found)
        return done

    def wait(self, futures: dict[Future[RunResult], Arm]) -> list[RunResult]:
        """The results in the order of the arms. Raises WorkerDiedError where a process was killed."""
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                self._say(f"  {number}/{len(futures)}  {_line(futures[future], future.result())}")
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise WorkerDiedError(post_mortem(futures, self._jobs)) from None

    def run(self, arms: Sequence[Arm], told: bool = False) -> list[RunResult]:
        return self.wait({self.start(arm, told): arm for arm in arms})

    def _say(self, line: str) -> None:
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)


def make_arm(name: str, seed: int, config: EsperConfig, top: Path) -> Arm:
    """An arm on one core, in a folder of its own below `top`."""
    seeded = replace(config, run=replace(config.run, seed=seed))
    return Arm(name, seed, seeded, top / ARMS / name)


def under(config: EsperConfig, controller: str) -> EsperConfig:
    """The settings with another controller, in one process."""
    return replace(config, run=replace(config.run, controller=controller, workers=1))


def seed_for(config: EsperConfig, purpose: str, index: int) -> int:
    """A seed that no other run has: a hash of the exam's, far from the small numbers that people type."""
    return 10**9 + stream_seed(config.run.seed, purpose, index) % 10**9


@stoppable
def run_and_save(arm: Arm, told: bool) -> RunResult:
    """Runs it here, or goes on with it."""
    with Progress(stream=_Lines(), quiet=not told) as progress:
        result = _result_of(arm, play(arm, progress))
    save_result(arm, result)
    return result


class _Lines(io.StringIO):
    """The terminal as a place for lines: several processes share it, so that none can draw in it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _result_of(arm: Arm, finished: Finished) -> RunResult:
    last = finished.rounds[-1]
    untrained = _untrained(arm.config) if any(outcome.diverged for outcome in last.outcomes) else last.outcomes
    hosts = []
    for outcome, before, decisions in zip(last.outcomes, untrained, last.rollout.decisions(), strict=True):
        j = judged(outcome, before, finished.metric, arm.config.reward.rent)
        operations = sum(decision["op"] != LifecycleOp.WAIT.name for decision in decisions)
        hosts.append(
            HostResult(
                seed=arm.seed,
                env=outcome.env,
                drawn=[list(pair) for pair in outcome.drawn],
                j=j,
                test_metric=outcome.test_metric,
                host_params=outcome.host_params,
                params=outcome.params,
                fossilized=outcome.fossilized,
                operations=operations,
                flops=outcome.ledger.total,
            )
        )
    return RunResult(
        name=arm.name,
        seed=arm.seed,
        run=str(finished.folder),
        digest=finished.digest,
        returns=[round_.rollout.returns() for round_ in finished.rounds],
        hosts=hosts,
        seconds=finished.seconds,
        cpu_seconds=finished.cpu_seconds,
    )


def _untrained(config: EsperConfig) -> list[Outcome]:
    """The hosts of the last round before their first step."""
    with closing(prepare(config)) as prepared:
        prepared.engine.reset(config.run.rounds - 1)
        return prepared.engine.outcomes()


def _line(arm: Arm, result: RunResult) -> str:
    means = result.means()
    span = f"{means[0]:.1f}" if len(means) == 1 else f"{means[0]:.1f} to {means[-1]:.1f}"
    return f"{arm.title}: {result.episodes} episodes, return {span}, {result.cpu_seconds:.0f} s"


def _finished(folder: Path) -> RunResult | None:
    """What the arm came to. Raises CheckpointError for a file that holds something else."""
    found = saved_result(folder)
    if found is None:
        return None
    try:
        return RunResult(**{**found, "hosts": [HostResult(**host) for host in found["hosts"]]})
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / RESULT}: not what an arm of an exam came to ({error})") from error
