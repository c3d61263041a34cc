"""Hosts that have learned something before they are grown: trained once per configuration, kept on disk, then frozen.

The same settings give the same weights: initialisation and data order come from streams of their own, on one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from esper.kasmina.transformer_host import TransformerConfig
from esper.leyline.errors import CheckpointError
from esper.leyline.randomness import drawing_from, stream
from esper.leyline.saved import load_plain
from esper.runtime.data.text import windows

BATCH, LR, DECAY = 16, 0.01, 0.01
WARMUP = 0.05  # of the steps; the rest is half a cosine


@dataclass(frozen=True)
class Lessons:
    """What a host is pre-trained on, and for how long. Equal lessons make equal hosts."""

    host: TransformerConfig  # not frozen
    text: str
    steps: int

    @property
    def key(self) -> str:
        """A name for the result: of the host's shape, the text, the recipe and the torch that does the arithmetic."""
        said = [asdict(self.host), self.text, self.steps, BATCH, LR, DECAY, WARMUP, torch.__version__]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


@cache
def pretrained(lessons: Lessons, cache_dir: str | None) -> Mapping[str, Tensor]:
    """The `state_dict` of a host after its lessons; from the cache where it is there, and put there where it can be.

    cache_dir: a folder; `esper` in the user's cache folder if None.
    """
    path = (default_cache() if cache_dir is None else Path(cache_dir)) / f"host-{lessons.key}.pt"
    kept = _read(path)
    if kept is not None:
        return kept
    host = taught(lessons)
    state = {name: value.detach().clone() for name, value in host.state_dict().items()}
    _write(path, state)
    return state


def taught(lessons: Lessons) -> nn.Module:
    """A fresh host after its lessons."""
    split = windows(lessons.text, lessons.host.context, "pre-training")
    with _one_thread(), drawing_from(stream(0, "pretraining init")):
        host = lessons.host.build()
        optimiser = AdamW(host.parameters(), lr=LR, weight_decay=DECAY)
        schedule = LambdaLR(optimiser, lambda step: _factor(step, lessons.steps))
        order = stream(0, "pretraining order")
        for _ in range(lessons.steps):
            rows = torch.randint(len(split), (BATCH,), generator=order)
            logits = host(split.inputs[rows])
            optimiser.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), split.targets[rows].flatten()).backward()
            optimiser.step()
            schedule.step()
    return host


def default_cache() -> Path:
    """Where the XDG base directory specification keeps what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "esper"


def _factor(step: int, steps: int) -> float:
    rising = max(1, round(WARMUP * steps))
    return min((step + 1) / rising, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _read(path: Path) -> Mapping[str, Tensor] | None:
    """What an earlier run kept; None where there is nothing that can be read."""
    try:
        found: Any = load_plain(path, "a pre-trained host", CheckpointError)
    except CheckpointError:
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Complete or not at all; a cache that cannot be written is done without."""
    draft = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError, RuntimeError):  # torch's writer raises RuntimeError for a folder it cannot enter
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state), draft)
        draft.replace(path)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
