"""Text that ships with Python: the help topics of `pydoc_data.topics`, half a million characters about the language.

Every minor version has its own text, so a task on it is only the same task where the text is: it is pinned by hash.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Literal

import torch

from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.runtime.data.text import BREAK, Texts, divided

KNOWN: Mapping[str, str] = {
    "853505944682f68394b4bac08996a977b0d71f01cb49ef646ad8f8150e5779d6": "3.11.7",
    "461a03e3dbdb42a98873934e300e2430ede44242ccadfdeeb3f05a140734d49e": "3.12.1",
    "adc8731ac1b89eee998200975a5a05fe8b8d95990dd02339034bb7f74ded80c3": "3.13.0",
}
"""SHA-256 of a text (`fingerprint`) -> the Python that ships it."""

Pin = Literal["pinned", "any"]


def topics(pin: Pin = "pinned") -> dict[str, str]:
    """The topics of the Python at hand, by name, in the order of names.

    Raises ConfigError where there are none, or where the text is none of `KNOWN` and `pin` does not let that pass.
    """
    try:
        from pydoc_data.topics import topics as found
    except ImportError as error:
        raise ConfigError(
            f"text: this Python ({platform.python_version()}) has no pydoc_data.topics; use another task or Python"
        ) from error
    ordered: dict[str, str] = {name: found[name] for name in sorted(found)}
    digest = fingerprint(ordered)
    if pin == "pinned" and digest not in KNOWN:
        raise ConfigError(
            f"text: Python {platform.python_version()} ships another text (SHA-256 {digest[:16]}...) than Python "
            f"{', '.join(KNOWN.values())}, so results cannot be compared with theirs; --set task.text=any takes it"
        )
    return ordered


def fingerprint(ordered: Mapping[str, str]) -> str:
    """SHA-256 of names and texts."""
    return hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in ordered.items()).encode()).hexdigest()


def stdlib_text(seed: int, pin: Pin = "pinned") -> Texts:
    """All topics; the seed decides which of them train, validate and test."""
    return divided(list(topics(pin).values()), stream(seed, "stdlib topics"))


def first_half(pin: Pin = "pinned") -> str:
    """The topics to pre-train on, whatever the seed, so that one host serves all repetitions."""
    return BREAK.join(_halves(pin)[0])


def second_half(seed: int, pin: Pin = "pinned") -> Texts:
    """The topics to adapt to; the seed decides which of them train, validate and test."""
    return divided(_halves(pin)[1], stream(seed, "stdlib topics"))


def _halves(pin: Pin) -> tuple[list[str], list[str]]:
    found = list(topics(pin).values())
    order = torch.randperm(len(found), generator=stream(0, "stdlib halves")).tolist()
    middle = len(found) // 2
    return [found[index] for index in order[:middle]], [found[index] for index in order[middle:]]
