"""What rules share, each condition from both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support import PATIENT, bring, empty_slot, find_healthy, plant
from tests.tamiyo.small import RULES, host, masks, slot, space, words

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.reports import AlphaMode, SeedStateReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.rules import advance_one, epochs_to_keep, fits, free_slots, is_ready, nearest_tempo, on

GERMINATED, TRAINING, BLENDING = SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING
HOLDING, FOSSILIZED, DORMANT = SeedStage.HOLDING, SeedStage.FOSSILIZED, SeedStage.DORMANT
TRAINED: dict[str, Any] = {"epochs_in_stage": 4}  # as long as the rules want
BLENDED: dict[str, Any] = {"alpha": 1.0, "alpha_target": 1.0, "alpha_mode": AlphaMode.HOLD}

# What a slot holds, and whether its seed can be advanced.
READINESS: dict[str, tuple[SeedStateReport, bool]] = {
    "nothing": (slot(0), False),
    "germinated": (slot(0, GERMINATED), True),
    "trained long enough": (slot(0, TRAINING, **TRAINED), True),
    "trained an epoch too little": (slot(0, TRAINING, epochs_in_stage=3), False),
    "trained at level 0": (slot(0, TRAINING, **TRAINED, internal_level=0), False),
    "trained at a higher level": (slot(0, TRAINING, **TRAINED, internal_level=3), True),
    "trained without a gradient": (slot(0, TRAINING, **TRAINED, seed_grad_norm=None), False),
    "trained with a gradient of zero": (slot(0, TRAINING, **TRAINED, seed_grad_norm=0.0), True),
    "trained and broken": (slot(0, TRAINING, **TRAINED, broken=True), False),
    "blended": (slot(0, BLENDING, **BLENDED), True),
    "still blending": (slot(0, BLENDING, **BLENDED | {"alpha_mode": AlphaMode.UP}), False),
    "fading": (slot(0, BLENDING, **BLENDED | {"alpha_mode": AlphaMode.DOWN}), False),
    "blended to less": (slot(0, BLENDING, **BLENDED | {"alpha_target": 0.7}), False),
    "held": (slot(0, HOLDING, **BLENDED, epochs_in_stage=9), False),
    "fossilised": (slot(0, FOSSILIZED, **BLENDED), False),
    "pruned": (slot(0, SeedStage.PRUNED), False),
}


@pytest.mark.parametrize("case", READINESS)
def test_a_seed_is_ready_when_the_permissive_gate_of_its_stage_would_let_it_go(case: str) -> None:
    report, ready = READINESS[case]

    assert is_ready(report, host(report)) is ready
    assert words(advance_one(host(report), masks(host(report)))) == ("ADVANCE r0c0" if ready else "-")


@pytest.mark.parametrize("stage", SeedStage)
def test_whatever_is_ready_passes_the_gate_of_a_real_slot(stage: SeedStage) -> None:
    real = bring(empty_slot(), stage)
    for _ in range(9):
        if real.state is not None:
            find_healthy(real)
        report = real.report()
        if is_ready(report, host(report, rules=PATIENT.rules)):
            assert real.advance_stage().done
            return
        real.step_epoch()
    assert stage not in (GERMINATED, TRAINING, BLENDING)


def test_the_seed_that_is_furthest_along_goes_first_and_of_two_the_older() -> None:
    young, old = slot(0, TRAINING, **TRAINED, age=7), slot(1, TRAINING, **TRAINED, age=8)
    older, blended = slot(2, GERMINATED, age=9), slot(3, BLENDING, **BLENDED, age=1)

    def first(*slots: SeedStateReport) -> str:
        return words(advance_one(host(*slots), masks(host(*slots))))

    assert first(young, old, older, blended) == "ADVANCE r0c3"
    assert first(young, old, older, slot(3)) == "ADVANCE r0c1"
    assert first(replace(young, age=9), old, older, slot(3)) == "ADVANCE r0c0"
    assert first(slot(0), slot(1), older, slot(3)) == "ADVANCE r0c2"
    assert first(slot(0), slot(1), slot(2), slot(3)) == "-"


def test_a_seed_is_not_advanced_where_the_masks_forbid_it() -> None:
    forbidden = slot(0, TRAINING, **TRAINED, alpha_mode=AlphaMode.DOWN)
    both = host(forbidden, slot(1, GERMINATED))

    assert words(advance_one(both, masks(both))) == "ADVANCE r0c1"
    assert advance_one(replace(both, finished=True), masks(replace(both, finished=True))) is None


@pytest.mark.parametrize(
    ("epochs", "tempo"),
    [
        (0, "fast"),
        (3, "fast"),
        (4, "fast"),
        (4.1, "medium"),
        (5, "medium"),
        (6.5, "medium"),
        (6.6, "slow"),
        (99, "slow"),
    ],
)
def test_the_nearest_tempo_is_taken_and_the_faster_of_two(epochs: float, tempo: str) -> None:
    assert nearest_tempo(epochs) == tempo


@pytest.mark.parametrize(("tempo", "epochs"), [("fast", 12), ("medium", 14), ("slow", 17)])
def test_keeping_takes_four_epochs_of_training_the_blend_two_of_holding_and_three_for_decisions(
    tempo: str, epochs: int
) -> None:
    assert epochs_to_keep(host(slot(0), slot(1)), tempo) == epochs


def test_every_other_seed_that_is_not_kept_yet_costs_one_epoch_more() -> None:
    free, kept = slot(0), slot(1, FOSSILIZED)
    busy = [slot(2 + index, stage) for index, stage in enumerate((GERMINATED, TRAINING, BLENDING, HOLDING))]
    resting = [slot(6, SeedStage.PRUNED), slot(7, SeedStage.EMBARGOED), slot(8, SeedStage.RESETTING)]

    assert epochs_to_keep(host(free, kept, *resting), "fast") == 12
    assert epochs_to_keep(host(free, kept, *busy[:1]), "fast") == 13
    assert epochs_to_keep(host(free, kept, *busy, *resting), "fast") == 16


@pytest.mark.parametrize(("tempo", "epochs"), [("fast", 3), ("slow", 8)])
def test_a_real_slot_is_fossilised_in_the_time_that_keeping_takes_and_not_in_two_epochs_less(
    tempo: str, epochs: int
) -> None:
    real = empty_slot(settings=replace(PATIENT, rules=RULES))
    passed = 0  # epochs since the decision to plant
    plant(real, tempo=epochs)
    while real.stage is not FOSSILIZED:
        real.step_epoch()
        passed += 1
        find_healthy(real)
        _ = real.fossilize() if real.stage is HOLDING else real.advance_stage()

    # A decision with one epoch left is the last one of an episode.
    assert passed + 1 <= epochs_to_keep(host(slot(0)), tempo) < passed + 3


def test_what_may_germinate_is_free_in_the_order_of_the_slots() -> None:
    some = host(slot(0), slot(1, SeedStage.EMBARGOED), slot(2, TRAINING), slot(3, FOSSILIZED), slot(4))
    full = replace(some, rules=replace(RULES, max_seeds=2))

    assert [each.slot_id for each in free_slots(some, masks(some))] == ["r0c0", "r0c4"]
    assert list(free_slots(full, masks(full))) == []


def test_a_blueprint_fits_where_it_is_on_offer_and_made_for_the_slot() -> None:
    offered = space(2, ("conv_light", "norm"), r0c1=("conv_light",))

    assert fits(offered, "r0c0", "conv_light")
    assert not fits(offered, "r0c1", "conv_light")
    assert fits(offered, "r0c1", "norm")
    assert not fits(offered, "r0c0", "attention")


def test_an_operation_on_a_slot_leaves_every_further_head_at_its_first_choice() -> None:
    action = on(space(3), LifecycleOp.PRUNE, slot(2, TRAINING))

    first = {"alpha_speed": "instant", "alpha_curve": "linear"}
    assert action.as_names() == {"op": "PRUNE", "slot": "r0c2", **first}
