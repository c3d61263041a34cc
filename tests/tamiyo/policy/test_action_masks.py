"""What may be chosen, held against the rules in words and against trying every action there is."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.factored_actions import CHOICES, HEADS, OPS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import AlphaMode, HostReport, Rules, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.slot_config import SlotConfig
from esper.leyline.stages import SeedStage
from esper.scripts.runner import prepare
from esper.scripts.train import add_arguments, configure
from esper.tamiyo.baselines import draw
from esper.tamiyo.policy.action_masks import LegalActions, possible
from esper.tolaria.engine import Engine

SLOTS = ("r0c0", "r0c1", "r0c2")
BLUEPRINTS = ("first", "second", "third")
# The first blueprint fits everywhere, the second only in r0c1, the third everywhere but in r0c0.
FITS = ((True, False, False), (True, True, True), (True, False, True))
SPACE = ActionSpace(
    SlotConfig.from_specs(
        InjectionSpec(slot_id, 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i, slot_id in enumerate(SLOTS)
    ),
    BLUEPRINTS,
    FITS,
)
LIVE = {SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING}


def slot_in(stage: SeedStage = SeedStage.DORMANT, index: int = 0, **facts: object) -> SeedStateReport:
    """A slot in a stage, with everything about the seed that masks may look at."""
    slot = SeedStateReport(SLOTS[index], (SLOTS[index],), 8, "NCHW", InjectionSurface.BLOCK_END, index, stage)
    return replace(slot, **facts)


def host_of(slots: tuple[SeedStateReport, ...], max_seeds: int = 9, **facts: object) -> HostReport:
    rules = replace(Rules(max_seeds), min_prune_age=3)
    return replace(HostReport(0, 5, 20, rules, slots, 100, 100, 100), **facts)


@st.composite
def slots(draw: st.DrawFn, index: int) -> SeedStateReport:
    stage = draw(st.sampled_from(SeedStage))
    if stage not in LIVE | {SeedStage.FOSSILIZED}:
        return slot_in(stage, index)
    top = draw(st.sampled_from([1, 4]))
    return slot_in(
        stage,
        index,
        age=draw(st.integers(0, 6)),
        alpha_mode=draw(st.sampled_from(AlphaMode)),
        internal_kind=SeedInternalKind.NONE if top == 1 else SeedInternalKind.CONV_LADDER,
        internal_level=draw(st.integers(0, top)),
        internal_max_level=top,
    )


@st.composite
def hosts(draw: st.DrawFn) -> HostReport:
    three = tuple(draw(slots(index)) for index in range(3))
    report = host_of(three, draw(st.integers(1, 4)), finished=draw(st.integers(0, 5)) == 0)
    return replace(report, rules=replace(report.rules, internal_needs_hold=draw(st.booleans())))


def rule_in_words(op: LifecycleOp, slot: SeedStateReport, host: HostReport) -> bool:
    """Whether `op` is physically possible in this slot, from the prose of the design, not from the table."""
    fades = slot.alpha_mode is AlphaMode.DOWN
    at_rest = slot.alpha_mode is AlphaMode.HOLD
    has_rungs = slot.internal_kind is not SeedInternalKind.NONE
    may_switch = slot.stage in LIVE - {SeedStage.GERMINATED} and (at_rest or not host.rules.internal_needs_hold)
    taken = sum(other.stage in LIVE | {SeedStage.FOSSILIZED} for other in host.slots)
    return (
        not host.finished
        and {
            "GERMINATE": slot.stage is SeedStage.DORMANT and taken < host.rules.max_seeds,
            "SET_ALPHA_TARGET": slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING) and at_rest,
            "PRUNE": slot.stage in LIVE and slot.age >= 3 and not fades,
            "FOSSILIZE": slot.stage is SeedStage.HOLDING,
            "ADVANCE": slot.stage in LIVE - {SeedStage.HOLDING} and not fades,
            "GROW_INTERNAL": has_rungs and may_switch and slot.internal_level < slot.internal_max_level,
            "SHRINK_INTERNAL": has_rungs and may_switch and slot.internal_level > 0,
        }[op.name]
    )


def every_action(space: ActionSpace) -> list[FactoredAction]:
    """All that can be said, each meaning once: heads that do not matter stand at their first choice."""
    sizes = {"op": 1, "slot": len(SLOTS), "blueprint": len(BLUEPRINTS)} | {k: len(v) for k, v in CHOICES.items()}
    found = []
    for op, row in OPS.items():
        choices = [[int(op)], *(range(sizes[head]) if head in row.heads else [0] for head in HEADS[1:])]
        found += [space.from_indices(indices) for indices in itertools.product(*choices)]
    return found


ALL = every_action(SPACE)


def allowed_in_words(action: FactoredAction, host: HostReport) -> bool:
    if action.op is LifecycleOp.WAIT:
        return True
    slot = action.slot_idx
    fits = action.op is not LifecycleOp.GERMINATE or FITS[slot][action.indices[HEADS.index("blueprint")]]
    return fits and rule_in_words(action.op, host.slots[slot], host)


def masks_of(host: HostReport) -> LegalActions:
    (legal,) = possible([host], SPACE)
    return legal


@given(host=hosts())
def test_what_is_allowed_is_what_the_rules_say_action_by_action(host: HostReport) -> None:
    legal = masks_of(host)

    assert [legal.allows(action) for action in ALL] == [allowed_in_words(action, host) for action in ALL]


@given(host=hosts())
def test_an_operation_is_possible_if_some_slot_allows_it_and_the_slot_is_masked_exactly_given_it(
    host: HostReport,
) -> None:
    legal = masks_of(host)

    for op in LifecycleOp:
        exact = [op is not LifecycleOp.WAIT and rule_in_words(op, slot, host) for slot in host.slots]
        assert list(legal.slot_by_op[op]) == exact
        assert legal.op[op] == (op is LifecycleOp.WAIT or any(exact))
        assert legal.slots(op) == tuple(name for name, free in zip(SLOTS, exact, strict=True) if free)


@given(host=hosts())
def test_no_choice_that_a_mask_allows_leads_to_a_dead_end(host: HostReport) -> None:
    """Heads are chosen one after the other, so what a mask offers must be possible to complete."""
    legal = masks_of(host)
    completed = {(action.op, action.slot_idx) for action in ALL if legal.allows(action)}

    for op in LifecycleOp:
        assert any(done is op for done, _ in completed) == legal.op[op]
        for slot, free in enumerate(legal.slot_by_op[op]):
            assert not free or (op, slot) in completed


@given(host=hosts(), lot=st.integers(0, 2**40))
def test_whatever_is_drawn_is_allowed(host: HostReport, lot: int) -> None:
    legal = masks_of(host)

    assert legal.allows(draw(legal, torch.Generator().manual_seed(lot)))


@given(host=hosts())
def test_waiting_is_always_possible(host: HostReport) -> None:
    assert masks_of(host).op[LifecycleOp.WAIT]
    assert masks_of(host).allows(SPACE.action("WAIT"))


@given(host=hosts())
def test_a_finished_environment_can_only_wait(host: HostReport) -> None:
    legal = masks_of(replace(host, finished=True))

    assert [action.op.name for action in ALL if legal.allows(action)] == ["WAIT"]
    assert legal.op_bits == 1


def test_a_blueprint_is_possible_where_it_fits_the_slot() -> None:
    legal = masks_of(host_of(tuple(slot_in(index=index) for index in range(3))))

    for slot in range(3):
        assert legal.head_mask("blueprint", LifecycleOp.GERMINATE, slot) == FITS[slot]


def test_heads_that_are_never_impossible_are_open() -> None:
    legal = masks_of(host_of(tuple(slot_in(index=index) for index in range(3))))

    for head, names in CHOICES.items():
        assert legal.head_mask(head, LifecycleOp.GERMINATE, 0) == (True,) * len(names)


def test_where_no_blueprint_fits_nothing_germinates() -> None:
    """Vectors beside images, and only one kind of blueprint on offer."""
    space = replace(SPACE, fits=((False,) * 3, (True,) * 3, (False,) * 3))
    (legal,) = possible([host_of(tuple(slot_in(index=index) for index in range(3)))], space)

    assert legal.slots(LifecycleOp.GERMINATE) == ("r0c1",)


def test_the_bits_of_an_event_are_the_operations_in_their_order() -> None:
    legal = masks_of(host_of((slot_in(), slot_in(SeedStage.HOLDING, 1, age=5), slot_in(SeedStage.EMBARGOED, 2))))

    named = {op.name for op in LifecycleOp if legal.op_bits >> op & 1}

    assert named == {"WAIT", "GERMINATE", "SET_ALPHA_TARGET", "PRUNE", "FOSSILIZE"}


def test_every_environment_has_masks_of_its_own() -> None:
    empty = host_of(tuple(slot_in(index=index) for index in range(3)))
    held = replace(empty, slots=(slot_in(SeedStage.HOLDING), *empty.slots[1:]))

    first, second = possible([empty, held], SPACE)

    assert not first.op[LifecycleOp.FOSSILIZE]
    assert second.slots(LifecycleOp.FOSSILIZE) == ("r0c0",)
    assert second.slots(LifecycleOp.GERMINATE) == ("r0c1", "r0c2")


# --- the limit on seeds, from the command line to the mask ------------------------------------------------------


def started(tmp_path: Path, *flags: str) -> Engine:
    """The engine of a run that a command line asks for."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(
        ["static", "--task", "digits", "--set", "task.epoch_items=64", "--set", f"run.root={tmp_path}", *flags]
    )
    engine = prepare(configure(args)).engine
    engine.reset(0)
    return engine


def germinable(engine: Engine) -> tuple[str, ...]:
    return possible(engine.reports(), engine.space)[0].slots(LifecycleOp.GERMINATE)


def act(engine: Engine, op: str, slot: str, **heads: str) -> None:
    (receipt,) = engine.apply([engine.space.action(op, slot=slot, **heads)])
    assert receipt.done, receipt.why
    engine.train_epoch()
    engine.measure()


def test_max_seeds_on_the_command_line_masks_germination_at_the_limit(tmp_path: Path) -> None:
    engine = started(tmp_path, "--max-seeds", "2", "--episode-length", "60")
    assert germinable(engine) == ("r0c0", "r0c1", "r0c2")

    act(engine, "GERMINATE", "r0c0", blueprint="norm", tempo="fast")
    assert germinable(engine) == ("r0c1", "r0c2")
    act(engine, "GERMINATE", "r0c1", blueprint="norm")
    assert germinable(engine) == ()

    (refused,) = engine.apply([engine.space.action("GERMINATE", slot="r0c2", blueprint="norm")])
    assert not refused.done
    assert refused.refused_by == "illegal"
    assert "2 of 2 seeds" in refused.why


def test_fossils_count_against_the_limit_and_embargoed_slots_do_not(tmp_path: Path) -> None:
    engine = started(tmp_path, "--max-seeds", "1", "--episode-length", "60", "--set", "body.min_training=0")
    act(engine, "GERMINATE", "r0c0", blueprint="norm", tempo="fast")
    assert germinable(engine) == ()
    act(engine, "ADVANCE", "r0c0")
    act(engine, "PRUNE", "r0c0", alpha_speed="instant")

    engine.train_epoch()
    assert engine.measure()[0].slots[0].stage is SeedStage.EMBARGOED
    assert germinable(engine) == ("r0c1", "r0c2")

    act(engine, "GERMINATE", "r0c1", blueprint="norm", tempo="fast")
    act(engine, "ADVANCE", "r0c1")
    act(engine, "ADVANCE", "r0c1")
    for _ in range(3):
        engine.train_epoch()
    engine.measure()
    act(engine, "ADVANCE", "r0c1")
    act(engine, "FOSSILIZE", "r0c1")
    assert engine.reports()[0].slots[1].stage is SeedStage.FOSSILIZED
    assert germinable(engine) == ()


def test_without_the_flag_every_slot_may_hold_a_seed(tmp_path: Path) -> None:
    engine = started(tmp_path, "--slots", "r0c0", "r0c2")

    assert engine.reports()[0].rules.max_seeds == 2
