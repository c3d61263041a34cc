"""What does the step gate, with the detector behind it, add to a training step?

The same host takes the same kind of step with and without them, in turns. Without them a step still reads its loss, as
any loop does, and that is all it looks at.
"""

from __future__ import annotations

from itertools import cycle

from bench.measuring import Effort, Finding, compare
from bench.step_language import language_task
from bench.subjects import setup_for, task_named
from esper.leyline.task import Task
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment

BOUND = 1.08  # of a step of two milliseconds; longer ones pay less


def answer(effort: Effort) -> list[Finding]:
    tasks = [task_named(name) for name in ("digits", "digits_scale", "cifar_baseline")]
    return [_of(task, effort) for task in (*tasks, language_task("segments"))]


def _of(task: Task, effort: Effort) -> Finding:
    gated, bare = (Environment(0, 0, setup_for(task), Costs(task)) for _ in range(2))
    for environment in (gated, bare):
        environment.begin_epoch()
    turns = cycle(range(task.steps_per_epoch)), cycle(range(task.steps_per_epoch))
    return compare(
        f"{task.name}, a step of its host",
        lambda: bare_step(bare, next(turns[0])),
        lambda: gated.train_batch(next(turns[1])),
        BOUND,
        effort.pairs,
    )


def bare_step(environment: Environment, index: int) -> float:
    """`Environment.train_batch` without gate and detector; returns the loss."""
    task, size = environment.task, environment.task.recipe.batch_size
    chosen = environment._order[index * size : (index + 1) * size]
    inputs, targets = task.splits.train.inputs[chosen], task.splits.train.targets[chosen]
    if task.augment is not None:
        inputs = task.augment(inputs, environment._augment)
    losses = task.loss(environment.model(inputs), targets)
    value = losses.detach().mean().item()
    losses.backward(environment._shares)
    environment.optimiser.step()
    environment.optimiser.zero_grad(set_to_none=True)
    return value
