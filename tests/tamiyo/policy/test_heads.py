"""How likely decisions are and how they are drawn, held against listing every decision there is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import noise
from tests.tamiyo.policy.tiny import (
    ALL,
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
    WAIT,
    WIDTH,
    YES,
    every_decision,
    masks,
    over,
    possibles,
    rows,
)
from torch import Tensor

from esper.tamiyo.policy.heads import Possible, likelihood, sample

# --- what may be chosen -----------------------------------------------------------------------------------------


def test_a_mask_belongs_to_who_asked_for_it():
    """Two decisions, each planted in a slot; whatever is done with the mask, the next one is as good as the first."""
    table, op, slot = replace(TINY), torch.tensor([PLANT, PLANT]), torch.tensor([0, 2])
    free = Possible(ALL.op.expand(2, -1), ALL.slot.expand(2, -1, -1))
    blueprint = TINY.heads.index("blueprint")

    for _ in range(2):
        mask = table.mask(blueprint, free, op, slot)
        assert mask.tolist() == [list(FITS[0]), list(FITS[2])]
        mask.fill_(False)


# --- how likely -------------------------------------------------------------------------------------------------


@given(rows, possibles)
def test_likelihoods_are_those_of_listing_every_decision_and_sum_to_one(row: Tensor, free: Possible):
    want = every_decision(row, free)
    tried = list(itertools.product(range(4), range(3), range(2), range(3)))

    found = likelihood(TINY, *over(len(tried), row, free), torch.tensor(tried))
    probabilities = found.joint.double().exp().tolist()

    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    for decision, probability in zip(tried, probabilities, strict=True):
        assert probability == pytest.approx(want.get(decision, 0.0), rel=1e-4, abs=1e-7), decision


@pytest.mark.parametrize(
    ("decision", "free", "forced"),
    [
        ((WAIT, 0, 0, 0), masks((NO, NO, NO), (NO, NO, NO), NO), True),
        ((WAIT, 0, 0, 0), masks((NO, NO, NO), (NO, YES, NO), NO), False),  # it could have blended
        ((PLANT, 0, 0, 0), replace(ALL, op=torch.tensor([[NO, YES, NO, NO]])), False),  # in another slot
        ((REST, 0, 0, 0), replace(ALL, op=torch.tensor([[NO, NO, NO, YES]])), False),  # in another tempo
    ],
)
def test_a_decision_is_forced_where_no_head_had_a_second_choice(
    decision: tuple[int, ...], free: Possible, forced: bool
):
    assert likelihood(TINY, noise(1, WIDTH), free, torch.tensor([decision])).forced.tolist() == [forced]


def test_a_single_slot_with_a_single_blueprint_forces_the_planting():
    free = replace(masks((YES, NO, NO), (NO, NO, NO), NO), op=torch.tensor([[NO, YES, NO, NO]]))

    found = likelihood(TINY, noise(1, WIDTH), free, torch.tensor([[PLANT, 0, 0, 0]]))

    assert (found.forced.item(), found.joint.item()) == (True, 0.0)


@given(rows, possibles, st.integers(0, 99))
def test_a_head_that_does_not_matter_is_worth_exactly_nothing_and_may_say_what_it_likes(
    row: Tensor, free: Possible, seed: int
):
    parts = {PLANT: [SLOTS_AT[PLANT], BLUEPRINTS_AT], BLEND: [SLOTS_AT[BLEND], TEMPOS_AT], REST: [TEMPOS_AT], WAIT: []}
    for decision in every_decision(row, free):
        stirred = row + 10 * noise(1, WIDTH, seed=seed)
        for part in (OPS_AT, *parts[decision[0]]):
            stirred[:, part] = row[:, part]

        plain = likelihood(TINY, row, free, torch.tensor([decision]))
        other = likelihood(TINY, stirred, free, torch.tensor([decision]))

        assert torch.equal(plain.joint, other.joint)
        assert torch.equal(plain.log_prob, other.log_prob)
        irrelevant = ~torch.tensor(TINY.relevant[decision[0]])
        assert (plain.log_prob[0, irrelevant] == 0).all()


def may_move(decision: tuple[int, ...], free: Possible) -> Tensor:
    """[W] which logits have a say in how likely the decision is."""
    moves, op, chosen = torch.zeros(WIDTH, dtype=torch.bool), decision[0], decision[1]
    moves[OPS_AT] = free.op[0]
    if op in SLOTS_AT:
        moves[SLOTS_AT[op]] = free.slot[0, op]
    if op == PLANT:
        moves[BLUEPRINTS_AT] = torch.tensor(FITS[chosen])
    if op in (BLEND, REST):
        moves[TEMPOS_AT] = True
    for part in (OPS_AT, *SLOTS_AT.values(), BLUEPRINTS_AT):
        if moves[part].sum() == 1:  # the only choice is taken whatever its logit
            moves[part] = False
    return moves


@given(rows, possibles)
def test_the_gradient_of_a_likelihood_is_bitwise_zero_for_masked_single_and_irrelevant_choices(
    row: Tensor, free: Possible
):
    for decision in every_decision(row, free):
        leaf = row.clone().requires_grad_()
        likelihood(TINY, leaf, free, torch.tensor([decision])).joint.sum().backward()

        moves = may_move(decision, free)
        assert leaf.grad is not None
        assert (leaf.grad[0, ~moves] == 0).all(), decision
        assert (leaf.grad[0, moves] != 0).any() == moves.any(), decision


# --- drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free", [ALL, masks((NO, NO, YES), (YES, NO, YES), NO), masks((NO, YES, NO), (NO, NO, NO), YES)]
)
def test_a_hundred_thousand_draws_are_possible_and_as_frequent_as_they_are_likely(free: Possible):
    count, row = 100_000, 1.5 * noise(1, WIDTH, seed=3)
    want = every_decision(row, free)
    uniforms = torch.rand(count, 4, generator=torch.Generator().manual_seed(0))

    drawn, times = sample(TINY, *over(count, row, free), uniforms).unique(dim=0, return_counts=True)
    seen = {tuple(decision): number for decision, number in zip(drawn.tolist(), times.tolist(), strict=True)}

    assert set(seen) <= set(want)
    expected = {decision: count * probability for decision, probability in want.items()}
    assert min(expected.values()) > 5  # chi-square is not to be trusted with less
    distance = sum((seen.get(each, 0) - number) ** 2 / number for each, number in expected.items())
    freedom = len(expected) - 1
    assert distance < freedom + 3.5 * math.sqrt(2 * freedom) + 3  # p is about 1e-3


ends = st.sampled_from([0.0, 1e-12, 0.5, 1 - 2**-24])


@given(rows, possibles, st.tuples(ends, ends, ends, ends))
def test_the_ends_of_the_unit_interval_draw_possible_choices_as_well(
    row: Tensor, free: Possible, uniforms: tuple[float, ...]
):
    drawn = sample(TINY, row, free, torch.tensor([uniforms]))

    op, chosen, blueprint, tempo = drawn[0].tolist()
    assert free.op[0, op]
    assert free.slot[0, op, chosen] if op in SLOTS_AT else chosen == 0
    assert FITS[chosen][blueprint] if op == PLANT else blueprint == 0
    assert op in (BLEND, REST) or tempo == 0


def test_a_slot_is_masked_by_the_op_drawn_and_a_blueprint_by_the_slot():
    free = masks((YES, NO, NO), (NO, NO, YES), NO)
    row = torch.zeros(1, WIDTH)
    row[0, BLUEPRINTS_AT] = torch.tensor([-50.0, 50.0])  # the second, which does not fit the first slot

    for op, (chosen, blueprint) in {PLANT: (0, 0), BLEND: (2, 0)}.items():
        wanted = row.clone()
        wanted[0, op] = 100.0
        drawn = sample(TINY, *over(50, wanted, free), torch.rand(50, 4, generator=torch.Generator().manual_seed(1)))
        assert drawn[:, :3].unique(dim=0).tolist() == [[op, chosen, blueprint]]


@given(rows, possibles)
def test_greedy_takes_the_likeliest_choice_of_each_head_given_those_before_it(row: Tensor, free: Possible):
    listed = every_decision(row, free)

    chosen = tuple(sample(TINY, row, free, None)[0].tolist())

    assert chosen in listed
    for head in range(4):
        weight: dict[int, float] = {}
        for decision, probability in listed.items():
            if decision[:head] == chosen[:head]:
                weight[decision[head]] = weight.get(decision[head], 0.0) + probability
        assert weight[chosen[head]] == pytest.approx(max(weight.values()), rel=1e-5)


@given(rows, possibles)
def test_the_greedy_decision_of_a_decided_policy_is_the_likeliest_of_all(row: Tensor, free: Possible):
    decided = 100 * row.argsort(dim=1).argsort(dim=1).float()  # no two logits are nearer than 100
    found = likelihood(TINY, decided, free, sample(TINY, decided, free, None))

    assert found.joint.item() == 0.0  # all others are e^-100 at most


def test_a_step_without_a_choice_is_an_error_that_names_it():
    free = Possible(ALL.op.repeat(3, 1), ALL.slot.repeat(3, 1, 1))
    free.op[1] = False
    row = torch.zeros(3, WIDTH)

    with pytest.raises(AssertionError, match=r"rows \[1\] leave a head without a choice"):
        sample(TINY, row, free, None)

    free.op[1, PLANT] = True
    free.slot[1] = False
    with pytest.raises(AssertionError, match=r"rows \[1\] leave a head without a choice"):
        sample(TINY, row, free, torch.zeros(3, 4))


@pytest.mark.parametrize(
    "broken",
    [
        {"heads": ("slot", "op", "blueprint", "tempo")},
        {"sizes": (4, 3, 2)},
        {"relevant": TINY.relevant[:3]},
        {"relevant": ((NO, NO, NO, NO), *TINY.relevant[1:])},
    ],
)
def test_a_table_that_contradicts_itself_is_refused(broken: dict[str, tuple[object, ...]]):
    with pytest.raises(AssertionError):
        replace(TINY, **broken)


def test_rows_of_masks_are_taken_together():
    both = Possible(torch.cat((ALL.op, ALL.op & False)), torch.cat((ALL.slot, ALL.slot & False)))

    taken = both.rows(torch.tensor([1, 0, 0]))

    assert taken.op.any(1).tolist() == taken.slot.any(2).any(1).tolist() == [False, True, True]
