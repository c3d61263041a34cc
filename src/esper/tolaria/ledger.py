"""What a run has spent, in FLOPs that were counted rather than timed, and how much of it was for nothing.

`Ledger` takes the charges; `TopologyCosts` remembers what each topology costs, so it is counted once
(`flops.py`). Charges only ever add up: pruning a seed or rolling back moves no total, it only declares that
some of the work is wasted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from esper.leyline.errors import CheckpointError

Cost = TypeVar("Cost")


class Category(StrEnum):
    """What the work was done for. Every FLOP belongs to exactly one."""

    TRAIN_HOST = "train_host"
    TRAIN_SEEDS = "train_seeds"  # also at alpha 0: the seed computes
    VALIDATION = "validation"
    COUNTERFACTUAL = "counterfactual"  # passes with a seed switched off
    STATISTICS = "statistics"  # probe passes and the like


@dataclass(frozen=True)
class Mark:
    """A moment to roll back to: what had been spent and wasted by then, and on which living seeds."""

    total: int
    pruned: int
    rolled_back: int
    seed_work: dict[str, int]


class Ledger:
    """Charges in FLOPs. `total` is the sum of all charges and `wasted` the part of it that serves nothing now."""

    def __init__(self) -> None:
        self.charged: dict[Category, int] = dict.fromkeys(Category, 0)
        self.seed_work: dict[str, int] = {}  # training work of every seed that is not written off
        self.pruned = 0  # training work of seeds that are gone
        self.rolled_back = 0  # all work between a mark and the return to it
        self.parameter_epochs = 0  # the integral of parameters over epochs

    @property
    def total(self) -> int:
        return sum(self.charged.values())

    @property
    def wasted(self) -> int:
        return self.pruned + self.rolled_back

    def charge(self, category: Category, flops: int) -> None:
        """Training of a seed goes through `charge_seed`, so that it can be written off."""
        assert category is not Category.TRAIN_SEEDS, "charge_seed says which seed trained"
        assert flops >= 0, f"a charge of {flops} FLOPs"
        self.charged[category] += flops

    def charge_seed(self, seed_id: str, flops: int) -> None:
        """`seed_id` names one seed for the whole run; a slot's next seed has another."""
        assert flops >= 0, f"a charge of {flops} FLOPs to seed {seed_id}"
        self.charged[Category.TRAIN_SEEDS] += flops
        self.seed_work[seed_id] = self.seed_work.setdefault(seed_id, 0) + flops

    def charge_rent(self, params: int) -> None:
        """Once per epoch."""
        assert params >= 0, f"rent for {params} parameters"
        self.parameter_epochs += params

    def write_off(self, seed_id: str) -> int:
        """A seed is pruned: its training was wasted. Returns that work, 0 for a seed that never trained."""
        work = self.seed_work.pop(seed_id, 0)
        self.pruned += work
        return work

    def mark(self) -> Mark:
        """Take one with every snapshot of the model, and keep it beside the snapshot."""
        return Mark(self.total, self.pruned, self.rolled_back, dict(self.seed_work))

    def roll_back(self, mark: Mark) -> int:
        """The model is again as it was at `mark`: all work since then was wasted. Returns that work.

        Work on seeds pruned since the mark counts as rolled back and not also as pruned. What they had cost
        before it is no longer waste, because the seeds are back.
        """
        work = self.total - mark.total
        assert work >= 0, f"a mark at {mark.total} FLOPs, but only {self.total} have been spent"
        self.pruned = mark.pruned
        self.rolled_back = mark.rolled_back + work
        self.seed_work = dict(mark.seed_work)
        return work

    def as_dict(self) -> dict[str, Any]:
        """Strings, integers and dicts of them; `from_dict` is the exact inverse."""
        return {
            "charged": {category.value: flops for category, flops in self.charged.items()},
            "seed_work": dict(self.seed_work),
            "pruned": self.pruned,
            "rolled_back": self.rolled_back,
            "parameter_epochs": self.parameter_epochs,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Ledger:
        """Raises CheckpointError where `saved` is not what `as_dict` writes."""
        ledger = cls()
        if saved.keys() != vars(ledger).keys() or saved["charged"].keys() != set(Category):
            raise CheckpointError(f"cost ledger: holds {saved}, want the entries of {ledger.as_dict()}")
        ledger.charged = {category: saved["charged"][category] for category in Category}
        ledger.seed_work = dict(saved["seed_work"])
        ledger.pruned = saved["pruned"]
        ledger.rolled_back = saved["rolled_back"]
        ledger.parameter_epochs = saved["parameter_epochs"]
        if ledger.wasted > ledger.total:
            raise CheckpointError(f"cost ledger: {ledger.wasted} FLOPs wasted of {ledger.total} spent; it is damaged")
        return ledger


class TopologyCosts(Generic[Cost]):
    """Remembers a count per topology and batch shape. Training steps and evaluation passes need one each."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, tuple[int, ...]], Cost] = {}

    def of(self, topology: Hashable, batch_shape: tuple[int, ...], count: Callable[[], Cost]) -> Cost:
        """The cost, from `count()` on the first call.

        `topology` must differ wherever the work does: blueprint and size of every seed, what is frozen or
        detached, and anything that makes a module skip computing.
        """
        key = (topology, tuple(batch_shape))
        if key not in self._known:
            self._known[key] = count()
        return self._known[key]
