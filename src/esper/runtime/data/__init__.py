"""Data sets as tensors in memory: each loader is a pure function of its arguments and a seed.

Start with `scanned_digits.py`. Whatever scales the inputs is computed from the training split alone.
"""

from __future__ import annotations

from esper.runtime.data.augmentation import augment
from esper.runtime.data.cifar import cifar10
from esper.runtime.data.python_help import first_half, second_half, stdlib_text
from esper.runtime.data.scanned_digits import digit_pairs, digits, digits_clutter
from esper.runtime.data.synthetic import synthetic_cifar
from esper.runtime.data.teacher_net import classes as teacher_classes
from esper.runtime.data.teacher_net import teacher
from esper.runtime.data.text import VOCABULARY, Texts, texts_to_splits
from esper.runtime.data.tinystories import synthetic_stories, tinystories

__all__ = [
    "VOCABULARY",
    "Texts",
    "augment",
    "cifar10",
    "digit_pairs",
    "digits",
    "digits_clutter",
    "first_half",
    "second_half",
    "stdlib_text",
    "synthetic_cifar",
    "synthetic_stories",
    "teacher",
    "teacher_classes",
    "texts_to_splits",
    "tinystories",
]
