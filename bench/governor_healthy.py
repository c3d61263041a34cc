"""How many healthy steps until the governor takes a host back without need? Read `episode` first.

Every shipped task, made small, is grown by the random controller and by the heuristic. An episode is a pure function of
its `Wanted`, so that a count can be gone on with where it was left.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path

import torch
from tests.support import small_task

from esper.kasmina.transformer_host import TransformerConfig
from esper.leyline.decisions import Sight
from esper.leyline.task import Split, Task
from esper.leyline.telemetry import GovernorRollbackPayload, GovernorStepsSkippedPayload, GovernorSuspectedPayload
from esper.runtime.tasks import TASKS, make_task
from esper.tamiyo.baselines import random
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import Build
from esper.tamiyo.heuristic import heuristic
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

EPOCHS, STEPS = 20, 60
"""Of an episode, and optimiser steps of each epoch."""
CONTROLLERS = {"random": random, "heuristic": heuristic}
MEASURED = 32  # items to validate on: the governor looks at training


@dataclass(frozen=True)
class Wanted:
    """One episode."""

    task: str
    controller: str
    seed: int


@dataclass(frozen=True)
class Lived:
    """What came of it."""

    wanted: Wanted
    steps: int
    operations: int  # that were done
    skipped: int  # steps that the host was not let take
    suspicions: int
    rollbacks: tuple[str, ...]  # the detector and the evidence of each
    seconds: float


def small(name: str) -> Task:
    """The task in steps of a few milliseconds, with its own recipe and loss."""
    language = isinstance(TASKS[name].host, TransformerConfig)
    size = 8 if language else 16
    settings = {"width": 24, "heads": 2, "context": 16} if language else {}
    task = make_task(small_task(name, batch_size=size, epoch_items=STEPS * size, **settings), 0)
    val = task.splits.val
    few = replace(task.splits, val=Split(val.inputs[:MEASURED], val.targets[:MEASURED]))
    return replace(task, splits=few)


def episode(wanted: Wanted) -> Lived:
    """One host from its first epoch to its last, under a controller and the governor."""
    torch.set_num_threads(1)
    began, config = time.process_time(), GovernorConfig()
    engine = Engine(Setup(small(wanted.task), envs=1, episode_length=EPOCHS, seed=wanted.seed, governor=config))
    governor = Governor(config)
    controller = CONTROLLERS[wanted.controller](Build(PolicyConfig(), engine.space, wanted.seed))
    reports, memory = engine.reset(0), controller.blank_memory(1)
    governor.begin(engine)
    operations = skipped = suspicions = 0
    rollbacks = []
    for _ in range(EPOCHS):
        choice, memory = controller.act(Sight(reports), possible(reports, engine.space), memory)
        receipts = engine.apply(choice.actions)
        operations += receipts[0].done and receipts[0].slot_id is not None
        engine.train_epoch()
        verdicts, reports = governor.review(engine, engine.measure())
        for event in verdicts[0].events:
            skipped += event.skipped if isinstance(event, GovernorStepsSkippedPayload) else 0
            suspicions += isinstance(event, GovernorSuspectedPayload)
            if isinstance(event, GovernorRollbackPayload):
                rollbacks.append(f"{event.detector} at {event.steps}: loss {event.loss}, baseline {event.baseline}")
    steps = engine.environments[0].vitals.steps
    return Lived(wanted, steps, operations, skipped, suspicions, tuple(rollbacks), time.process_time() - began)


def all_wanted() -> Iterator[Wanted]:
    """Every task under every controller, then all again with another seed, without end."""
    for seed in count():
        for task in TASKS:
            for controller in CONTROLLERS:
                yield Wanted(task, controller, seed)


def lived(steps: int, kept: Path | None, jobs: int, until: float = math.inf) -> list[Lived]:
    """Episodes of so many steps in all. kept: a file with what was lived before, one episode a line, which grows.

    until: of `time.monotonic`, when no further episode begins.
    """
    done = [] if kept is None or not kept.exists() else [_read(line) for line in kept.read_text().splitlines()]
    known = {each.wanted for each in done}
    missing = (wanted for wanted in all_wanted() if wanted not in known)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while sum(each.steps for each in done) < steps and time.monotonic() < until:
            for one in pool.map(episode, islice(missing, jobs)):
                done.append(one)
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps(asdict(one)) + "\n")
    return done


def _read(line: str) -> Lived:
    saved = json.loads(line)
    return Lived(**saved | {"wanted": Wanted(**saved["wanted"]), "rollbacks": tuple(saved["rollbacks"])})
