"""Settings of checkpoints: how often, and how many are kept."""

from __future__ import annotations

from dataclasses import dataclass

from esper.leyline.config import check_ranges, setting


@dataclass(frozen=True)
class CheckpointConfig:
    """A run is also saved when it is told to stop, and at its end."""

    share: float = setting(
        0.03, low=0.0, high=1.0, help="share of wall time that checkpoints may take; 0: none on the way"
    )
    every: int | None = setting(
        None, low=1, help="steps between two checkpoints, whatever they cost; by default `share`"
    )
    keep: int = setting(3, low=2, help="newest checkpoints that are kept, besides the best one")

    def __post_init__(self) -> None:
        check_ranges(self)
