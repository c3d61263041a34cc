"""What happened in one round: every sight, choice and score, step by step. `batch.py` makes tensors of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.leyline.decisions import Choice, Sight
from esper.simic.rewards.rewards import StepScore
from esper.tamiyo.policy.action_masks import LegalActions


@dataclass(frozen=True)
class Step:
    """One step of all environments. Of rounds that nothing more is learned from, sight and legal may be empty."""

    sight: Sight
    legal: Sequence[LegalActions]
    choice: Choice
    scores: Sequence[StepScore]
    ended: Sequence[bool]


@dataclass
class Rollout:
    """The steps of one round, oldest first, and what was to be seen after the last of them."""

    steps: list[Step] = field(default_factory=list)
    horizon: Sight | None = None

    def add(
        self,
        sight: Sight,
        legal: Sequence[LegalActions],
        choice: Choice,
        scores: Sequence[StepScore],
        ended: Sequence[bool],
    ) -> None:
        self.steps.append(Step(sight, legal, choice, scores, ended))

    def brief(self) -> Rollout:
        """What was decided and what it was worth, alone: the rest takes a thousand times the memory."""
        bare = (Choice(step.choice.actions) for step in self.steps)
        worth = ([StepScore(score.total) for score in step.scores] for step in self.steps)
        rows = zip(bare, worth, self.steps, strict=True)
        return Rollout([Step(Sight(()), (), choice, scores, step.ended) for choice, scores, step in rows])

    def decisions(self) -> list[list[dict[str, str]]]:
        """What was chosen, by names: [environment][step]."""
        rows = zip(*(step.choice.actions for step in self.steps), strict=True)
        return [[action.as_names() for action in row] for row in rows]

    def returns(self) -> list[float]:
        """What the steps of each environment were worth in all."""
        rows = zip(*(step.scores for step in self.steps), strict=True)
        return [sum(score.total for score in row) for row in rows]
