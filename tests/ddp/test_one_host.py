"""One host that two ranks train while it grows: they agree after every operation, and a difference changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tests.ddp import cases
from tests.ddp.pair import Failed, Pair
from tests.tolaria.test_hosts import CASES, Case

from esper.leyline.errors import ExitCode, LifecycleDivergence
from esper.leyline.factored_actions import OPS, LifecycleOp

SLOT = "environment 0, slot r0c0"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


def alike(answers: list[object]) -> object:
    """What both ranks have answered."""
    assert not any(isinstance(answer, Failed) for answer in answers), answers
    assert answers[0] == answers[1]
    return answers[0]


def both_raised(answers: list[object]) -> LifecycleDivergence:
    """What both ranks have raised: the same words."""
    assert all(isinstance(answer, LifecycleDivergence) for answer in answers), answers
    assert str(answers[0]) == str(answers[1])
    first = answers[0]
    assert isinstance(first, LifecycleDivergence)
    assert first.exit_code == ExitCode.RANKS
    return first


# --- operations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_after_every_operation_the_ranks_have_the_same_lifecycle(pair: Pair, op: LifecycleOp) -> None:
    done, before, after = alike(pair.ask(cases.after_operation, op))

    assert done
    assert (before != after) == (op is not LifecycleOp.WAIT)


@pytest.mark.parametrize("op", OPS)
def test_a_rank_with_another_level_is_caught_before_any_operation(pair: Pair, op: LifecycleOp) -> None:
    answers = pair.ask(cases.with_another_level, op)
    error = both_raised([error for error, _ in answers])

    assert [untouched for _, untouched in answers] == [True, True]
    if op is LifecycleOp.GERMINATE:
        assert (error.field, error.values) == (f"{SLOT}: stage", ("DORMANT", "GERMINATED"))
    else:
        assert (error.field, error.values) == (f"{SLOT}: level", ("2", "1"))
    assert str(error) == (
        f"rank 1 diverged at step 0 in {error.field}: rank 0 has {error.values[0]}, rank 1 has {error.values[1]}"
    )


def test_a_rank_with_another_decision_or_another_stream_is_caught_before_a_seed_is_planted(pair: Pair) -> None:
    decision = both_raised(pair.ask(cases.with_another_decision))
    stream = both_raised(pair.ask(cases.with_another_stream))

    assert decision.field == "environment 0: decision"
    assert [value.split()[2] for value in decision.values] == ["conv_light", "norm"]
    assert stream.field == "environment 0: generator of growth"


def test_a_rank_with_other_data_is_refused_by_name(pair: Pair) -> None:
    first, second = pair.ask(cases.with_other_data)

    assert str(first) == str(second)
    assert str(first).startswith("rank 1 has another data than rank 0: ")


def test_gradients_of_other_number_never_meet_in_a_sum(pair: Pair) -> None:
    assert both_raised(pair.ask(cases.with_a_frozen_parameter)).field == "environment 0: parameters"


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_whatever_lives_chance_brings_about_the_ranks_stay_the_same(pair: Pair, examples: int) -> None:
    taken_back: list[bool] = []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES)
    def lived(case: Case) -> None:
        told = alike(pair.ask(cases.life_by_lot, case))
        assert isinstance(told, list)
        taken_back.append(any("rollbacks=1" in step for step in told))

    lived()
    assert any(taken_back)
    assert not all(taken_back)


def test_channels_are_grouped_alike_on_all_ranks(pair: Pair) -> None:
    found = alike(pair.ask(cases.groupings, (1, 15, 16, 17, 48, 100)))
    assert isinstance(found, list)

    assert [[len(group) for group in groups] for groups, _, _ in found] == [
        [1], [15], [16], [9, 8], [16, 16, 16], [15, 15, 14, 14, 14, 14, 14],
    ]  # fmt: skip
    assert [mask for _, mask, _ in found][3:5] == [(True, False), (True, False, True)]


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_two_ranks_come_to_the_weights_of_one_process_on_the_whole_batch(
    pair: Pair, dtype: torch.dtype, tolerance: float
) -> None:
    (first, digest), (second, other) = pair.ask(cases.weights_after_growth, dtype)
    with cases.all_in(dtype):
        alone = cases.weights(cases.grown_life(None))

    assert {value.dtype for value in alone.values()} == {dtype}
    assert digest == other
    assert list(first) == list(alone)
    assert sum(".seed." in name for name in alone) >= 4
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=tolerance, atol=tolerance)


def test_the_gradient_of_a_parameter_born_by_growth_is_that_of_the_whole_batch_on_every_rank(pair: Pair) -> None:
    first, second = pair.ask(cases.gradients_on_ranks)
    alone = cases.gradients_of_seeds(None)

    assert len(alone) >= 2
    assert list(first) == list(alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-7)
        assert value.abs().max() > 1e-4


@pytest.mark.parametrize(("every", "after"), [(1, 1), (1, 5), (4, 3), (4, 8)])
def test_a_weight_that_drifts_by_an_ulp_is_found_at_the_next_comparison(pair: Pair, every: int, after: int) -> None:
    answers = pair.ask(cases.with_a_drift, every, after)
    error = both_raised([error for error, _ in answers])

    assert error.ranks == (1,)
    assert error.step % every == 0
    assert error.field.startswith("environment 0: ")
    assert [0 <= later < every for _, later in answers] == [True, True]


def test_seconds_of_an_epoch_are_those_that_a_rank_has_worked_not_those_it_has_waited(pair: Pair) -> None:
    seconds = alike(pair.ask(cases.seconds_of_an_epoch))
    assert isinstance(seconds, list)

    assert seconds[1] >= 0.4
    assert seconds[0] < seconds[1] - 0.2


def test_a_batch_that_is_not_a_number_on_one_rank_is_skipped_by_all(pair: Pair) -> None:
    found = alike(pair.ask(cases.with_spoilt_losses, float("nan")))
    assert isinstance(found, cases.Spoilt)

    assert (found.untouched, found.skipped) == (True, 4)


def test_a_loss_that_explodes_on_one_rank_takes_the_host_back_on_all(pair: Pair) -> None:
    found = alike(pair.ask(cases.with_spoilt_losses, 30.0))
    assert isinstance(found, cases.Spoilt)

    assert (found.untouched, found.skipped) == (False, 0)
    assert (found.healthy, found.rollbacks) == (False, 1)
