"""Each term by hand, and the same questions to every term."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simic.rewards.small import (
    ANY_FLOAT,
    ILL,
    LENGTH,
    LOST,
    act,
    host,
    slot,
    step,
    steps,
)

from esper.leyline.factored_actions import OPS, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.terms import TERMS, Transition

CONFIG = RewardConfig()
PAYING = ("outcome", "progress")
PRICES = [name for name in TERMS if name not in PAYING]
every_term = pytest.mark.parametrize("name", list(TERMS))


def value(name: str, of: Transition, **settings: float) -> float:
    return TERMS[name](of, replace(CONFIG, **settings))


# --- every term -------------------------------------------------------------------------------------------------


@every_term
def test_every_term_has_a_line_of_description_and_is_in_a_mode(name: str) -> None:
    line = (TERMS[name].__doc__ or "").splitlines()[0]

    assert line.endswith(".")
    assert any(name in mode.weights for mode in MODES.values())


@every_term
@settings(max_examples=40, deadline=None)
@given(of=steps(ANY_FLOAT, ANY_FLOAT))
def test_every_term_is_finite_whatever_the_reports_hold(name: str, of: Transition) -> None:
    assert math.isfinite(value(name, of))


@every_term
@settings(max_examples=20, deadline=None)
@given(of=steps(st.floats(-100, 100), st.floats(0, 1)))
def test_every_term_is_a_function_of_its_arguments_and_changes_none(name: str, of: Transition) -> None:
    untouched = copy.deepcopy(of)

    first, again = value(name, of), value(name, of)

    assert first == again == value(name, untouched)
    assert of == untouched


@pytest.mark.parametrize("name", PRICES)
@settings(max_examples=40, deadline=None)
@given(of=steps(ANY_FLOAT, ANY_FLOAT))
def test_what_is_not_the_objective_is_a_price(name: str, of: Transition) -> None:
    assert value(name, of) <= 0


# --- outcome ----------------------------------------------------------------------------------------------------


def test_the_outcome_is_points_less_rent_for_the_doublings_of_what_is_exported() -> None:
    fossils = slot(0, SeedStage.FOSSILIZED, params=3000), slot(1, SeedStage.HOLDING, params=900)
    end = host(91.0, *fossils, epoch=LENGTH, exported_metric=80.0)

    # 4000 over 1000 parameters are two doublings; the seed on probation is not exported.
    assert value("outcome", step(host(70.0), end)) == pytest.approx(80.0 - 2 * 3.0)
    assert value("outcome", step(host(70.0), end), rent=1.0) == pytest.approx(78.0)


def test_where_less_is_better_the_outcome_is_what_is_saved() -> None:
    end = host(0.5, epoch=LENGTH, exported_metric=0.6, metric_sign=-1.0)

    assert value("outcome", step(host(0.9), end)) == pytest.approx(-0.6)


def test_there_is_no_outcome_before_the_end_nor_of_a_host_that_was_taken_back() -> None:
    end = host(80.0, epoch=LENGTH, exported_metric=80.0)

    assert value("outcome", step(host(70.0), replace(end, epoch=LENGTH - 1))) == 0
    assert value("outcome", step(host(70.0), end, verdict=ILL)) == 0


# --- progress ---------------------------------------------------------------------------------------------------


def test_progress_is_the_gain_in_points_less_the_rent_that_was_added() -> None:
    blending = slot(1, SeedStage.BLENDING, alpha=0.25, params=1500, internal_effective_params=1000)
    of = step(host(60.0), host(64.0, slot(0), blending))

    # Counted in full the host has doubled; by alpha it has grown by a quarter.
    assert value("progress", of) == pytest.approx(4.0 - 3.0)
    assert value("progress", of, alpha_weighted_rent=True) == pytest.approx(4.0 - 3.0 * math.log(1.25) / math.log(2))
    assert value("progress", of, gamma=0.5) == pytest.approx(0.5 * 61.0 - 60.0)


def test_a_seed_pays_rent_from_planting_on_and_a_rung_less_pays_less() -> None:
    def gain(**facts: object) -> float:
        stage = facts.pop("stage", SeedStage.HOLDING)
        return value("progress", step(host(60.0), host(60.0, slot(0, stage, **facts))))

    assert gain(internal_effective_params=0) == 0
    assert gain(stage=SeedStage.GERMINATED, internal_effective_params=1000) == pytest.approx(-3.0)
    assert gain(stage=SeedStage.TRAINING, internal_effective_params=3000) == pytest.approx(-6.0)
    assert gain(internal_effective_params=3000) < gain(internal_effective_params=2000) < 0


@pytest.mark.parametrize("asked", [act("WAIT"), act("ADVANCE", 0), act("ADVANCE", 1)])
def test_a_gain_is_credited_to_whatever_was_done_in_whichever_slot(asked) -> None:
    of = step(host(60.0, slot(0), slot(1, SeedStage.HOLDING)), host(75.0, slot(0), slot(1, SeedStage.HOLDING)), asked)

    assert value("progress", of) == pytest.approx(15.0)


def test_an_end_has_no_potential_and_neither_has_a_host_without_a_measurement() -> None:
    assert value("progress", step(host(60.0), host(70.0, epoch=LENGTH))) == -60.0
    assert value("progress", step(host(60.0), host(10.0), verdict=ILL)) == -60.0
    assert value("progress", step(host(60.0), host(10.0), verdict=ILL, settled=host(55.0))) == -60.0
    assert value("progress", step(host(None), host(70.0))) == 70.0
    assert value("progress", step(host(60.0), host(math.nan))) == -60.0
    assert value("progress", step(host(60.0), host(-1e300))) == -60.0


# --- prices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("op", list(LifecycleOp))
def test_an_operation_costs_its_price_refused_or_not(op: LifecycleOp, done: bool) -> None:
    of = step(host(60.0), host(60.0), act(op.name), done)

    assert value("intervention", of) == -OPS[op].price
    assert value("intervention", of, price_scale=3.0) == pytest.approx(-3 * OPS[op].price)


def test_alpha_shock_is_the_square_of_the_step_in_proportion_to_the_seed() -> None:
    seen = host(60.0, slot(0, SeedStage.BLENDING, alpha=0.2), slot(1, SeedStage.HOLDING, params=2000))
    then = host(60.0, slot(0, SeedStage.BLENDING, alpha=0.6), slot(1, SeedStage.HOLDING, params=2000, alpha=0.5))

    # 0.4^2 of half the host and 0.5^2 of twice the host
    assert value("alpha_shock", step(seen, then), shock=1.0) == pytest.approx(-(0.16 * 0.5 + 0.25 * 2))
    assert value("alpha_shock", step(seen, then), shock=0.1) == pytest.approx(-0.058)
    assert value("alpha_shock", step(seen, seen)) == 0


def test_a_change_of_level_is_no_shock() -> None:
    seen = slot(0, SeedStage.BLENDING, alpha=0.4, internal_level=1, internal_effective_params=100)
    grown = replace(seen, internal_level=2, internal_effective_params=200)

    still, moving = host(60.0, grown), host(60.0, replace(grown, alpha=0.6))
    assert value("alpha_shock", step(host(60.0, seen), still, act("GROW_INTERNAL"))) == 0
    assert value("alpha_shock", step(host(60.0, seen), moving, act("GROW_INTERNAL"))) == value(
        "alpha_shock", step(host(60.0, seen), host(60.0, replace(seen, alpha=0.6)))
    )


def test_pruning_is_churn_while_the_seed_is_young() -> None:
    def price(age: int, done: bool = True, index: int = 0) -> float:
        seen = host(60.0, slot(0, SeedStage.HOLDING, age=age), slot(1, SeedStage.HOLDING, age=100))
        return value("churn", step(seen, host(60.0), act("PRUNE", index), done), churn=1.0, young=0.2)

    # A fifth of 20 epochs are 4.
    assert [price(age) for age in (0, 1, 3, 4, 19)] == pytest.approx([-1.0, -0.75, -0.25, 0.0, 0.0])
    assert price(0, done=False) == 0
    assert price(0, index=1) == 0


def test_nobody_is_young_where_the_setting_says_so() -> None:
    seen = host(60.0, slot(0, SeedStage.HOLDING, age=0))

    assert value("churn", step(seen, host(60.0), act("PRUNE")), young=0.0) == 0


@pytest.mark.parametrize(
    ("op", "previous", "level", "price"),
    [
        ("GROW_INTERNAL", None, 2, 0.0),
        ("GROW_INTERNAL", 1, 2, 0.0),
        ("GROW_INTERNAL", 3, 2, -1.0),
        ("SHRINK_INTERNAL", None, 2, 0.0),
        ("SHRINK_INTERNAL", 3, 2, 0.0),
        ("SHRINK_INTERNAL", 1, 2, -1.0),
        ("ADVANCE", 1, 2, 0.0),
    ],
)
def test_taking_back_the_last_change_of_level_is_churn(op, previous, level, price) -> None:
    seen = host(60.0, slot(0, SeedStage.HOLDING, internal_level=level, internal_previous_level=previous))

    assert value("churn", step(seen, seen, act(op)), churn=1.0) == price
    assert value("churn", step(seen, seen, act(op), done=False), churn=1.0) == 0


# --- accidents --------------------------------------------------------------------------------------------------


def test_a_rollback_costs_its_penalty_and_the_third_that_of_a_lost_host_too() -> None:
    well, taken_back, lost = (
        step(host(60.0), host(10.0), verdict=verdict) for verdict in (step(host(0), host(0)).verdict, ILL, LOST)
    )

    assert [value("rollback", of, rollback=7.0) for of in (well, taken_back, lost)] == [0, -7, -7]
    assert [value("divergence", of, divergence=4.0) for of in (well, taken_back, lost)] == [0, 0, -4]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e7])
def test_a_metric_that_is_no_number_costs_what_a_lost_host_does(broken: float) -> None:
    during = step(host(60.0), host(broken))
    at_the_end = step(host(60.0), host(60.0, epoch=LENGTH, exported_metric=broken))

    assert value("divergence", during, divergence=4.0) == -4
    assert value("divergence", at_the_end, divergence=4.0) == -4
    assert value("outcome", at_the_end) == 0


def test_a_crash_is_no_way_out_of_a_loss() -> None:
    """A perplexity of 50 is a potential of -50; a sequence that ends there at 0 would have won 50 points."""
    bad = host(50.0, metric_sign=-1.0)
    crash = step(bad, host(60.0, metric_sign=-1.0), verdict=ILL)

    total = value("progress", crash) + value("rollback", crash, rollback=10.0)

    assert total == -10.0
