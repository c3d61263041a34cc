"""What does a whole run add to a plain loop that trains the same grown network on the same batches?

A run is the main loop under a controller that waits: decisions, telemetry, governor and contributions. Its seeds rest
half blended in. The plain loop validates once per epoch, and once on the test split at the end, as the run does. The
two take turns, epoch by epoch (`InTurn`): over the length of a whole run a busy machine is never the same twice.
"""

from __future__ import annotations

import copy
import io
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from bench.measuring import Effort, Finding, ratio_of
from bench.subjects import SEED, PlainNet, evaluate, grown_state, plain_optimiser, plain_twin, setup_for, task_named
from esper.leyline.randomness import stream
from esper.leyline.task import Task
from esper.nissa.progress import Progress, StepView
from esper.nissa.writer import EventWriter
from esper.simic.agent.learner import NoLearner
from esper.simic.rewards.rewards import no_reward
from esper.simic.training.config import RunConfig
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.vectorized import train
from esper.tamiyo.baselines import static
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import Build
from esper.tolaria.config import GovernorConfig
from esper.tolaria.costs import Costs
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor

EPOCHS = {"digits": 12, "cifar_baseline": 4}
BOUNDS = {0: 1.08, 1: 1.20, 3: 1.5}  # by the number of seeds


def answer(effort: Effort) -> list[Finding]:
    bounded = [_compare(name, seeds, effort.runs) for name in EPOCHS for seeds in BOUNDS]
    return bounded + [_compare(name, 1, effort.runs, anew=True) for name in EPOCHS]


def _compare(name: str, seeds: int, runs: int, anew: bool = False) -> Finding:
    """anew: each run makes its engine, so that the FLOPs of its topology are counted again; for information."""
    task, epochs = task_named(name), EPOCHS[name]
    setup = setup_for(task, grown_state(task, seeds), epochs)
    start = plain_twin(Environment(0, 0, setup, Costs(task)).model)
    with tempfile.TemporaryDirectory() as folder, EventWriter(Path(folder)) as writer:
        engine = Engine(setup)
        pairs = [_one_run(Engine(setup) if anew else engine, start, writer, seeds == 0) for _ in range(runs + 1)]
    what = f"{name}, {seeds or 'no'} BLENDING seed{'' if seeds == 1 else 's'}, {epochs} epochs"
    if anew:
        return ratio_of(f"{what}, FLOPs counted anew", pairs[1:], None)
    return ratio_of(what, pairs[1:], BOUNDS[seeds])


def _one_run(engine: Engine, start: PlainNet, writer: EventWriter, same: bool) -> tuple[float, float]:
    """Seconds of the plain loop and of the run; `same` where they must come to the same losses."""
    task, epochs = engine.setup.task, engine.setup.episode_length
    run = RunConfig(controller="static", seed=SEED, episode_length=epochs)
    turns = InTurn(train_plainly(start, task, epochs))
    began = time.process_time()
    publisher = Publisher(run, engine, writer, turns)
    controller = static(Build(PolicyConfig(), engine.space, SEED))
    (rounds,) = train(run, Team(engine, Governor(GovernorConfig()), controller, NoLearner(), no_reward, publisher))
    ours_s = time.process_time() - began - turns.plain_s
    turns.advance()
    if same:
        outcome = rounds[0].outcomes[0]
        _check_same([outcome.val_loss, outcome.test_loss], turns.losses[-2:])
    return turns.plain_s, ours_s


class InTurn:
    """Stands where the progress line does: after each epoch of the run the plain loop lives one too."""

    def __init__(self, plain: Iterator[float]) -> None:
        self._plain, self._line = plain, Progress(stream=io.StringIO())
        self._line.start(1, "a run")
        self.plain_s, self.losses = 0.0, list[float]()

    def step(self, view: StepView) -> None:
        self._line.step(view)
        self.advance()

    def advance(self) -> None:
        began = time.process_time()
        self.losses.append(next(self._plain))
        self.plain_s += time.process_time() - began


def train_plainly(start: PlainNet, task: Task, epochs: int) -> Iterator[float]:
    """Trains a copy of `start` as anyone would who does not want it to grow.

    Yields the validation loss after every epoch and, at last, the test loss.
    """
    recipe, data = task.recipe, task.splits.train
    net = copy.deepcopy(start)
    optimiser = plain_optimiser(net, recipe)
    scheduler = CosineAnnealingLR(optimiser, epochs) if recipe.schedule == "cosine" else None
    for epoch in range(epochs):
        net.train()
        augmenting = stream(SEED, "augment", 0, 0, epoch)
        order = torch.randperm(len(data), generator=stream(SEED, "order", 0, 0, epoch))
        total = 0.0
        for batch in order.split(recipe.batch_size)[: task.steps_per_epoch]:
            inputs, targets = data.inputs[batch], data.targets[batch]
            if task.augment is not None:
                inputs = task.augment(inputs, augmenting)
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            optimiser.step()
            total += loss.item()
        if scheduler is not None:
            scheduler.step()
        yield evaluate(net, task.splits.val, recipe.eval_batch_size)[0]
    yield evaluate(net, task.splits.test, recipe.eval_batch_size)[0]


def _check_same(ours: Sequence[float | None], plain: Sequence[float]) -> None:
    """Without seeds only: the plain blend lets them into the host, ours isolates them (a test compares the other)."""
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine is not None
        assert math.isclose(mine, theirs, rel_tol=1e-4), f"the plain loop is another one: loss {theirs}, ours {mine}"
