"""Reward modes: named lists of weighted terms. `esper list rewards` shows them.

To add a mode write a row; its terms are functions in `terms.py`, their settings stand in `config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """What is rewarded, and how much each part counts."""

    summary: str
    weights: Mapping[str, float]  # of each term, by its name


_OUTCOME = {"outcome": 1.0, "rollback": 1.0, "divergence": 1.0}
_BASIC = {"outcome": 1.0, "progress": 1.0, "rollback": 1.0, "divergence": 1.0}

MODES: dict[str, Mode] = {
    "shaped": Mode(
        "basic, and every intervention, shock and churn has its price",
        _BASIC | {"intervention": 1.0, "alpha_shock": 1.0, "churn": 1.0},
    ),
    "simplified": Mode("basic, and every intervention has its price", _BASIC | {"intervention": 1.0}),
    "sparse": Mode("the objective after the last step and nothing before it", _OUTCOME),
    "minimal": Mode("sparse, and churn has its price", _OUTCOME | {"churn": 1.0}),
    "basic": Mode("the objective, told step by step as progress towards it", _BASIC),
}
