"""What does a whole run add to a plain loop that trains the same grown network on the same batches?

A run is the main loop under a controller that waits: decisions, telemetry, governor and contributions. Its seeds rest
half blended in. The plain loop validates once per epoch, and once on the test split at the end, as the run does.
"""

from __future__ import annotations

import copy
import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bench.measuring import Effort, Finding, compare
from bench.subjects import SEED, evaluate, grown_state, plain_twin, setup_for, task_named
from esper.leyline.randomness import stream
from esper.leyline.task import Task
from esper.nissa.progress import Progress
from esper.nissa.writer import EventWriter
from esper.simic.agent.learner import NoLearner
from esper.simic.rewards.rewards import no_reward
from esper.simic.training.config import RunConfig
from esper.simic.training.publishing import Publisher
from esper.simic.training.vectorized import Team, train
from esper.tamiyo.baselines import static
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import Build
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine, Outcome
from esper.tolaria.environment import make_optimiser
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

EPOCHS = {"digits": 12, "cifar_baseline": 4}
BOUNDS = {0: 1.08, 1: 1.20, 3: 1.5}  # by the number of seeds


def answer(effort: Effort) -> list[Finding]:
    bounded = [_compare(name, seeds, effort) for name in EPOCHS for seeds in BOUNDS]
    return bounded + [_compare(name, 1, effort, anew=True) for name in EPOCHS]


def _compare(name: str, seeds: int, effort: Effort, anew: bool = False) -> Finding:
    """anew: the engine and the run folder are part of the run, so that the FLOPs of its topology are counted in it."""
    task, epochs = task_named(name), EPOCHS[name]
    setup = setup_for(task, grown_state(task, seeds), epochs)
    run = RunConfig(controller="static", seed=SEED, episode_length=epochs)
    with _team(setup) as team:
        team.engine.reset(0)
        start = plain_twin(team.engine.environments[0].model)
        if seeds == 0:
            _check_same(train(run, team)[0].outcomes[0], train_plainly(start, task, epochs))

        def ours() -> None:
            with _team(setup) if anew else nullcontext(team) as running:
                train(run, running)

        what = f"{name}, {seeds or 'no'} BLENDING seed{'' if seeds == 1 else 's'}, {epochs} epochs"
        return compare(
            what + (", set up anew and FLOPs counted" if anew else ""),
            lambda: train_plainly(start, task, epochs),
            ours,
            None if anew else BOUNDS[seeds],
            effort.runs,
        )


@contextmanager
def _team(setup: Setup) -> Iterator[Team]:
    """Everything that takes part in `esper train static`, with a run folder that is thrown away."""
    engine = Engine(setup)
    with tempfile.TemporaryDirectory() as folder, EventWriter(Path(folder)) as writer:
        publisher = Publisher(RunConfig(), engine, writer, Progress(stream=io.StringIO()))
        controller = static(Build(PolicyConfig(), engine.space, SEED))
        yield Team(engine, Governor(GovernorConfig()), controller, NoLearner(), no_reward, publisher)


@dataclass(frozen=True)
class Figures:
    """What a plain loop ends with."""

    val_loss: float
    test_loss: float


def train_plainly(start: nn.Module, task: Task, epochs: int) -> Figures:
    """Trains a copy of `start` as anyone would who does not want it to grow."""
    recipe, data = task.recipe, task.splits.train
    net = copy.deepcopy(start)
    optimiser = make_optimiser(recipe, list(net.parameters()))
    scheduler = CosineAnnealingLR(optimiser, epochs) if recipe.schedule == "cosine" else None
    val_loss = math.nan
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
        val_loss, _ = evaluate(net, task.splits.val, recipe.eval_batch_size)
    test_loss, _ = evaluate(net, task.splits.test, recipe.eval_batch_size)
    return Figures(val_loss, test_loss)


def _check_same(ours: Outcome, plain: Figures) -> None:
    """Only without seeds: the plain blend lets them into the host, ours isolates them (tests compare the other way)."""
    for mine, theirs in ((ours.val_loss, plain.val_loss), (ours.test_loss, plain.test_loss)):
        assert mine is not None
        assert math.isclose(mine, theirs, rel_tol=1e-4), f"the plain loop is another one: loss {theirs}, ours {mine}"
