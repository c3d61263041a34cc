"""Gradient norms and the ratio per parameter that gate G2 looks at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from esper.kasmina.gradient_health import GradientHealthMonitor, _batched_grad_norm, grad_norm


def with_grads(*grads: list[float] | None) -> list[nn.Parameter]:
    params = []
    for grad in grads:
        param = nn.Parameter(torch.zeros(1 if grad is None else len(grad)))
        param.grad = None if grad is None else torch.tensor(grad)
        params.append(param)
    return params


def test_the_norm_is_that_of_all_gradients_laid_end_to_end():
    assert grad_norm(with_grads([3.0], [0.0, 4.0], None, [12.0])) == 13.0
    assert _batched_grad_norm([torch.full((2, 2), 2.0), torch.tensor([3.0])]).item() == 5.0


def test_without_gradients_the_norm_is_zero():
    assert grad_norm([]) == 0.0
    assert grad_norm(with_grads(None, None)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_number_that_is_not_finite_makes_the_norm_so(bad: float):
    assert not math.isfinite(grad_norm(with_grads([1.0], [bad, 1.0])))


def test_a_ratio_of_one_means_that_weights_are_pulled_equally_hard():
    health = GradientHealthMonitor()

    # 100 seed weights and 900 host weights, each with a gradient of 0.1.
    health.record(seed_norm=0.1 * 10, host_norm=0.1 * 30, seed_params=100, host_params=900)

    assert health.ratio == pytest.approx(1.0)
    assert (health.seed_norm, health.host_norm) == (pytest.approx(1.0), pytest.approx(3.0))


def test_the_ratio_is_smoothed_with_its_past():
    health = GradientHealthMonitor(smoothing=0.75)

    for seed_norm in (1.0, 2.0, 4.0):
        health.record(seed_norm, 1.0, 10, 10)

    assert health.ratio == pytest.approx(0.75 * (0.75 * 1.0 + 0.25 * 2.0) + 0.25 * 4.0)


def test_the_ratio_has_a_ceiling():
    health = GradientHealthMonitor()

    health.record(1e6, 1.0, 10, 10)

    assert health.ratio == 10.0


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_broken_seed_gradient_is_remembered_as_such_and_spoils_no_number(norm: float):
    health = GradientHealthMonitor()
    health.record(1.0, 1.0, 10, 10)

    health.record(norm, 1.0, 10, 10)
    assert (health.broken, health.seed_norm, health.ratio) == (True, 1.0, 1.0)

    health.record(1.0, 1.0, 10, 10)
    assert not health.broken


def test_a_broken_host_gradient_is_not_the_seeds_fault():
    health = GradientHealthMonitor()

    health.record(1.0, math.nan, 10, 10)

    assert not health.broken
    assert (health.seed_norm, health.ratio) == (None, None)


@pytest.mark.parametrize(("host_norm", "seed_params"), [(0.0, 10), (1.0, 0)])
def test_where_there_is_nothing_to_compare_there_is_no_ratio(host_norm: float, seed_params: int):
    health = GradientHealthMonitor()

    health.record(1.0, host_norm, seed_params, 10)

    assert health.ratio is None
    assert health.seed_norm == 1.0
