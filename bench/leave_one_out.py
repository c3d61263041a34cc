"""What does it cost to know the contributions of three live seeds, compared with four full validation passes?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.measuring import Effort, Finding, compare
from bench.subjects import evaluate, grown_state, setup_for, task_named
from esper.kasmina.model import Configuration, MorphogeneticModel
from esper.leyline.task import Task
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment
from esper.tolaria.measuring import AS_IS, measure, questions

BOUNDS: dict[str, float | None] = {"digits": 0.65, "digits_scale": None, "cifar_baseline": None}
SLACK = 1.1  # where there is no bound of its own: over what cached prefixes allow
SEEDS = 3


def answer(effort: Effort) -> list[Finding]:
    return [_compare(name, bound, effort) for name, bound in BOUNDS.items()]


def _compare(name: str, bound: float | None, effort: Effort) -> Finding:
    task = task_named(name)
    model = Environment(0, 0, setup_for(task, grown_state(task, SEEDS)), Costs(task)).model
    assert isinstance(model, MorphogeneticModel)
    asked = questions(model, fossils=False)
    configurations = [AS_IS, *(question.configuration for question in asked)]
    assert len(configurations) == SEEDS + 1
    size, val = task.recipe.eval_batch_size, task.splits.val

    def full_passes() -> list[tuple[float, float]]:
        figures = []
        for configuration in configurations:
            with model.configured(configuration):
                figures.append(evaluate(model, val, size))
        return figures

    found = measure(model, task, val, epoch=0, asked=asked)
    loss, without = full_passes()[0][0], full_passes()[1][0]
    assert abs(found.loss - loss) < 1e-5, "the passes measure something else"
    assert abs(found.answers[0][1].loss - (without - loss)) < 1e-5, "the passes measure something else"
    allowed = _allowed(model, task, configurations, repeats=effort.pairs)
    limit = SLACK * allowed if bound is None else bound
    what = f"{name}, three BLENDING seeds (cached prefixes allow {allowed:.2f})"
    return compare(what, full_passes, lambda: measure(model, task, val, epoch=0, asked=asked), limit, effort.pairs)


def _allowed(model: MorphogeneticModel, task: Task, configurations: Sequence[Configuration], repeats: int) -> float:
    """The ratio if only the parts that a configuration can change were computed, from the times of the parts."""
    inputs, targets = task.splits.val.inputs, task.splits.val.targets
    size = task.recipe.eval_batch_size
    chunks = list(zip(inputs.split(size), targets.split(size), strict=True))
    timed = [_times_of_parts(model, task, chunks) for _ in range(repeats)]
    times = {part: statistics.median(each[part] for each in timed) for part in timed[0]}
    parts = list(times)
    needed = whole = 0.0
    for configuration in configurations:
        first = min((parts.index(slot_id) for slot_id in configuration.touched), default=0)
        heard = [part for part in parts if part not in configuration.off]
        whole += sum(times[part] for part in heard)
        needed += sum(times[part] for part in heard if parts.index(part) >= first)
    return needed / whole


@torch.inference_mode()
def _times_of_parts(model: MorphogeneticModel, task: Task, chunks: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Seconds of each stretch of segments, each slot and the loss, over all chunks; in order of execution."""
    model.eval()
    seconds: dict[str, float] = {}
    for inputs, targets in chunks:
        x, start = model.host.enter(inputs), 0
        for slot_id, slot in model.slots.items():
            stop = model.host.cut_of(slot_id)
            began = time.process_time()
            x = model.host.run(x, start, stop)
            between = time.process_time()
            x, start = slot(x), stop
            ended = time.process_time()
            _add(seconds, f"to {slot_id}", between - began)
            _add(seconds, slot_id, ended - between)
        began = time.process_time()
        outputs = model.host.run(x, start, len(model.host.segments))
        torch.stack((task.loss(outputs, targets), task.metric.per_item(outputs, targets)))
        _add(seconds, "head", time.process_time() - began)
    return seconds


def _add(seconds: dict[str, float], part: str, more: float) -> None:
    seconds[part] = seconds.get(part, 0.0) + more
