"""How much longer does one process take for what two workers, or two ranks, do on two cores?

Three engines live the same steps of `digits_scale` in turn, step by step: decide by lot, apply, train, measure, review.
What is compared is wall time, and every report is the same. A ratio of 1 / 1.7 says that two make 1.7 times the steps
of environments per second. Keep the machine quiet: what others do on a core is lost to two and not to one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bench.measuring import Effort, Finding, ratio_of
from bench.subjects import SEED, task_named
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.tamiyo.baselines import draw
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol
from esper.tolaria.ranks.meeting import Meeting, Place
from esper.tolaria.ranks.spread import answer as answer_rank_0
from esper.tolaria.ranks.spread import shares_of_ranks, spread_engine
from esper.tolaria.ranks.watch import ALARM, Watch
from esper.tolaria.setup import Setup
from esper.tolaria.workers import WorkerGovernor, local_workers

ENVS, LENGTH, TWO = 8, 24, 2
BOUND = 1 / 1.7
TIMEOUT_S = 60.0


def setup() -> Setup:
    """As PPO trains: hosts of a round start alike."""
    return Setup(task_named("digits_scale"), ENVS, LENGTH, SEED, shared_init=True)


def answer(effort: Effort) -> list[Finding]:
    with _two_ranks() as ranks:
        workers = local_workers(setup, TWO)
        try:
            trainers = [
                Trainer(Engine(setup()), Governor(GovernorConfig())),
                Trainer(workers, WorkerGovernor()),
                Trainer(ranks, WorkerGovernor()),
            ]
            seconds = list(_in_turn(trainers, effort.runs + 1))[1:]  # workers are still starting in the first
        finally:
            workers.close()
    names = (f"{TWO} workers / 1 process", f"{TWO} ranks / 1 process")
    return [
        ratio_of(f"digits_scale, {ENVS} environments, {name}", [(of[0], of[place]) for of in seconds], BOUND)
        for place, name in enumerate(names, start=1)
    ]


class Trainer:
    """An engine and its governor in the middle of an episode."""

    def __init__(self, engine: EngineProtocol, governor: GovernorProtocol) -> None:
        self._engine, self._governor = engine, governor
        self.reports: Sequence[HostReport] = engine.reset(0)
        governor.begin(engine)

    def step(self, number: int) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        legal = possible(self.reports, self._engine.space)
        lots = [stream(SEED, "bench", number, env) for env in range(ENVS)]
        self._engine.apply([draw(*each) for each in zip(legal, lots, strict=True)])
        self._engine.train_epoch()
        after = self._engine.measure()
        self._engine.events()
        _, self.reports = self._governor.review(self._engine, after)
        return time.perf_counter() - began


def _in_turn(trainers: Sequence[Trainer], steps: int) -> Iterator[list[float]]:
    """Seconds of each trainer in one step after the other; asserts that all have seen the same."""
    for number in range(steps):
        yield [trainer.step(number) for trainer in trainers]
        first, *others = trainers
        assert all(other.reports == first.reports for other in others), "they do not live the same steps"


@contextmanager
def _two_ranks() -> Iterator[EngineProtocol]:
    """This process is rank 0."""
    signal.signal(ALARM, signal.SIG_IGN)  # a rank that dies is met where its answer is read
    context = multiprocessing.get_context("spawn")
    place = Place(0, TWO, 0, "127.0.0.1", 29500 + os.getpid() % 1000, attempt=0, launched=False)
    other = context.Process(target=_other_rank, args=(place.port,), daemon=True)
    other.start()
    meeting = Meeting(place, TIMEOUT_S)
    watch = Watch(0, meeting.lines("pulse"), TIMEOUT_S)
    watch.start()
    try:
        yield spread_engine(setup(), meeting.lines("orders"), watch, straggler=3.0)
    finally:
        watch.close(0)
        other.join()


def _other_rank(port: int) -> None:
    torch.set_num_threads(1)
    meeting = Meeting(Place(1, TWO, 1, "127.0.0.1", port, attempt=0, launched=False), TIMEOUT_S)
    watch = Watch(1, meeting.lines("pulse"), TIMEOUT_S)
    watch.start()
    answer_rank_0(meeting.lines("orders")[0], watch, setup(), shares_of_ranks(ENVS, TWO)[1])
    time.sleep(TIMEOUT_S)  # the watch ends this process with rank 0
