"""For training loops of one's own: what gates want to have been measured, measured in one call each.

`record_gradients` after backward, `validate` after the epoch; examples/own_model.py is a loop that uses both. The
engine (`tolaria`) does the same for tasks, and asks more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor

from esper.kasmina.contributions import paired_effects
from esper.kasmina.gradient_health import grad_norm
from esper.kasmina.groups import host_parameters
from esper.kasmina.model import Configuration, GrowingModel
from esper.leyline.errors import ConfigError
from esper.leyline.stages import LIVE, SeedStage

PerItem = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From outputs and targets to the loss and the score of each item, both [N]; a higher score is better."""


def record_gradients(model: GrowingModel) -> None:
    """Tells every seed in training how strong its gradient is, beside the host's; gate G2 asks.

    Call between backward and the optimiser's step. It synchronises with the device: one batch an epoch is enough.
    """
    learning = [slot for slot in model.slots.values() if slot.stage in LIVE and slot.is_active]
    if learning:
        host = [param for _, param in host_parameters(model)]
        norm, size = grad_norm(host), sum(param.numel() for param in host)
        for slot in learning:
            slot.record_gradients(norm, size)


def validate(model: GrowingModel, batches: Iterable[tuple[Tensor, Tensor]], per_item: PerItem) -> tuple[float, float]:
    """Mean loss and mean score over the items of `batches`, (inputs, targets) each; leaves the model in eval mode.

    Every seed in BLENDING or HOLDING is told its contribution: the mean difference per item between the model as it
    is and the model without that seed, with its standard error; gate G5 asks. Costs one more pass per such seed.
    Raises ConfigError if there is no batch.
    """
    heard = [slot for slot in model.slots.values() if slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING)]
    asked = [Configuration(), *(Configuration(off=frozenset({slot.spec.slot_id})) for slot in heard)]
    model.eval()
    chunks: list[Tensor] = []
    with torch.inference_mode(), ExitStack() as stack:
        for slot in heard:
            stack.enter_context(slot.watching_gate())
        for inputs, targets in batches:
            items = [per_item(outputs, targets) for outputs in model.outputs(inputs, asked)]
            chunks.append(torch.stack([torch.stack((loss.double(), score.double())) for loss, score in items]))
    if not chunks:
        raise ConfigError("validate: there is no batch to measure; is an iterator used up? Give a list or a DataLoader")
    values = torch.cat(chunks, dim=2)  # [configurations, (loss, score), items]
    epoch = max(slot.clock for slot in model.slots.values())
    loss, score, (_, *contributions) = paired_effects(values, epoch)
    for slot in model.slots.values():
        slot.record_metric(score)
    for slot, contribution in zip(heard, contributions, strict=True):
        slot.record_contribution(contribution)
    return loss, score
