"""The life of a seed: its stages and the one table of legal transitions.

DORMANT -> GERMINATED -> TRAINING -> BLENDING <-> HOLDING -> FOSSILIZED
                \\___________\\__________\\___________\\-> PRUNED -> EMBARGOED -> RESETTING -> DORMANT
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Driver = Literal["GERMINATE", "ADVANCE", "SET_ALPHA_TARGET", "PRUNE", "FOSSILIZE", "time"]
GateName = Literal["G0", "G1", "G2", "G3", "G5"]


class SeedStage(IntEnum):
    """Values are stored and never change; 0 and 5 are not used."""

    DORMANT = 1  # the slot is empty
    GERMINATED = 2  # a seed is planted and does nothing yet
    TRAINING = 3  # learns in isolation: the host does not notice it
    BLENDING = 4  # alpha on its way
    HOLDING = 6  # fully blended, its contribution is being measured
    FOSSILIZED = 7  # kept for good
    PRUNED = 8  # removed this epoch
    EMBARGOED = 9  # the slot rests
    RESETTING = 10  # the last epoch of rest


@dataclass(frozen=True)
class Edge:
    """One legal transition: what drives it, and the gate that a seed must pass (None: no gate)."""

    old: SeedStage
    new: SeedStage
    drivers: tuple[Driver, ...]
    gate: GateName | None = None


TRANSITIONS: tuple[Edge, ...] = (
    Edge(SeedStage.DORMANT, SeedStage.GERMINATED, ("GERMINATE",), "G0"),
    # `time` on the next three edges acts only where body.auto_advance names the edge's gate.
    Edge(SeedStage.GERMINATED, SeedStage.TRAINING, ("ADVANCE", "time"), "G1"),
    Edge(SeedStage.TRAINING, SeedStage.BLENDING, ("ADVANCE", "time"), "G2"),
    Edge(SeedStage.BLENDING, SeedStage.HOLDING, ("ADVANCE", "time"), "G3"),
    Edge(SeedStage.HOLDING, SeedStage.BLENDING, ("SET_ALPHA_TARGET", "PRUNE")),
    Edge(SeedStage.HOLDING, SeedStage.FOSSILIZED, ("FOSSILIZE",), "G5"),
    # A prune with a speed fades alpha first; time completes it.
    Edge(SeedStage.GERMINATED, SeedStage.PRUNED, ("PRUNE",)),
    Edge(SeedStage.TRAINING, SeedStage.PRUNED, ("PRUNE",)),
    Edge(SeedStage.BLENDING, SeedStage.PRUNED, ("PRUNE", "time")),
    Edge(SeedStage.HOLDING, SeedStage.PRUNED, ("PRUNE",)),
    Edge(SeedStage.PRUNED, SeedStage.EMBARGOED, ("time",)),
    Edge(SeedStage.EMBARGOED, SeedStage.RESETTING, ("time",)),
    Edge(SeedStage.RESETTING, SeedStage.DORMANT, ("time",)),
)

EDGES: dict[tuple[SeedStage, SeedStage], Edge] = {(edge.old, edge.new): edge for edge in TRANSITIONS}
ADVANCES: dict[SeedStage, Edge] = {edge.old: edge for edge in TRANSITIONS if "ADVANCE" in edge.drivers}

LIVE = frozenset({SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING})
"""Stages with a seed that can still be pruned."""
SEEDED = LIVE | {SeedStage.FOSSILIZED}
"""Stages with a module in the slot; these count against `--max-seeds`."""
TUNABLE = frozenset({SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING})
"""Stages in which rungs may be switched."""
EFFECTIVE = frozenset({SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED})
"""Stages in which the seed can change the host's output."""
