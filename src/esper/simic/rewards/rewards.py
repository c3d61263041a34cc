"""What a step was worth, and which environments' sequences end with it.

Read `modes.py` for what is rewarded, `terms.py` for each term. Both see reports, receipts and verdicts only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.terms import TERMS, Transition

assert all(name in TERMS for mode in MODES.values() for name in mode.weights), "every mode is made of known terms"


@dataclass(frozen=True)
class StepScore:
    """What one step of one environment was worth, in points, and of which weighted terms that is the sum."""

    total: float
    terms: tuple[tuple[str, float], ...] = ()


Reward = Callable[
    [
        Sequence[HostReport],  # before
        Sequence[FactoredAction],
        Sequence[Receipt],
        Sequence[HostReport],  # after
        Sequence[HostReport],  # settled: after the governor was obeyed
        Sequence[Verdict],
    ],
    tuple[list[StepScore], list[bool]],
]
"""Scores and ends, one each per environment. A rollback ends the sequence of the step that caused it."""


def no_reward(
    before: Sequence[HostReport],
    actions: Sequence[FactoredAction],
    receipts: Sequence[Receipt],
    after: Sequence[HostReport],
    settled: Sequence[HostReport],
    verdicts: Sequence[Verdict],
) -> tuple[list[StepScore], list[bool]]:
    """For controllers that learn nothing: 0 everywhere."""
    assert len(before) == len(actions) == len(receipts) == len(after) == len(settled) == len(verdicts)
    return [StepScore(0.0)] * len(verdicts), _ended(verdicts)


@dataclass(frozen=True)
class ModeReward:
    """The reward of `config.mode`: a `Reward`."""

    config: RewardConfig

    def __call__(
        self,
        before: Sequence[HostReport],
        actions: Sequence[FactoredAction],
        receipts: Sequence[Receipt],
        after: Sequence[HostReport],
        settled: Sequence[HostReport],
        verdicts: Sequence[Verdict],
    ) -> tuple[list[StepScore], list[bool]]:
        rows = zip(before, actions, receipts, after, settled, verdicts, strict=True)
        return [self.score(Transition(*row)) for row in rows], _ended(verdicts)

    def score(self, step: Transition) -> StepScore:
        """One environment's step; all 0 once its host has ended for good."""
        weights = MODES[self.config.mode].weights
        if step.before.finished:
            return StepScore(0.0, tuple((name, 0.0) for name in weights))
        terms = tuple((name, weight * TERMS[name](step, self.config)) for name, weight in weights.items())
        return StepScore(sum(value for _, value in terms), terms)


def _ended(verdicts: Sequence[Verdict]) -> list[bool]:
    return [not verdict.healthy or verdict.ended for verdict in verdicts]
