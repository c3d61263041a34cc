"""What every ladder promises at every level, in every place: off means off, and a rung that returns is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from tests.places import Around, built, entry, unmoved
from tests.support import LINEAR, find_healthy, plant, seeded, stir
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder
from esper.kasmina.slot import SeedSlot
from esper.leyline.injection_spec import Place
from esper.leyline.seed_internal import SeedInternalKind

WIDTH = 48
# By hand, for 48 channels, and 51 inputs around a weight: three groups of 16 channels; six heads of 8 in four groups.
RUNG_PARAMS: dict[tuple[str, Place], list[int]] = {
    ("conv_ladder", "NCHW"): [9 * 48 * 48 + 2 * 48] * 4,
    ("channel_ladder", "NCHW"): [9 * 48 * 16 + 2 * 48] * 3,
    ("lora_ladder", "BTC"): [2 * 48 * rank for rank in (4, 4, 8, 16)],
    ("lora_ladder", "weight"): [(48 + 51) * rank for rank in (4, 4, 8, 16)],
    ("lora_ladder", "conv"): [(48 + 9 * 51) * rank for rank in (4, 4, 8, 16)],
    ("attn_head_ladder", "BTC"): [4 * 48 * 8 * heads + 2 * 48 for heads in (2, 2, 1, 1)],
}
GROUP_SIZE = {"channel_ladder": 16, "attn_head_ladder": 2}
LADDERS = [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms if item.kind]
every_ladder = pytest.mark.parametrize(("name", "place"), LADDERS, ids=["-".join(pair) for pair in LADDERS])
LEVELS = [(*pair, level) for pair in LADDERS for level in range(len(RUNG_PARAMS[pair]) + 1)]
every_level = pytest.mark.parametrize(("name", "place", "level"), LEVELS)
every_level_above_zero = pytest.mark.parametrize(("name", "place", "level"), [row for row in LEVELS if row[2] > 0])
OPTIMISERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda net: SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda net: AdamW(net.parameters(), lr=0.01, weight_decay=0.1),
}
every_optimiser = pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)


def ladder_at(name: str, place: Place, level: int, *, stirred: bool = True) -> Ladder:
    ladder = built(name, WIDTH, place, stirred=stirred)
    assert isinstance(ladder, Ladder)
    ladder.set_active((True,) * level + (False,) * (ladder.max_level - level))
    return ladder


def train(ladder: Ladder, place: Place, optimiser: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimiser.zero_grad()
        ladder(entry(place, WIDTH, seed=step)).square().sum().backward()
        optimiser.step()


@every_level
def test_parameters_follow_the_level(name: str, place: Place, level: int):
    ladder = ladder_at(name, place, level)

    assert ladder.max_level == len(RUNG_PARAMS[name, place])
    assert (ladder.level, ladder.effective_params) == (level, sum(RUNG_PARAMS[name, place][:level]))


@every_ladder
def test_at_level_zero_a_used_ladder_is_the_exact_identity(name: str, place: Place):
    x = entry(place, WIDTH)

    assert torch.equal(ladder_at(name, place, 0)(x), unmoved(place, WIDTH, x))


@every_level
def test_the_masked_form_equals_the_form_with_active_rungs(name: str, place: Place, level: int):
    ladder, x = ladder_at(name, place, level), entry(place, WIDTH)

    assert torch.equal(ladder.masked(x, torch.tensor(ladder.active)), ladder(x))


@every_ladder
def test_rungs_stack_over_masks_for_stacked_hosts(name: str, place: Place):
    ladder, x = ladder_at(name, place, 0), entry(place, WIDTH)
    masks = list(product([False, True], repeat=ladder.max_level))

    stacked = torch.func.vmap(lambda mask: ladder.masked(x, mask))(torch.tensor(masks))

    for active, out in zip(masks, stacked, strict=True):
        ladder.set_active(active)
        torch.testing.assert_close(out, ladder(x), rtol=1e-4, atol=1e-4)


@every_level
def test_switching_on_a_rung_that_was_never_used_moves_nothing(name: str, place: Place, level: int):
    """Rungs below have been used, those from the level on are as they were built."""
    used, fresh = ladder_at(name, place, level), ladder_at(name, place, level, stirred=False)
    ladder = ladder_at(name, place, level)
    for index in range(level, ladder.max_level):
        ladder.rungs[index] = fresh.rungs[index]
    x = entry(place, WIDTH)

    for _ in range(level, ladder.max_level):
        ladder.grow()
        assert torch.equal(ladder(x), used(x))


@every_ladder
def test_each_rung_moves_the_output_and_a_restored_one_returns_as_it_was(name: str, place: Place):
    ladder, x = ladder_at(name, place, 0), entry(place, WIDTH)
    seen = [ladder(x)]
    while ladder.level < ladder.max_level:
        ladder.grow()
        seen.append(ladder(x))

    assert all(not torch.allclose(one, other) for one, other in pairwise(seen))
    for before in seen[-2::-1]:
        ladder.shrink()
        assert torch.equal(ladder(x), before)


@every_level
def test_rungs_that_are_off_do_not_run_and_get_no_gradient(name: str, place: Place, level: int):
    ladder, x = ladder_at(name, place, level), entry(place, WIDTH).requires_grad_()
    with torch.no_grad():
        for rung in list(ladder.rungs)[level:]:
            for param in rung.parameters():
                param.fill_(torch.nan)

    out = ladder(x)
    (out.square().sum() + x.sum()).backward()

    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    learning = [[param.grad is not None for param in rung.parameters()] for rung in ladder.rungs]
    assert [all(rung) for rung in learning] == [any(rung) for rung in learning]
    assert [all(rung) for rung in learning] == list(ladder.active)


def contents(rung: nn.Module, optimiser: Optimizer) -> list[Tensor]:
    """Weights and moments, copied."""
    moments = [value for param in rung.parameters() for value in optimiser.state[param].values() if value is not None]
    return [torch.as_tensor(tensor).detach().clone() for tensor in (*rung.parameters(), *moments)]


@every_ladder
@every_optimiser
def test_rungs_that_are_off_stay_bit_identical_with_their_moments_while_others_train(name, place, make):
    ladder = ladder_at(name, place, 2)
    optimiser = make(ladder)
    train(ladder, place, optimiser, 2)
    ladder.shrink()
    before = [contents(rung, optimiser) for rung in ladder.rungs]
    assert len(before[1]) > len(list(ladder.rungs[1].parameters()))

    train(ladder, place, optimiser, 3)

    after = [contents(rung, optimiser) for rung in ladder.rungs]
    moved = [
        any(map(lambda one, other: not torch.equal(one, other), *pair)) for pair in zip(before, after, strict=True)
    ]
    assert moved == [True] + [False] * (ladder.max_level - 1)


# --- in a slot --------------------------------------------------------------------------------------------------


def held_at(name: str, place: Place, level: int) -> tuple[Around, SeedSlot]:
    """A host whose slot holds a stirred seed in HOLDING, at that level."""
    host = Around(place, WIDTH)
    slot = host.slot
    assert plant(slot, name, tempo=1).done
    assert slot.advance_stage().done
    stir(slot)
    for _ in range(2):
        find_healthy(slot)
        slot.step_epoch()
        with seeded():
            assert slot.advance_stage().done
    while slot.report().internal_level < level:
        assert slot.grow_internal().done
    find_healthy(slot)
    slot.step_epoch()
    return host, slot


@every_level_above_zero
def test_fossilising_freezes_the_level_and_removes_unused_rungs_without_moving_the_output(name, place, level):
    host, slot = held_at(name, place, level)
    x, told = entry(place, WIDTH), slot.report()
    before = host.site(x).detach()

    assert slot.fossilize().done

    now, seed = slot.report(), slot.seed
    assert isinstance(seed, Ladder)
    assert len(seed.rungs) == level
    assert now.params == sum(RUNG_PARAMS[name, place][:level])
    assert torch.equal(host.site(x), before)
    of_the_ladder = ("kind", "level", "max_level", "effective_params", "group_size", "active_groups")
    assert [vars(now)[f"internal_{what}"] for what in of_the_ladder] == [
        *(BLUEPRINTS[name].kind, level, len(RUNG_PARAMS[name, place]), sum(RUNG_PARAMS[name, place][:level])),
        *(GROUP_SIZE.get(name), level if name in GROUP_SIZE else None),
    ]
    assert now.rungs == told.rungs
    assert not slot.grow_internal().done
    assert not slot.shrink_internal().done


@every_ladder
def test_at_level_zero_nothing_is_kept_and_the_gate_says_why(name: str, place: Place):
    _, slot = held_at(name, place, 1)
    slot.shrink_internal()

    receipt = slot.fossilize()

    assert (receipt.done, receipt.refused_by) == (False, "G5")
    assert "internal level is 0, wants 1" in receipt.why


@every_ladder
def test_receipts_and_events_tell_the_level_and_its_parameters(name: str, place: Place):
    _, slot = held_at(name, place, 1)
    rungs = RUNG_PARAMS[name, place]

    grown, shrunk = slot.grow_internal(), slot.shrink_internal()

    assert (grown.params_before, grown.params_after) == (rungs[0], rungs[0] + rungs[1])
    assert (shrunk.params_before, shrunk.params_after) == (rungs[0] + rungs[1], rungs[0])
    (told,) = grown.events
    assert (told.from_level, told.to_level, told.internal_max_level) == (1, 2, len(rungs))
    assert told.internal_kind == BLUEPRINTS[name].kind != SeedInternalKind.NONE


@every_level
def test_a_counterfactual_pass_at_another_level_leaves_the_seed_as_it_is(name: str, place: Place, level: int):
    host, slot = held_at(name, place, 1)
    other, _ = held_at(name, place, max(level, 1))
    if level == 0:
        other.slot.shrink_internal()
    x, before = entry(place, WIDTH), slot.report()

    with slot.rungs_set(tuple(index < level for index in range(before.internal_max_level))):
        out = host.site(x)

    torch.testing.assert_close(out, other.site(x))
    assert slot.report() == before


@every_ladder
def test_a_pruned_ladder_leaves_the_host_as_it_was(name: str, place: Place):
    host, slot = held_at(name, place, 2)
    x, bare = entry(place, WIDTH), Around(place, WIDTH)
    assert not torch.equal(host.site(x), bare.site(x))

    assert slot.prune(0, LINEAR).done

    assert torch.equal(host.site(x), bare.site(x))


@every_ladder
def test_a_copy_of_a_ladder_is_independent(name: str, place: Place):
    ladder, x = ladder_at(name, place, 1), entry(place, WIDTH)
    twin, before = copy.deepcopy(ladder), ladder(x)

    twin.grow()

    assert (ladder.level, twin.level) == (1, 2)
    assert torch.equal(ladder(x), before)
