"""What is said of an A/B test: who did better, over which hosts, and what that does not say. Outcomes are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from esper.karn import gates
from esper.leyline.task import Metric
from esper.scripts import ab
from esper.scripts.ab import ab_lines, untrained_hosts
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.runner import Finished
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.training.config import RunConfig
from esper.simic.training.keeping import Round
from esper.tolaria.engine import Outcome
from esper.tolaria.ledger import Ledger

ENVS = 2
HOST = 1000
Figures = Callable[[int, int], float | None]
"""Round and environment -> test metric; None where the host diverged."""


def outcome(env: int, metric: float | None, params: int = HOST) -> Outcome:
    return Outcome(
        env=env,
        val_loss=None,
        val_metric=None,
        test_loss=None,
        test_metric=metric,
        host_params=HOST,
        params=params,
        fossilized=0,
        diverged=metric is None,
        ledger=Ledger(),
        topology=(),
    )


def rounds(count: int, figures: Figures, params: int = HOST) -> list[Round]:
    return [
        Round([outcome(env, figures(number, env), params) for env in range(ENVS)], Rollout()) for number in range(count)
    ]


def finished(first: list[Round], second: list[Round], sign: int = 1, shared: bool | None = None) -> Finished:
    run = RunConfig("ppo", envs=ENVS, rounds=len(first), ab_test="shaped-vs-basic", shared_init=shared)
    metric = Metric("accuracy", "%", higher_is_better=sign > 0, per_item=lambda outputs, _: outputs)
    return Finished(Path("runs/x"), "0", replace(EsperConfig(), run=run), metric, first, [second], 1.0, 1.0)


def nobody(_round: int) -> Sequence[Outcome]:
    raise AssertionError("every host lived; nobody has to know what they were like at first")


def told(first: Figures, second: Figures, count: int = 20) -> str:
    return ab_lines(finished(rounds(count, first), rounds(count, second)), nobody)[0]


def test_the_learner_whose_networks_are_worth_more_is_named() -> None:
    better, worse = (lambda number, env: 60.0 + number % 3 + env), (lambda number, env: 50.0 + number % 2 + env)

    assert told(better, worse).startswith("the learner of shaped is better: shaped - basic = +")
    assert told(worse, better).startswith("the learner of basic is better: shaped - basic = -")
    assert told(better, better).startswith("no clear difference: shaped - basic = +0.0")


def test_less_is_more_where_the_metric_says_so() -> None:
    low, high = (lambda number, env: 1.0 + 0.1 * number), (lambda number, env: 5.0 - 0.1 * number)
    pair = finished(rounds(20, low), rounds(20, high), sign=-1)

    assert ab_lines(pair, nobody)[0].startswith("the learner of shaped is better")


def test_parameters_are_charged_for_by_the_doubling() -> None:
    # As accurate, with twice the parameters: 3 points of rent.
    pair = finished(rounds(20, lambda number, env: 60.0, 2 * HOST), rounds(20, lambda number, env: 60.0))

    assert "shaped - basic = -3.0 points" in ab_lines(pair, nobody)[0]


def test_only_the_last_fifth_of_the_rounds_counts() -> None:
    late = [16, 17, 18, 19]

    line = told(lambda number, env: 61.0 if number in late else 0.0, lambda number, env: 60.0 + 0.1 * (number - 17.5))

    assert "shaped - basic = +1.0 points of the objective [+0.8, +1.2], 8 pairs of hosts, 4 draws of a host" in line
    assert gates.LATE == ab.LATE


def test_the_interval_is_over_rounds_where_their_hosts_are_alike_and_over_hosts_where_they_are_not() -> None:
    gain = {(8, 0): 1.0, (8, 1): 2.0, (9, 0): 5.0, (9, 1): 8.0}
    first, second = rounds(10, lambda number, env: 50.0 + gain.get((number, env), 0.0)), rounds(10, lambda *_: 50.0)

    for shared, draws in ((None, [1.5, 6.5]), (True, [1.5, 6.5]), (False, [1.0, 2.0, 5.0, 8.0])):
        low, high = stats.ttest_1samp(draws, 0.0).confidence_interval(0.95)
        line = ab_lines(finished(first, second, shared=shared), nobody)[0]
        assert line == (
            f"no clear difference: shaped - basic = +4.0 points of the objective [{low:+.1f}, {high:+.1f}], "
            f"4 pairs of hosts, {len(draws)} draws of a host."
        )


def test_hosts_are_paired_by_round_and_environment() -> None:
    # Hosts differ by far more than learners do; in pairs what is left is the point between them.
    host = {(number, env): 10.0 * ((7 * number + 3 * env) % 5) for number in range(20) for env in range(ENVS)}
    step = {(number, env): 0.01 * (number + env) for number, env in host}

    line = told(lambda *at: host[at] + 1.0 + step[at], lambda *at: host[at])

    assert line.startswith(
        "the learner of shaped is better: shaped - basic = +1.2 points of the objective [+1.2, +1.2]"
    )


def test_a_learner_that_breaks_hosts_is_charged_for_them() -> None:
    # 10 points before the first step, 60 after the last: a host that diverges costs 50, a quarter of which is 12.5.
    broken = rounds(20, lambda number, env: None if (number % 2, env) == (1, 1) else 60.0)
    whole = rounds(20, lambda number, env: 60.0)
    asked: list[int] = []

    def untrained(number: int) -> list[Outcome]:
        asked.append(number)
        return [outcome(env, 10.0) for env in range(ENVS)]

    lines = ab_lines(finished(broken, whole), untrained)

    assert "shaped - basic = -12.5 points" in lines[0]
    assert lines[2:] == ["Diverged, and counted as if never trained: shaped 2, basic 0 of 8 hosts."]
    assert asked == [17, 19]
    assert "+12.5 points" in ab_lines(finished(whole, broken), untrained)[0]


@pytest.mark.parametrize("metric", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_a_host_that_diverged(metric: float) -> None:
    pair = finished(rounds(10, lambda *_: metric), rounds(10, lambda *_: 60.0))

    lines = ab_lines(pair, lambda number: [outcome(env, 10.0) for env in range(ENVS)])

    assert "shaped - basic = -50.0 points" in lines[0]
    assert "shaped 4, basic 0 of 4 hosts" in lines[2]


def test_it_is_said_that_one_training_each_says_nothing_about_the_rewards() -> None:
    pair = finished(rounds(5, lambda *_: 60.0), rounds(5, lambda *_: 50.0))

    line, caveat = ab_lines(pair, nobody)

    assert line.startswith(
        "no verdict: shaped - basic = +10.0 points of the objective, 2 pairs of hosts that began alike"
    )
    assert caveat == (
        "One training each, on one split of the data: this is about these two learners, not about the rewards."
    )


def test_hosts_before_their_first_step_are_those_of_that_round() -> None:
    layer = {"task": {"name": "digits", "epoch_items": 64}, "run": {"controller": "ppo", "envs": ENVS, "rounds": 3}}
    config = assemble(None, None, layer, ["run.ab_test=shaped-vs-basic", "policy.network.size=16"])

    first, again, later = (untrained_hosts(config, number) for number in (0, 0, 2))

    assert [each.test_loss for each in first] == [each.test_loss for each in again]
    assert [each.test_loss for each in first] != [each.test_loss for each in later]
    assert all(each.test_metric is not None and each.params == each.host_params for each in first)
