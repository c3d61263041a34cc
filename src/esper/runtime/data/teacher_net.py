"""A task whose right size is known: textures labelled by a fixed random conv net of a width that you choose.

It asks whether growth stops where it should. Images are Gaussian noise filtered by eight kernels, each as loud
as chance has it; the teacher listens to `width` of them. Read `draw_textures` and `Teacher` below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.leyline.task import Split, Splits
from esper.runtime.data.splitting import SPLIT_NAMES, check_sizes, with_wrong_labels

# N images, K kernels or channels, L labels (classes).
SIDE = 8  # pixels
KERNELS = 8
LOUDNESS = 1.5  # standard deviation of each kernel's log gain in an image; below 1 the labels are hard to learn
CALIBRATION = 4000  # images, of no split, on which the teacher's features and classes are balanced


def teacher(
    seed: int, width: int, n_train: int = 3000, n_val: int = 500, n_test: int = 1000, noise: float = 0.1
) -> Splits:
    """`classes(width)` classes of about equal size, [N, 1, 8, 8], each image scaled to mean 0 and variance 1.

    width: channels of the teacher, 1..8. noise: share of labels, in every split, moved to another class at
    random, so that no student does better than 1 - noise. The images of one seed are the same at every width.
    """
    check_sizes("teacher", n_train, n_val, n_test)
    if not 1 <= width <= KERNELS:
        raise ConfigError(f"teacher: width is {width}; there are {KERNELS} kernels to listen to, use 1 to {KERNELS}")
    if not 0 <= noise < 1:
        raise ConfigError(f"teacher: noise is {noise}; it is a share of labels, use 0 up to but not including 1")
    net = Teacher.draw(width, stream(seed, "teacher net", width))

    def split(name: str, n: int) -> Split:
        images = draw_textures(n, stream(seed, f"teacher images {name}"))
        labels = with_wrong_labels(net.labels(images), noise, classes(width), stream(seed, f"teacher noise {name}"))
        return Split(images, labels)

    train, val, test = map(split, SPLIT_NAMES, (n_train, n_val, n_test))
    return Splits(train, val, test)


def classes(width: int) -> int:
    """Just more than the teacher has channels: with fewer its last channels hardly count, with many a student of
    the same width is too narrow to find the borders by gradient descent.
    """
    return width + 2


@dataclass(frozen=True)
class Teacher:
    """3x3 convolution to `width` channels, ReLU, global average, linear layer."""

    filters: Tensor  # [width, 1, 3, 3]
    readout: Tensor  # [L, width]
    bias: Tensor  # [L]

    @staticmethod
    def draw(width: int, generator: torch.Generator) -> Teacher:
        """Kernels and readout at random; on fresh images every feature counts alike and every class is as common."""
        filters = texture_kernels()[torch.randperm(KERNELS, generator=generator)[:width]]
        feature_NK = _features(draw_textures(CALIBRATION, generator), filters)
        spread_K, centre_K = torch.std_mean(feature_NK, dim=0)
        readout = torch.randn(classes(width), width, generator=generator) / spread_K
        bias = balancing_bias((feature_NK - centre_K) @ readout.T) - readout @ centre_K
        return Teacher(filters, readout, bias)

    def labels(self, images: Tensor) -> Tensor:
        """[N] int64, without noise."""
        return (_features(images, self.filters) @ self.readout.T + self.bias).argmax(1)


def draw_textures(n: int, generator: torch.Generator) -> Tensor:
    """[n, 1, 8, 8]: white noise through each kernel, mixed with log-normal gains; mean 0, variance 1 per image."""
    gain_NK11 = torch.randn(n, KERNELS, 1, 1, generator=generator).mul(LOUDNESS).exp()
    white = torch.randn(n, KERNELS, SIDE, SIDE, generator=generator) * gain_NK11
    images = F.conv2d(F.pad(white, (1, 1, 1, 1), mode="circular"), texture_kernels().transpose(0, 1))
    spread, centre = torch.std_mean(images, dim=(2, 3), keepdim=True)
    return (images - centre) / spread


def texture_kernels() -> Tensor:
    """[8, 1, 3, 3]: the 3x3 cosine basis without its constant; orthonormal."""
    basis = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    basis = basis / basis.norm(dim=1, keepdim=True)
    return torch.einsum("iy,jx->ijyx", basis, basis).reshape(9, 1, 3, 3)[1:]


def balancing_bias(logits_NL: Tensor) -> Tensor:
    """[L] to add to the logits so that argmax picks every class about equally often.

    Lowers what is picked too often and raises the rest, in shrinking steps (semi-discrete optimal transport).
    """
    n, wanted = len(logits_NL), 1 / logits_NL.shape[1]
    bias = torch.zeros(logits_NL.shape[1])
    for step in torch.logspace(0, -2, 500):
        share = (logits_NL + bias).argmax(1).bincount(minlength=len(bias)) / n
        bias = bias - step * (share - wanted)
    return bias


def _features(images: Tensor, filters: Tensor) -> Tensor:
    return F.conv2d(images, filters, padding=1).relu().mean(dim=(2, 3))
