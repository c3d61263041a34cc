"""Controllers of an exam: by lot so many times, and by a schedule whatever the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.tamiyo.small import host, masks, slot, space

from esper.leyline.decisions import Sight
from esper.leyline.errors import ConfigError
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.baselines import random, schedule
from esper.tamiyo.config import PolicyConfig, RandomConfig
from esper.tamiyo.controller import Build, Controller

SPACE = space(2)
PLANT = {"op": "GERMINATE", "slot": "r0c1", "blueprint": "norm"}
ADVANCE = {"op": "ADVANCE", "slot": "r0c1"}
WAIT = {"op": "WAIT"}
LENGTH = 4


def at(epoch: int, env: int = 0, round_: int = 0, stage: SeedStage = SeedStage.DORMANT) -> HostReport:
    return replace(host(slot(0), slot(1, stage)), epoch=epoch, episode_length=LENGTH, env=env, round=round_)


def said(controller: Controller, report: HostReport) -> str:
    choice, _ = controller.act(Sight([report]), [masks(report, SPACE)], (None,))
    return choice.actions[0].op.name


def following(*script: list[dict[str, str]]) -> Controller:
    return schedule(Build(PolicyConfig(), SPACE, 0, script))


# --- by lot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operations", "share"), [(0.0, 0.0), (1.0, 0.25), (3.0, 0.75), (4.0, 1.0), (9.0, 1.0)])
def test_lots_fall_as_often_as_it_takes_for_so_many_operations_in_an_episode(operations: float, share: float) -> None:
    config = PolicyConfig(random=RandomConfig(operations=operations))
    controller = random(Build(config, SPACE, 0))

    drawn = [said(controller, at(epoch, env)) != "WAIT" for epoch in range(LENGTH) for env in range(100)]

    assert sum(drawn) / len(drawn) == pytest.approx(share, abs=0.08)  # three standard errors are 0.065


def test_where_nothing_is_possible_lots_wait() -> None:
    controller = random(Build(PolicyConfig(random=RandomConfig(operations=9.0)), SPACE, 0))

    assert said(controller, replace(at(0), finished=True)) == "WAIT"


# --- by schedule ------------------------------------------------------------------------------------------------


def test_a_schedule_is_followed_by_the_epoch_and_waited_for_when_it_ends() -> None:
    controller = following([WAIT, PLANT])

    assert [said(controller, at(epoch)) for epoch in range(LENGTH)] == ["WAIT", "GERMINATE", "WAIT", "WAIT"]


def test_it_waits_where_a_decision_is_not_possible() -> None:
    controller = following([PLANT, ADVANCE])

    assert said(controller, at(0, stage=SeedStage.TRAINING)) == "WAIT"
    assert said(controller, at(1)) == "WAIT"
    assert said(controller, at(1, stage=SeedStage.TRAINING)) == "ADVANCE"


def test_one_schedule_serves_every_host_and_several_are_taken_in_turn() -> None:
    lone, both = following([PLANT]), following([PLANT], [WAIT])

    assert [said(lone, at(0, env)) for env in range(3)] == ["GERMINATE"] * 3
    assert [said(both, at(0, env)) for env in range(3)] == ["GERMINATE", "WAIT", "GERMINATE"]


def test_a_schedule_of_two_episodes_has_one_for_each_round() -> None:
    controller = following([PLANT, *[WAIT] * LENGTH, PLANT, WAIT, WAIT])

    def planted(round_: int) -> list[int]:
        return [epoch for epoch in range(LENGTH) if said(controller, at(epoch, round_=round_)) == "GERMINATE"]

    assert [planted(round_) for round_ in range(3)] == [[0], [1], [0]]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ((), "write schedule:FILE"),
        (([{"op": "DANCE"}],), "script: op 'DANCE' is not in this action space"),
        (([WAIT] * 5,), "5 decisions, and an episode has 4; set run.episode_length"),
    ],
)
def test_what_cannot_be_followed_is_one_line(script: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        said(following(*script), at(0))
