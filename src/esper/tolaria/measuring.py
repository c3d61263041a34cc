"""Validation that also says what each seed brings: one plain pass and a deduplicated set of counterfactual ones.

Every configuration sees the same items, so contributions are paired differences per item with a standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.kasmina.contributions import paired_effects
from esper.kasmina.model import Configuration, GrowingModel
from esper.kasmina.slot import SeedSlot
from esper.leyline.reports import Contribution
from esper.leyline.stages import EFFECTIVE, LIVE, SeedStage
from esper.leyline.task import Split, Task

AS_IS = Configuration()


@dataclass(frozen=True)
class Question:
    """What is to be compared with the model as it is, and about which slot."""

    slot_id: str
    against: str  # `off` or `level`
    configuration: Configuration


@dataclass(frozen=True)
class Measurement:
    """One validation of one model."""

    loss: float  # nats
    metric: float  # in the metric's unit
    answers: tuple[tuple[Question, Contribution], ...]
    configurations: tuple[Configuration, ...]  # what was computed, each once
    exported: float | None = None  # the metric without seeds on probation; None where it was not asked for

    @property
    def finite(self) -> bool:
        return self.loss - self.loss == 0.0


def questions(model: GrowingModel, fossils: bool) -> list[Question]:
    """Leave-one-out for every seed that can be heard, and once after an internal operation: against its old level."""
    asked = []
    stages = {SeedStage.BLENDING, SeedStage.HOLDING} | ({SeedStage.FOSSILIZED} if fossils else set())
    for slot_id, slot in model.slots.items():
        if slot.stage not in stages:
            continue
        off = Configuration(off=frozenset({slot_id}))
        asked.append(Question(slot_id, "off", off))
        previous = _level_to_compare(slot)
        if previous is not None:
            # At level 0 a ladder is the identity, so the pass without it is the answer already.
            other = Configuration(rungs=((slot_id, previous),)) if any(previous) else off
            asked.append(Question(slot_id, "level", other))
    return asked


def exported(model: GrowingModel) -> Configuration:
    """What an export would keep: host and fossils. Seeds that cannot be heard need not be switched off."""
    return Configuration(off=frozenset(name for name, slot in model.slots.items() if slot.stage in LIVE & EFFECTIVE))


def _level_to_compare(slot: SeedSlot) -> tuple[bool, ...] | None:
    if slot.state is None or not slot.state.level_effect_due:
        return None
    return slot.state.previous_rungs


def measure(
    model: GrowingModel,
    task: Task,
    split: Split,
    epoch: int,
    asked: Sequence[Question] = (),
    base: Configuration = AS_IS,
    bare: Configuration | None = None,
) -> Measurement:
    """Runs the model over `split` under every configuration that is needed, each once; one copy to the host.

    base: what loss and metric are measured on; only the model as it is says what its gates weigh. bare: what `exported`
    is measured on. Leaves the model in evaluation mode.
    """
    wanted = [base, *(question.configuration for question in asked)]
    configurations = tuple(dict.fromkeys(wanted if bare is None else [*wanted, bare]))
    model.eval()
    chunks: list[Tensor] = []
    with torch.inference_mode(), ExitStack() as stack:
        for slot in model.slots.values() if base == AS_IS else ():
            if slot.gate is not None:
                stack.enter_context(slot.watching_gate())
        for inputs, targets in _batches(split, task.recipe.eval_batch_size):
            outputs = model.outputs(inputs, configurations)
            items = [torch.stack((task.loss(out, targets), task.metric.per_item(out, targets))) for out in outputs]
            chunks.append(torch.stack(items))
    values = torch.cat(chunks, dim=2).double()  # [configurations, (loss, score), items]
    loss, score, found = paired_effects(values, epoch, task.metric.sign, task.metric.scale)
    answers = tuple((question, found[configurations.index(question.configuration)]) for question in asked)
    alone = None if bare is None else score - task.metric.sign * found[configurations.index(bare)].metric
    return Measurement(loss, score, answers, configurations, alone)


def _batches(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(split.inputs.split(size), split.targets.split(size), strict=True))
