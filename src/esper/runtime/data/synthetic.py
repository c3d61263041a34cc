"""Procedural colour images in the shape of CIFAR-10: ten classes, each a texture, a shape and a colour, under noise.

Every class shares its texture with one other class, its shape with another and its colour with a third, so no
single cue names the class and any two cues do. All arithmetic is on integers, so the pixels are the same on
every machine. Read `splitting.py` next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.leyline.task import Splits
from esper.runtime.data.splitting import SPLIT_NAMES, Images, check_sizes, normalised

# N images, H W rows and columns of pixels. Lengths and places are in 1/1024 of the image's side.
SIDE = 1024

# Cycles across the image, in quarters, along x and along y.
TEXTURES = {"upright": (12, 0), "upright fine": (20, 0), "level": (0, 12), "level fine": (0, 20), "slanted": (11, 11)}

# Red, green, blue relative to grey, before the jitter that blurs neighbouring colours into each other.
COLOURS = {
    "red": (30, -15, -15),
    "lime": (9, 21, -30),
    "teal": (-24, 18, 6),
    "blue": (-24, -6, 30),
    "pink": (24, -24, 0),
}

# Which points belong to a shape of radius r, from their distances to its centre, near <= far; all areas are about
# the disc's.
SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "disc": lambda near, far, r: near * near + far * far <= r * r,
    "square": lambda _, far, r: far * 9 <= r * 8,
    "diamond": lambda near, far, r: (near + far) * 4 <= r * 5,
    "cross": lambda near, far, r: (near * 9 <= r * 4) & (far * 9 <= r * 10),
    "ring": lambda near, far, r: (2 * (near * near + far * far) - 2 * r * r).abs() <= r * r,
}

# One row per class. In each column every name stands twice, and no two rows agree in two columns.
CLASSES = (
    ("upright", "disc", "red"),
    ("upright fine", "disc", "lime"),
    ("level", "square", "teal"),
    ("level fine", "square", "red"),
    ("slanted", "diamond", "lime"),
    ("upright", "diamond", "blue"),
    ("upright fine", "cross", "teal"),
    ("level", "cross", "pink"),
    ("level fine", "ring", "blue"),
    ("slanted", "ring", "pink"),
)

CONTRAST = 40  # amplitude of the texture, in levels of 255
COLOUR_JITTER = 24  # half range of the offset that each image adds to each colour channel
RADII = (260, 400)  # range of the shape's radius

# 256 steps of a sine, -64..64. No value lies near a half, so rounding is the same everywhere.
SINE = torch.from_numpy(np.rint(64 * np.sin(2 * np.pi * np.arange(256) / 256)).astype(np.int32))


def synthetic_cifar(
    seed: int, n_train: int = 2000, n_val: int = 500, n_test: int = 500, size: int = 32, noise: int = 48
) -> Splits:
    """Ten balanced classes, [N, 3, size, size].

    size: pixels of a side, 8 or more. noise: standard deviation of each pixel's own noise, in levels of 255;
    the texture's is 28, so 0 is easy and 150 hard.
    """
    check_sizes("synthetic_cifar", n_train, n_val, n_test)
    if size < 8:
        raise ConfigError(f"synthetic_cifar: size is {size}; shapes need 8 pixels or more")
    if not 0 <= noise <= 1000:
        raise ConfigError(f"synthetic_cifar: noise is {noise}; use 0 to 1000 levels")
    sizes = zip(SPLIT_NAMES, (n_train, n_val, n_test), strict=True)
    train, val, test = (draw(n, size, noise, stream(seed, f"synthetic cifar {name}")) for name, n in sizes)
    return normalised(train, val, test)


def draw(n: int, size: int, noise: int, generator: torch.Generator) -> Images:
    """n images before scaling, classes balanced to within one and in random order."""
    labels = (torch.arange(n) % len(CLASSES))[torch.randperm(n, generator=generator)]

    def uniform(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int32)

    place = (2 * torch.arange(size, dtype=torch.int32) + 1) * SIDE // (2 * size)
    x, y = place[None, None, :], place[None, :, None]

    radius = uniform(*RADII, n)[:, None, None]
    centre = uniform(SIDE * 3 // 8, SIDE * 5 // 8, 2, n)[:, :, None, None]
    inside = _shape_masks(labels, x - centre[0], y - centre[1], radius)

    texture_of = _column(TEXTURES, 0)[labels]
    inner = _waves(texture_of + uniform(-1, 1, n, 2), uniform(0, 255, n), x, y)
    decoy = torch.randint(len(TEXTURES), (n,), generator=generator)
    outer = _waves(torch.tensor(list(TEXTURES.values()))[decoy], uniform(0, 255, n), x, y)
    pattern = torch.where(inside, inner, outer) * CONTRAST // 64

    colour = _column(COLOURS, 2)[labels] + uniform(-COLOUR_JITTER, COLOUR_JITTER, n, 3)
    behind = uniform(-COLOUR_JITTER, COLOUR_JITTER, n, 3)
    flat = torch.where(inside[:, None], colour[:, :, None, None], behind[:, :, None, None])

    pixels = flat.add_(pattern[:, None]).add_(128)
    for _ in range(3):  # three uniform draws on -noise..noise: bell-shaped, standard deviation about `noise`
        pixels.add_(uniform(-noise, noise, n, 3, size, size))
    return Images(pixels.clamp_(0, 255).to(torch.uint8), labels)


def _column(table: Mapping[str, tuple[int, ...]], column: int) -> Tensor:
    """What `table` says about each class, [10, values] int32."""
    return torch.tensor([table[row[column]] for row in CLASSES], dtype=torch.int32)


def _shape_masks(labels: Tensor, dx_NHW: Tensor, dy_NHW: Tensor, radius_N11: Tensor) -> Tensor:
    """[N, H, W] bool: which pixels belong to each image's shape."""
    near_NHW = torch.minimum(dx_NHW.abs(), dy_NHW.abs())
    far_NHW = torch.maximum(dx_NHW.abs(), dy_NHW.abs())
    inside = torch.zeros_like(near_NHW, dtype=torch.bool)
    for name, contains in SHAPES.items():
        classes = torch.tensor([number for number, row in enumerate(CLASSES) if row[1] == name])
        rows = torch.isin(labels, classes).nonzero()[:, 0]
        inside[rows] = contains(near_NHW[rows], far_NHW[rows], radius_N11[rows])
    return inside


def _waves(quarter_cycles_N2: Tensor, phase_N: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[N, H, W] int32 in -64..64: a plane sine wave per image, `phase` in 1/256 of a turn."""
    across, down = quarter_cycles_N2[:, :, None, None].to(torch.int32).unbind(1)
    angle = (across * x + down * y) * 64 // SIDE + phase_N[:, None, None]
    return SINE[angle & 255]
