"""Three tasks from scikit-learn's 1,797 scanned digits: plain, hidden in clutter, and pairs to be added up.

The file lies in the scikit-learn wheel, so nothing is downloaded. The composed tasks draw every part of an
image from its own split's sources: no scan is seen in training and again in validation or test, not even as
a piece. Read `splitting.py` next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline.randomness import stream
from esper.leyline.task import Splits
from esper.runtime.data.splitting import SPLIT_NAMES, Images, check_sizes, normalised, stratified_split

SIDE = 8  # pixels of a scan
CANVAS = 16  # pixels of a cluttered image
PIECE = 4  # pixels of a piece of clutter
PIECES = 4  # in each cluttered image
SHARES = (0.6, 0.2, 0.2)  # of the scans, to train, validation and test


def digits(seed: int) -> Splits:
    """Ten classes, [N, 1, 8, 8], stratified into about 1,078 / 360 / 359; another seed is another repetition."""
    scans = load_scans()
    train, val, test = (scans.pick(rows) for rows in source_rows(scans, seed))
    return normalised(train, val, test)


def digits_clutter(seed: int, n_train: int = 3000, n_val: int = 500, n_test: int = 1000) -> Splits:
    """Ten classes, [N, 1, 16, 16]: a digit anywhere among four 4x4 pieces of other scans; its value is the label."""
    check_sizes("digits_clutter", n_train, n_val, n_test)
    train, val, test = clutter_images(seed, (n_train, n_val, n_test))
    return normalised(train.images, val.images, test.images)


def digit_pairs(seed: int, n_train: int = 3000, n_val: int = 500, n_test: int = 1000) -> Splits:
    """Nineteen classes, [N, 1, 8, 16]: two digits side by side, labelled by their sum 0..18.

    Both digits are drawn evenly, so the sums are triangular: 9 is the commonest at 10 % and guessing it is chance.
    """
    check_sizes("digit_pairs", n_train, n_val, n_test)
    train, val, test = pair_images(seed, (n_train, n_val, n_test))
    return normalised(train.images, val.images, test.images)


@dataclass(frozen=True)
class Composed:
    """Images put together from scans, and which scans those were."""

    images: Images
    sources: Tensor  # [N, parts] int64 rows of `load_scans()`


def clutter_images(seed: int, sizes: tuple[int, int, int]) -> list[Composed]:
    """The cluttered images of each split before scaling; sources[:, 0] is the digit, the rest are the pieces."""
    scans = load_scans()
    parts = []
    for name, rows, size in zip(SPLIT_NAMES, source_rows(scans, seed), sizes, strict=True):
        generator = stream(seed, f"digits clutter {name}")
        sources = _draw_sources(rows, size, 1 + PIECES, generator)
        canvas = torch.zeros(size, CANVAS, CANVAS, dtype=torch.uint8)
        for column in range(1, 1 + PIECES):
            scan = scans.pixels[sources[:, column], 0]
            _paste(canvas, _random_window(scan, PIECE, generator), generator)
        _paste(canvas, scans.pixels[sources[:, 0], 0], generator)
        parts.append(Composed(Images(canvas[:, None], scans.labels[sources[:, 0]]), sources))
    return parts


def pair_images(seed: int, sizes: tuple[int, int, int]) -> list[Composed]:
    """The pairs of each split before scaling; sources[:, 0] is on the left."""
    scans = load_scans()
    parts = []
    for name, rows, size in zip(SPLIT_NAMES, source_rows(scans, seed), sizes, strict=True):
        sources = _draw_sources(rows, size, 2, stream(seed, f"digit pairs {name}"))
        left, right = sources.unbind(1)
        pixels = torch.cat([scans.pixels[left], scans.pixels[right]], dim=3)
        parts.append(Composed(Images(pixels, scans.labels[left] + scans.labels[right]), sources))
    return parts


def load_scans() -> Images:
    """All 1,797 scans, [1797, 1, 8, 8], values 0..16."""
    # Imported here: scikit-learn takes a second to import, and most tasks do without it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    return Images(pixels, torch.from_numpy(bunch.target).to(torch.int64))


def source_rows(scans: Images, seed: int) -> list[Tensor]:
    """Which scans belong to train, validation and test; the same for all three tasks of one seed."""
    return stratified_split(scans.labels, SHARES, stream(seed, "digits split"))


def _draw_sources(rows: Tensor, n: int, parts: int, generator: torch.Generator) -> Tensor:
    """[n, parts] drawn from `rows`: the first column uses every scan equally often, the others never repeat it."""
    turns = -(-n // len(rows))
    first = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(turns)])[:n, None]
    step = torch.randint(1, len(rows), (n, parts - 1), generator=generator)
    return rows[torch.cat([first, (first + step) % len(rows)], dim=1)]


def _random_window(scan: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A window of `side` pixels at a random place of each scan: [N, 8, 8] -> [N, side, side]."""
    places = scan.shape[1] - side + 1
    top, left = torch.randint(places, (2, len(scan)), generator=generator)
    return scan.unfold(1, side, 1).unfold(2, side, 1)[torch.arange(len(scan)), top, left]


def _paste(canvas: Tensor, patch: Tensor, generator: torch.Generator) -> None:
    """Lay each patch at a random place of its canvas, in place; where ink overlaps, the darker stays."""
    n, side = len(canvas), patch.shape[1]
    top, left = torch.randint(canvas.shape[1] - side + 1, (2, n), generator=generator)
    window = canvas.unfold(1, side, 1).unfold(2, side, 1)
    image = torch.arange(n)
    window[image, top, left] = torch.maximum(window[image, top, left], patch)
