"""What seeds add to a host, and how suddenly their weight changes, by hand."""

from __future__ import annotations

import math

import pytest
from tests.simic.rewards.small import host, slot

from esper.leyline.stages import LIVE, SEEDED, SeedStage
from esper.simic.rewards.footprint import alpha_delta_sq_sum, effective_seed_params, effective_seed_params_alpha


@pytest.mark.parametrize("stage", [stage for stage in SeedStage if stage in SEEDED])
def test_a_seed_counts_its_active_rungs_from_planting_on_and_by_its_alpha_once_it_is_heard(stage: SeedStage) -> None:
    report = host(60.0, slot(0, stage, alpha=0.25, params=800, internal_effective_params=400))

    assert effective_seed_params(report) == 400
    assert effective_seed_params_alpha(report) == 100.0


def test_a_slot_without_a_seed_counts_nothing() -> None:
    assert effective_seed_params(host(60.0, slot(0, SeedStage.PRUNED))) == 0


@pytest.mark.parametrize("stage", [stage for stage in SeedStage if stage in LIVE])
def test_every_rung_that_is_switched_off_lowers_the_rent_and_a_ladder_without_rungs_pays_none(stage: SeedStage) -> None:
    counts = [
        effective_seed_params(host(60.0, slot(0, stage, params=800, internal_effective_params=200 * level)))
        for level in (2, 1, 0)
    ]

    assert counts == [400, 200, 0]


def test_seeds_add_up_each_by_its_own_alpha() -> None:
    report = host(60.0, slot(0, SeedStage.FOSSILIZED, alpha=0.5), slot(1, SeedStage.BLENDING, alpha=0.1))

    assert effective_seed_params(report) == 1000
    assert effective_seed_params_alpha(report) == pytest.approx(300.0)


def test_a_seed_that_goes_at_once_and_one_that_comes_are_changes_from_and_to_zero() -> None:
    holding, pruned = slot(0, SeedStage.HOLDING, alpha=0.8), slot(0, SeedStage.PRUNED, seed_id="r0c0.1")
    other = slot(0, SeedStage.BLENDING, alpha=0.3, seed_id="r0c0.2", params=1000)

    # 500 and 1000 of 1000 parameters
    assert alpha_delta_sq_sum(host(1.0, holding), host(1.0, pruned)) == pytest.approx(0.32)
    assert alpha_delta_sq_sum(host(1.0, holding), host(1.0)) == pytest.approx(0.32)
    assert alpha_delta_sq_sum(host(1.0), host(1.0, other)) == pytest.approx(0.09)
    assert alpha_delta_sq_sum(host(1.0, holding), host(1.0, other)) == pytest.approx(0.41)


def test_rungs_that_go_with_fossilising_are_no_change_of_alpha() -> None:
    held = slot(0, SeedStage.HOLDING, params=900, internal_effective_params=300)
    kept = slot(0, SeedStage.FOSSILIZED, params=300, internal_effective_params=300)

    assert alpha_delta_sq_sum(host(1.0, held), host(1.0, kept)) == 0


def test_a_gate_that_gives_no_number_weighs_nothing() -> None:
    broken = host(60.0, slot(0, SeedStage.BLENDING, alpha=math.nan))

    assert effective_seed_params_alpha(broken) == 0
    assert alpha_delta_sq_sum(broken, host(60.0)) == 0
