"""From the settings of a task to a task: what a setting changes, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from esper.kasmina.cnn_host import CNNHost
from esper.leyline.errors import ConfigError
from esper.leyline.task import Recipe, Split, Splits, Task
from esper.runtime.config import TaskConfig
from esper.runtime.shelf import ACCURACY
from esper.runtime.tasks import TASKS, make_task, recipe_of, slot_ids


def digits(**settings: Any) -> Task:
    return make_task(TaskConfig(name="digits", **settings), 0)


def host_of(task: Task) -> CNNHost:
    host = task.make_host()
    assert isinstance(host, CNNHost)
    return host


def test_what_is_not_set_is_the_tasks_own() -> None:
    assert recipe_of(TaskConfig(name="digits")) == TASKS["digits"].recipe == digits().recipe


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 32),
        ("eval_batch_size", 77),
        ("optimiser", "adamw"),
        ("lr", 0.5),
        ("momentum", 0.0),
        ("weight_decay", 0.0),
        ("schedule", "cosine"),
        ("warmup", 0.3),
    ],
)
def test_every_setting_of_the_recipe_replaces_the_tasks_own(name: str, value: object) -> None:
    recipe = digits(**{name: value}).recipe

    assert vars(recipe) == vars(TASKS["digits"].recipe) | {name: value}


def test_an_epoch_may_be_shorter_or_longer_than_the_split() -> None:
    assert digits(epoch_items=128).steps_per_epoch == 2
    assert digits(epoch_items=6400).steps_per_epoch == 100


def test_widths_replace_the_hosts_blocks_and_its_slots_follow() -> None:
    host = host_of(digits(widths=(5, 7)))

    assert host.slot_order == ("r0c0", "r0c1")
    assert dict(host.injection_points) == {"r0c0": 5, "r0c1": 7}


def test_only_as_many_pools_as_blocks_are_kept() -> None:
    host = host_of(make_task(TaskConfig(name="digits_scale", widths=(4, 4)), 0))

    # The second block of digits_scale pools, the first does not: 8x8 images leave it as 4x4.
    assert host.forward_to("r0c0", torch.zeros(1, 1, 8, 8)).shape == (1, 4, 8, 8)
    assert host.forward_to("r0c1", torch.zeros(1, 1, 8, 8)).shape == (1, 4, 4, 4)


def test_channels_last_is_the_memory_format_of_the_host() -> None:
    host = host_of(make_task(TaskConfig(name="cifar_baseline", data="synthetic", channels_last=True), 0))

    inside = host.forward_to("r0c1", torch.zeros(2, 3, 32, 32))

    assert inside.is_contiguous(memory_format=torch.channels_last)


def test_the_teachers_width_sets_the_number_of_classes() -> None:
    narrow, wide = (make_task(TaskConfig(name="teacher", teacher_width=width), 0) for width in (2, 8))

    for task in (narrow, wide):
        assert host_of(task).config.classes == int(task.splits.train.targets.max()) + 1


def test_only_cifar_images_are_augmented() -> None:
    assert digits().augment is None
    augment = make_task(TaskConfig(name="cifar_baseline", data="synthetic"), 0).augment
    assert augment is not None
    images = torch.rand(6, 3, 32, 32)
    once = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(once, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(once, images)
    assert once.shape == images.shape


def test_slots_are_told_without_building_weights() -> None:
    assert slot_ids(TASKS["cifar_scale"]) == ("r0c0", "r0c1", "r0c2", "r0c3", "r0c4")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "digit"}, "unknown task 'digit'; did you mean 'digits'"),
        ({"name": "digits", "data": "synthetic"}, "'digits' brings its own data"),
        ({"name": "cifar_scale", "data": "synthetic", "data_dir": "here"}, "--data synthetic reads no files"),
        (
            {"name": "cifar_scale", "data": "synthetic", "download": True},
            "task.download: --data synthetic reads no files",
        ),
        ({"name": "digits", "widths": (8,)}, "a host needs two blocks or more"),
        ({"name": "digits", "widths": ()}, "a host needs two blocks or more"),
        ({"name": "digits", "widths": (8, 8, 8, 8)}, "4 blocks, but 'digits' has images for 3 at most"),
        ({"name": "digits", "widths": (8, 0)}, "widths of at least 1"),
        ({"name": "digits", "batch_size": 5000}, "task.batch_size: 5000 is larger than an epoch of 'digits', 1078"),
        ({"name": "digits", "epoch_items": 10}, "task.batch_size: 64 is larger than an epoch of 'digits', 10 items"),
        ({"name": "cifar_scale"}, "no files in 'data'"),
        ({"name": "cifar_scale", "data": "hub"}, "task.data: 'cifar_scale' takes cifar10 or synthetic, not 'hub'"),
        ({"name": "digits", "width": 8}, "task.width: 'digits' has a convolutional host"),
        ({"name": "digits", "layers": 2}, "task.layers: 'digits' has a convolutional host"),
        ({"name": "digits", "heads": 2}, "task.heads: 'digits' has a convolutional host"),
        ({"name": "digits", "cut": "layers"}, "task.cut: 'digits' has a convolutional host"),
        ({"name": "digits", "num_segments": 2}, "task.num_segments: 'digits' has a convolutional host"),
        ({"name": "digits", "context": 8}, "task.context: 'digits' has a convolutional host"),
        ({"name": "digits", "positions": "learned"}, "task.positions: 'digits' has a convolutional host"),
        ({"name": "digits", "dropout": 0.1}, "task.dropout: 'digits' has a convolutional host"),
        ({"name": "stdlib_lm", "widths": (8, 8)}, "task.widths: 'stdlib_lm' has a language host"),
        ({"name": "stdlib_lm", "channels_last": True}, "task.channels_last: 'stdlib_lm' has a language host"),
        ({"name": "stdlib_lm", "data": "synthetic"}, "'stdlib_lm' brings its own data"),
        ({"name": "stdlib_lm", "num_segments": 4}, "task.num_segments: 4 does not divide the 6 layers"),
        ({"name": "stdlib_lm", "cut": "lattice", "num_segments": 2}, "task.num_segments: the host is cut by task.cut"),
        ({"name": "stdlib_lm", "heads": 3}, "task.heads: 3 heads do not divide a width of 32"),
        ({"name": "stdlib_lm", "context": 100_000}, "task.context: 100000 is too long for the validation text"),
        ({"name": "stdlib_lm", "width": 4_000_000}, "task.width: 4000000 channels in task.layers: 6 make"),
        ({"name": "tinystories"}, "tinystories: no data; --download fetches"),
        ({"name": "tinystories", "data": "synthetic", "data_dir": "here"}, "--data synthetic reads no files"),
        ({"name": "cifar_scale", "data_dir": "/no/such/folder"}, "no files in '/no/such/folder'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    settings: dict[str, Any], words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `data` is a folder of the place where one stands

    with pytest.raises(ConfigError, match=words) as caught:
        make_task(TaskConfig(**settings), 0)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"momentum": 1.0}, {"batch_size": 0}, {"weight_decay": -1.0}])
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        TaskConfig(**settings)


def test_a_batch_may_not_be_larger_than_the_training_split_even_if_the_epoch_is() -> None:
    split = Split(torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64))

    with pytest.raises(ConfigError, match="12 is larger than an epoch of 'tiny', 10 items"):
        Task("tiny", torch.nn.Identity, Splits(split, split, split), ACCURACY.per_item, ACCURACY, Recipe(12), 24)
