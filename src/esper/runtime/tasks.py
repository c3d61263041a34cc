"""The tasks, one registered function each. To add one write a function that returns a `Task` and register it.

A task may be a family, whose episodes differ: see `families.py`.
Slot ids of every host: n blocks give r0c0 ... r0c{n-1}, one after each block.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.leyline.errors import ConfigError
from esper.leyline.registry import Registry
from esper.leyline.task import Metric, Recipe, Splits, Task
from esper.runtime.config import TaskConfig
from esper.runtime.data import (
    augment,
    cifar10,
    digit_pairs,
    digits,
    digits_clutter,
    synthetic_cifar,
    teacher,
    teacher_classes,
)
from esper.runtime.families import TEACHER_WIDTHS, Family, MakeHost, as_family, digits_mix, teacher_mix

T = TypeVar("T")


@dataclass(frozen=True)
class Shelf:
    """One task on the shelf."""

    summary: str
    host: CNNConfig
    recipe: Recipe
    data: Callable[[TaskConfig, int], Splits]  # (settings, seed)
    classes: Callable[[TaskConfig], int] | None = None  # where they depend on the settings
    is_cifar: bool = False
    family: Callable[[Splits, int], Family] | None = None  # (data, seed), where episodes differ
    epoch_items: int | None = None  # where an epoch is not the train split: of a family, whose splits differ


TASKS: Registry[Shelf] = Registry("task")


def _item_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).to(outputs.dtype)


ACCURACY = Metric("accuracy", "%", higher_is_better=True, per_item=_is_right, scale=100.0)


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task that the settings describe. Raises ConfigError for names, data or sizes that do not fit."""
    shelf = TASKS[config.name]
    if not shelf.is_cifar:
        _refuse_data(config)
    host, recipe = _host_of(config), recipe_of(config)
    _refuse_giants(host)
    splits = shelf.data(config, seed)
    task = Task(
        name=config.name,
        make_host=MakeHost(host),
        splits=splits,
        loss=_item_loss,
        metric=ACCURACY,
        recipe=recipe,
        epoch_items=_or(config.epoch_items, _or(shelf.epoch_items, len(splits.train))),
        augment=augment if shelf.is_cifar else None,
    )
    if shelf.family is None:
        return task
    return as_family(task, host, replace(shelf.family(splits, seed), fixed=config.widths))


def recipe_of(config: TaskConfig) -> Recipe:
    """The task's recipe with what the settings change in it."""
    shelf = TASKS[config.name]
    return Recipe(
        batch_size=_or(config.batch_size, shelf.recipe.batch_size),
        eval_batch_size=_or(config.eval_batch_size, shelf.recipe.eval_batch_size),
        optimiser=_or(config.optimiser, shelf.recipe.optimiser),
        lr=_or(config.lr, shelf.recipe.lr),
        momentum=_or(config.momentum, shelf.recipe.momentum),
        weight_decay=_or(config.weight_decay, shelf.recipe.weight_decay),
        schedule=_or(config.schedule, shelf.recipe.schedule),
    )


def uniform_widths(config: TaskConfig, params: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths of the task's host, all blocks scaled alike, whose parameter counts are nearest to `params`.

    Returns the nearest from below and the nearest from above; both are the same where one fits exactly.
    """
    base = _host_of(config)
    sizes: dict[tuple[int, ...], int] = {}
    factor = 1.0
    while True:
        widths = tuple(max(1, round(width * factor)) for width in base.widths)
        if widths not in sizes:
            sizes[widths] = _params_of(replace(base, widths=widths))
            if sizes[widths] >= params:
                break
        factor += 0.5 / max(base.widths)
    below = max((widths for widths, size in sizes.items() if size <= params), key=lambda w: sizes[w], default=widths)
    return below, widths


def _host_of(config: TaskConfig) -> CNNConfig:
    shelf = TASKS[config.name]
    host = replace(shelf.host, channels_last=config.channels_last)
    if shelf.classes is not None:
        host = replace(host, classes=shelf.classes(config))
    if config.widths is None:
        return host
    return replace(host, widths=config.widths, pools=_pools_for(shelf.host.pools, config.widths, config.name))


def _refuse_data(config: TaskConfig) -> None:
    asked = {"data": config.data is not None, "data_dir": config.data_dir is not None, "download": config.download}
    for name, is_asked in asked.items():
        if is_asked:
            flag = name.replace("_", "-")
            raise ConfigError(f"task.{name}: {config.name!r} brings its own data; --{flag} is for the cifar tasks")


def _refuse_giants(host: CNNConfig) -> None:
    """Raises ConfigError for a host whose float32 parameters alone are more than the machine's memory."""
    memory, asked = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), f"task.widths: {list(host.widths)} make"
    try:
        params = _params_of(host)
    except RuntimeError:  # a tensor whose size does not fit in 64 bits
        raise ConfigError(f"{asked} more parameters than can be counted; give smaller widths") from None
    if 4 * params > memory:
        raise ConfigError(
            f"{asked} {params:,} parameters, {4 * params / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory; give smaller widths"
        )


def _params_of(host: CNNConfig) -> int:
    with torch.device("meta"):
        return sum(param.numel() for param in CNNHost(host).parameters())


def _or(chosen: T | None, default: T) -> T:
    return default if chosen is None else chosen


def _pools_for(pools: tuple[bool, ...], widths: tuple[int, ...], name: str) -> tuple[bool, ...]:
    if len(widths) < 2:
        raise ConfigError(f"task.widths: {list(widths)}: a host needs two blocks or more to have a slot")
    if len(widths) > len(pools):
        raise ConfigError(f"task.widths: {len(widths)} blocks, but {name!r} has images for {len(pools)} at most")
    return pools[: len(widths)]


def _cifar(config: TaskConfig, seed: int) -> Splits:
    if config.data == "synthetic":
        for flag, is_given in {"data_dir": config.data_dir is not None, "download": config.download}.items():
            if is_given:
                raise ConfigError(f"task.{flag}: --data synthetic reads no files; leave one of the two out")
        return synthetic_cifar(seed)
    return cifar10("data" if config.data_dir is None else config.data_dir, seed, config.download)


def _cifar_shelf(summary: str, widths: tuple[int, ...], pools: tuple[bool, ...], kernel: int = 3) -> Shelf:
    host = CNNConfig(widths, pools, in_channels=3, classes=10, kernel=kernel)
    recipe = Recipe(batch_size=128, eval_batch_size=250, lr=0.05, schedule="cosine")
    return Shelf(summary, host, recipe, _cifar, is_cifar=True)


_DIGITS = Recipe(batch_size=64, eval_batch_size=360, lr=0.05)
# With half as many steps in 30 epochs pairs and clutter are hardly begun to be learned, grown or not.
_MIX_EPOCH = 2048

TASKS.register("digits")(
    Shelf(
        "scikit-learn's digits, 8x8; three blocks",
        CNNConfig((8, 8, 16), (True, True, False)),
        _DIGITS,
        lambda _config, seed: digits(seed),
    )
)
TASKS.register("digits_scale")(
    Shelf(
        "scikit-learn's digits; five blocks",
        CNNConfig((8, 8, 8, 16, 16), (False, True, False, True, False)),
        _DIGITS,
        lambda _config, seed: digits(seed),
    )
)
TASKS.register("digits_clutter")(
    Shelf(
        "a digit somewhere among pieces of others, 16x16",
        CNNConfig((4, 8, 16), (True, True, False)),
        replace(_DIGITS, eval_batch_size=250, lr=0.03, schedule="cosine"),
        lambda _config, seed: digits_clutter(seed),
    )
)
TASKS.register("digit_pairs")(
    Shelf(
        "two digits side by side, labelled by their sum; 8x16, 19 classes",
        CNNConfig((8, 8, 8), (True, True, False), classes=19),
        replace(_DIGITS, eval_batch_size=250, schedule="cosine"),
        lambda _config, seed: digit_pairs(seed),
    )
)
TASKS.register("teacher")(
    Shelf(
        "Gaussian images labelled by a convolutional teacher of known width",
        CNNConfig((2, 2), (True, False)),
        _DIGITS,
        lambda config, seed: teacher(seed, config.teacher_width),
        classes=lambda config: teacher_classes(config.teacher_width),
    )
)
TASKS.register("digits_mix")(
    Shelf(
        "a family: plain, paired or cluttered digits, width, share of the data and label noise drawn per episode",
        CNNConfig((5, 5, 5), (True, True, False)),
        replace(_DIGITS, eval_batch_size=500, lr=0.1, schedule="cosine"),
        lambda _config, seed: digits(seed),
        family=digits_mix,
        epoch_items=_MIX_EPOCH,
    )
)
TASKS.register("teacher_mix")(
    Shelf(
        "a family: teacher's width, host's width, share of the data and label noise drawn per episode",
        CNNConfig((5, 5), (True, False), classes=teacher_classes(TEACHER_WIDTHS[0])),
        replace(_DIGITS, eval_batch_size=500, schedule="cosine"),
        lambda _config, seed: teacher(seed, TEACHER_WIDTHS[0], noise=0.0),
        family=teacher_mix,
        epoch_items=_MIX_EPOCH,
    )
)
TASKS.register("cifar_baseline")(_cifar_shelf("CIFAR-10, three blocks", (8, 16, 32), (True,) * 3))
TASKS.register("cifar_scale")(_cifar_shelf("CIFAR-10, five blocks", (8, 16, 32, 64, 128), (True,) * 5))
TASKS.register("cifar_impaired")(
    _cifar_shelf("CIFAR-10, three blocks of 1x1 convolutions, one channel at first", (1, 2, 4), (True,) * 3, kernel=1)
)
TASKS.register("cifar_minimal")(
    _cifar_shelf("CIFAR-10, three blocks of 1x1 convolutions without pools", (2, 4, 8), (False,) * 3, kernel=1)
)


def slot_ids(shelf: Shelf) -> tuple[str, ...]:
    """The slots that the task's host offers."""
    with torch.device("meta"):
        return CNNHost(shelf.host).slot_order
