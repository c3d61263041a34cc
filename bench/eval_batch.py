"""Is a validation pass faster with another eval_batch_size than the recipe's?"""

from __future__ import annotations

from dataclasses import replace

from bench.measuring import Effort, Finding, Work, compare
from bench.subjects import grown_state, setup_for, task_named
from esper.kasmina.model import GrowingModel
from esper.leyline.task import Task
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment
from esper.tolaria.measuring import measure

SIZES = {
    "digits": (32, 64, 128, 180, 360),
    "digits_scale": (32, 64, 128, 180, 360),
    "cifar_baseline": (16, 32, 64, 125, 250, 500),
}


def answer(effort: Effort) -> list[Finding]:
    """No bound: the recipes hold what this says."""
    return [_compare(name, size, effort) for name, sizes in SIZES.items() for size in sizes]


def _compare(name: str, size: int, effort: Effort) -> Finding:
    task = task_named(name)
    model = Environment(0, 0, setup_for(task, grown_state(task, seeds=1)), Costs(task)).model
    usual = task.recipe.eval_batch_size
    return compare(
        f"{name}, {size} items at once instead of {usual}",
        _pass(model, task),
        _pass(model, replace(task, recipe=replace(task.recipe, eval_batch_size=size))),
        None,
        effort.pairs,
    )


def _pass(model: GrowingModel, task: Task) -> Work:
    return lambda: measure(model, task, task.splits.val, epoch=0)
