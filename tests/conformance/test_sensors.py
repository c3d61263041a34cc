"""What can be done can be seen: every lever is named by a sensor, and using the lever on a real host moves it.

A sensor that names a lever promises that two hosts which differ in the use of that lever alone, differ in what it
reads. Read `CASES`: for each lever the ways to use it, each as a common past and two presents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

import pytest
import torch
from tests.tolaria.small import CLASSES, QUICK, by_plan, do, engine_on, live, toy
from torch import nn

from esper.kasmina.config import BodyConfig
from esper.kasmina.host import Host
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import HostReport, Rules
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS, HostSensor, SlotSensor
from esper.tamiyo.policy.features import encode

Plan = tuple[dict[str, str] | None, ...]
BODY = replace(QUICK, blueprints=("conv_ladder", "conv_light", "norm"))
LIMITS = ("max_seeds",)
"""The limits of `Rules` that a run may set and that bind for its whole length; the others are dwell times."""


def lattice() -> nn.Module:
    """Two slots after different parts of one layer."""
    surfaces = (InjectionSurface.POST_ATTN, InjectionSurface.POST_MLP)
    specs = [InjectionSpec(f"r0c{i}", 4, "NCHW", surface, i, 0, i) for i, surface in enumerate(surfaces)]
    blocks = [nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.ReLU()) for inputs in (1, 4)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return Host([*blocks, head], specs, isolate_blending=True)


@dataclass(frozen=True)
class Case:
    """One lever used one way or another after the same past; `epochs` later the two are looked at."""

    one: Plan
    other: Plan
    past: Plan = ()
    epochs: int = 1
    body: tuple[BodyConfig, BodyConfig] = (BODY, BODY)
    slots: tuple[int, int] = (0, 0)  # the slot that each of the two worked on
    make_host: Callable[[], nn.Module] | None = None


def germinate(slot: str = "r0c0", **heads: str) -> dict[str, str]:
    return do("GERMINATE", slot, **{"blueprint": "conv_ladder", "tempo": "fast"} | heads)


PLANTED: Plan = (germinate(),)
TRAINING: Plan = (*PLANTED, do("ADVANCE"))
BLENDING: Plan = (*TRAINING, do("ADVANCE"))
BLENDED: Plan = (*BLENDING, None, None)
HOLDING: Plan = (*BLENDED, do("ADVANCE"))
PARTLY: Plan = (germinate(alpha_target="half"), *BLENDED[1:])


def used(past: Plan, *now: dict[str, str]) -> Case:
    """An operation instead of waiting."""
    return Case(now, (None,), past)


CASES: dict[str, tuple[Case, ...]] = {
    "WAIT": (Case((None,), PLANTED),),
    "GERMINATE": (used((), *PLANTED),),
    "ADVANCE": (used(PLANTED, do("ADVANCE")), used(TRAINING, do("ADVANCE")), used(BLENDED, do("ADVANCE"))),
    "SET_ALPHA_TARGET": (
        used(PARTLY, do("SET_ALPHA_TARGET", alpha_target="full", alpha_speed="medium")),
        used(HOLDING, do("SET_ALPHA_TARGET", alpha_target="half", alpha_speed="medium")),
    ),
    "PRUNE": (
        used(TRAINING, do("PRUNE", alpha_speed="instant")),
        used(HOLDING, do("PRUNE", alpha_speed="slow")),
    ),
    "FOSSILIZE": (used(HOLDING, do("FOSSILIZE")),),
    "GROW_INTERNAL": (used(TRAINING, do("GROW_INTERNAL")),),
    "SHRINK_INTERNAL": (used(TRAINING, do("SHRINK_INTERNAL")),),
    "slot": (Case((germinate("r0c0"),), (germinate("r0c1"),), slots=(0, 1), make_host=lattice),),
    "blueprint": (Case((germinate(blueprint="conv_light"),), (germinate(blueprint="norm"),)),),
    "style": tuple(
        Case((germinate(style="linear_add"),), (germinate(style=f"linear_{blend}"),)) for blend in ("multiply", "gate")
    ),
    "tempo": (Case((germinate(tempo="fast"), *BLENDING[1:]), (germinate(tempo="slow"), *BLENDING[1:]), epochs=3),),
    "alpha_target": (
        Case((germinate(alpha_target="half"), *BLENDING[1:]), (germinate(alpha_target="full"), *BLENDING[1:])),
    ),
    "alpha_speed": (Case((do("PRUNE", alpha_speed="fast"),), (do("PRUNE", alpha_speed="slow"),), HOLDING),),
    "alpha_curve": (
        Case(
            (do("PRUNE", alpha_speed="slow", alpha_curve="linear"),),
            (do("PRUNE", alpha_speed="slow", alpha_curve="sigmoid_sharp"),),
            HOLDING,
            epochs=2,
        ),
    ),
    "max_seeds": (Case(PLANTED, PLANTED, body=(replace(BODY, max_seeds=1), replace(BODY, max_seeds=2))),),
}


def seen_after(case: Case, now: Plan, body: BodyConfig) -> HostReport:
    """The report when the past and then `now` have been done; none of it may have been refused."""
    engine = engine_on(toy(make_host=case.make_host), length=24, body=body)
    steps = max(len(now), case.epochs)
    receipts = [step.receipts[0] for step in live(engine, by_plan(*case.past, *now), len(case.past) + steps)]
    assert all(receipt.done for receipt in receipts), [receipt.why for receipt in receipts]
    (report,) = engine.reports()
    base, slots, _ = encode([report], engine.space)
    assert torch.cat((base.flatten(), slots.flatten())).isfinite().all()
    return report


@cache
def moved_by(lever: str) -> frozenset[str]:
    """The sensors that differ in some case of the lever."""
    moved: set[str] = set()
    for case in CASES[lever]:
        one, other = seen_after(case, case.one, case.body[0]), seen_after(case, case.other, case.body[1])
        here, there = one.slots[case.slots[0]], other.slots[case.slots[1]]
        moved |= {sensor.name for sensor in HOST_SENSORS if sensor.read(one) != sensor.read(other)}
        moved |= {sensor.name for sensor in SLOT_SENSORS if sensor.read(here, one) != sensor.read(there, other)}
    return frozenset(moved)


ALL: Sequence[HostSensor | SlotSensor] = (*HOST_SENSORS, *SLOT_SENSORS)


def test_every_operation_every_head_and_every_limit_is_named_by_a_sensor():
    named = {lever for sensor in ALL for lever in sensor.levers}

    assert named == {op.name for op in LifecycleOp} | set(HEADS[1:]) | set(LIMITS)
    assert set(CASES) == named
    assert set(LIMITS) <= {field.name for field in fields(Rules)}


@pytest.mark.parametrize("lever", CASES)
def test_every_sensor_that_names_a_lever_moves_when_it_is_used(lever: str):
    promised = {sensor.name for sensor in ALL if lever in sensor.levers}

    assert promised
    assert promised <= moved_by(lever)


@pytest.mark.parametrize("op", LifecycleOp)
def test_what_was_done_last_is_seen(op: LifecycleOp):
    assert f"last_op_is_{op.name}" in moved_by(op.name)
