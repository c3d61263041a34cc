"""Collectives of all ranks: gloo on CPUs, nccl beside it on GPUs, and errors that say which rank they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from esper.leyline.errors import RanksError
from esper.leyline.faults import fault
from esper.tolaria.ranks.meeting import Meeting
from esper.tolaria.ranks.watch import Watch

T = TypeVar("T")
_MARGIN_S = 10.0
"""By which torch's own limit is above ours, which names the rank."""
_VERDICT_S = 2.0  # for the watch to say why a collective failed


class Group:
    """The ranks of a run as one."""

    def __init__(self, meeting: Meeting, watch: Watch, device: str) -> None:
        """device: where hosts live. Raises RanksError where the ranks do not come together."""
        self.rank, self.world = meeting.place.rank, meeting.place.world
        self._watch = watch
        with self._named("the ranks could not come together"):
            dist.init_process_group(
                backend="cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                store=meeting.store,
                rank=self.rank,
                world_size=self.world,
                timeout=timedelta(seconds=meeting.timeout_s + _MARGIN_S),
            )

    def gather(self, own: T) -> list[T]:
        """What each rank has, in the order of ranks, on every rank. Anything that can be pickled."""
        parts: list[Any] = [None] * self.world
        with self._collective("gather"):
            dist.all_gather_object(parts, own)
        return parts

    def gather_number(self, own: int) -> list[int]:
        """Likewise, of one number of 63 bits."""
        parts = torch.zeros(self.world, dtype=torch.int64)
        parts[self.rank] = own
        with self._collective("gather"):
            dist.all_reduce(parts)
        return [int(part) for part in parts]

    def add_up(self, flat: Tensor) -> None:
        """Puts the sum over all ranks into `flat`, which has the same length on each."""
        with self._collective("sum"):
            dist.all_reduce(flat)

    @contextmanager
    def _collective(self, what: str) -> Iterator[None]:
        fault("ranks.collective")
        self._watch.beat()
        with self._named(f"a {what} over all ranks failed"):
            yield
        fault("ranks.collected")

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Torch says only that a connection is closed, or that time is up; the watch knows whose."""
        try:
            yield
        except RuntimeError as error:  # torch's own errors of distribution are such
            trouble = self._watch.trouble_within(_VERDICT_S)
            raise trouble or RanksError("failed", [self.rank], f"{what}: {str(error).splitlines()[0]}") from error


def refuse_differences(ranks: Sequence[Mapping[str, str]]) -> None:
    """Raises RanksError where fingerprints differ: of which rank, in what."""
    for rank, own in enumerate(ranks):
        for name in dict.fromkeys((*ranks[0], *own)):
            first, here = ranks[0].get(name, "nothing"), own.get(name, "nothing")
            if first != here:
                text = f"rank {rank} has another {name} than rank 0: {here}, not {first}; start all ranks alike"
                raise RanksError("diverged", [rank], text)
