"""Schedules keep what they plant, decide once per epoch, and are drawn from all there is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tamiyo.small import space
from tests.tolaria.small import QUICK, engine_on, toy

from esper.kasmina.config import BodyConfig
from esper.leyline.factored_actions import CHOICES, TEMPOS
from esper.leyline.reports import Rules
from esper.simic.experiments.schedules import Menu, Planting, Schedule, compiled, drawn
from esper.tamiyo.baselines import schedule as follow
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import Build
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tolaria.engine import Engine

MENU = Menu(space(3), Rules(max_seeds=9, min_training=2, min_holding=3), 20, {})


def told(schedule: Schedule) -> dict[int, str]:
    return {epoch: f"{line['op']} {line['slot']}" for epoch, line in enumerate(schedule) if line["op"] != "WAIT"}


def test_a_seed_goes_from_planting_to_keeping_as_fast_as_its_dwell_times_allow() -> None:
    found = compiled([Planting(4, "r0c1", "norm", "linear_add", "fast")], MENU)

    # 2 epochs in TRAINING, a blend of 3, 3 epochs in HOLDING
    assert told(found) == {
        4: "GERMINATE r0c1",
        5: "ADVANCE r0c1",
        7: "ADVANCE r0c1",
        10: "ADVANCE r0c1",
        13: "FOSSILIZE r0c1",
    }
    assert len(found) == 20
    assert found[4] == {
        "op": "GERMINATE",
        "slot": "r0c1",
        "blueprint": "norm",
        "style": "linear_add",
        "tempo": "fast",
    }


def test_of_two_seeds_that_are_due_the_one_that_is_further_goes_first() -> None:
    found = compiled(
        [Planting(0, "r0c0", "norm", "linear_add", "fast"), Planting(1, "r0c2", "norm", "linear_add", "fast")], MENU
    )

    assert list(told(found).items())[:6] == [
        (0, "GERMINATE r0c0"),
        (1, "ADVANCE r0c0"),
        (2, "GERMINATE r0c2"),
        (3, "ADVANCE r0c0"),
        (4, "ADVANCE r0c2"),
        (6, "ADVANCE r0c0"),
    ]


@pytest.mark.parametrize("resting", [False, True])
def test_rungs_are_switched_on_between_blending_and_keeping(resting: bool) -> None:
    menu = replace(MENU, rules=replace(MENU.rules, internal_needs_hold=resting))
    found = [line["op"] for line in compiled([Planting(0, "r0c0", "norm", "linear_add", "fast", grows=2)], menu)]

    first = 8 if resting else 4  # BLENDING begins at 3, HOLDING at 6
    assert [epoch for epoch, op in enumerate(found) if op == "GROW_INTERNAL"] == ([7, 8] if resting else [4, 5])
    assert found.index("FOSSILIZE") > first


def follow_through(engine: Engine, chosen: Schedule) -> list[str]:
    """What is refused while the schedule is carried out."""
    controller = follow(Build(PolicyConfig(), engine.space, 0, [list(map(dict, chosen))]))
    reports, refused = engine.reports(), []
    for line in chosen:
        legal = possible(reports, engine.space)
        choice, _ = controller.act(observe(reports), legal, (None,))
        if choice.actions[0].op.name != line["op"]:
            refused.append(f"{line} is not possible")
        (receipt,) = engine.apply(choice.actions)
        if not receipt.done:
            refused.append(receipt.why)
        engine.train_epoch()
        reports = engine.measure()
    return refused


def real(length: int, body: BodyConfig, seed: int) -> tuple[Engine, Menu]:
    engine = engine_on(toy((4, 6, 6), items=16), length=length, seed=seed, body=body)
    return engine, Menu(engine.space, engine.reports()[0].rules, length, {"conv_ladder": 4})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "body", [QUICK, BodyConfig(min_training=0.1, min_holding=0.1), BodyConfig(blueprints=("conv_ladder", "norm"))]
)
def test_what_is_drawn_is_carried_out_on_a_real_host_without_a_refusal_and_kept(seed: int, body: BodyConfig) -> None:
    engine, menu = real(40, body, seed)
    chosen = drawn(menu, torch.Generator().manual_seed(seed))
    ops = Counter(line["op"] for line in chosen)

    assert follow_through(engine, chosen) == []
    assert engine.outcomes()[0].fossilized == ops["FOSSILIZE"] > 0


def test_a_lone_seed_planted_as_late_as_it_may_be_is_kept_on_a_real_host() -> None:
    engine, menu = real(12, QUICK, 0)
    latest = 12 - (1 + 1 + TEMPOS["medium"] + 1 + 2)  # germination, training, blend, holding, and decisions between

    chosen = compiled([Planting(latest, "r0c0", "norm", "linear_add", "medium")], menu)

    assert follow_through(engine, chosen) == []
    assert engine.outcomes()[0].fossilized == 1


@given(seed=st.integers(0, 10**6), most=st.integers(1, 4), length=st.integers(1, 40))
def test_schedules_are_as_long_as_the_episode_and_plant_no_more_than_may_live(
    seed: int, most: int, length: int
) -> None:
    menu = replace(MENU, rules=replace(MENU.rules, max_seeds=most), episode_length=length)
    chosen = drawn(menu, torch.Generator().manual_seed(seed))
    planted = [line["slot"] for line in chosen if line["op"] == "GERMINATE"]

    assert len(chosen) == length
    assert len(set(planted)) == len(planted) <= most
    for line in chosen:
        menu.space.action(**line)  # every name is known


def test_everything_that_is_on_offer_is_drawn_and_nothing_else() -> None:
    offered = space(
        3, ("conv_light", "norm", "conv_ladder"), r0c1=("norm",), r0c2=("conv_light", "norm", "conv_ladder")
    )
    menu = replace(MENU, space=offered, episode_length=40, rungs={"conv_ladder": 4})
    generator = torch.Generator().manual_seed(0)
    chosen = [drawn(menu, generator) for _ in range(300)]
    plants = [line for each in chosen for line in each if line["op"] == "GERMINATE"]
    grown = Counter(sum(line["op"] == "GROW_INTERNAL" for line in each) for each in chosen)

    for head in ("style", "tempo"):
        assert {line[head] for line in plants} == set(CHOICES[head])
    assert {(line["slot"], line["blueprint"]) for line in plants} == {
        ("r0c0", "conv_light"),
        ("r0c0", "norm"),
        ("r0c0", "conv_ladder"),
        ("r0c1", "conv_light"),
        ("r0c1", "conv_ladder"),
    }
    assert {0, 1, 2, 3} <= set(grown)
    assert max(grown) == 6  # two ladders, three rungs more for each
