"""The table of operations: its stored numbers, what is possible when, and actions by name."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.causal_masks import CAUSAL_MASKS, causal_mask, is_head_relevant
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import (
    ALPHA_SPEEDS,
    ALPHA_TARGETS,
    CHOICES,
    CURVES,
    HEADS,
    OPS,
    STYLES,
    TEMPOS,
    ActionSpace,
    LifecycleOp,
    get_action_head_sizes,
)
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import AlphaMode, HostReport, Rules, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.slot_config import SlotConfig
from esper.leyline.stages import ADVANCES, EDGES, LIVE, TRANSITIONS, SeedStage

SPECS = [InjectionSpec(f"r0c{i}", 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(3)]
SPACE = ActionSpace(SlotConfig.from_specs(SPECS), ("norm", "conv_ladder"), ((True, True),) * 3)


def seed_in(stage: SeedStage, **changes: object) -> SeedStateReport:
    """A slot whose ladder is at level 2 of 4, old enough for anything, alpha at rest."""
    ladder = SeedStateReport(
        "r0c0",
        ("r0c0",),
        8,
        "NCHW",
        InjectionSurface.BLOCK_END,
        0,
        stage,
        seed_id="r0c0.1",
        age=10,
        internal_kind=SeedInternalKind.CONV_LADDER,
        internal_level=2,
        internal_max_level=4,
    )
    return replace(ladder, **changes)


RULES = Rules(max_seeds=3, min_prune_age=1)


def host_with(*slots: SeedStateReport, rules: Rules = RULES) -> HostReport:
    return HostReport(0, 5, 50, rules, slots, 100, 100, 100)


def possible_in(slot: SeedStateReport, host: HostReport | None = None) -> set[str]:
    host = host_with(slot) if host is None else host
    return {op.name for op, row in OPS.items() if row.possible(slot, host)}


# --- numbers that are stored ------------------------------------------------------------------------------------


def test_operations_keep_the_numbers_that_checkpoints_hold():
    assert {op.name: int(op) for op in LifecycleOp} == {
        "WAIT": 0,
        "GERMINATE": 1,
        "SET_ALPHA_TARGET": 2,
        "PRUNE": 3,
        "FOSSILIZE": 4,
        "ADVANCE": 5,
        "GROW_INTERNAL": 6,
        "SHRINK_INTERNAL": 7,
    }


def test_kinds_of_rungs_keep_the_numbers_that_reports_hold():
    assert {kind.name: int(kind) for kind in SeedInternalKind} == {
        "NONE": 0,
        "CONV_LADDER": 1,
        "LORA_LADDER": 2,
        "CHANNEL_LADDER": 3,
        "ATTN_HEAD_LADDER": 4,
    }


def test_stages_keep_the_numbers_that_observations_hold():
    assert {stage.name: int(stage) for stage in SeedStage} == {
        "DORMANT": 1,
        "GERMINATED": 2,
        "TRAINING": 3,
        "BLENDING": 4,
        "HOLDING": 6,
        "FOSSILIZED": 7,
        "PRUNED": 8,
        "EMBARGOED": 9,
        "RESETTING": 10,
    }


def test_the_heads_are_the_eight_of_the_design():
    assert HEADS == ("op", "slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve")


def test_head_sizes_follow_from_slots_blueprints_and_tables():
    assert get_action_head_sizes(SPACE.slot_config, SPACE.blueprints) == {
        "op": 8,
        "slot": 3,
        "blueprint": 2,
        "style": 4,
        "tempo": 3,
        "alpha_target": 3,
        "alpha_speed": 4,
        "alpha_curve": 5,
    }
    assert SPACE.head_sizes == {head: len(SPACE.choices(head)) for head in HEADS}


# --- the table of transitions -----------------------------------------------------------------------------------


def test_the_life_of_a_seed_is_the_one_of_the_design():
    S = SeedStage

    assert set(EDGES) == {
        (S.DORMANT, S.GERMINATED),
        (S.GERMINATED, S.TRAINING),
        (S.TRAINING, S.BLENDING),
        (S.BLENDING, S.HOLDING),
        (S.HOLDING, S.BLENDING),
        (S.HOLDING, S.FOSSILIZED),
        *((stage, S.PRUNED) for stage in (S.GERMINATED, S.TRAINING, S.BLENDING, S.HOLDING)),
        (S.PRUNED, S.EMBARGOED),
        (S.EMBARGOED, S.RESETTING),
        (S.RESETTING, S.DORMANT),
    }
    assert len(EDGES) == len(TRANSITIONS)


def test_gates_stand_where_the_design_puts_them():
    gates = {edge.gate: (edge.old.name, edge.new.name) for edge in TRANSITIONS if edge.gate is not None}

    assert gates == {
        "G0": ("DORMANT", "GERMINATED"),
        "G1": ("GERMINATED", "TRAINING"),
        "G2": ("TRAINING", "BLENDING"),
        "G3": ("BLENDING", "HOLDING"),
        "G5": ("HOLDING", "FOSSILIZED"),
    }
    assert {stage.name for stage in ADVANCES} == {"GERMINATED", "TRAINING", "BLENDING"}


# --- what is possible -------------------------------------------------------------------------------------------

ALWAYS = {"WAIT"}
INTERNAL = {"GROW_INTERNAL", "SHRINK_INTERNAL"}
POSSIBLE = {
    "DORMANT": ALWAYS | {"GERMINATE"},
    "GERMINATED": ALWAYS | {"PRUNE", "ADVANCE"},
    "TRAINING": ALWAYS | INTERNAL | {"PRUNE", "ADVANCE"},
    "BLENDING": ALWAYS | INTERNAL | {"PRUNE", "ADVANCE", "SET_ALPHA_TARGET"},
    "HOLDING": ALWAYS | INTERNAL | {"PRUNE", "FOSSILIZE", "SET_ALPHA_TARGET"},
    "FOSSILIZED": ALWAYS,
    "PRUNED": ALWAYS,
    "EMBARGOED": ALWAYS,
    "RESETTING": ALWAYS,
}


@pytest.mark.parametrize("stage", SeedStage)
def test_what_is_possible_in_each_stage(stage: SeedStage):
    assert possible_in(seed_in(stage)) == POSSIBLE[stage.name]


@pytest.mark.parametrize("stage", sorted(LIVE))
def test_a_seed_that_fades_out_can_only_be_waited_for_or_change_its_level(stage: SeedStage):
    fading = seed_in(stage, alpha_mode=AlphaMode.DOWN, alpha=0.5)
    blocked = {"PRUNE", "ADVANCE", "SET_ALPHA_TARGET"}

    assert possible_in(fading) == POSSIBLE[stage.name] - blocked


def test_while_alpha_rises_it_gets_no_other_target():
    rising = seed_in(SeedStage.BLENDING, alpha_mode=AlphaMode.UP)

    assert possible_in(rising) == POSSIBLE["BLENDING"] - {"SET_ALPHA_TARGET"}


@pytest.mark.parametrize(("level", "missing"), [(0, {"SHRINK_INTERNAL"}), (4, {"GROW_INTERNAL"})])
def test_a_level_stays_between_nothing_and_all(level: int, missing: set[str]):
    slot = seed_in(SeedStage.HOLDING, internal_level=level)

    assert possible_in(slot) == POSSIBLE["HOLDING"] - missing


def test_a_seed_without_rungs_has_no_internal_operations():
    plain = seed_in(SeedStage.TRAINING, internal_kind=SeedInternalKind.NONE, internal_level=1, internal_max_level=1)

    assert possible_in(plain) == POSSIBLE["TRAINING"] - INTERNAL


@pytest.mark.parametrize("mode", [AlphaMode.UP, AlphaMode.DOWN])
def test_where_the_run_says_so_rungs_are_switched_only_while_alpha_rests(mode: AlphaMode):
    rules = Rules(max_seeds=3, internal_needs_hold=True)
    moving, resting = seed_in(SeedStage.BLENDING, alpha_mode=mode), seed_in(SeedStage.BLENDING)

    assert not possible_in(moving, host_with(moving, rules=rules)) & INTERNAL
    assert possible_in(resting, host_with(resting, rules=rules)) >= INTERNAL
    assert possible_in(moving) >= INTERNAL


@pytest.mark.parametrize(("age", "allowed"), [(2, False), (3, True), (4, True)])
def test_a_seed_is_pruned_from_the_least_age_on(age: int, allowed: bool):
    slot = seed_in(SeedStage.TRAINING, age=age)

    assert ("PRUNE" in possible_in(slot, host_with(slot, rules=Rules(3, min_prune_age=3)))) == allowed


@pytest.mark.parametrize(
    ("other", "allowed"),
    [
        (SeedStage.DORMANT, True),
        (SeedStage.GERMINATED, False),
        (SeedStage.TRAINING, False),
        (SeedStage.BLENDING, False),
        (SeedStage.HOLDING, False),
        (SeedStage.FOSSILIZED, False),
        (SeedStage.PRUNED, True),
        (SeedStage.EMBARGOED, True),
        (SeedStage.RESETTING, True),
    ],
)
def test_at_the_limit_of_seeds_nothing_germinates_and_fossils_count_but_embargoed_slots_do_not(
    other: SeedStage, allowed: bool
):
    empty = seed_in(SeedStage.DORMANT)
    host = host_with(empty, seed_in(other), rules=Rules(max_seeds=1))

    assert ("GERMINATE" in possible_in(empty, host)) == allowed


# --- which heads matter -----------------------------------------------------------------------------------------


def test_the_heads_that_matter_to_each_operation():
    relevant = {op.name: {head for head in HEADS if is_head_relevant(op, head)} for op in LifecycleOp}

    assert relevant == {
        "WAIT": {"op"},
        "GERMINATE": {"op", "slot", "blueprint", "style", "tempo", "alpha_target"},
        "SET_ALPHA_TARGET": {"op", "slot", "alpha_target", "alpha_speed", "alpha_curve"},
        "PRUNE": {"op", "slot", "alpha_speed", "alpha_curve"},
        "FOSSILIZE": {"op", "slot"},
        "ADVANCE": {"op", "slot"},
        "GROW_INTERNAL": {"op", "slot"},
        "SHRINK_INTERNAL": {"op", "slot"},
    }


def test_a_causal_mask_has_one_flag_per_head():
    assert causal_mask(LifecycleOp.GROW_INTERNAL) == (True, True, False, False, False, False, False, False)
    assert {op: causal_mask(op) for op in LifecycleOp} == CAUSAL_MASKS


# --- actions ----------------------------------------------------------------------------------------------------


def test_an_action_by_names_means_what_the_names_say():
    action = SPACE.action("GERMINATE", slot="r0c2", blueprint="conv_ladder", style="linear_gate", tempo="slow")

    assert action.op is LifecycleOp.GERMINATE
    assert (action.slot_idx, action.slot_id) == (2, "r0c2")
    assert action.chosen("blueprint") == "conv_ladder"
    assert (action.style.blend, action.style.curve.name) == ("GATE", "LINEAR")
    assert action.tempo == 8
    assert action.alpha_target == 1.0
    assert action.slot_config is SPACE.slot_config


def test_a_fade_by_names():
    action = SPACE.action(LifecycleOp.PRUNE, slot="r0c1", alpha_speed="medium", alpha_curve="sigmoid_sharp")

    assert action.alpha_speed == 5
    assert (action.alpha_curve.name, action.alpha_curve.steepness) == ("SIGMOID", 24.0)


def test_waiting_is_about_no_slot():
    assert SPACE.action("WAIT").slot_id is None
    assert SPACE.action("WAIT").as_names() == {"op": "WAIT"}


indices = st.tuples(*(st.integers(0, len(SPACE.choices(head)) - 1) for head in HEADS))


@given(indices)
def test_names_and_actions_are_inverse(chosen: tuple[int, ...]):
    action = SPACE.from_indices(chosen)
    names = action.as_names()

    assert SPACE.action(**names) == action
    assert set(names) == {"op", *OPS[action.op].heads}


@given(indices)
def test_heads_that_do_not_matter_are_set_to_their_first_choice(chosen: tuple[int, ...]):
    action = SPACE.from_indices(chosen)

    for head, asked, kept in zip(HEADS, chosen, action.indices, strict=True):
        assert kept == (asked if is_head_relevant(action.op, head) else 0)


@given(indices, indices)
def test_two_choices_that_differ_only_where_it_does_not_matter_are_one_action(one, other):
    mixed = tuple(
        a if head == "op" or is_head_relevant(LifecycleOp(one[0]), head) else b
        for head, a, b in zip(HEADS, one, other, strict=True)
    )

    assert SPACE.from_indices(mixed) == SPACE.from_indices(one)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"slot": "r0c9"}, "slot 'r0c9' is not in this action space"),
        ({"blueprint": "conv_lader"}, "did you mean 'conv_ladder'"),
        ({"tempo": "allegro"}, "tempo 'allegro'"),
        ({"sloth": "r0c0"}, "sloth 'r0c0'"),
    ],
)
def test_a_choice_that_does_not_exist_is_an_error_that_names_it(choices: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        SPACE.action("GERMINATE", **choices)


def test_an_operation_that_does_not_exist_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="op 'PRUNED' is not in this action space; did you mean 'PRUNE'"):
        SPACE.action("PRUNED")


def test_a_space_in_which_nothing_fits_is_refused():
    with pytest.raises(ConfigError, match="norm, conv_ladder: none fits a slot"):
        replace(SPACE, fits=((False, False),) * 3)
    with pytest.raises(ConfigError, match="none"):
        ActionSpace(SPACE.slot_config, (), ((),) * 3)


def test_a_blueprint_fits_where_the_space_says_so():
    space = replace(SPACE, fits=((True, False), (True, True), (False, True)))
    fits = {
        (slot, blueprint): space.action("GERMINATE", slot=slot, blueprint=blueprint).fits
        for slot, blueprint in product(space.slot_config.slot_ids, space.blueprints)
    }

    assert [pair for pair, fit in fits.items() if not fit] == [("r0c0", "conv_ladder"), ("r0c2", "norm")]
    assert space.action("ADVANCE", slot="r0c2").fits


def test_a_checkpoint_for_the_same_space_is_accepted_and_another_refused():
    SPACE.require_same(SPACE.names(), "policy.pt")

    with pytest.raises(ConfigError) as caught:
        SPACE.require_same({**SPACE.names(), "slot": ["r0c0", "r0c1"]}, "policy.pt")
    assert str(caught.value) == "policy.pt chooses its slot from [r0c0 r0c1], but this run offers [r0c0 r0c1 r0c2]"
    with pytest.raises(ConfigError, match="chooses its tempo from"):
        SPACE.require_same({**SPACE.names(), "tempo": ["fast", "slow", "medium"]}, "policy.pt")
    with pytest.raises(ConfigError, match=r"chooses its alpha_curve from \[nothing\]"):
        SPACE.require_same({key: SPACE.names()[key] for key in HEADS[:-1]}, "policy.pt")


# --- the tables behind the heads --------------------------------------------------------------------------------


def test_every_choice_of_a_head_has_a_meaning():
    meanings = {
        "style": STYLES,
        "tempo": TEMPOS,
        "alpha_target": ALPHA_TARGETS,
        "alpha_speed": ALPHA_SPEEDS,
        "alpha_curve": CURVES,
    }

    assert {head: tuple(table) for head, table in meanings.items()} == CHOICES


def test_targets_are_weights_and_times_are_whole_epochs():
    assert all(0.0 < target <= 1.0 for target in ALPHA_TARGETS.values())
    assert all(epochs >= 1 for epochs in TEMPOS.values())
    assert min(ALPHA_SPEEDS.values()) == 0


def test_waiting_is_free_and_nothing_has_a_negative_price():
    assert OPS[LifecycleOp.WAIT].price == 0.0
    assert all(row.price >= 0.0 for row in OPS.values())
