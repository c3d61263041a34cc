"""Schedules of the learning rate, worked out by hand, and that they go on after a rollback and a resume."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tests.tolaria.small import QUICK, alike, by_plan, do, engine_on, live, toy, waiting
from torch import nn

from esper.leyline.task import Recipe, ScheduleName
from esper.tolaria.full_state import load_state, state_of
from esper.tolaria.recipes import SCHEDULES, WarmupCosine, make_optimiser, make_scheduler


def rates(recipe: Recipe, length: int) -> list[float]:
    """The learning rate in every epoch."""
    weight = nn.Parameter(torch.zeros(1))
    optimiser = make_optimiser(recipe, [weight])
    scheduler, found = make_scheduler(recipe, optimiser, length), []
    for _ in range(length):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
    return found


def test_every_name_of_a_schedule_has_one() -> None:
    assert set(SCHEDULES) == set(get_args(ScheduleName))


def test_a_constant_rate_stays() -> None:
    assert rates(Recipe(lr=0.1), 3) == [0.1] * 3


def test_a_cosine_falls_from_the_first_epoch_on() -> None:
    # 0.05 (1 + cos(pi e / 4))
    assert rates(Recipe(lr=0.1, schedule="cosine"), 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6)


def test_a_warm_up_rises_in_a_straight_line_and_a_cosine_follows() -> None:
    recipe = Recipe(lr=0.12, schedule="warmup_cosine", warmup=0.25)

    # Two of eight epochs rise by thirds; then 0.06 (1 + cos(pi e / 6)).
    want = [0.04, 0.08, 0.12, 0.1119615, 0.09, 0.06, 0.03, 0.0080385]
    assert rates(recipe, 8) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_the_shortest_episodes_have_a_rate_above_nothing(length: int, warmup: float) -> None:
    found = rates(Recipe(lr=0.1, schedule="warmup_cosine", warmup=warmup), length)

    assert all(0 < rate <= 0.1 for rate in found)


def test_after_its_end_a_schedule_gives_nothing() -> None:
    assert WarmupCosine(2, 8)(8) == WarmupCosine(2, 8)(9) == 0.0


PLAN = (None, do("GERMINATE", blueprint="conv_light"), do("ADVANCE"), do("ADVANCE"))
RISING = {"optimiser": "adamw", "lr": 0.01, "schedule": "warmup_cosine", "warmup": 0.4}


def test_a_seed_follows_the_hosts_rate_at_its_own_scale() -> None:
    engine = engine_on(toy(**RISING), length=10, body=QUICK)

    live(engine, by_plan(*PLAN), 4)

    host, seed = engine.environments[0].optimiser.param_groups
    assert host["lr"] == pytest.approx(0.01)  # four epochs of ten rise, the fifth has all of it
    assert seed["lr"] == pytest.approx(QUICK.lr_scale() * 0.01)


def test_an_environment_loaded_in_the_middle_of_a_rise_goes_on_bit_for_bit() -> None:
    one, other = (engine_on(toy(**RISING), length=10, body=QUICK) for _ in range(2))
    live(one, by_plan(*PLAN), 3)

    load_state(other.environments[0], state_of(one.environments[0]))
    for engine in (one, other):
        live(engine, waiting, 4)

    assert alike(one.environments[0], other.environments[0])


def test_a_rollback_leaves_the_clock_of_the_schedule_alone() -> None:
    engine = engine_on(toy(**RISING), length=10, body=QUICK)
    (environment,) = engine.environments
    early = environment.snapshot()
    live(engine, by_plan(*PLAN), 3)
    before = environment.optimiser.param_groups[0]["lr"]

    environment.restore(early)

    assert environment.optimiser.param_groups[0]["lr"] == pytest.approx(before) == pytest.approx(0.008)
    live(engine, waiting, 1)
    assert environment.optimiser.param_groups[0]["lr"] == pytest.approx(0.01)
