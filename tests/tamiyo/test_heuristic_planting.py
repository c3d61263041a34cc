"""When the heuristic plants a seed, where, and which: on reports made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.tamiyo.small import BLANK, LENGTH, host, masks, slot, space

from esper.leyline.factored_actions import ActionSpace
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.config import HeuristicConfig
from esper.tamiyo.heuristic import Recollection, Situation, plant_on_a_plateau


def planted(
    report: HostReport, memory: Recollection = BLANK, offered: ActionSpace | None = None, **settings: Any
) -> str | None:
    """Slot, blueprint and tempo of the seed that is planted."""
    legal = masks(report, offered)
    found = plant_on_a_plateau(Situation(HeuristicConfig(**settings), report, legal, memory))
    if found is None:
        return None
    names = found[0].as_names()
    assert (names["op"], names["alpha_target"], found[1]) == ("GERMINATE", "full", memory)
    return f"{names['slot']} {names['blueprint']} {names['tempo']}"


@pytest.mark.parametrize(
    ("losses", "plateau"),
    [
        ((1.0, 9.0, 0.75), False),  # a gain of an eighth per epoch
        ((1.0, 0.0, 0.8125), True),
        ((4.0, 1.0, 0.9, 0.8125), True),  # the last two epochs alone count
        ((4.0, 4.0, 9.0, 3.0), False),  # relative to where they began
        ((4.0, 4.0, 9.0, 3.0625), True),
        ((1.0, 1.0, 2.0), True),
        ((1.0, 1.0), False),  # not enough is known
        ((), False),
    ],
)
def test_a_seed_is_planted_early_only_where_the_loss_falls_by_less_than_an_eighth_per_epoch(
    losses: tuple[float, ...], plateau: bool
) -> None:
    found = planted(host(slot(0), left=95), Recollection(losses), plateau=0.125)

    assert found == ("r0c0 conv_light slow" if plateau else None)


@pytest.mark.parametrize(("epoch", "expected"), [(2, None), (3, "r0c0 conv_light slow")])
def test_nothing_is_planted_while_the_host_warms_up(epoch: int, expected: str | None) -> None:
    assert planted(host(slot(0), left=LENGTH - epoch), Recollection((1.0,) * 3)) == expected


@pytest.mark.parametrize(("epoch", "expected"), [(0, None), (1, "r0c0 conv_light fast")])
def test_in_a_short_episode_the_host_has_one_epoch_to_itself(epoch: int, expected: str | None) -> None:
    assert planted(host(slot(0), epoch=epoch, episode_length=16), Recollection((1.0,) * 3)) == expected


@pytest.mark.parametrize(("length", "tempo"), [(40, "fast"), (41, "medium"), (65, "medium"), (66, "slow")])
def test_a_blend_takes_about_a_tenth_of_the_episode(length: int, tempo: str) -> None:
    assert planted(host(slot(0), epoch=10, episode_length=length)) == f"r0c0 conv_light {tempo}"


CONV0, CONV1, NORM0, NORM1 = ("r0c0", "conv_light"), ("r0c1", "conv_light"), ("r0c0", "norm"), ("r0c1", "norm")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({}, "r0c1 conv_light slow"),
        ({CONV1: 1}, "r0c0 conv_light slow"),
        ({CONV0: 1}, "r0c1 conv_light slow"),
        ({CONV0: 1, CONV1: 1}, "r0c1 norm slow"),
        ({CONV0: 1, CONV1: 1, NORM1: 1}, "r0c0 norm slow"),
        ({CONV0: 1, CONV1: 1, NORM0: 1, NORM1: 1}, "r0c1 conv_light slow"),
        ({CONV0: 1, CONV1: 2, NORM0: 1, NORM1: 1}, "r0c0 conv_light slow"),
        ({CONV0: 2, CONV1: 2, NORM0: 2, NORM1: 1}, "r0c1 norm slow"),
    ],
)
def test_a_seed_goes_where_fewest_have_failed_then_by_blueprint_then_to_the_later_slot(
    failures: Mapping[tuple[str, str], int], expected: str
) -> None:
    memory = Recollection(failures=failures)

    assert planted(host(slot(0), slot(1)), memory, prefer=("conv_light", "norm")) == expected


def test_the_later_slot_is_the_one_that_runs_later_whatever_its_name() -> None:
    assert planted(host(slot(0, order=7), slot(1, order=2), slot(2, order=5))) == "r0c0 conv_light slow"


def test_only_free_slots_are_planted() -> None:
    assert planted(host(slot(0), slot(1), slot(2, SeedStage.FOSSILIZED))) == "r0c1 conv_light slow"


def test_what_is_not_preferred_comes_last_and_in_the_order_of_the_offer() -> None:
    offered = space(1, ("second", "third", "first"))
    tried = [{}, {"first": 1}, {"first": 1, "second": 1}]

    found = [
        planted(
            host(slot(0)),
            Recollection(failures={("r0c0", name): count for name, count in each.items()}),
            offered,
            prefer=("not on offer", "first"),
        )
        for each in tried
    ]

    assert found == ["r0c0 first slow", "r0c0 second slow", "r0c0 third slow"]


def test_a_blueprint_goes_only_where_it_fits() -> None:
    both = host(slot(0), slot(1))

    nowhere = space(2, r0c0=("conv_light",), r0c1=("conv_light",))

    assert planted(both, offered=space(2, r0c1=("conv_light",))) == "r0c0 conv_light slow"
    assert planted(both, offered=nowhere) == "r0c1 norm slow"
