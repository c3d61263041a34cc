"""What every loader does last: share samples out to splits, and scale pixels by what training may know.

Read `scanned_digits.py` for the shortest use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline.errors import ConfigError
from esper.leyline.task import Split, Splits

SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Images:
    """Pixels as they are stored, before any scaling. N images, C channels."""

    pixels: Tensor  # [N, C, height, width] uint8
    labels: Tensor  # [N] int64

    def pick(self, rows: Tensor) -> Images:
        return Images(self.pixels[rows], self.labels[rows])


def stratified_split(labels: Tensor, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Disjoint row numbers, one tensor per share, each class divided alike to within one sample.

    labels: [N] int64. shares: positive, summing to 1. Rows come back in ascending order.
    """
    assert abs(sum(shares) - 1) < 1e-9, f"shares {tuple(shares)} do not sum to 1"
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    place = (rank + 0.5) / counts.repeat_interleave(counts)  # in (0, 1), evenly spaced within each class

    ends = torch.tensor(shares, dtype=place.dtype).cumsum(0)[:-1]
    owner = torch.bucketize(place, ends)
    return [by_class[owner == part].sort().values for part in range(len(shares))]


def normalised(train: Images, val: Images, test: Images) -> Splits:
    """Every split shifted and scaled per channel to mean 0 and variance 1 of the *training* pixels."""
    mean, std = channel_statistics(train.pixels)

    def scaled(images: Images) -> Split:
        return Split(images.pixels.to(torch.float32).sub_(mean).div_(std), images.labels)

    return Splits(scaled(train), scaled(val), scaled(test))


def channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, [C, 1, 1] float32 each; a constant channel has deviation 1."""
    # Counting the 256 values is exact and needs no float copy of 45,000 images.
    counts = torch.stack([pixels[:, c].flatten().bincount(minlength=256) for c in range(pixels.shape[1])]).double()
    share, value = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
    mean = share @ value
    variance = share @ value.square() - mean.square()
    std = torch.where(variance > 1e-9, variance, torch.ones_like(variance)).sqrt()
    return mean.float()[:, None, None], std.float()[:, None, None]


def with_wrong_labels(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Labels of which about `share` name another of the classes, every other alike. labels: [N] int64."""
    step = torch.randint(1, classes, labels.shape, generator=generator)
    hit = torch.rand(labels.shape, generator=generator) < share
    return torch.where(hit, (labels + step) % classes, labels)


def check_sizes(data: str, n_train: int, n_val: int, n_test: int) -> None:
    """ConfigError if a split would hold nothing."""
    for name, size in zip(SPLIT_NAMES, (n_train, n_val, n_test), strict=True):
        if size < 1:
            raise ConfigError(f"{data}: n_{name} is {size}; every split needs at least 1 image")
