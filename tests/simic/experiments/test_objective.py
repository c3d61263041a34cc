"""J by hand: points of the metric, minus rent for every doubling of the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.tolaria.small import ACCURACY, ERRORS, cnn_host, engine_on, item_loss, live, toy

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.randomness import drawing_from, stream
from esper.simic.experiments.objective import judged
from esper.tolaria.engine import Outcome
from esper.tolaria.ledger import Ledger

UNTRAINED = Outcome(0, None, None, 1.4, 25.0, 1000, 1000, 0, False, Ledger(), ())
TRAINED = replace(UNTRAINED, test_metric=90.0, params=1000)


@pytest.mark.parametrize(
    ("params", "rent", "want"),
    [
        (1000, 3.0, 90.0),  # nothing grown, nothing to pay
        (2000, 3.0, 87.0),  # one doubling
        (4000, 3.0, 84.0),  # two
        (4000, 0.0, 90.0),
        (1414, 2.0, 89.0),  # half a doubling: 1000 x sqrt 2 = 1414.2
    ],
)
def test_rent_is_charged_for_every_doubling(params: int, rent: float, want: float) -> None:
    assert judged(replace(TRAINED, params=params), UNTRAINED, ACCURACY, rent) == pytest.approx(want, abs=1e-3)


def test_where_less_is_better_points_are_negative() -> None:
    assert judged(replace(TRAINED, test_metric=10.0, params=2000), UNTRAINED, ERRORS, 3.0) == -13.0


@pytest.mark.parametrize(
    "lost",
    [
        replace(TRAINED, diverged=True, test_metric=None, params=8000),
        replace(TRAINED, test_metric=float("nan"), params=8000),
        replace(TRAINED, test_metric=float("inf"), params=8000),
    ],
)
def test_a_host_that_was_lost_is_worth_what_it_was_before_its_first_step(lost: Outcome) -> None:
    assert judged(lost, UNTRAINED, ACCURACY, 3.0) == 25.0


def test_the_outcome_of_an_engine_that_has_just_begun_is_that_of_the_untrained_host() -> None:
    engine = engine_on(toy())
    with drawing_from(stream(0, "init", 0, 0, 0)):
        host = cnn_host().eval()
    split = engine.setup.task.splits.test
    loss = float(item_loss(host(split.inputs), split.targets).mean().detach())

    (before,) = engine.outcomes()

    assert before.test_loss == pytest.approx(loss)
    assert before.test_metric is not None
    live(engine, lambda report, legal: legal.space.action(LifecycleOp.WAIT), 3)
    assert engine.outcomes()[0].test_loss != pytest.approx(loss)
