"""Randomness that is named, not shared: one run seed, independent streams, never the bare global generator.

A stream is a hash of (seed, purpose, environment, epoch), so adding an environment or skipping a
measurement moves no other stream. Constructors and dropout take no generator; `drawing_from` lends
them one by swapping the global state for the length of a block.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream_seed(seed: int, purpose: str, *path: int) -> int:
    """A 63-bit seed for one stream, e.g. `stream_seed(run_seed, "data order", env, epoch)`."""
    text = "/".join([str(seed), purpose, *map(str, path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, purpose: str, *path: int) -> torch.Generator:
    """A CPU generator at the start of the named stream."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *path))


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Inside the block, torch's global CPU generator is `generator`; outside, nothing has moved.

    Used around construction of modules and around an environment's training, and nowhere else.
    """
    before = torch.random.get_rng_state()
    torch.random.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.random.get_rng_state())
        torch.random.set_rng_state(before)
