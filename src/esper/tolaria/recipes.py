"""From a recipe to what trains a host: its optimiser, and the schedule of its learning rate.

A schedule takes one step per epoch. To add one, write a function and enter it in `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from esper.leyline.task import Recipe, ScheduleName


def make_optimiser(recipe: Recipe, params: Sequence[nn.Parameter]) -> Optimizer:
    """The recipe's optimiser over the host's parameters; of a frozen host its first group holds none."""
    host, lr, decay = [{"params": list(params)}], recipe.lr, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return SGD(host, lr=lr, momentum=recipe.momentum, weight_decay=decay)
    if recipe.optimiser == "rmsprop":
        return RMSprop(host, lr=lr, momentum=recipe.momentum, weight_decay=decay)
    return (Adam if recipe.optimiser == "adam" else AdamW)(host, lr=lr, weight_decay=decay)


@dataclass(frozen=True)
class WarmupCosine:
    """The factor on every learning rate in an epoch: a straight line up to 1, then half a cosine down to 0.

    The first of `warmup` epochs has 1 / (warmup + 1), the epoch after the last of them 1, epoch `length` would have 0.
    An object, not a closure, so that a scheduler's `state_dict` can hold it.
    """

    warmup: int  # epochs
    length: int  # epochs

    def __call__(self, epoch: int) -> float:
        if epoch < self.warmup:
            return (epoch + 1) / (self.warmup + 1)
        done = min(1.0, (epoch - self.warmup) / (self.length - self.warmup))
        return 0.5 * (1 + math.cos(math.pi * done))


def _cosine(_recipe: Recipe, optimiser: Optimizer, length: int) -> LRScheduler:
    return CosineAnnealingLR(optimiser, length)


def _warmup_cosine(recipe: Recipe, optimiser: Optimizer, length: int) -> LRScheduler:
    warmup = min(max(1, round(recipe.warmup * length)), length - 1)  # an episode of one epoch has none
    return LambdaLR(optimiser, WarmupCosine(warmup, length))


SCHEDULES: dict[ScheduleName, Callable[[Recipe, Optimizer, int], LRScheduler] | None] = {
    "constant": None,
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
}


def make_scheduler(recipe: Recipe, optimiser: Optimizer, episode_length: int) -> LRScheduler | None:
    """The recipe's schedule over an episode; None where the learning rate is constant."""
    schedule = SCHEDULES[recipe.schedule]
    return None if schedule is None else schedule(recipe, optimiser, episode_length)


def set_clock(scheduler: LRScheduler, clock: int, faded: float) -> None:
    """Takes a fresh scheduler to epoch `clock`, where it has left `faded` of every learning rate."""
    scheduler.last_epoch = clock
    scheduler._last_lr = [faded * base for base in scheduler.base_lrs]
    for group, lr in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = lr
