"""What does a slot, empty or with a seed that is being blended in, add to a training step of its host?"""

from __future__ import annotations

from itertools import cycle

import torch
import torch.nn.functional as F
from torch import nn

from bench.measuring import Effort, Finding, Work, compare
from bench.subjects import batches, grown_state, plain_optimiser, plain_twin, setup_for, task_named
from esper.leyline.task import Task
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment

TASKS = ("digits", "digits_scale", "cifar_baseline")
EMPTY, BLENDING = 1.02, 1.10  # bounds


def answer(effort: Effort) -> list[Finding]:
    found = []
    for name in TASKS:
        task = task_named(name)
        found.append(_compare(f"{name}, empty slots", task, None, EMPTY, effort))
        for isolated, how in ((True, "isolated"), (False, "not isolated")):
            state = grown_state(task, seeds=1, isolate_blending=isolated)
            found.append(_compare(f"{name}, one BLENDING conv_light, {how}", task, state, BLENDING, effort))
    return found


def _compare(what: str, task: Task, state: dict[str, object] | None, bound: float, effort: Effort) -> Finding:
    environment = Environment(0, 0, setup_for(task, state), Costs(task))
    twin = plain_twin(environment.model)
    _check_same(task, environment.model, twin)
    plain = _step_of(twin, plain_optimiser(twin, task.recipe), task)
    ours = _step_of(environment.model, environment.optimiser, task)
    return compare(what, plain, ours, bound, effort.pairs)


def _step_of(model: nn.Module, optimiser: torch.optim.Optimizer, task: Task) -> Work:
    data = cycle(batches(task, 8))
    model.train()

    def step() -> None:
        inputs, targets = next(data)
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()
        optimiser.step()

    return step


def _check_same(task: Task, model: nn.Module, twin: nn.Module) -> None:
    """Both must compute the same, or the comparison is worth nothing."""
    inputs, _ = batches(task, 1)[0]
    with torch.no_grad():
        assert torch.allclose(model(inputs), twin(inputs), atol=1e-6), "the plain network is another network"
