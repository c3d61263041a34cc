"""The heads of a policy as arithmetic: which logits belong to which head, what is possible, how likely a choice is.

A decision is sampled op -> slot given op -> the other heads given op and slot. Logits are one flat row with names:
the op's, then a row of slot logits for every op that needs a slot, then the other heads'. A head that does not matter
to the chosen op has exactly one possible choice, its first, so that its log-probability, entropy and gradient are
exactly 0 (masked logits get no gradient: one `masked_fill` before one `log_softmax`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from esper.leyline.causal_masks import causal_mask
from esper.leyline.factored_actions import HEADS, ActionSpace, LifecycleOp
from esper.tamiyo.policy.action_masks import LegalActions

OP, SLOT, BLUEPRINT = "op", "slot", "blueprint"


@dataclass(frozen=True)
class Possible:
    """What is possible at N steps: op [N, O] bool, slot [N, O, S] bool. At least one op is, everywhere."""

    op: Tensor
    slot: Tensor

    @staticmethod
    def of(legal: Sequence[LegalActions]) -> Possible:
        """One row per environment."""
        return Possible(torch.tensor([each.op for each in legal]), torch.tensor([each.slot_by_op for each in legal]))

    def rows(self, index: Tensor) -> Possible:
        return Possible(self.op[index], self.slot[index])


@dataclass(frozen=True)
class HeadTable:
    """Sizes of the heads, `op` first and `slot` second, and which of them matter to which op."""

    heads: tuple[str, ...]
    sizes: tuple[int, ...]
    relevant: tuple[tuple[bool, ...], ...]  # [ops][heads]; the op itself always matters
    fits: tuple[tuple[bool, ...], ...] = ()  # [slots][choices of `blueprint`]; empty where every choice fits

    def __post_init__(self) -> None:
        assert self.heads[:2] == (OP, SLOT), f"heads begin with op and slot, not {self.heads[:2]}"
        assert len(self.sizes) == len(self.heads)
        assert len(self.relevant) == self.sizes[0]
        assert all(len(row) == len(self.heads) and row[0] for row in self.relevant)
        assert self.slot_ops, "no operation needs a slot"

    @staticmethod
    def of(space: ActionSpace) -> HeadTable:
        sizes = space.head_sizes
        rows = tuple(causal_mask(op) for op in LifecycleOp)
        return HeadTable(HEADS, tuple(sizes[head] for head in HEADS), rows, space.fits)

    @property
    def num_ops(self) -> int:
        return self.sizes[0]

    @property
    def num_slots(self) -> int:
        return self.sizes[1]

    @cached_property
    def slot_ops(self) -> tuple[int, ...]:
        """The ops that need a slot, in order: the rows of slot logits."""
        return tuple(op for op, row in enumerate(self.relevant) if row[1])

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many logits each head has in the flat row."""
        return (self.num_ops, len(self.slot_ops) * self.num_slots, *self.sizes[2:])

    @cached_property
    def argument_width(self) -> int:
        """Logits of all heads but op and slot."""
        return sum(self.widths[2:])

    @cached_property
    def relevance(self) -> Tensor:
        """[O, H] bool."""
        return torch.tensor(self.relevant)

    @cached_property
    def fitting(self) -> Tensor:
        """[S, choices of `blueprint`] bool: `fits`, to be read and never written to."""
        return torch.tensor(self.fits)

    @cached_property
    def _slot_row(self) -> Tensor:
        """[O] the row of slot logits of each op; 0 for an op without one, where it does not matter."""
        rows = {op: row for row, op in enumerate(self.slot_ops)}
        return torch.tensor([rows.get(op, 0) for op in range(self.num_ops)])

    # --- masks and logits of each head, given what was chosen before -----------------------------------------------

    def mask(self, head: int, possible: Possible, op: Tensor, slot: Tensor) -> Tensor:
        """[N, size] bool: what the head may choose after `op` [N] and `slot` [N]."""
        if head == 0:
            return possible.op
        size, count = self.sizes[head], op.shape[0]
        if head == 1:
            free = possible.slot[torch.arange(count), op]
        elif self.heads[head] == BLUEPRINT and self.fits:
            free = self.fitting[slot]
        else:
            free = torch.ones(count, size, dtype=torch.bool)
        canonical = torch.zeros(size, dtype=torch.bool)
        canonical[0] = True
        return torch.where(self.relevance[op, head].unsqueeze(1), free, canonical)

    def logits(self, head: int, row: Tensor, op: Tensor) -> Tensor:
        """[N, size]: the head's part of the flat row [N, W], for the slot that of `op`."""
        part: Tensor = row.split(self.widths, dim=1)[head]
        if head != 1:
            return part
        return part.view(-1, len(self.slot_ops), self.num_slots)[torch.arange(row.shape[0]), self._slot_row[op]]


@dataclass(frozen=True)
class Likelihood:
    """Of N decisions."""

    log_prob: Tensor  # [N, H]
    forced: Tensor  # [N] bool: no head had a second choice

    @property
    def joint(self) -> Tensor:
        """[N] log-probability of the whole decision."""
        return self.log_prob.sum(1)


def log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Float32 log-probabilities over the possible choices; impossible ones are finite, hugely negative and inert."""
    logits = logits.float()
    return torch.log_softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=-1)


def sample(table: HeadTable, row: Tensor, possible: Possible, uniforms: Tensor | None) -> Tensor:
    """Decisions [N, H] int64 from the flat logits [N, W]; uniforms [N, H] in [0, 1), or None for the likeliest.

    Raises AssertionError where a head is left without a choice, which `possible` never does: waiting always is one.
    """
    count = row.shape[0]
    chosen = torch.zeros(count, len(table.heads), dtype=torch.long)
    has_choice = torch.ones(count, dtype=torch.bool)
    for head in range(len(table.heads)):
        op, slot = chosen[:, 0], chosen[:, 1]
        mask = table.mask(head, possible, op, slot)
        has_choice &= mask.any(1)
        scores = log_softmax(table.logits(head, row, op), mask)
        if uniforms is None:
            chosen[:, head] = scores.masked_fill(~mask, -torch.inf).argmax(1)
        else:
            chosen[:, head] = _inverse_cdf(scores.exp() * mask, uniforms[:, head])
    assert has_choice.all(), f"rows {(~has_choice).nonzero().flatten().tolist()} leave a head without a choice"
    return chosen


def _inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first choice at which the cumulated probability exceeds `uniform`; never one of probability 0."""
    cumulated = probs.double().cumsum(1)
    target = uniform.double().unsqueeze(1) * cumulated[:, -1:]
    index = (cumulated <= target).sum(1)
    last = probs.shape[1] - 1 - (probs > 0).flip(1).long().argmax(1)
    return torch.minimum(index, last)


def likelihood(table: HeadTable, row: Tensor, possible: Possible, decisions: Tensor) -> Likelihood:
    """How likely the flat logits [N, W] make decisions [N, H]."""
    op, slot = decisions[:, 0], decisions[:, 1]
    found, forced = [], torch.ones(len(op), dtype=torch.bool)
    for head in range(len(table.heads)):
        mask = table.mask(head, possible, op, slot)
        scores = log_softmax(table.logits(head, row, op), mask)
        found.append(scores.gather(1, decisions[:, head : head + 1]).squeeze(1))
        forced &= mask.sum(1) <= 1
    return Likelihood(torch.stack(found, dim=1), forced)


def entropies(table: HeadTable, row: Tensor, possible: Possible) -> tuple[Tensor, Tensor]:
    """Normalised entropy of each head where it is *available*, whatever op was taken: (entropy [N, H], weight [N, H]).

    A head is available at a step if some possible op uses it and leaves it two choices or more; its entropy is over
    log(number of choices), so a uniform policy has 1 for every head and mask. For the slot it is the mean over the
    possible ops with two slots or more; for a blueprint, over the slots in which one could be planted.
    """
    count, device = row.shape[0], row.device
    values, weights = [], []
    for head, name in enumerate(table.heads):
        if head == 0:
            value, weight = _normalised(log_softmax(table.logits(0, row, _every(0, count)), possible.op), possible.op)
        elif head == 1:
            value, weight = _slot_entropy(table, row, possible)
        else:
            users = table.relevance[:, head]
            mask = torch.ones(count, table.sizes[head], dtype=torch.bool, device=device)
            if name == BLUEPRINT and table.fits:
                plantable = (possible.slot & users.view(1, -1, 1)).any(1)  # [N, S]
                mask = (plantable.float() @ table.fitting.float()) > 0
            available = (possible.op & users).any(1)
            scores = log_softmax(table.logits(head, row, _every(0, count)), mask | ~mask.any(1, keepdim=True))
            value, weight = (each * available for each in _normalised(scores, mask))
        values.append(value)
        weights.append(weight)
    return torch.stack(values, 1), torch.stack(weights, 1)


def _slot_entropy(table: HeadTable, row: Tensor, possible: Possible) -> tuple[Tensor, Tensor]:
    count = row.shape[0]
    total, ways = row.new_zeros(count), row.new_zeros(count)
    for op in table.slot_ops:
        mask = possible.slot[:, op]
        scores = log_softmax(table.logits(1, row, _every(op, count)), mask | ~mask.any(1, keepdim=True))
        value, weight = _normalised(scores, mask)
        weight = weight * possible.op[:, op]
        total, ways = total + value * weight, ways + weight
    return total / ways.clamp(min=1.0), (ways > 0).float()


def _normalised(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy over log(choices), and 1 where there are two choices or more; 0 and 0 elsewhere."""
    choices = mask.sum(1)
    has_choice = choices > 1
    entropy = -(scores.exp() * scores * mask).sum(1)
    scale = torch.log(choices.clamp(min=2).float())
    return torch.where(has_choice, entropy / scale, torch.zeros_like(entropy)), has_choice.float()


def _every(op: int, count: int) -> Tensor:
    return torch.full((count,), op, dtype=torch.long)
