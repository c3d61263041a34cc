"""Intervals are Student's, and one seed claims nothing."""

from __future__ import annotations

import math

import pytest

from esper.leyline.statistics import estimate, paired_difference, seed_means


def test_the_interval_of_five_values_is_students_with_four_degrees_of_freedom():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])

    # t(0.975, 4) = 2.7764, standard deviation sqrt(2.5)
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(2.7764 * math.sqrt(2.5) / math.sqrt(5), rel=1e-4)


def test_one_seed_gives_no_interval_and_no_verdict():
    found = estimate([7.0])

    assert (found.half_width, found.low, found.high, found.says) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([5.0, 6.0, 7.0], [1.0, 2.1, 3.0], 1),
        ([1.0, 2.0, 3.0], [5.0, 6.1, 7.0], -1),
        ([1.0, 9.0, 2.0], [5.0, 1.0, 4.0], 0),
    ],
)
def test_a_difference_is_claimed_only_where_the_whole_interval_is_on_one_side(ours, theirs, says):
    assert paired_difference(ours, theirs).says == says


def test_pairing_removes_what_the_seeds_have_in_common():
    difference = paired_difference([10.0, 50.0, 90.0], [9.0, 49.0, 89.0])

    assert (difference.mean, difference.half_width) == (1.0, 0.0)


def test_values_of_one_seed_count_once():
    assert seed_means([(7, 1.0), (3, 10.0), (7, 3.0), (3, 20.0), (9, 5.0)]) == [2.0, 15.0, 5.0]
    assert estimate(seed_means([(1, 4.0), (1, 6.0)])).half_width is None
