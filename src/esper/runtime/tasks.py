"""The tasks, one registered entry each. To add one write a function that returns a `Shelf` and register it.

A task may be a family, whose episodes differ: see `families.py`. Where slots stand is a property of the host, which
`esper list tasks` shows: convolutional ones in `kasmina/cnn_host.py`, language ones in `kasmina/transformer_host.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from esper.kasmina.cnn_host import CNNConfig
from esper.leyline.errors import ConfigError
from esper.leyline.registry import Registry
from esper.leyline.task import Recipe, Splits, Task
from esper.runtime import language
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
from esper.runtime.families import TEACHER_WIDTHS, as_family, digits_mix, teacher_mix
from esper.runtime.hosts import HostConfig, host_of, or_default, refuse_giants, widened
from esper.runtime.shelf import CLASSES, Shelf

TASKS: Registry[Shelf] = Registry("task")


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task that the settings describe. Raises ConfigError for names, data or sizes that do not fit."""
    shelf = TASKS[config.name]
    _refuse_data(shelf, config)
    host, recipe = _host_of(config), recipe_of(config)
    refuse_giants(host)
    splits = shelf.data(config, seed)
    task = Task(
        name=config.name,
        make_host=shelf.make(host, config),
        splits=splits,
        loss=shelf.measures.loss,
        metric=shelf.measures.metric,
        recipe=recipe,
        epoch_items=or_default(config.epoch_items, or_default(shelf.epoch_items, len(splits.train))),
        augment=shelf.augment,
    )
    if shelf.family is None:
        return task
    assert isinstance(host, CNNConfig), "families are of images"
    return as_family(task, host, replace(shelf.family(splits, seed), fixed=config.widths))


def recipe_of(config: TaskConfig) -> Recipe:
    """The task's recipe with what the settings change in it."""
    recipe = TASKS[config.name].recipe
    return Recipe(
        batch_size=or_default(config.batch_size, recipe.batch_size),
        eval_batch_size=or_default(config.eval_batch_size, recipe.eval_batch_size),
        optimiser=or_default(config.optimiser, recipe.optimiser),
        lr=or_default(config.lr, recipe.lr),
        momentum=or_default(config.momentum, recipe.momentum),
        weight_decay=or_default(config.weight_decay, recipe.weight_decay),
        schedule=or_default(config.schedule, recipe.schedule),
        warmup=or_default(config.warmup, recipe.warmup),
    )


def widened_tasks(config: TaskConfig, params: int) -> tuple[TaskConfig, TaskConfig] | None:
    """The task on hosts with the parameter counts nearest to `params`, below and above; None where hosts learn nothing.

    A wider host that stays frozen is no rival of one that grows.
    """
    shelf = TASKS[config.name]
    return widened(_host_of(config), config, params) if shelf.learns else None


def slot_ids(shelf: Shelf) -> tuple[str, ...]:
    """The slots that the task's host offers."""
    with torch.device("meta"):
        return shelf.host.build().slot_order


def _host_of(config: TaskConfig) -> HostConfig:
    shelf = TASKS[config.name]
    host = host_of(shelf.host, config)
    if shelf.classes is None:
        return host
    assert isinstance(host, CNNConfig), "language hosts have an alphabet, not classes"
    return replace(host, classes=shelf.classes(config))


def _refuse_data(shelf: Shelf, config: TaskConfig) -> None:
    asked = {"data": config.data is not None, "data_dir": config.data_dir is not None, "download": config.download}
    for name, is_asked in asked.items():
        if is_asked and not shelf.sources:
            flag, takers = name.replace("_", "-"), "cifar and tinystories"
            raise ConfigError(f"task.{name}: {config.name!r} brings its own data; --{flag} is for the {takers} tasks")
    if config.data is not None and config.data not in shelf.sources:
        raise ConfigError(f"task.data: {config.name!r} takes {' or '.join(shelf.sources)}, not {config.data!r}")
    for name in ("data_dir", "download"):
        if asked[name] and config.data == "synthetic":
            raise ConfigError(f"task.{name}: --data synthetic reads no files; leave one of the two out")


def _cifar(config: TaskConfig, seed: int) -> Splits:
    if config.data == "synthetic":
        return synthetic_cifar(seed)
    return cifar10("data" if config.data_dir is None else config.data_dir, seed, config.download)


def _cifar_shelf(summary: str, host: CNNConfig) -> Shelf:
    recipe = Recipe(batch_size=128, eval_batch_size=250, lr=0.05, schedule="cosine")
    host = replace(host, in_channels=3, classes=10)
    return Shelf(summary, host, recipe, _cifar, CLASSES, sources=("cifar10", "synthetic"), augment=augment)


_DIGITS = Recipe(batch_size=64, eval_batch_size=360, lr=0.05)
# With half as many steps in 30 epochs pairs and clutter are hardly begun to be learned, grown or not.
_MIX_EPOCH = 2048

TASKS.register("digits")(
    Shelf(
        "scikit-learn's digits, 8x8; three blocks",
        CNNConfig((8, 8, 16), (True, True, False)),
        _DIGITS,
        lambda _config, seed: digits(seed),
        CLASSES,
    )
)
TASKS.register("digits_scale")(
    Shelf(
        "scikit-learn's digits; five blocks",
        CNNConfig((8, 8, 8, 16, 16), (False, True, False, True, False)),
        _DIGITS,
        lambda _config, seed: digits(seed),
        CLASSES,
    )
)
TASKS.register("digits_clutter")(
    Shelf(
        "a digit somewhere among pieces of others, 16x16",
        CNNConfig((4, 8, 16), (True, True, False)),
        replace(_DIGITS, eval_batch_size=250, lr=0.03, schedule="cosine"),
        lambda _config, seed: digits_clutter(seed),
        CLASSES,
    )
)
TASKS.register("digit_pairs")(
    Shelf(
        "two digits side by side, labelled by their sum; 8x16, 19 classes",
        CNNConfig((8, 8, 8), (True, True, False), classes=19),
        replace(_DIGITS, eval_batch_size=250, schedule="cosine"),
        lambda _config, seed: digit_pairs(seed),
        CLASSES,
    )
)
TASKS.register("teacher")(
    Shelf(
        "Gaussian images labelled by a convolutional teacher of known width",
        CNNConfig((2, 2), (True, False)),
        _DIGITS,
        lambda config, seed: teacher(seed, config.teacher_width),
        CLASSES,
        classes=lambda config: teacher_classes(config.teacher_width),
    )
)
TASKS.register("digits_mix")(
    Shelf(
        "a family: plain, paired or cluttered digits, width, share of the data and label noise drawn per episode",
        CNNConfig((5, 5, 5), (True, True, False)),
        replace(_DIGITS, eval_batch_size=500, lr=0.1, schedule="cosine"),
        lambda _config, seed: digits(seed),
        CLASSES,
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
        CLASSES,
        family=teacher_mix,
        epoch_items=_MIX_EPOCH,
    )
)
TASKS.register("cifar_baseline")(_cifar_shelf("CIFAR-10, three blocks", CNNConfig((8, 16, 32), (True,) * 3)))
TASKS.register("cifar_scale")(_cifar_shelf("CIFAR-10, five blocks", CNNConfig((8, 16, 32, 64, 128), (True,) * 5)))
TASKS.register("cifar_impaired")(
    _cifar_shelf(
        "CIFAR-10, three blocks of 1x1 convolutions, one channel at first",
        CNNConfig((1, 2, 4), (True,) * 3, kernel=1),
    )
)
TASKS.register("cifar_minimal")(
    _cifar_shelf(
        "CIFAR-10, three blocks of 1x1 convolutions without pools", CNNConfig((2, 4, 8), (False,) * 3, kernel=1)
    )
)


def _at_pools(name: str) -> Shelf:
    """The task with the same host, cut on both sides of its pools."""
    shelf = TASKS[name]
    assert isinstance(shelf.host, CNNConfig), "only convolutional hosts have pools"
    summary = f"{name}, with slots before and after each pool"
    return replace(shelf, summary=summary, host=replace(shelf.host, cut="pools"))


TASKS.register("digits_pool")(_at_pools("digits"))
TASKS.register("cifar_baseline_pool")(_at_pools("cifar_baseline"))
TASKS.register("cifar_scale_pool")(_at_pools("cifar_scale"))
TASKS.register("stdlib_lm")(language.stdlib_lm())
TASKS.register("stdlib_adapt")(language.stdlib_adapt())
TASKS.register("tinystories")(
    language.stories("small stories, character by character; slots after segments", "segments")
)
TASKS.register("tinystories_layerwise")(language.stories("tinystories, slots after each layer", "layers"))
TASKS.register("tinystories_lattice")(
    language.stories("tinystories, slots after the attention and the MLP of each layer", "lattice")
)
