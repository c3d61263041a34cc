"""Rungs: level 0 is the identity, a first use moves nothing, and what is off stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from tests.support import noise, seeded
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from esper.kasmina.ladder import Ladder, count_params
from esper.kasmina.planting import effective_params_of, kind_of, max_level_of, regions_of, rungs_of
from esper.leyline.seed_internal import SeedInternalKind

ALL_MASKS = list(product([False, True], repeat=3))


class Scale(nn.Module):
    """x -> factor * x, so that a ladder's output is a product that can be worked out by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def ladder_of(*factors: float) -> Ladder:
    return Ladder(SeedInternalKind.CONV_LADDER, [Scale(factor) for factor in factors])


def linear_ladder() -> Ladder:
    with seeded():
        return Ladder(SeedInternalKind.LORA_LADDER, [nn.Linear(4, 4) for _ in range(3)])


@pytest.mark.parametrize(
    ("active", "factor"),
    [
        ((False, False, False), 1.0),
        ((True, False, False), 2.0),
        ((False, True, False), 3.0),
        ((True, True, False), 2.0 * 3.0),
        ((True, False, True), 2.0 * 5.0),
        ((True, True, True), 2.0 * 3.0 * 5.0),
    ],
)
def test_each_active_rung_adds_its_correction_to_what_came_before(active: tuple[bool, ...], factor: float):
    ladder, x = ladder_of(1.0, 2.0, 4.0), noise(3, 4)
    ladder.set_active(active)

    torch.testing.assert_close(ladder(x), factor * x)
    assert ladder.level == sum(active)


def test_at_level_zero_a_ladder_returns_its_input():
    ladder, x = ladder_of(1.0, 2.0), noise(3, 4)

    assert ladder(x) is x


@pytest.mark.parametrize("active", ALL_MASKS)
def test_the_masked_form_equals_the_form_with_active_rungs(active: tuple[bool, ...]):
    ladder, x = linear_ladder(), noise(5, 4)
    ladder.set_active(active)

    assert torch.equal(ladder.masked(x, torch.tensor(active)), ladder(x))


@pytest.mark.parametrize("active", ALL_MASKS)
def test_the_masked_forms_gradients_are_the_same_and_zero_where_a_rung_is_off(active: tuple[bool, ...]):
    ladder, x = linear_ladder(), noise(5, 4).requires_grad_()
    ladder.set_active(active)

    found = []
    for run in (ladder, lambda x: ladder.masked(x, torch.tensor(active))):
        inputs = [x, *ladder.parameters()]
        found.append(torch.autograd.grad(run(x).square().sum(), inputs, allow_unused=True, materialize_grads=True))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_masked_form_lets_nothing_through_from_a_broken_rung_that_is_off():
    ladder, x = linear_ladder(), noise(5, 4).requires_grad_()
    active = (True, False, True)
    ladder.set_active(active)
    (expected,) = torch.autograd.grad(ladder(x).square().sum(), x)
    with torch.no_grad():
        for param in ladder.rungs[1].parameters():
            param.fill_(torch.nan)

    (found,) = torch.autograd.grad(ladder.masked(x, torch.tensor(active)).square().sum(), x)

    torch.testing.assert_close(found, expected)


def test_rungs_stack_over_masks_for_stacked_hosts():
    ladder, x = linear_ladder(), noise(5, 4)
    masks = torch.tensor(ALL_MASKS)

    stacked = torch.func.vmap(lambda mask: ladder.masked(x, mask))(masks)

    for active, out in zip(ALL_MASKS, stacked, strict=True):
        ladder.set_active(active)
        torch.testing.assert_close(out, ladder(x))


def test_growing_switches_on_the_first_rung_that_is_off_and_shrinking_the_last_that_is_on():
    ladder = ladder_of(1.0, 1.0, 1.0)
    seen = []
    for move in (ladder.grow, ladder.grow, ladder.shrink, ladder.grow, ladder.grow, ladder.shrink, ladder.shrink):
        move()
        seen.append(ladder.active)

    assert [sum(active) for active in seen] == [1, 2, 1, 2, 3, 2, 1]
    assert all(active == (True,) * sum(active) + (False,) * (3 - sum(active)) for active in seen)


def test_growing_fills_a_gap_first():
    ladder = ladder_of(1.0, 1.0, 1.0)
    ladder.set_active((True, False, True))

    ladder.grow()

    assert ladder.active == (True, True, True)


def test_a_rung_that_is_switched_off_loses_its_gradient_and_others_keep_theirs():
    ladder = linear_ladder()
    ladder.set_active((True, True, False))
    ladder(noise(5, 4)).sum().backward()
    kept = ladder.rungs[0].weight.grad.clone()

    ladder.shrink()

    assert torch.equal(ladder.rungs[0].weight.grad, kept)
    assert all(param.grad is None for rung in list(ladder.rungs)[1:] for param in rung.parameters())


OPTIMISERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda net: SGD(net.parameters(), lr=0.002, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda net: SGD(net.parameters(), lr=0.002, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda net: AdamW(net.parameters(), lr=0.01, weight_decay=0.1),
}


def train(ladder: Ladder, optimiser: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimiser.zero_grad()
        ladder(noise(5, 4, seed=step)).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_rungs_that_are_off_stay_bit_identical_with_their_moments_while_others_train(make):
    ladder = linear_ladder()
    optimiser = make(ladder)
    ladder.set_active((True, True, False))
    train(ladder, optimiser, 3)
    ladder.shrink()
    second = ladder.rungs[1]
    weights = copy.deepcopy(second.state_dict())
    moments = [copy.deepcopy(optimiser.state[param]) for param in second.parameters()]
    first, third = ladder.rungs[0].weight.clone(), ladder.rungs[2].weight.clone()

    train(ladder, optimiser, 5)

    assert all(torch.equal(weights[name], value) for name, value in second.state_dict().items())
    for param, before in zip(second.parameters(), moments, strict=True):
        after = optimiser.state[param]
        assert before.keys() == after.keys()
        assert before
        for key, value in before.items():
            assert value is after[key] is None or torch.equal(torch.as_tensor(value), torch.as_tensor(after[key]))
    assert torch.equal(ladder.rungs[2].weight, third)
    assert not torch.equal(ladder.rungs[0].weight, first)


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_restored_rung_trains_on_as_if_it_had_never_been_off(make):
    interrupted, steady = linear_ladder(), linear_ladder()
    optimisers = {}
    for ladder in (interrupted, steady):
        ladder.set_active((True, True, False))
        optimisers[ladder] = make(ladder)
        train(ladder, optimisers[ladder], 3)

    interrupted.shrink()
    interrupted.grow()
    for ladder in (interrupted, steady):
        train(ladder, optimisers[ladder], 3)

    for one, other in zip(interrupted.parameters(), steady.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("active", "kept"),
    [
        ((False, False, False), 0),
        ((True, False, False), 1),
        ((True, True, True), 3),
        # A rung that is off below one that is on stays: places in the tuple are addresses.
        ((False, True, False), 2),
        ((True, False, True), 3),
    ],
)
def test_removing_unused_rungs_keeps_the_output_and_the_addresses(active: tuple[bool, ...], kept: int):
    ladder, x = linear_ladder(), noise(5, 4)
    ladder.set_active(active)
    output = ladder(x)

    removed = ladder.remove_unused()

    assert len(ladder.rungs) == kept
    assert removed == (3 - kept) * (16 + 4)
    assert torch.equal(ladder(x), output)
    assert (ladder.active, ladder.max_level, ladder.level) == (active, 3, sum(active))
    assert ladder.effective_params == sum(active) * 20


def test_a_rung_that_was_removed_cannot_be_switched_on():
    ladder = linear_ladder()
    ladder.set_active((True, False, False))
    ladder.remove_unused()

    with pytest.raises(AssertionError, match="was removed"):
        ladder.set_active((True, True, False))
    with pytest.raises(AssertionError, match="2 flags for 3 rungs"):
        ladder.set_active((True, False))


def test_what_can_be_asked_of_a_seed_with_rungs_and_of_one_without():
    ladder, plain = linear_ladder(), nn.Linear(4, 4)
    ladder.set_active((True, False, False))

    assert [kind_of(seed) for seed in (ladder, plain, None)] == [SeedInternalKind.LORA_LADDER, 0, 0]
    assert [rungs_of(seed) for seed in (ladder, plain, None)] == [(True, False, False), (True,), ()]
    assert [max_level_of(seed) for seed in (ladder, plain, None)] == [3, 1, 1]
    assert [effective_params_of(seed) for seed in (ladder, plain, None)] == [20, 20, 0]
    assert regions_of(ladder) == list(ladder.rungs)
    assert regions_of(plain) == [plain]


def test_a_shared_parameter_is_counted_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight

    assert count_params(net) == 9
