"""What stands on the shelf: a task's host, data, recipe and measures, before the settings of a run change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.leyline.task import Metric, Recipe, Splits
from esper.runtime.config import DataName, TaskConfig
from esper.runtime.families import Family
from esper.runtime.hosts import HostConfig, MakeHost


@dataclass(frozen=True)
class Measures:
    """What a host is trained on and judged by, item by item."""

    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) to nats, [N]
    metric: Metric


@dataclass(frozen=True)
class Shelf:
    """One task on the shelf."""

    summary: str
    host: HostConfig
    recipe: Recipe
    data: Callable[[TaskConfig, int], Splits]  # (settings, seed)
    measures: Measures
    classes: Callable[[TaskConfig], int] | None = None  # where they depend on the settings
    sources: tuple[DataName, ...] = ()  # what --data may say; of a task that brings its own data nothing
    augment: Callable[[Tensor, Generator], Tensor] | None = None
    family: Callable[[Splits, int], Family] | None = None  # (data, seed), where episodes differ
    epoch_items: int | None = None  # where an epoch is not the train split
    make: Callable[[HostConfig, TaskConfig], MakeHost] = lambda host, _config: MakeHost(host)

    @property
    def learns(self) -> bool:
        """Whether the host trains; beside a frozen one only seeds do."""
        return not self.host.frozen


def _class_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).to(outputs.dtype)


ACCURACY = Metric("accuracy", "%", higher_is_better=True, per_item=_is_right, scale=100.0)
CLASSES = Measures(_class_loss, ACCURACY)
