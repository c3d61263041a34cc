"""What a task is: a host to train, data in memory, a loss and a measure of success.

It stands here because the engine and the shelf of tasks are siblings that do not know each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from esper.leyline.errors import ConfigError
from esper.leyline.statistics import point_in, points_of

OptimiserName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "warmup_cosine"]


@dataclass(frozen=True)
class Split:
    """Items of one split, in memory: images [N, C, H, W] float32 and classes [N], or tokens and next tokens [N, T]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]


@dataclass(frozen=True)
class Splits:
    """Controllers, rewards and gates see `val` only; `test` is read once, at the end."""

    train: Split
    val: Split
    test: Split

    def to(self, device: torch.device) -> Splits:
        """The same items on another device."""
        moved = (
            Split(split.inputs.to(device), split.targets.to(device)) for split in (self.train, self.val, self.test)
        )
        return Splits(*moved)


@dataclass(frozen=True)
class Metric:
    """What success is measured in. `per_item(outputs, targets)` gives [N] float; its mean x `scale` is the value."""

    name: str
    unit: str
    higher_is_better: bool
    per_item: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0
    digits: int = 1  # decimals that say something

    @property
    def sign(self) -> float:
        """+1 where more is better, -1 where less is: `sign * metric` always wants to grow."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def points(self) -> str:
        """What differences of it, rewards and rent are counted in."""
        return points_of(self.unit)

    @property
    def point(self) -> float:
        """How much of it counts like a point of accuracy."""
        return point_in(self.unit)


@dataclass(frozen=True)
class Recipe:
    """How the host is trained; the same for grown and never-grown hosts."""

    batch_size: int = 64
    eval_batch_size: int = 256
    optimiser: OptimiserName = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: ScheduleName = "constant"
    warmup: float = 0.1  # of warmup_cosine: share of the episode over which the learning rate rises


@dataclass(frozen=True)
class Task:
    """One task, ready to run. `loss(outputs, targets)` gives [N] float, one value per item, in nats."""

    name: str
    make_host: Callable[[], nn.Module]  # draws from torch's global generator, which the caller lends
    splits: Splits
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    recipe: Recipe
    epoch_items: int  # training items per host epoch
    augment: Callable[[Tensor, Generator], Tensor] | None = None
    draw: Callable[[Generator], Task] | None = None  # a member of the family for one episode; None for a fixed task
    drawn: tuple[tuple[str, str], ...] = ()  # what makes this member, by name; empty for a fixed task

    def __post_init__(self) -> None:
        if self.recipe.batch_size > min(self.epoch_items, len(self.splits.train)):
            raise ConfigError(
                f"task.batch_size: {self.recipe.batch_size} is larger than an epoch of {self.name!r}, "
                f"{min(self.epoch_items, len(self.splits.train))} items; use a smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches only, so that every batch has one shape."""
        return self.epoch_items // self.recipe.batch_size

    @property
    def host_key(self) -> Hashable:
        """Equal where the same network does the same work on a batch, so that what it costs is counted once.

        Members of a family share it if their `make_host` compares equal: make it a frozen dataclass.
        """
        return self.make_host, self.splits.train.inputs.shape[1:], self.recipe.batch_size

    def member(self, generator: Generator) -> Task:
        """The task of one episode: a draw from the family, or this task where it is fixed.

        A host epoch is the same number of steps in every member, and a member draws no further.
        """
        if self.draw is None:
            return self
        drawn = self.draw(generator)
        assert drawn.draw is None, f"a draw of {self.name!r} is itself a family"
        assert drawn.steps_per_epoch == self.steps_per_epoch, f"draws of {self.name!r} differ in steps per epoch"
        return drawn

    def with_hosts(self, change: Callable[[nn.Module], nn.Module]) -> Task:
        """The same task, and the same draws of it, whose hosts are changed by `change` when they are made."""
        draw = None if self.draw is None else _ChangedDraw(self.draw, change)
        return replace(self, make_host=_ChangedHost(self.make_host, change), draw=draw)


@dataclass(frozen=True)
class _ChangedHost:
    make_host: Callable[[], nn.Module]
    change: Callable[[nn.Module], nn.Module]

    def __call__(self) -> nn.Module:
        return self.change(self.make_host())


@dataclass(frozen=True)
class _ChangedDraw:
    draw: Callable[[Generator], Task]
    change: Callable[[nn.Module], nn.Module]

    def __call__(self, generator: Generator) -> Task:
        return self.draw(generator).with_hosts(self.change)
