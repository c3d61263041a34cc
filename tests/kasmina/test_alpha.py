"""Alpha's way from where it is to a target."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.alpha import AlphaController, along
from esper.leyline.factored_actions import CURVES, Curve
from esper.leyline.reports import AlphaMode

weights = st.floats(0.0, 1.0)
curves = st.sampled_from(list(CURVES.values()))
every_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)


def walked(controller: AlphaController) -> list[float]:
    """Alpha after each step until it rests."""
    path = []
    while controller.mode is not AlphaMode.HOLD:
        controller.step()
        path.append(controller.alpha)
    return path


def on_the_way(alpha: float, target: float, steps: int, curve: Curve) -> AlphaController:
    controller = AlphaController()
    controller.settle(alpha)
    controller.retarget(target, steps, curve)
    return controller


@pytest.mark.parametrize(
    ("name", "at_a_quarter"),
    [
        ("linear", 0.25),
        ("cosine", (1 - math.sqrt(0.5)) / 2),
        # A logistic curve around 1/2 in tanh form: (1 + tanh(k(t - 1/2)/2) / tanh(k/4)) / 2.
        ("sigmoid_gentle", (1 + math.tanh(-0.75) / math.tanh(1.5)) / 2),
        ("sigmoid", (1 + math.tanh(-1.5) / math.tanh(3.0)) / 2),
        ("sigmoid_sharp", (1 + math.tanh(-3.0) / math.tanh(6.0)) / 2),
    ],
)
def test_the_height_of_each_curve_at_a_quarter_and_by_symmetry_at_three_quarters(name: str, at_a_quarter: float):
    assert along(CURVES[name], 0.25) == pytest.approx(at_a_quarter, rel=1e-12)
    assert along(CURVES[name], 0.75) == pytest.approx(1 - at_a_quarter, rel=1e-12)
    assert along(CURVES[name], 0.5) == pytest.approx(0.5, rel=1e-12)


@every_curve
def test_a_curve_begins_at_zero_and_ends_at_one_exactly(curve: Curve):
    assert along(curve, 0.0) == 0.0
    assert along(curve, 1.0) == 1.0
    assert along(curve, -0.5) == 0.0
    assert along(curve, 1.5) == 1.0


@given(curves, weights, weights)
def test_a_curve_never_falls_and_stays_within_its_ends(curve: Curve, one: float, other: float):
    low, high = sorted((one, other))

    assert 0.0 <= along(curve, low) <= along(curve, high) <= 1.0


def test_a_linear_way_takes_equal_steps():
    assert walked(on_the_way(0.0, 1.0, 4, CURVES["linear"])) == [0.25, 0.5, 0.75, 1.0]
    assert walked(on_the_way(1.0, 0.5, 2, CURVES["linear"])) == [0.75, 0.5]


@every_curve
def test_the_way_lands_on_its_target_exactly(curve: Curve):
    assert walked(on_the_way(0.1, 0.7, 7, curve))[-1] == 0.7


@every_curve
def test_a_new_target_on_the_way_starts_from_where_alpha_is(curve: Curve):
    controller = on_the_way(0.0, 1.0, 4, curve)
    controller.step()
    reached = controller.alpha

    controller.retarget(0.0, 2, curve)

    assert controller.alpha == reached
    assert controller.mode is AlphaMode.DOWN
    assert walked(controller) == pytest.approx([reached / 2, 0.0])


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_with_no_steps_alpha_is_there_at_once(target: float):
    controller = on_the_way(0.3, target, 0, CURVES["linear"])

    assert controller.alpha == target
    assert controller.mode is AlphaMode.HOLD


def test_alpha_that_is_where_it_should_be_rests():
    controller = on_the_way(0.5, 0.5, 8, CURVES["cosine"])

    assert controller.mode is AlphaMode.HOLD
    controller.step()
    assert controller.alpha == 0.5


def test_a_rested_alpha_does_not_move():
    controller = on_the_way(0.0, 0.5, 1, CURVES["linear"])
    controller.step()

    controller.step()

    assert (controller.alpha, controller.steps_done, controller.mode) == (0.5, 1, AlphaMode.HOLD)


def test_settling_ends_the_way():
    controller = on_the_way(0.0, 1.0, 5, CURVES["sigmoid"])
    controller.step()

    controller.settle(1.0)

    assert (controller.alpha, controller.target, controller.mode) == (1.0, 1.0, AlphaMode.HOLD)
    assert (controller.steps_done, controller.steps_total) == (0, 0)


@pytest.mark.parametrize("target", [-0.1, 1.1, math.nan])
def test_a_target_outside_zero_and_one_is_a_bug(target: float):
    with pytest.raises(AssertionError):
        AlphaController().retarget(target, 3, CURVES["linear"])


@given(weights, st.lists(st.tuples(weights, st.integers(0, 6), curves, st.integers(0, 8)), min_size=1, max_size=5))
def test_alpha_moves_monotonically_towards_every_target_in_the_promised_time(alpha: float, legs):
    controller = AlphaController()
    controller.settle(alpha)
    for target, steps, curve, walk in legs:
        controller.retarget(target, steps, curve)
        path = [controller.alpha]
        for _ in range(walk):
            controller.step()
            path.append(controller.alpha)

        distances = [abs(target - place) for place in path]
        assert all(later <= earlier + 1e-15 for earlier, later in pairwise(distances))
        assert all(0.0 <= place <= 1.0 for place in path)
        if walk >= steps:
            assert path[-1] == target
            assert controller.mode is AlphaMode.HOLD
        up, down = target > path[0], target < path[0]
        assert not (up and controller.mode is AlphaMode.DOWN)
        assert not (down and controller.mode is AlphaMode.UP)
