"""Settings of the rule-based controller by lot, so that it can be tuned with as many episodes as others learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from esper.tamiyo.config import HeuristicConfig


def drawn_settings(blueprints: Sequence[str], generator: torch.Generator) -> HeuristicConfig:
    """Random settings: times, evidence and rates evenly on a logarithmic scale, blueprints in any order.

    A quarter of them wait for a plateau until the end, however long it takes, and so may never plant at all.
    """

    def between(low: float, high: float) -> float:
        share = float(torch.rand((), generator=generator))
        return round(math.exp(math.log(low) + share * math.log(high / low)), 4)

    order = torch.randperm(len(blueprints), generator=generator).tolist()
    patient = float(torch.rand((), generator=generator)) < 0.25
    return HeuristicConfig(
        prefer=tuple(blueprints[index] for index in order),
        warm_up=between(0.02, 0.5),
        latest=1.0 if patient else between(0.05, 1.0),
        plateau=between(0.003, 0.3),
        plateau_epochs=1 + int(torch.randint(4, (), generator=generator)),
        keep_evidence=between(0.3, 20.0),
        prune_evidence=between(0.5, 10.0),
        grow_evidence=between(0.3, 10.0),
        patience=between(0.02, 0.5),
        tempo=between(0.02, 0.4),
    )
