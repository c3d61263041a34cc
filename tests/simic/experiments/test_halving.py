"""The search spends what it is given, compares on the same host, and finds the best."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tamiyo.small import space

from esper.leyline.reports import Rules
from esper.simic.experiments.halving import Found, Stage, search
from esper.simic.experiments.schedules import Menu, Schedule, drawn

MENU = Menu(space(3), Rules(max_seeds=3), 24, {})
Score = Callable[[Schedule, int, int], float]  # of a schedule on the host of a stage and a group


def searched(
    score: Score, rounds: int = 20, envs: int = 4, seed: int = 0
) -> tuple[Found[Schedule], list[Stage[Schedule]]]:
    def fresh(generator: torch.Generator) -> Schedule:
        return drawn(MENU, generator)

    searching, stages = search(MENU.never, fresh, rounds, envs, seed, "schedules"), []
    try:
        stage = next(searching)
        while True:
            stages.append(stage)
            points = [
                [score(each, stage.number, number) for each in group] for number, group in enumerate(stage.groups)
            ]
            stage = searching.send(points)
    except StopIteration as over:
        return over.value, stages


def seeds(schedule: Schedule) -> int:
    return sum(line["op"] == "GERMINATE" for line in schedule)


@settings(max_examples=30, deadline=None)
@given(rounds=st.integers(1, 25), envs=st.integers(2, 8))
def test_it_plays_exactly_as_many_episodes_as_it_is_given(rounds: int, envs: int) -> None:
    found, stages = searched(lambda each, stage, group: float(hash((str(each), stage, group)) % 97), rounds, envs)

    played = [len(group) for stage in stages for group in stage.groups]
    assert played == [envs] * rounds
    assert found.episodes == rounds * envs


@pytest.mark.parametrize(("wanted", "kept"), [(-1, 0), (1, 3)])
def test_what_is_always_better_is_found(wanted: int, kept: int) -> None:
    found, _ = searched(lambda each, *_: float(wanted * seeds(each)))

    assert seeds(found.best) == kept


def test_a_host_that_is_easy_for_all_moves_nothing() -> None:
    def fair(each: Schedule, _stage: int, _group: int) -> float:
        return float(seeds(each))

    def lucky(each: Schedule, stage: int, group: int) -> float:
        return seeds(each) + 1000.0 * ((stage * 7 + group * 3) % 5)

    assert searched(lucky)[0].best == searched(fair)[0].best


def test_half_of_the_rounds_are_for_fresh_schedules_and_a_quarter_of_them_goes_on() -> None:
    _, stages = searched(lambda each, *_: float(seeds(each)), rounds=20, envs=4)

    # 10 rounds for 40, 5 for 10, 3 for 4 or fewer are all that is left: 5 rounds
    assert [(len(stage.groups), stage.candidates) for stage in stages] == [(10, 40), (5, 10), (5, 4)]


def test_what_is_known_is_tried_first_and_is_in_every_group_of_the_last_stage_whatever_it_came_to() -> None:
    _, stages = searched(lambda each, *_: float(seeds(each)))

    assert MENU.never in [each for group in stages[0].groups for each in group]
    assert all(MENU.never in group for group in stages[-1].groups)


def test_the_same_seed_finds_the_same_and_another_tries_others() -> None:
    def score(each: Schedule, *_: int) -> float:
        return float(seeds(each))

    assert searched(score) == searched(score)
    assert searched(score)[1] != searched(score, seed=1)[1]


def test_the_gain_is_that_over_the_groups_of_the_last_stage() -> None:
    found, stages = searched(lambda each, *_: 10.0 if each == MENU.never else 2.0, envs=4)

    assert found.best == MENU.never
    assert found.gain == pytest.approx(10 - (10 + 2 + 2 + 2) / 4)
    assert stages[-1].candidates == 4
