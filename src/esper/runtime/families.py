"""Families of tasks: each episode trains on a member of its own, so that no fixed schedule is best for all.

A member is a kind of data, a width of the host, a share of the training data and a share of wrong labels in it.
Kinds are prepared once; a draw picks rows and moves labels, a few milliseconds. To add a family write a function
that returns it, with kinds whose images suit one host, and put it on the shelf in `tasks.py`.

A member has as many classes as its kind, no head in common: it is then the task that stands on the shelf under that
kind's name, no parameter is paid for that no label uses, and a policy can tell kinds apart by the host's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator

from esper.kasmina.cnn_host import CNNConfig
from esper.leyline.errors import ConfigError
from esper.leyline.task import Split, Splits, Task
from esper.runtime.data import digit_pairs, digits_clutter, teacher, teacher_classes
from esper.runtime.data.splitting import with_wrong_labels
from esper.runtime.hosts import MakeHost

WIDTHS = range(2, 9)  # channels of every block of the host
# Half of the members have all of the training data, half have clean labels, independently; the others have a share and
# a noise drawn evenly. Were all drawn evenly, few members would be worth growing for: on a fraction of the pairs no
# host learns to add, grown or not, and "never grow" is a fair rule for all (dev/LOG.md).
SMALLEST_SHARE = 0.1
MOST_NOISE = 0.3  # share of wrong labels
TEACHER_WIDTHS = (2, 4, 6, 8)


@dataclass(frozen=True)
class Kind:
    """One of the data sets that a family chooses from, with clean labels."""

    name: str
    splits: Splits
    classes: int


@dataclass(frozen=True)
class Member:
    """What one draw came to: data, the shape of the host, and all that was drawn, by name."""

    splits: Splits
    widths: tuple[int, ...]
    classes: int
    told: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """What members are drawn from. All their hosts have `blocks` blocks, of `fixed` widths where these are given."""

    trait: str  # what the kinds are kinds of
    kinds: tuple[Kind, ...]
    blocks: int
    fixed: tuple[int, ...] | None = None

    def draw(self, generator: Generator) -> Member:
        """One member. Validation and test are those of the kind, complete and with clean labels."""
        kind = self.kinds[_below(len(self.kinds), generator)]
        width = WIDTHS[_below(len(WIDTHS), generator)]
        share = round(min(1.0, SMALLEST_SHARE + 2 * (1 - SMALLEST_SHARE) * _evenly(generator)), 2)
        noise = round(max(0.0, MOST_NOISE * (2 * _evenly(generator) - 1)), 2)
        train = kind.splits.train
        rows = torch.randperm(len(train), generator=generator)[: _items(share, kind)]
        targets = with_wrong_labels(train.targets[rows], noise, kind.classes, generator)
        widths = (width,) * self.blocks if self.fixed is None else self.fixed
        told = (
            (self.trait, kind.name),
            ("widths", " ".join(map(str, widths))),
            ("train_share", f"{share:.2f}"),
            ("label_noise", f"{noise:.2f}"),
        )
        return Member(replace(kind.splits, train=Split(train.inputs[rows], targets)), widths, kind.classes, told)

    @property
    def fewest_items(self) -> int:
        """Training items of the smallest member."""
        return min(_items(SMALLEST_SHARE, kind) for kind in self.kinds)


@dataclass(frozen=True)
class Draw:
    """Draws the task of one episode: `base` with a member's data, told by name, and a host like `host` for it."""

    base: Task
    host: CNNConfig
    family: Family

    def __call__(self, generator: Generator) -> Task:
        member = self.family.draw(generator)
        host = replace(self.host, widths=member.widths, classes=member.classes)
        return replace(self.base, make_host=MakeHost(host), splits=member.splits, drawn=member.told)


def as_family(base: Task, host: CNNConfig, family: Family) -> Task:
    """The task `base`, whose episodes differ.

    Raises ConfigError where a batch is larger than a member's data, and for slots around weights of changing widths.
    """
    if host.cut == "weights" and family.fixed is None:
        raise ConfigError(
            f"task.cut: the hosts of {base.name!r} differ in width from episode to episode, and so in the ranks that "
            "there is room for around their weights; set task.widths, or cut them by blocks or pools"
        )
    if base.recipe.batch_size > family.fewest_items:
        raise ConfigError(
            f"task.batch_size: {base.recipe.batch_size} is larger than the smallest training data that {base.name!r} "
            f"draws, {family.fewest_items} items; use a smaller batch"
        )
    return replace(base, draw=Draw(base, host, family))


def digits_mix(plain: Splits, seed: int) -> Family:
    """Digits alone, two to be added up, and one among pieces of others: 8x8, 8x16 and 16x16."""
    kinds = (
        Kind("plain", plain, 10),
        Kind("paired", digit_pairs(seed), 19),
        Kind("cluttered", digits_clutter(seed), 10),
    )
    return Family("digits", kinds, blocks=3)


def teacher_mix(narrowest: Splits, seed: int) -> Family:
    """The same textures, labelled by teachers of several widths."""
    splits = {TEACHER_WIDTHS[0]: narrowest} | {width: teacher(seed, width, noise=0.0) for width in TEACHER_WIDTHS[1:]}
    kinds = tuple(Kind(str(width), splits[width], teacher_classes(width)) for width in TEACHER_WIDTHS)
    return Family("teacher_width", kinds, blocks=2)


def _items(share: float, kind: Kind) -> int:
    return int(share * len(kind.splits.train))


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _evenly(generator: Generator) -> float:
    """From 0 up to but not including 1."""
    return float(torch.rand((), generator=generator))
