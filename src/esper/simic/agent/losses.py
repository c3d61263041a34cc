"""What PPO descends, and how far a policy has moved. All of V flat steps, so that no padding can enter.

Read `losses` first. H heads, O operations, W logits; a step is *free* where anything could have been decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from esper.simic.agent.config import PPOConfig
from esper.tamiyo.networks.factored_lstm import Output
from esper.tamiyo.policy.heads import HeadTable, Possible, entropies, likelihood


@dataclass(frozen=True)
class Lesson:
    """What V decisions were, and what is known of them before an update. Before `at`, V is two axes [T, N]."""

    possible: Possible  # [V, O] and [V, O, S]
    decisions: Tensor  # [V, H]
    log_prob: Tensor  # [V] of the whole decision, when it was taken
    head_log_prob: Tensor  # [V, H] likewise, of each head
    advantage: Tensor  # [V] standardised
    target: Tensor  # [V] of the value, in the critic's unit

    def at(self, index: Tensor, valid: Tensor) -> Lesson:
        """Flat: of the sequences `index` [n] the steps that are `valid` [t, n]."""

        def flat(values: Tensor) -> Tensor:
            return values[: valid.shape[0], index][valid]

        return Lesson(
            possible=Possible(flat(self.possible.op), flat(self.possible.slot)),
            decisions=flat(self.decisions),
            log_prob=flat(self.log_prob),
            head_log_prob=flat(self.head_log_prob),
            advantage=flat(self.advantage),
            target=flat(self.target),
        )


@dataclass(frozen=True)
class Opinion:
    """What a network says of V steps."""

    row: Tensor  # [V, W]
    value: Tensor  # [V]
    op_values: Tensor  # [V, O]

    @staticmethod
    def of(output: Output, valid: Tensor) -> Opinion:
        """Its output [T, N, ...] at the steps that are `valid` [T, N]."""
        return Opinion(output.row[valid], output.value[valid], output.op_values[valid])


@dataclass(frozen=True)
class Losses:
    """To be made small; each a scalar."""

    policy: Tensor
    value: Tensor
    bonus: Tensor  # weighted entropies
    op_value: Tensor  # of the diagnostic Q(s, op); its gradient reaches nothing else
    value_weight: float

    @property
    def total(self) -> Tensor:
        return self.policy + self.value_weight * self.value - self.bonus + self.op_value


def losses(table: HeadTable, said: Opinion, lesson: Lesson, config: PPOConfig, entropy_weights: Tensor) -> Losses:
    """entropy_weights: [H]."""
    q_taken = said.op_values.gather(1, lesson.decisions[:, :1]).squeeze(1)
    entropy, steps = entropy_by_head(table, said, lesson.possible)
    return Losses(
        policy=_surrogate(Move.of(table, said, lesson), lesson.advantage, config),
        value=0.5 * (said.value - lesson.target).square().mean(),
        bonus=(entropy_weights * entropy).sum() / (steps > 0).sum().clamp(min=1),  # mean over the heads there were
        op_value=0.5 * (q_taken - lesson.target).square().mean(),
        value_weight=config.value,
    )


def imitation_losses(table: HeadTable, said: Opinion, lesson: Lesson) -> Losses:
    """Of doing as was done: how unlikely the decisions are. What came of them is not asked; the critics wait."""
    found = likelihood(table, said.row, lesson.possible, lesson.decisions)
    nothing = torch.zeros(())
    return Losses(-mean_where(found.joint, ~found.forced), nothing, nothing, nothing, value_weight=0.0)


@dataclass(frozen=True)
class Move:
    """How a policy has moved since V decisions were taken."""

    log_ratio: Tensor  # [V] of the whole decision
    head_log_ratio: Tensor  # [V, H]
    relevant: Tensor  # [V, H] bool: the head mattered to the operation that was taken
    free: Tensor  # [V] bool

    @staticmethod
    def of(table: HeadTable, said: Opinion, lesson: Lesson) -> Move:
        found = likelihood(table, said.row, lesson.possible, lesson.decisions)
        return Move(
            log_ratio=found.joint - lesson.log_prob,
            head_log_ratio=found.log_prob - lesson.head_log_prob,
            relevant=table.relevance[lesson.decisions[:, 0]],
            free=~found.forced,
        )

    @cached_property
    def ratio(self) -> Tensor:
        return self.log_ratio.exp()

    @property
    def kl(self) -> Tensor:
        """Of the policy that decided from this one: mean over free steps of (r - 1) - log r (Schulman 2020, k3)."""
        return mean_where(self.ratio - 1 - self.log_ratio, self.free)

    def clipped(self, clip: float) -> Tensor:
        """Share of free steps whose ratio has left the region."""
        return mean_where(((self.ratio - 1).abs() > clip).float(), self.free)

    def head_kl(self, head: int) -> Tensor:
        """Likewise of one head, over the steps at which it mattered."""
        log_ratio = self.head_log_ratio[:, head]
        return mean_where(log_ratio.exp() - 1 - log_ratio, self.relevant[:, head] & self.free)

    def head_clipped(self, head: int, clip: float) -> Tensor:
        outside = (self.head_log_ratio[:, head].exp() - 1).abs() > clip
        return mean_where(outside.float(), self.relevant[:, head] & self.free)


def _surrogate(move: Move, advantage: Tensor, config: PPOConfig) -> Tensor:
    """Clipped surrogate (Schulman et al. 2017, eq. 7) of the whole decision, or the sum of one per relevant head."""
    if config.clip_mode == "joint":
        assert move.ratio.shape == advantage.shape == move.free.shape
        return -mean_where(_clipped(move.ratio, advantage, config.clip), move.free)
    per_head = _clipped(move.head_log_ratio.exp(), advantage.unsqueeze(1), config.clip)
    return -mean_where(torch.where(move.relevant, per_head, 0.0).sum(1), move.free)


def _clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of [V] over the steps that are `counted`; 0 if none is."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def entropy_by_head(table: HeadTable, said: Opinion, possible: Possible) -> tuple[Tensor, Tensor]:
    """Of each head its normalised entropy over the steps where it was available, whatever was taken, and how many they
    are: both [H]. A head that is seldom used keeps its bonus."""
    entropy, weight = entropies(table, said.row, possible)
    steps = weight.sum(0)
    return (entropy * weight).sum(0) / steps.clamp(min=1.0), steps


def impossible(table: HeadTable, lesson: Lesson) -> tuple[int, int]:
    """Decisions with a head at a choice that its mask forbids, and steps with a mask that forbids all. Both want 0."""
    op, slot = lesson.decisions[:, 0], lesson.decisions[:, 1]
    allowed, some = torch.ones(len(op), dtype=torch.bool), torch.ones(len(op), dtype=torch.bool)
    for head in range(len(table.heads)):
        mask = table.mask(head, lesson.possible, op, slot)
        allowed &= mask.gather(1, lesson.decisions[:, head : head + 1]).squeeze(1)
        some &= mask.any(1)
    return int((~allowed).sum()), int((~some).sum())
