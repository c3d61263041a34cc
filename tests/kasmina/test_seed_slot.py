"""The life of a seed in its slot: every edge of the table, gates that refuse and say why, rest after a prune."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.support import (
    BLENDS,
    DOWNFALL,
    LINEAR,
    PATIENT,
    USEFUL,
    bring,
    empty_slot,
    find_healthy,
    noise,
    plant,
    same,
    seeded,
    snapshot,
    stir,
)
from torch import Tensor, nn

from esper.kasmina.config import SlotSettings
from esper.kasmina.gates import GatesConfig
from esper.kasmina.slot import SeedSlot
from esper.leyline.decisions import Receipt
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import CURVES, STYLES, LifecycleOp
from esper.leyline.reports import AlphaMode
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import ADVANCES, EDGES, LIVE, SeedStage
from esper.leyline.telemetry import (
    Payload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
    TelemetryEventType,
)

S = SeedStage
every_blend = pytest.mark.parametrize("blend", BLENDS)


def moves(events: tuple[Payload, ...]) -> list[tuple[str, str, str]]:
    """(from, to, driver) of every change of stage."""
    changes = [event for event in events if isinstance(event, SeedStageChangedPayload)]
    return [(event.from_stage, event.to_stage, event.driver) for event in changes]


def only(kind: type[Payload], events: tuple[Payload, ...]) -> Payload:
    (event,) = (event for event in events if isinstance(event, kind))
    return event


def ready(stage: SeedStage, settings: SlotSettings = PATIENT, **planting: object) -> SeedSlot:
    """A slot in `stage` that passes its next gate."""
    slot = bring(empty_slot(settings=settings), stage, **planting)
    find_healthy(slot)
    while slot.stage in LIVE and (slot.report().epochs_in_stage < 1 or slot.report().alpha_mode is AlphaMode.UP):
        slot.step_epoch()
    return slot


# --- every edge, by every driver --------------------------------------------------------------------------------


def by_germination() -> tuple[Payload, ...]:
    return plant(empty_slot()).events


def by_advancing(stage: SeedStage) -> tuple[Payload, ...]:
    return ready(stage).advance_stage().events


def by_time_and_gate(stage: SeedStage) -> tuple[Payload, ...]:
    slot = ready(stage)
    slot.settings = replace(PATIENT, auto_advance=("G1", "G2", "G3"))
    return slot.step_epoch()


def by_blending_out() -> tuple[Payload, ...]:
    return ready(S.HOLDING).set_alpha_target(0.5, 3, LINEAR).events


def by_fossilising() -> tuple[Payload, ...]:
    return ready(S.HOLDING).fossilize().events


def by_pruning(stage: SeedStage, steps: int = 0) -> tuple[Payload, ...]:
    return ready(stage).prune(steps, LINEAR).events


def by_fading() -> tuple[Payload, ...]:
    slot = ready(S.BLENDING)
    slot.prune(1, LINEAR)
    return slot.step_epoch()


def by_resting(stage: SeedStage) -> tuple[Payload, ...]:
    slot = bring(empty_slot(), stage)
    events: tuple[Payload, ...] = ()
    while not events:
        events = slot.step_epoch()
    return events


WAYS: dict[tuple[str, str, str], Callable[[], tuple[Payload, ...]]] = {
    ("DORMANT", "GERMINATED", "GERMINATE"): by_germination,
    ("GERMINATED", "TRAINING", "ADVANCE"): lambda: by_advancing(S.GERMINATED),
    ("GERMINATED", "TRAINING", "time"): lambda: by_time_and_gate(S.GERMINATED),
    ("TRAINING", "BLENDING", "ADVANCE"): lambda: by_advancing(S.TRAINING),
    ("TRAINING", "BLENDING", "time"): lambda: by_time_and_gate(S.TRAINING),
    ("BLENDING", "HOLDING", "ADVANCE"): lambda: by_advancing(S.BLENDING),
    ("BLENDING", "HOLDING", "time"): lambda: by_time_and_gate(S.BLENDING),
    ("HOLDING", "BLENDING", "SET_ALPHA_TARGET"): by_blending_out,
    ("HOLDING", "BLENDING", "PRUNE"): lambda: by_pruning(S.HOLDING, steps=3),
    ("HOLDING", "FOSSILIZED", "FOSSILIZE"): by_fossilising,
    ("GERMINATED", "PRUNED", "PRUNE"): lambda: by_pruning(S.GERMINATED),
    ("TRAINING", "PRUNED", "PRUNE"): lambda: by_pruning(S.TRAINING),
    ("BLENDING", "PRUNED", "PRUNE"): lambda: by_pruning(S.BLENDING),
    ("BLENDING", "PRUNED", "time"): by_fading,
    ("HOLDING", "PRUNED", "PRUNE"): lambda: by_pruning(S.HOLDING),
    ("PRUNED", "EMBARGOED", "time"): lambda: by_resting(S.PRUNED),
    ("EMBARGOED", "RESETTING", "time"): lambda: by_resting(S.EMBARGOED),
    ("RESETTING", "DORMANT", "time"): lambda: by_resting(S.RESETTING),
}


def test_these_are_all_the_edges_and_drivers_of_the_table():
    table = {(edge.old.name, edge.new.name, driver) for edge in EDGES.values() for driver in edge.drivers}

    assert set(WAYS) == table


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_every_edge_can_be_taken_by_every_driver_the_table_names(way: tuple[str, str, str]):
    assert moves(WAYS[way]()) == [way]


@pytest.mark.parametrize("stage", ADVANCES)
@every_blend
def test_asking_for_a_transition_and_letting_time_bring_it_give_equal_state(stage: SeedStage, blend: str):
    asked, timed = ready(stage, blend=blend), ready(stage, blend=blend)
    timed.settings = replace(timed.settings, auto_advance=("G1", "G2", "G3"))
    for slot in (asked, timed):
        slot.record_metric(40.0)
    assert same(snapshot(asked), snapshot(timed))

    with seeded(9):
        assert asked.advance_stage().done
        asked.step_epoch()
    with seeded(9):
        timed.step_epoch()

    assert asked.stage is timed.stage is ADVANCES[stage].new
    assert same(snapshot(asked), snapshot(timed))
    assert asked.report() == timed.report()


@pytest.mark.parametrize("stage", ADVANCES)
def test_time_advances_only_where_the_run_names_the_gate(stage: SeedStage):
    slot = ready(stage)
    others = tuple(gate for gate in ("G1", "G2", "G3") if gate != ADVANCES[stage].gate)
    slot.settings = replace(slot.settings, auto_advance=others)

    slot.step_epoch()

    assert slot.stage is stage


def test_entering_blending_starts_the_schedule_and_remembers_the_metric():
    slot = ready(S.TRAINING, tempo=5, target=0.7)
    slot.record_metric(61.5)

    slot.advance_stage()

    state = slot.state
    assert state.blending_started
    assert state.metrics.metric_at_blending_start == 61.5
    assert (state.alpha.steps_done, state.alpha.steps_total, state.alpha.target) == (0, 5, 0.7)
    assert slot.report().alpha_mode is AlphaMode.UP


@pytest.mark.parametrize(("tempo", "style"), [(3, "linear_add"), (8, "sigmoid_add")])
def test_alpha_takes_tempo_epochs_to_its_target_and_forward_uses_what_is_reported(tempo: int, style: str):
    slot = empty_slot()
    with seeded():
        slot.germinate("conv_light", STYLES[style], tempo, 1.0)
    slot.advance_stage()
    find_healthy(slot)
    slot.step_epoch()
    slot.advance_stage()
    stir(slot)
    x = noise(2, 8, 4, 4)

    for step in range(1, tempo + 1):
        slot.step_epoch()
        alpha = slot.report().alpha
        assert (alpha == 1.0) == (step == tempo)
        torch.testing.assert_close(slot(x), torch.lerp(x, slot.seed(x), torch.tensor(alpha)))

    assert slot.stage is S.BLENDING


# --- germination ------------------------------------------------------------------------------------------------


def test_germination_tells_what_was_planted():
    slot = empty_slot()

    receipt = plant(slot, "conv_ladder", "MULTIPLY", tempo=8)

    rung = 9 * 8 * 8 + 2 * 8
    born = only(SeedGerminatedPayload, receipt.events)
    assert (born.slot_id, born.seed_id, born.blueprint_id) == ("r0c0", "r0c0.1", "conv_ladder")
    assert (born.params, born.blend, born.tempo) == (4 * rung, "MULTIPLY", 8)
    assert (born.internal_kind, born.internal_level, born.internal_max_level) == (1, 1, 4)
    assert (receipt.done, receipt.params_before, receipt.params_after) == (True, 0, rung)
    assert only(SeedGateEvaluatedPayload, receipt.events).gate == "G0"


@pytest.mark.parametrize(("start", "level"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_a_ladder_starts_at_the_level_of_the_setting(start: int, level: int):
    slot = empty_slot(settings=replace(PATIENT, ladder_start=start))

    plant(slot, "conv_ladder")

    assert slot.report().internal_level == level
    assert slot.report().rungs == (True,) * level + (False,) * (4 - level)


def test_every_germination_gets_a_seed_id_of_its_own():
    slot, ids = empty_slot(), []
    for _ in range(3):
        plant(slot)
        ids.append(slot.report().seed_id)
        slot.step_epoch()
        slot.prune(0, LINEAR)
        while slot.stage is not S.DORMANT:
            slot.step_epoch()

    assert ids == ["r0c0.1", "r0c0.2", "r0c0.3"]


def test_the_same_generator_plants_the_same_weights_and_another_does_not():
    one, again, other = empty_slot(), empty_slot(), empty_slot()
    plant(one, "bottleneck", seed=1)
    plant(again, "bottleneck", seed=1)
    plant(other, "bottleneck", seed=2)

    assert same(snapshot(one), snapshot(again))
    assert not same(snapshot(one), snapshot(other))


def test_an_unknown_blueprint_is_an_error_that_suggests_one_and_plants_nothing():
    slot = empty_slot()
    before = snapshot(slot)

    with pytest.raises(ConfigError, match="did you mean 'conv_light'"):
        plant(slot, "conv_lite")
    assert same(snapshot(slot), before)


def test_a_blueprint_for_another_layout_is_an_error_and_plants_nothing():
    slot = empty_slot(layout="BTC")
    before = snapshot(slot)

    with pytest.raises(ConfigError, match="'conv_light' is for NCHW tensors, but slot r0c0 carries BTC"):
        plant(slot)
    assert same(snapshot(slot), before)


def test_a_seed_follows_the_mode_of_its_slot():
    slot = empty_slot().eval()
    plant(slot)

    assert not any(module.training for module in slot.modules())


# --- gates refuse, and say why ----------------------------------------------------------------------------------


def level_zero() -> SeedSlot:
    slot = ready(S.TRAINING, blueprint="conv_ladder")
    slot.shrink_internal()
    return slot


def unmeasured_gradient() -> SeedSlot:
    slot = empty_slot()
    plant(slot)
    slot.advance_stage()
    slot.step_epoch()
    return slot


def broken_gradient(stage: SeedStage) -> SeedSlot:
    slot = ready(stage)
    slot.state.health.record(math.nan, 1.0, 10, 10)
    return slot


def half_blended() -> SeedSlot:
    slot = ready(S.BLENDING, target=0.5)
    assert slot.report().alpha == 0.5
    return slot


def never_measured() -> SeedSlot:
    slot = ready(S.HOLDING)
    slot.state.metrics.contribution = None
    return slot


def strict(stage: SeedStage, **limits: float) -> SeedSlot:
    slot = ready(stage)
    slot.settings = replace(PATIENT, gates=GatesConfig("strict", **limits))
    return slot


def strict_without_improvement() -> SeedSlot:
    slot = empty_slot()
    slot.record_metric(1.0)
    plant(slot)
    slot.record_metric(50.0)
    slot.advance_stage()
    find_healthy(slot)
    slot.step_epoch()
    slot.record_metric(50.25)
    slot.settings = replace(PATIENT, gates=GatesConfig("strict"))
    return slot


def young(stage: SeedStage, rule: str) -> SeedSlot:
    slot = ready(stage)
    slot.settings = replace(PATIENT, rules=replace(PATIENT.rules, **{rule: 7}))
    return slot


REFUSALS: dict[str, tuple[Callable[[], SeedSlot], str, str]] = {
    "too young to blend": (lambda: young(S.TRAINING, "min_training"), "G2", "epochs in TRAINING is 1, wants 7"),
    "level zero": (level_zero, "G2", "internal level is 0, wants 1"),
    "gradient unmeasured": (unmeasured_gradient, "G2", "finite gradient was never measured"),
    "gradient broken": (lambda: broken_gradient(S.TRAINING), "G2", "finite gradient is 0, wants 1"),
    "still blending": (lambda: bring(empty_slot(), S.BLENDING), "G3", "blending finished is 0, wants 1"),
    "blended in part": (half_blended, "G3", "alpha target is 0.5, wants 1"),
    "too young to keep": (lambda: young(S.HOLDING, "min_holding"), "G5", "epochs in HOLDING is 1, wants 7"),
    "contribution unmeasured": (never_measured, "G5", "contribution was never measured"),
    "broken while held": (lambda: broken_gradient(S.HOLDING), "G5", "finite gradient is 0, wants 1"),
    "strict: weak gradient": (lambda: strict(S.TRAINING, min_grad_ratio=3.0), "G2", "gradient ratio is 1, wants 3"),
    "strict: no gain": (strict_without_improvement, "G2", "improvement in stage is 0.25, wants 0.5"),
    "strict: no use": (lambda: strict(S.HOLDING, min_contribution=2.5), "G5", "contribution is 2, wants 2.5"),
}


def onward(slot: SeedSlot) -> Receipt:
    return slot.fossilize() if slot.stage is S.HOLDING else slot.advance_stage()


@pytest.mark.parametrize("case", REFUSALS)
def test_a_gate_refuses_with_a_receipt_that_names_it_and_changes_nothing(case: str):
    make, gate, why = REFUSALS[case]
    slot = make()
    before = snapshot(slot)

    receipt = onward(slot)

    assert (receipt.done, receipt.refused_by) == (False, gate)
    assert why in receipt.why
    told = only(SeedGateEvaluatedPayload, receipt.events)
    assert (told.gate, told.passed) == (gate, False)
    assert moves(receipt.events) == []
    assert same(snapshot(slot), before)
    assert receipt.params_before == receipt.params_after == slot.report().internal_effective_params


@pytest.mark.parametrize("gate", ["G1", "G2", "G3", "G5"])
def test_every_gate_is_passed_by_a_seed_that_has_what_it_asks(gate: str):
    stage = next(old for (old, _), edge in EDGES.items() if edge.gate == gate)

    receipt = onward(ready(stage))

    assert receipt.done
    assert only(SeedGateEvaluatedPayload, receipt.events).passed


def test_a_gate_asks_all_its_questions_also_after_one_has_failed():
    slot = level_zero()
    slot.settings = replace(PATIENT, rules=replace(PATIENT.rules, min_training=7))

    receipt = slot.advance_stage()

    assert receipt.why == "epochs in TRAINING is 1, wants 7; internal level is 0, wants 1"
    checks = only(SeedGateEvaluatedPayload, receipt.events).checks
    assert [(name, passed) for name, _, _, passed in checks] == [
        ("epochs in TRAINING", False),
        ("internal level", False),
        ("finite gradient", True),
    ]


def test_g3_reads_the_schedule_not_the_gates_opinion():
    slot = ready(S.BLENDING, blend="GATE")
    slot.state.metrics.gate_weight = 0.01

    assert slot.advance_stage().done


@pytest.mark.parametrize("stage", SeedStage)
def test_what_the_table_forbids_is_refused_as_illegal_and_changes_nothing(stage: SeedStage):
    slot = bring(empty_slot(), stage)
    before = snapshot(slot)
    attempts = {
        LifecycleOp.GERMINATE: lambda: plant(slot),
        LifecycleOp.SET_ALPHA_TARGET: lambda: slot.set_alpha_target(0.5, 0, LINEAR),
        LifecycleOp.FOSSILIZE: slot.fossilize,
        LifecycleOp.ADVANCE: slot.advance_stage,
        LifecycleOp.GROW_INTERNAL: slot.grow_internal,
        LifecycleOp.SHRINK_INTERNAL: slot.shrink_internal,
        LifecycleOp.PRUNE: lambda: slot.prune(0, LINEAR),
    }
    allowed_by_hand = {
        S.DORMANT: {LifecycleOp.GERMINATE},
        S.GERMINATED: {LifecycleOp.ADVANCE},  # too young to be pruned
        S.TRAINING: {LifecycleOp.ADVANCE},
        S.BLENDING: {LifecycleOp.ADVANCE, LifecycleOp.PRUNE},
        S.HOLDING: {LifecycleOp.FOSSILIZE, LifecycleOp.SET_ALPHA_TARGET, LifecycleOp.PRUNE},
    }.get(stage, set())

    for op, attempt in attempts.items():
        if op in allowed_by_hand:
            continue
        receipt = attempt()
        assert (receipt.op, receipt.done, receipt.refused_by) == (op, False, "illegal")
        assert stage.name in receipt.why
        assert receipt.events == ()
        assert same(snapshot(slot), before)


# --- alpha ------------------------------------------------------------------------------------------------------


def test_a_held_seed_that_gives_way_goes_back_to_blending():
    slot = ready(S.HOLDING)

    receipt = slot.set_alpha_target(0.5, 2, LINEAR)

    assert moves(receipt.events) == [("HOLDING", "BLENDING", "SET_ALPHA_TARGET")]
    alphas = [slot.report().alpha]
    for _ in range(3):
        slot.step_epoch()
        alphas.append(slot.report().alpha)
    assert alphas == [1.0, 0.75, 0.5, 0.5]
    assert slot.alpha.item() == 0.5


def test_a_held_seed_told_to_be_full_stays_as_it_is():
    slot = ready(S.HOLDING)
    before = snapshot(slot)

    receipt = slot.set_alpha_target(1.0, 5, LINEAR)

    assert receipt.done
    assert receipt.events == ()
    assert same(snapshot(slot), before)


def test_a_seed_blended_in_part_can_be_blended_in_fully_and_held():
    slot = half_blended()

    slot.set_alpha_target(1.0, 0, LINEAR)

    assert slot.alpha.item() == 1.0
    assert slot.advance_stage().done


# --- pruning and rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", sorted(LIVE))
def test_a_prune_without_steps_removes_the_seed_at_once(stage: SeedStage):
    slot = ready(stage, blueprint="conv_ladder", blend="GATE")
    age = slot.report().age

    receipt = slot.prune(0, LINEAR)

    gone = only(SeedPrunedPayload, receipt.events)
    assert (gone.initiator, gone.seed_id, gone.age) == ("controller", "r0c0.1", age)
    assert gone.params == 4 * (9 * 64 + 16)
    assert gone.contribution == USEFUL.metric
    assert (receipt.params_before, receipt.params_after) == (9 * 64 + 16, 0)
    assert slot.stage is S.PRUNED
    assert list(slot.parameters()) == []
    assert slot.alpha.item() == 0.0


@pytest.mark.parametrize("stage", [S.GERMINATED, S.TRAINING])
def test_a_seed_without_weight_in_the_host_is_pruned_at_once_at_any_speed(stage: SeedStage):
    slot = ready(stage)

    slot.prune(8, LINEAR)

    assert slot.stage is S.PRUNED


@pytest.mark.parametrize("stage", [S.BLENDING, S.HOLDING])
def test_a_fading_prune_takes_its_time_and_then_removes_the_seed(stage: SeedStage):
    slot = ready(stage)
    slot.prune(4, LINEAR)
    assert slot.stage is S.BLENDING
    alphas, events = [slot.report().alpha], ()

    while slot.stage is S.BLENDING:
        events = slot.step_epoch()
        alphas.append(slot.report().alpha)

    assert alphas == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert only(SeedPrunedPayload, events).initiator == "fade"
    assert moves(events) == [("BLENDING", "PRUNED", "time")]
    assert slot.seed is None


def test_a_prune_on_the_way_up_fades_from_where_alpha_is():
    slot = bring(empty_slot(), S.BLENDING)  # four epochs to alpha 1
    slot.step_epoch()
    slot.step_epoch()

    slot.prune(2, LINEAR)

    alphas = []
    while slot.stage is S.BLENDING:
        slot.step_epoch()
        alphas.append(slot.report().alpha)
    assert alphas == [0.25, 0.0]


def test_a_fading_seed_cannot_be_called_back():
    slot = ready(S.HOLDING)
    slot.prune(3, LINEAR)
    slot.settings = replace(PATIENT, auto_advance=("G1", "G2", "G3"))

    refused = [slot.advance_stage(), slot.set_alpha_target(1.0, 0, LINEAR), slot.prune(0, LINEAR)]
    slot.step_epoch()

    assert [receipt.refused_by for receipt in refused] == ["illegal"] * 3
    assert slot.stage is S.BLENDING
    assert slot.report().alpha == pytest.approx(2 / 3)


@pytest.mark.parametrize("embargo", [1, 2, 5])
def test_after_a_prune_the_slot_rests_for_the_embargo_and_says_how_long(embargo: int):
    slot = ready(S.TRAINING, replace(PATIENT, embargo=embargo))
    slot.prune(0, LINEAR)
    seen = []
    while slot.stage is not S.DORMANT:
        seen.append((slot.stage.name, slot.report().embargo_left))
        slot.step_epoch()

    left = range(embargo + 3, 0, -1)
    stages = ["PRUNED", "PRUNED", *["EMBARGOED"] * embargo, "RESETTING"]  # as it happens, and at the epoch's end
    assert seen == list(zip(stages, left, strict=True))
    assert slot.report().embargo_left == 0
    assert slot.report().seed_id is None


def test_a_faded_seeds_rest_is_as_long():
    slot = ready(S.BLENDING)
    slot.prune(1, LINEAR)
    slot.step_epoch()

    waited = 0
    while slot.stage is not S.DORMANT:
        assert slot.report().embargo_left == PATIENT.embargo + 2 - waited
        slot.step_epoch()
        waited += 1
    assert waited == PATIENT.embargo + 2


@pytest.mark.parametrize("stage", DOWNFALL)
def test_nothing_is_planted_while_the_slot_rests(stage: SeedStage):
    slot = bring(empty_slot(), stage)

    assert plant(slot).refused_by == "illegal"


@pytest.mark.parametrize("stage", sorted(LIVE))
def test_the_governor_uproots_a_seed_of_any_age(stage: SeedStage):
    slot = bring(empty_slot(settings=replace(PATIENT, rules=replace(PATIENT.rules, min_prune_age=99))), stage)

    events = slot.uproot()

    assert only(SeedPrunedPayload, events).initiator == "governor"
    assert moves(events) == [(stage.name, "PRUNED", "rollback")]
    assert slot.seed is None


@pytest.mark.parametrize("stage", sorted(set(SeedStage) - LIVE))
def test_uprooting_where_no_seed_is_on_probation_is_a_bug(stage: SeedStage):
    slot = bring(empty_slot(), stage)

    with pytest.raises(AssertionError, match="no live seed"):
        slot.uproot()


# --- keeping ----------------------------------------------------------------------------------------------------


def test_a_ladder_without_an_active_rung_is_not_worth_a_slot_for_good():
    slot = ready(S.HOLDING, replace(PATIENT, ladder_start=1), blueprint="conv_ladder")
    slot.shrink_internal()

    refused = slot.fossilize()
    slot.grow_internal()

    assert (refused.done, refused.refused_by) == (False, "G5")
    assert "internal level" in refused.why
    assert slot.fossilize().done


@pytest.mark.parametrize("level", [1, 2, 4])
def test_fossilising_removes_the_rungs_above_the_level_and_nothing_else(level: int):
    slot = ready(S.HOLDING, replace(PATIENT, ladder_start=2), blueprint="conv_ladder")
    while slot.report().internal_level < level:
        slot.grow_internal()
    while slot.report().internal_level > level:
        slot.shrink_internal()
    stir(slot)
    slot.eval()
    x, before = noise(2, 8, 4, 4), slot.report()
    output = slot(x)

    receipt = slot.fossilize()

    rung = 9 * 8 * 8 + 2 * 8
    after = slot.report()
    kept = only(SeedFossilizedPayload, receipt.events)
    assert (kept.params, kept.params_removed, kept.internal_level) == (level * rung, (4 - level) * rung, level)
    assert after.params == after.internal_effective_params == level * rung
    assert torch.equal(slot(x), output)
    for field in ("internal_kind", "internal_level", "internal_max_level", "rungs", "seed_id"):
        assert getattr(after, field) == getattr(before, field)


def test_a_seed_full_of_nan_is_fossilised_or_refused_but_raises_nothing():
    slot = ready(S.HOLDING, blueprint="conv_ladder")
    with torch.no_grad():
        for param in slot.seed.parameters():
            param.fill_(math.nan)

    assert slot.fossilize().done


@pytest.mark.parametrize("trains", [True, False])
def test_whether_fossils_go_on_training_is_a_setting(trains: bool):
    slot = ready(S.HOLDING, replace(PATIENT, fossil_train=trains))

    slot.fossilize()

    assert {param.requires_grad for param in slot.parameters()} == {trains}


def test_a_fossil_ages_and_stays():
    slot = ready(S.FOSSILIZED)
    age = slot.report().age

    for _ in range(20):
        slot.step_epoch()

    assert slot.stage is S.FOSSILIZED
    assert slot.report().age == age + 20


# --- rungs ------------------------------------------------------------------------------------------------------

RUNG = 9 * 8 * 8 + 2 * 8


def test_growing_and_shrinking_tell_the_level_and_the_parameters():
    slot = ready(S.TRAINING, blueprint="conv_ladder")

    grown, shrunk = slot.grow_internal(), slot.shrink_internal()

    assert (grown.op, grown.done) == (LifecycleOp.GROW_INTERNAL, True)
    assert (grown.params_before, grown.params_after) == (RUNG, 2 * RUNG)
    assert (shrunk.params_before, shrunk.params_after) == (2 * RUNG, RUNG)
    (event,) = grown.events
    assert isinstance(event, SeedInternalLevelChangedPayload)
    assert event.type is TelemetryEventType.SEED_INTERNAL_LEVEL_CHANGED
    assert (event.slot_id, event.seed_id, event.blueprint_id) == ("r0c0", "r0c0.1", "conv_ladder")
    assert (event.from_level, event.to_level, event.internal_max_level) == (1, 2, 4)
    assert (event.params_before, event.internal_effective_params) == (RUNG, 2 * RUNG)
    assert (event.internal_kind, event.cause) == (int(SeedInternalKind.CONV_LADDER), "op")
    (event,) = shrunk.events
    assert (event.from_level, event.to_level, event.internal_effective_params) == (2, 1, RUNG)


def test_the_report_follows_the_level():
    slot = ready(S.TRAINING, blueprint="conv_ladder")

    slot.grow_internal()

    report = slot.report()
    assert report.internal_kind is SeedInternalKind.CONV_LADDER
    assert (report.internal_level, report.internal_max_level) == (2, 4)
    assert report.rungs == (True, True, False, False)
    assert (report.params, report.internal_effective_params) == (4 * RUNG, 2 * RUNG)


@pytest.mark.parametrize("stage", [S.TRAINING, S.BLENDING, S.HOLDING])
def test_levels_run_from_zero_to_all_and_no_further(stage: SeedStage):
    slot = ready(stage, blueprint="conv_ladder")

    levels = [slot.report().internal_level]
    for op in (*[slot.shrink_internal] * 2, *[slot.grow_internal] * 5):
        op()
        levels.append(slot.report().internal_level)

    assert levels == [1, 0, 0, 1, 2, 3, 4, 4]


def test_an_internal_operation_asks_for_one_comparison_with_the_level_before():
    slot = ready(S.HOLDING, blueprint="conv_ladder")
    assert not slot.state.level_effect_due

    slot.grow_internal()
    assert slot.state.level_effect_due
    assert slot.state.previous_rungs == (True, False, False, False)
    slot.record_level_effect(USEFUL)

    assert not slot.state.level_effect_due
    assert slot.report().level_effect == USEFUL


def test_a_seed_without_rungs_is_at_level_one_of_one():
    report = ready(S.TRAINING, blueprint="conv_heavy").report()

    assert report.internal_kind is SeedInternalKind.NONE
    assert (report.internal_level, report.internal_max_level, report.rungs) == (1, 1, (True,))
    assert report.internal_effective_params == report.params == 18 * 64 + 4 * 8


def test_an_empty_slot_reports_no_seed_and_a_max_level_features_can_divide_by():
    report = empty_slot().report()

    assert report.stage is S.DORMANT
    assert (report.seed_id, report.blueprint_id, report.blend) == (None, None, None)
    assert (report.params, report.internal_level, report.internal_max_level, report.rungs) == (0, 0, 1, ())


# --- gated blending ---------------------------------------------------------------------------------------------


def openness(slot: SeedSlot, x: Tensor) -> Tensor:
    """The gate by hand: mean over positions, two layers, sigmoid."""
    first, _, second = slot.gate.score
    hidden = torch.relu(x.mean((2, 3)) @ first.weight.T + first.bias)
    return torch.sigmoid(hidden @ second.weight.T + second.bias)


def effective(slot: SeedSlot, x: Tensor) -> Tensor:
    """[N, 1]"""
    alpha, g = slot.state.alpha.alpha, openness(slot, x)
    return alpha * (g + alpha * (1 - g))


def test_a_gate_lives_during_blending_only():
    slot = bring(empty_slot(), S.TRAINING, blend="GATE")
    assert slot.gate is None

    find_healthy(slot)
    slot.step_epoch()
    slot.advance_stage()
    assert any(name.startswith("gate.") for name, _ in slot.named_parameters())
    while not slot.advance_stage().done:
        slot.step_epoch()

    assert slot.gate is None
    assert not any("gate" in key for key in slot.state_dict() if not key.endswith("_extra_state"))


def test_gated_blending_weighs_each_item_by_its_gate():
    slot = bring(empty_slot(), S.BLENDING, blend="GATE")
    slot.step_epoch()
    x = noise(5, 8, 4, 4)

    expected = torch.lerp(x, slot.seed(x), effective(slot, x).reshape(5, 1, 1, 1))

    torch.testing.assert_close(slot(x), expected)
    assert effective(slot, x).std() > 0


def test_the_reported_alpha_is_the_mean_effective_weight_of_the_last_measured_pass():
    slot = bring(empty_slot(), S.BLENDING, blend="GATE")
    assert slot.report().alpha == 0.0
    slot.step_epoch()
    slot.step_epoch()
    batches = [noise(5, 8, 4, 4), noise(2, 8, 4, 4, seed=1)]

    slot.eval()
    with slot.watching_gate(), torch.no_grad():
        for batch in batches:
            slot(batch)
    slot(noise(9, 8, 4, 4, seed=2))  # not measured

    expected = effective(slot, torch.cat(batches)).mean()
    assert slot.report().alpha == pytest.approx(expected.item(), abs=1e-6)
    assert 0.0 < slot.report().alpha < 1.0


def test_passes_in_which_the_seed_stands_aside_do_not_count_for_its_alpha():
    slot = bring(empty_slot(), S.BLENDING, blend="GATE")
    slot.step_epoch()
    measured = noise(5, 8, 4, 4)

    with slot.watching_gate(), torch.no_grad():
        slot(measured)
        with slot.unwatched():
            slot(noise(9, 8, 4, 4, seed=2))
        slot.muted = True
        slot(noise(9, 8, 4, 4, seed=3))
        slot.muted = False

    assert slot.report().alpha == pytest.approx(effective(slot, measured).mean().item(), abs=1e-6)


def test_on_holding_the_gate_is_dropped_alpha_is_one_and_the_output_stays():
    slot, x = ready(S.BLENDING, blend="GATE"), noise(4, 8, 4, 4)
    assert slot.gate is not None
    before = slot(x)

    receipt = slot.advance_stage()

    assert receipt.done
    assert slot.gate is None
    assert slot.report().alpha == slot.alpha.item() == 1.0
    assert slot.get_extra_state()["alpha_schedule_config"] is None
    torch.testing.assert_close(slot(x), before, rtol=1e-5, atol=1e-5)
    assert only(SeedStageChangedPayload, receipt.events).alpha == 1.0


@every_blend
def test_every_seed_that_is_held_has_alpha_one_and_no_schedule(blend: str):
    slot = bring(empty_slot(), S.HOLDING, blend=blend)

    assert slot.alpha.item() == slot.report().alpha == 1.0
    assert slot.report().alpha_mode is AlphaMode.HOLD
    assert slot.get_extra_state()["alpha_schedule_config"] is None


def test_a_gate_learns_while_blending():
    slot = bring(empty_slot(), S.BLENDING, blend="GATE")
    slot.step_epoch()

    slot(noise(4, 8, 4, 4)).square().mean().backward()

    assert all(param.grad.abs().max() > 0 for param in slot.gate.parameters())


# --- time and metrics -------------------------------------------------------------------------------------------


def test_age_and_time_in_stage_count_epochs():
    slot = empty_slot()
    for _ in range(3):
        slot.step_epoch()
    plant(slot)
    slot.step_epoch()
    slot.advance_stage()
    slot.step_epoch()
    slot.step_epoch()

    report = slot.report()
    assert (report.age, report.epochs_in_stage) == (3, 2)


def test_metrics_are_remembered_where_stages_begin():
    slot = empty_slot()
    plant(slot)
    assert slot.report().metric_at_germination is None
    slot.record_metric(50.0)
    slot.advance_stage()
    slot.record_metric(53.0)

    report = slot.report()

    assert (report.metric_at_stage_start, report.metric_now) == (50.0, 53.0)
    assert report.improvement_in_stage == 3.0


def test_a_slot_knows_its_place_whatever_happens_in_it():
    slot = SeedSlot.at("r2c1", 8, order=3)
    slot.settings = PATIENT
    for stage in (S.DORMANT, S.TRAINING):
        report = bring(slot, stage).report()
        assert (report.slot_id, report.address, report.dim, report.layout, report.order) == (
            "r2c1",
            ("r2c1",),
            8,
            "NCHW",
            3,
        )


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_fade_follows_the_curve_it_was_given(curve):
    slot = ready(S.HOLDING)

    slot.prune(2, curve)
    slot.step_epoch()

    assert slot.report().alpha == pytest.approx(0.5)  # every curve is symmetric
    assert slot.state.alpha.curve is curve


def test_a_seeds_gradient_is_recorded_against_its_hosts():
    slot = bring(empty_slot(), S.TRAINING, blueprint="conv_small")
    params = list(slot.seed.parameters())
    for param in params:
        param.grad = torch.full_like(param, 3.0)
    size = 8 * 8 + 2 * 8
    slot.state.health = type(slot.state.health)()

    slot.record_gradients(host_norm=2.0, host_params=4 * size)

    report = slot.report()
    assert report.seed_grad_norm == pytest.approx(3.0 * math.sqrt(size))
    assert report.host_grad_norm == 2.0
    assert report.grad_ratio == pytest.approx(min(10.0, 3.0 * math.sqrt(size) / 2.0 * 2.0))
    assert not report.broken


def test_a_slot_is_an_ordinary_module_in_a_network_of_ones_own():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), SeedSlot.at("r0c0", dim=8), nn.Flatten())
    x = noise(2, 1, 6, 6)

    assert torch.equal(net(x), net[0](x).flatten(1))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]


def test_a_report_says_at_which_level_a_ladder_stood_before_its_last_internal_operation() -> None:
    slot = bring(empty_slot(), SeedStage.HOLDING, blueprint="conv_ladder")

    told = [slot.report().internal_previous_level]
    for change in (slot.grow_internal, slot.grow_internal, slot.shrink_internal):
        assert change().done
        told.append(slot.report().internal_previous_level)

    assert told == [None, 1, 2, 3]
