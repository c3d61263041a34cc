"""What the main loop hands over between two steps, so that a run can be put away there: see `checkpointing.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from esper.leyline.reports import HostReport
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.training.phases import Phases
from esper.tamiyo.controller import Memory
from esper.tolaria.engine import Outcome


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    outcomes: list[Outcome]
    rollout: Rollout


class Moment(NamedTuple):
    """Where a round is between two steps: all that the loop itself remembers."""

    reports: Sequence[HostReport]
    memory: Memory
    rollout: Rollout
    spent: Phases


class Keeper(Protocol):
    """Keeps what a team has played, and perhaps all that is needed to go on from here in another process."""

    played: list[Round]
    """The team's rounds so far, those of earlier processes included."""

    def left_off(self) -> Moment | None:
        """Where an earlier process was in the round that comes now; None for a round that begins."""
        ...

    def step(self, moment: Moment, /) -> None:
        """A step is over and told."""
        ...

    def round(self, played: Round, /) -> None:
        """A round is over, learned from and told."""
        ...


@dataclass
class NoKeeper:
    """Keeps the rounds and saves nothing."""

    played: list[Round] = field(default_factory=list)

    def left_off(self) -> None:
        """Every round begins at its start."""

    def step(self, _moment: Moment, /) -> None:
        """Remembers nothing of it."""

    def round(self, played: Round, /) -> None:
        self.played.append(played)
