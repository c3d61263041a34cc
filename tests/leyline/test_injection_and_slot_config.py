"""Where hosts offer slots, and which of them a run uses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import get_action_head_sizes
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, in_order
from esper.leyline.slot_config import SlotConfig, enabled_slots


def spec(slot_id: str, order: int, surface: InjectionSurface = InjectionSurface.BLOCK_END) -> InjectionSpec:
    return InjectionSpec(slot_id, 8, "NCHW", surface, order, order, order)


LATTICE = [
    spec("r0c0", 0, InjectionSurface.POST_ATTN),
    spec("r0c1", 1, InjectionSurface.POST_MLP),
    spec("r1c0", 2, InjectionSurface.POST_ATTN),
    spec("r1c1", 3, InjectionSurface.POST_MLP),
]


def test_surfaces_keep_the_numbers_that_checkpoints_hold():
    assert {surface.name: int(surface) for surface in InjectionSurface} == {
        "BLOCK_END": 0,
        "POST_ATTN": 1,
        "POST_MLP": 2,
        "PRE_POOL": 3,
        "POST_POOL": 4,
    }


def test_positions_for_drawing_are_spread_over_the_depth():
    assert [spec.position(len(LATTICE)) for spec in LATTICE] == [0.25, 0.5, 0.75, 1.0]


def test_a_surface_must_be_named_canonically():
    with pytest.raises(ValueError, match=r"Invalid slot 'late'\. Use canonical format"):
        spec("late", 0)


@pytest.mark.parametrize(("dim", "order"), [(0, 0), (-3, 0), (8, -1)])
def test_a_surface_has_channels_and_a_place(dim: int, order: int):
    with pytest.raises(ConfigError, match="r0c0"):
        InjectionSpec("r0c0", dim, "NCHW", InjectionSurface.BLOCK_END, order, 0, 0)


def test_order_not_the_listing_decides_the_sequence():
    assert in_order(reversed(LATTICE)) == tuple(LATTICE)


@pytest.mark.parametrize(
    "specs",
    [
        pytest.param([spec("r0c0", 0), spec("r0c1", 2)], id="gap"),
        pytest.param([spec("r0c0", 1), spec("r0c1", 2)], id="begins late"),
        pytest.param([spec("r0c0", 0), spec("r0c1", 0)], id="order twice"),
        pytest.param([spec("r0c0", 0), spec("r0c0", 1)], id="id twice"),
        pytest.param([spec("r0c1", 0), spec("r0c0", 1)], id="columns backwards"),
        pytest.param([spec("r1c0", 0), spec("r0c9", 1)], id="rows backwards"),
        pytest.param([spec("r0c10", 0), spec("r0c9", 1)], id="backwards by number"),
    ],
)
def test_a_host_whose_order_is_not_row_major_is_refused(specs: list[InjectionSpec]):
    with pytest.raises(ConfigError):
        in_order(specs)


def test_a_run_uses_all_slots_unless_it_names_some():
    config = SlotConfig.from_specs(LATTICE)

    assert config.slot_ids == ("r0c0", "r0c1", "r1c0", "r1c1")
    assert config.num_slots == 4
    assert [config.slot_id_for_index(index) for index in range(4)] == list(config.slot_ids)


def test_a_subset_keeps_each_slots_place_in_the_whole_host():
    config = SlotConfig.from_specs(LATTICE, ["r1c1", "r0c1"])

    assert config.slot_ids == ("r0c1", "r1c1")
    assert dict(config.order_map) == {"r0c1": 1, "r1c1": 3}
    assert dict(config.surface_map) == {"r0c1": InjectionSurface.POST_MLP, "r1c1": InjectionSurface.POST_MLP}
    assert config.index_of("r1c1") == 1


def test_the_order_of_naming_slots_does_not_matter():
    one = SlotConfig.from_specs(LATTICE, ["r1c0", "r0c0"])
    other = SlotConfig.from_specs(reversed(LATTICE), ["r0c0", "r1c0"])

    assert one == other
    assert hash(one) == hash(other)


def test_an_unknown_slot_is_refused_with_the_hosts_list():
    with pytest.raises(ConfigError) as caught:
        SlotConfig.from_specs(LATTICE, ["r0c0", "r7c0"])

    assert str(caught.value) == "slots: 'r7c0' is not in this host; it has r0c0, r0c1, r1c0, r1c1"


def test_a_word_for_a_slot_is_refused_with_the_format_and_the_hosts_list():
    with pytest.raises(ValueError) as caught:
        SlotConfig.from_specs(LATTICE, ["early"])

    assert str(caught.value) == (
        "Invalid slot 'early'. Use canonical format: r0c0, r0c1, r0c2, ... This host has r0c0, r0c1, r1c0, r1c1."
    )


@pytest.mark.parametrize("enabled", [[], ["r0c0", "r0c0"]])
def test_a_run_names_at_least_one_slot_and_each_once(enabled: list[str]):
    with pytest.raises(ConfigError, match="at least one slot, each once"):
        SlotConfig.from_specs(LATTICE, enabled)


def test_asking_for_a_slot_that_is_not_enabled_says_which_are():
    config = SlotConfig.from_specs(LATTICE, ["r0c1"])

    with pytest.raises(ConfigError, match=r"'r0c0' is not enabled here; enabled are r0c1"):
        config.index_of("r0c0")
    with pytest.raises(ValueError, match="Invalid slot 'mid'"):
        config.index_of("mid")


def test_a_slot_config_cannot_be_changed():
    config = SlotConfig.from_specs(LATTICE)

    with pytest.raises(AttributeError):
        config.slot_ids = ()
    assert replace(config) == config


@pytest.mark.parametrize("slots", [1, 2, 3, 12])
def test_the_slot_head_has_as_many_choices_as_there_are_slots(slots: int):
    config = SlotConfig.from_specs([spec(f"r0c{order}", order) for order in range(slots)])

    sizes = get_action_head_sizes(config, ["norm", "conv_light"])

    assert sizes["slot"] == slots
    assert sizes["blueprint"] == 2


# --- surfaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "surfaces", "want"),
    [
        (None, None, None),
        (["r1c1"], None, ["r1c1"]),
        (None, ["post_attn"], ["r0c0", "r1c0"]),
        (None, ["post_mlp", "post_attn"], ["r0c0", "r0c1", "r1c0", "r1c1"]),
        (["r1c0"], ["post_attn"], ["r1c0"]),
    ],
)
def test_slots_are_enabled_by_name_by_surface_or_by_both(
    slots: list[str] | None, surfaces: list[str] | None, want: list[str] | None
):
    assert enabled_slots(LATTICE, slots, surfaces) == want


def test_a_surface_that_the_host_lacks_is_an_error_that_lists_those_it_has():
    with pytest.raises(ConfigError, match="no slot at 'pre_pool'; its surfaces are post_attn, post_mlp"):
        enabled_slots(LATTICE, None, ["post_attn", "pre_pool"])


def test_a_slot_and_surfaces_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="slot r0c1 stands at post_mlp, which is not among post_attn"):
        enabled_slots(LATTICE, ["r0c0", "r0c1"], ["post_attn"])


def test_a_slot_that_the_host_lacks_is_left_to_whom_it_concerns():
    enabled = enabled_slots(LATTICE, ["r9c9"], ["post_attn"])

    with pytest.raises(ConfigError, match="'r9c9' is not in this host"):
        SlotConfig.from_specs(LATTICE, enabled)
