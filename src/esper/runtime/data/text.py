"""Text as tokens: one fixed alphabet of characters, cut into contexts of one length.

`texts_to_splits` is what the language tasks call; `python_help.py` and `tinystories.py` say where text comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from esper.leyline.errors import ConfigError
from esper.leyline.task import Split, Splits

SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
"""Line end and printable ASCII; symbol i is token i. The last token stands for every other character."""
UNKNOWN = len(SYMBOLS)
VOCABULARY = len(SYMBOLS) + 1
BREAK = "\n\n"  # between two documents
SHARES = (0.85, 0.05, 0.10)  # of the characters, to train, validation and test

_LAST = 127  # code points from here on are one
_TOKEN_OF = np.full(_LAST + 1, UNKNOWN, dtype=np.int64)
_TOKEN_OF[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))


@dataclass(frozen=True)
class Texts:
    """One text per split, none of which shares a document with another."""

    train: str
    val: str
    test: str


def encode(text: str) -> Tensor:
    """[characters] int64."""
    points = np.frombuffer(text.encode("utf-32-le", errors="replace"), dtype=np.uint32)
    return torch.from_numpy(_TOKEN_OF[np.minimum(points, _LAST)])


def decode(tokens: Tensor) -> str:
    """The text of tokens [characters]; characters outside the alphabet have become a replacement sign."""
    return "".join((SYMBOLS + "\N{REPLACEMENT CHARACTER}")[token] for token in tokens.tolist())


def windows(text: str, context: int, name: str) -> Split:
    """Contexts that lie end to end: inputs [N, context], and targets, the same one character later.

    Raises ConfigError where the text has fewer than two of them.
    """
    tokens = encode(text)
    count = (len(tokens) - 1) // context
    if count < 2:
        raise ConfigError(
            f"task.context: {context} is too long for the {name} text of {len(text):,} characters; "
            "give a shorter context or more text"
        )
    inputs, targets = tokens[: count * context], tokens[1 : count * context + 1]
    return Split(inputs.reshape(count, context).clone(), targets.reshape(count, context).clone())


def texts_to_splits(texts: Texts, context: int) -> Splits:
    """Every text cut into contexts. Raises ConfigError for a text that is too short."""
    return Splits(
        windows(texts.train, context, "training"),
        windows(texts.val, context, "validation"),
        windows(texts.test, context, "test"),
    )


def divided(documents: Sequence[str], generator: Generator) -> Texts:
    """Whole documents dealt to the splits in random order; what does not fit into a split's share goes on to training.

    Raises ConfigError for fewer than three documents: every split needs one.
    """
    if len(documents) < len(SHARES):
        raise ConfigError(f"text: {len(documents)} documents are too few for training, validation and test; give 3")
    left = [documents[index] for index in torch.randperm(len(documents), generator=generator).tolist()]
    total, parts = sum(map(len, left)), []
    for share in SHARES[1:]:
        part, left = _take(left, int(share * total))
        parts.append(BREAK.join(part))
    return Texts(BREAK.join(left), *parts)


def _take(documents: Sequence[str], characters: int) -> tuple[list[str], list[str]]:
    """Documents that together have at most so many characters, the shortest one at least; and the others."""
    shortest = min(range(len(documents)), key=lambda index: len(documents[index]))
    taken, room = {shortest}, characters - len(documents[shortest])
    for index, document in enumerate(documents):
        if index != shortest and len(document) <= room:
            taken.add(index)
            room -= len(document)
    return (
        [document for index, document in enumerate(documents) if index in taken],
        [document for index, document in enumerate(documents) if index not in taken],
    )
