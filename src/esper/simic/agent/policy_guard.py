"""The policy's guard: an update that went wrong is undone, and after several in a row the policy goes back further.

Read `failure` for what is wrong, `PolicyGuard` for where the policy goes. As with hosts, a policy is called good only
once updates have followed that stand, and weights, moments, normalisers and the critic's unit are always of one moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from esper.simic.agent.config import GuardConfig
from esper.simic.agent.losses import Lesson, Move, Opinion, entropy_by_head
from esper.tamiyo.policy.heads import HeadTable

UNTRAINED = -1
"""The update that made the policy which nothing has been learned by."""
_LEFT = 0.1  # of the entropy that `collapse` names


def failure(table: HeadTable, before: Opinion, now: Opinion, lesson: Lesson, limits: GuardConfig | None) -> str:
    """Why an update that led from one opinion to the other must be undone; empty where it may stand.

    limits: None where the policy is shown what to do, and moves far, towards decisions that are certain.
    """
    if not finite(now):
        return "what the policy says after it is not finite"
    if limits is None:
        return ""
    kl = float(Move.of(table, now, lesson).kl)
    if not kl <= limits.max_kl:
        return f"it moved the policy by {kl:.3g} nats per decision, and {limits.max_kl:g} are allowed"
    was, left = (_mean_entropy(table, said, lesson) for said in (before, now))
    if was > limits.collapse and left < _LEFT * limits.collapse:
        return f"the mean entropy fell from {was:.3g} to {left:.3g}"
    return ""


def finite(said: Opinion) -> bool:
    """Whether every number that is said is one."""
    return all(bool(torch.isfinite(each).all()) for each in (said.row, said.value, said.op_values))


def _mean_entropy(table: HeadTable, said: Opinion, lesson: Lesson) -> float:
    """Of the heads that there were to choose by, normalised; 1 where there was nothing to choose."""
    entropy, steps = entropy_by_head(table, said, lesson.possible)
    return float(entropy[steps > 0].mean()) if bool((steps > 0).any()) else 1.0


@dataclass(frozen=True)
class Known:
    """A policy and its learner as an update left them. Never written into."""

    update: int
    state: dict[str, Any]  # tensors and primitives


@dataclass
class PolicyGuard:
    """Which policy is known to be good."""

    config: GuardConfig
    good: Known
    candidate: Known | None = None
    failures: int = 0  # updates undone in a row

    def passed(self, update: int, now: Callable[[], dict[str, Any]]) -> None:
        """An update stands. now: what to keep of it, all copied."""
        self.failures = 0
        if self.candidate is not None:
            if update - self.candidate.update < self.config.bless_updates:
                return
            self.good = self.candidate
        self.candidate = Known(update, now())

    def failed(self, ill: bool) -> Known | None:
        """An update has been undone; returns where the policy has to go from there. ill: it was broken already."""
        self.failures += 1
        self.candidate = None  # what came shortly before is never called good
        if not ill and self.failures < self.config.patience:
            return None
        self.failures = 0
        return self.good

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives; `load_state_dict` is the exact inverse."""
        candidate = None if self.candidate is None else asdict(self.candidate)
        return {"good": asdict(self.good), "candidate": candidate, "failures": self.failures}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        saved = copy.deepcopy(saved)
        self.good, self.failures = Known(**saved["good"]), saved["failures"]
        self.candidate = None if saved["candidate"] is None else Known(**saved["candidate"])
