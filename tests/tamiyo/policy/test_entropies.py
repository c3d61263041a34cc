"""Entropy where a head is available, held against the plain formula; what has no say in it gets no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import noise
from tests.tamiyo.policy.tiny import (
    BLEND,
    BLUEPRINTS_AT,
    FITS,
    NO,
    OPS_AT,
    PLANT,
    REST,
    SLOTS_AT,
    TEMPOS_AT,
    TINY,
    WIDTH,
    YES,
    masks,
    over,
    possibles,
    rows,
    shares,
)
from torch import Tensor

from esper.tamiyo.policy.heads import Possible, entropies, likelihood, log_softmax, sample


def entropy_of(probabilities: list[float]) -> float:
    """Over the logarithm of the number of choices that are possible."""
    free = [p for p in probabilities if p > 0]
    return -sum(p * math.log(p) for p in free) / math.log(len(free))


@given(rows, possibles)
def test_entropies_are_those_of_the_choices_that_some_possible_op_leaves_open(row: Tensor, free: Possible):
    logits, ops = row[0], free.op[0].tolist()
    slots = {op: free.slot[0, op].tolist() for op in SLOTS_AT}
    open_to = [op for op in SLOTS_AT if sum(slots[op]) > 1]
    fitting = tuple(any(slots[PLANT][s] and FITS[s][b] for s in range(3)) for b in range(2))
    want: list[float | None] = [
        entropy_of(shares(logits[OPS_AT], tuple(ops))) if sum(ops) > 1 else None,
        sum(entropy_of(shares(logits[SLOTS_AT[op]], slots[op])) for op in open_to) / len(open_to) if open_to else None,
        entropy_of(shares(logits[BLUEPRINTS_AT], fitting)) if all(fitting) else None,
        entropy_of(shares(logits[TEMPOS_AT], (YES,) * 3)) if ops[BLEND] or ops[REST] else None,
    ]

    value, weight = entropies(TINY, row, free)

    assert weight[0].tolist() == [float(each is not None) for each in want]
    for head, each in enumerate(want):
        assert weight[0, head] * value[0, head] == pytest.approx(each or 0.0, abs=1e-5), TINY.heads[head]


@given(possibles, st.floats(-30, 30))
def test_a_uniform_policy_has_entropy_one_in_every_available_head_whatever_the_masks(free: Possible, level: float):
    value, weight = entropies(TINY, torch.full((1, WIDTH), level), free)

    assert value[weight > 0].tolist() == pytest.approx([1.0] * int(weight.sum()), abs=1e-6)


@given(rows, possibles)
def test_the_gradient_of_entropy_is_bitwise_zero_for_what_is_masked_or_has_no_alternative(row: Tensor, free: Possible):
    leaf = row.clone().requires_grad_()
    value, weight = entropies(TINY, leaf, free)
    (value * weight).sum().backward()

    moves, ops = torch.zeros(WIDTH, dtype=torch.bool), free.op[0]
    moves[OPS_AT] = ops & (ops.sum() > 1)
    for op, part in SLOTS_AT.items():
        moves[part] = free.slot[0, op] & (free.slot[0, op].sum() > 1)
    fitting = (free.slot[0, PLANT].unsqueeze(1) & torch.tensor(FITS)).any(0)
    moves[BLUEPRINTS_AT] = fitting & (fitting.sum() > 1)
    moves[TEMPOS_AT] = ops[BLEND] | ops[REST]
    assert leaf.grad is not None
    assert (leaf.grad[0, ~moves] == 0).all()
    assert leaf.grad.isfinite().all()


def test_a_single_choice_has_no_entropy_no_gradient_and_no_weight():
    leaf = noise(1, WIDTH).requires_grad_()
    free = masks((NO, NO, NO), (NO, NO, NO), NO)

    value, weight = entropies(TINY, leaf, free)
    (value.sum() + likelihood(TINY, leaf, free, torch.zeros(1, 4, dtype=torch.long)).joint.sum()).backward()

    assert (value == 0).all()
    assert (weight == 0).all()
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision_give_finite_float32(dtype: torch.dtype):
    row = (100 * noise(64, WIDTH)).to(dtype).requires_grad_()
    free = masks((NO, NO, YES), (NO, YES, YES), NO)
    _, free = over(64, row[:1], free)

    decisions = sample(TINY, row, free, torch.rand(64, 4, generator=torch.Generator().manual_seed(0)))
    found = likelihood(TINY, row, free, decisions).joint
    value, weight = entropies(TINY, row, free)
    (found.sum() + (value * weight).sum()).backward()

    assert (found.dtype, value.dtype) == (torch.float32, torch.float32)
    assert found.isfinite().all()
    assert value.isfinite().all()
    assert row.grad is not None
    assert row.grad.isfinite().all()


def test_ten_thousand_choices_are_as_good_as_ten():
    logits = (5 * noise(4, 10_000)).requires_grad_()
    mask = noise(4, 10_000, seed=1) > 1

    scores = log_softmax(logits, mask)
    scores[mask].sum().backward()

    assert scores.exp().sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()
