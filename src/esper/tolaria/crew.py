"""What an engine asks of the ranks that train its hosts together with this one: `ranks/replicas.py` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from esper.kasmina.model import GrowingModel
from esper.leyline.factored_actions import FactoredAction

if TYPE_CHECKING:
    from esper.tolaria.environment import Environment


class Crew(Protocol):
    """Every rank holds all hosts and computes a part of each batch; between two steps all hold the same."""

    def part_of(self, size: int) -> int:
        """How many of a batch's items this rank computes."""
        ...

    def part(self, batch: Tensor) -> Tensor:
        """[n, ...] of [N, ...]: those items."""
        ...

    def together(self, model: GrowingModel, losses: Tensor, size: int) -> Tensor:
        """Makes every gradient what the whole batch gives; returns the mean of its losses.

        losses: [n] of this rank's part. size: items of the whole batch.
        """
        ...

    def agree(self, environments: Sequence[Environment], actions: Sequence[FactoredAction] | None = None) -> None:
        """Before anything is changed. Raises LifecycleDivergence on all ranks where one differs."""
        ...

    def stepped(self, environments: Sequence[Environment]) -> None:
        """All have taken an optimiser step; now and then raises LifecycleDivergence where weights differ."""
        ...

    def agree_on_weights(self, environments: Sequence[Environment]) -> None:
        """Raises LifecycleDivergence on all ranks where one differs in anything that training changes."""
        ...
