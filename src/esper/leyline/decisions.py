"""What goes to and fro around a decision: what a controller sees and chooses, and what is made of its choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import Payload


@dataclass(frozen=True)
class Sight:
    """What a controller sees of E environments. Rules read `reports`; networks read the tensors."""

    reports: Sequence[HostReport]
    base: Tensor | None = None  # [E, B]
    slots: Tensor | None = None  # [E, S, F]
    blueprints: Tensor | None = None  # [E, S] index of each slot's blueprint


@dataclass(frozen=True)
class Choice:
    """What a controller wants, one action per environment; the tensors are None for rules."""

    actions: tuple[FactoredAction, ...]
    log_prob: Tensor | None = None  # [E]
    value: Tensor | None = None  # [E]
    executed: Tensor | None = None  # [E, H] head indices whose log-probability is stored


@dataclass(frozen=True)
class Receipt:
    """What an operation did, or why it did nothing. A refusal is a result, not an exception."""

    op: LifecycleOp
    slot_id: str | None
    done: bool
    why: str = ""  # empty when done
    refused_by: str | None = None  # a gate's name, "illegal" or a veto
    params_before: int = 0
    params_after: int = 0
    output_change: float | None = None  # largest absolute change of the model's output on a probe batch
    events: tuple[Payload, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The governor's word on one environment after one epoch."""

    healthy: bool
    reason: str = ""  # why it was rolled back
    restored_epoch: int | None = None
    ended: bool = False  # the environment does not go on in this round
    events: tuple[Payload, ...] = ()
