"""What the heuristic remembers of an environment: losses, failures, and which ladders are settled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.tamiyo.small import blending, decide, held, heuristic, host, ladder, masks, slot, space, words

from esper.leyline.decisions import Sight
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.heuristic import Recollection


@pytest.mark.parametrize(
    "report",
    [
        host(slot(0, SeedStage.TRAINING, broken=True)),
        host(blending(worth=-4.0)),
        host(held(worth=-9.0)),
        host(held(epochs=12)),
    ],
)
def test_every_seed_that_is_removed_counts_as_a_failure_of_its_blueprint_in_its_slot(report: HostReport) -> None:
    before = Recollection(failures={("r0c0", "conv_light"): 1, ("r0c1", "conv_light"): 5})

    said, after = decide(report, before)

    assert said == "PRUNE r0c0"
    assert after.failures == {("r0c0", "conv_light"): 2, ("r0c1", "conv_light"): 5}
    assert decide(report)[1].failures == {("r0c0", "conv_light"): 1}


@pytest.mark.parametrize(
    ("report", "settled"),
    [
        (host(ladder(effect=0.0)), {"old", "seed-r0c0"}),
        (host(ladder(effect=5.0)), {"old"}),
        (host(ladder()), {"old"}),
        (host(held(worth=9.0)), {"old"}),
        (host(slot(0, SeedStage.GERMINATED)), {"old"}),
        (host(slot(0)), {"old"}),
        (host(slot(0), left=1), {"old"}),
    ],
)
def test_a_ladder_is_settled_by_the_first_step_back_and_nothing_else_is_remembered(
    report: HostReport, settled: set[str]
) -> None:
    before = Recollection((3.0,), {("r0c9", "conv_light"): 1}, frozenset({"old"}))

    _, after = decide(replace(report, val_loss=2.0), before)

    assert after == Recollection((3.0, 2.0), {("r0c9", "conv_light"): 1}, frozenset(settled))


def test_a_loss_that_was_not_measured_is_not_remembered() -> None:
    assert decide(host(slot(0)), Recollection((3.0,)))[1].losses == (3.0,)
    assert decide(host(held(worth=-9.0), val_loss=2.0), Recollection((3.0,)))[1].losses == (3.0, 2.0)


def test_the_loss_of_this_very_epoch_tells_a_plateau() -> None:
    early = host(slot(0), left=95, val_loss=1.0)

    assert decide(early, Recollection((1.0, 1.0)))[0] == "GERMINATE r0c0"
    assert decide(replace(early, val_loss=0.5), Recollection((1.0, 1.0)))[0] == "WAIT"


def test_every_environment_is_decided_by_itself() -> None:
    reports = [host(held(worth=9.0)), host(held(worth=-9.0)), host(slot(0), left=1)]
    controller = heuristic(space(1))

    choice, after = controller.act(Sight(reports), [masks(each) for each in reports], controller.blank_memory(3))

    assert [words(each) for each in choice.actions] == ["FOSSILIZE r0c0", "PRUNE r0c0", "WAIT"]
    assert [dict(each.failures) for each in after] == [{}, {("r0c0", "conv_light"): 1}, {}]
