"""A task that is a family: what one episode gets, and hosts that are changed on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tolaria.small import cnn_host, images, toy
from torch import Generator, nn

from esper.leyline.randomness import stream
from esper.leyline.task import Task

BASE = toy()


def by_luck(generator: Generator) -> Task:
    """Half of the data, and which half is drawn."""
    half = torch.randperm(64, generator=generator)[:32]
    train = replace(BASE.splits.train, inputs=BASE.splits.train.inputs[half], targets=BASE.splits.train.targets[half])
    return replace(BASE, splits=replace(BASE.splits, train=train), drawn=(("first", str(int(half[0]))),))


def doubled(host: nn.Module) -> nn.Module:
    return nn.Sequential(host, nn.Linear(4, 4))


def test_a_fixed_task_is_its_own_member_and_takes_nothing_from_the_stream() -> None:
    generator = stream(0, "test")
    before = generator.get_state()

    assert BASE.member(generator) is BASE
    assert torch.equal(generator.get_state(), before)


def test_a_member_of_a_family_is_what_its_stream_draws() -> None:
    family = replace(BASE, draw=by_luck)
    first = int(torch.randperm(64, generator=stream(0, "test"))[0])

    member = family.member(stream(0, "test"))

    assert member.drawn == (("first", str(first)),)
    assert torch.equal(member.splits.train.inputs[0], BASE.splits.train.inputs[first])


def test_members_that_would_differ_in_steps_or_draw_on_are_faults_of_the_family() -> None:
    with pytest.raises(AssertionError, match="draws of 'toy' differ in steps per epoch"):
        replace(BASE, draw=lambda _: replace(BASE, epoch_items=32)).member(stream(0, "test"))
    with pytest.raises(AssertionError, match="a draw of 'toy' is itself a family"):
        replace(BASE, draw=lambda _: replace(BASE, draw=by_luck)).member(stream(0, "test"))


def test_hosts_are_changed_in_the_task_and_in_every_draw_of_it() -> None:
    changed = replace(BASE, draw=by_luck).with_hosts(doubled)

    for task in (changed, changed.member(stream(0, "test"))):
        host = task.make_host()
        assert isinstance(host, nn.Sequential)
        assert host(BASE.splits.val.inputs[:3]).shape == (3, 4)
    assert changed.member(stream(0, "test")).drawn == by_luck(stream(0, "test")).drawn


def test_a_key_tells_hosts_image_sizes_and_batches_apart_and_nothing_else() -> None:
    train = images(64, 1)
    wider = replace(BASE.splits, train=replace(train, inputs=torch.zeros(64, 1, 8, 16)))
    fewer = replace(BASE.splits, train=images(32, 7))
    alike = [BASE, replace(BASE, splits=fewer, drawn=(("a", "b"),)), BASE.with_hosts(doubled), BASE.with_hosts(doubled)]
    others = [
        replace(BASE, splits=wider),
        replace(BASE, recipe=replace(BASE.recipe, batch_size=8)),
        replace(BASE, make_host=cnn_host),
    ]

    assert alike[0].host_key == alike[1].host_key
    assert alike[2].host_key == alike[3].host_key
    assert len({task.host_key for task in [*alike, *others]}) == 2 + 3
