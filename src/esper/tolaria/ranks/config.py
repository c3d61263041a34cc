"""Settings of a run that several ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.leyline.config import check_ranges, setting

Parallel = Literal["environments", "host"]


@dataclass(frozen=True)
class RanksConfig:
    """Of a run that torchrun starts; without it none of these matters."""

    parallel: Parallel = setting("environments", help="what ranks share out: environments, or the batches of each host")
    timeout_s: float = setting(60.0, above=0.0, help="seconds that ranks wait for one before the run ends")
    straggler: float = setting(3.0, above=1.0, help="times the others' median time for which a rank is warned of")
    check_steps: int = setting(100, low=1, help="optimiser steps from one comparison of all weights to the next (host)")

    def __post_init__(self) -> None:
        check_ranges(self)
