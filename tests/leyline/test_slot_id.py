"""Slot ids: one canonical spelling, sorted by number, and an error that teaches it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.errors import ConfigError, ExitCode
from esper.leyline.slot_id import format_slot_id, parse_slot_id, slot_sort_key, validate_slot_id

coordinates = st.integers(min_value=0, max_value=999)

NOT_SLOTS = [
    *("early", "mid", "late", "", "r", "r0", "c0", "0", "rc", "r0c", "0c0"),
    *("R0C0", "r0C0", "c0r0", "r0c0c0", "r0c0r0", "xr0c0", "r0c0x"),
    *(" r0c0", "r0c0 ", "r0 c0", "r0c0\n", "\nr0c0", "r0c0\x00"),
    *("r00c0", "r0c00", "r01c0", "r-1c0", "r+1c0", "r1.0c0", "r1e1c0", "r1_0c0"),
    *("r1000c0", "r0c1000", "r٣c0", "r1٣c0", "r0c1२", "r¹c0"),
]


def test_a_slot_id_names_its_row_and_column():
    assert format_slot_id(0, 2) == "r0c2"
    assert format_slot_id(12, 0) == "r12c0"
    assert parse_slot_id("r0c2") == (0, 2)
    assert parse_slot_id("r999c999") == (999, 999)


@given(coordinates, coordinates)
def test_formatting_and_parsing_are_inverse(row: int, col: int):
    slot_id = format_slot_id(row, col)

    assert validate_slot_id(slot_id)
    assert parse_slot_id(slot_id) == (row, col)


@given(st.text(max_size=12) | st.from_regex(r"\A[rR]?\d{1,4}[cC]?\d{1,4}\n?\Z"))
def test_a_string_is_a_slot_id_exactly_if_it_spells_two_numbers_the_one_way(text: str):
    digits = re.sub(r"[^0-9]+", " ", text).split()
    canonical = len(digits) == 2 and text == f"r{int(digits[0])}c{int(digits[1])}" and max(map(int, digits)) <= 999

    assert validate_slot_id(text) == canonical
    if canonical:
        assert format_slot_id(*parse_slot_id(text)) == text
    else:
        with pytest.raises(ValueError, match="Invalid slot"):
            parse_slot_id(text)


@pytest.mark.parametrize("text", NOT_SLOTS)
def test_other_spellings_are_refused(text: str):
    assert not validate_slot_id(text)
    with pytest.raises(ConfigError):
        parse_slot_id(text)


def test_early_is_an_error_that_teaches_the_canonical_format():
    with pytest.raises(ValueError) as caught:
        parse_slot_id("early")

    assert str(caught.value) == "Invalid slot 'early'. Use canonical format: r0c0, r0c1, r0c2, ..."


def test_where_the_host_is_known_the_error_lists_its_slots_in_order():
    with pytest.raises(ValueError) as caught:
        parse_slot_id("early", known=["r1c0", "r0c10", "r0c2"])

    assert str(caught.value) == (
        "Invalid slot 'early'. Use canonical format: r0c0, r0c1, r0c2, ... This host has r0c2, r0c10, r1c0."
    )


def test_a_bad_slot_is_bad_input_to_the_command_line():
    assert ConfigError("").exit_code is ExitCode.BAD_INPUT


def test_slots_sort_row_by_row_and_by_number():
    ids = ["r10c0", "r1c3", "r0c10", "r2c0", "r0c9", "r1c0"]

    assert sorted(ids, key=slot_sort_key) == ["r0c9", "r0c10", "r1c0", "r1c3", "r2c0", "r10c0"]


@given(st.tuples(coordinates, coordinates), st.tuples(coordinates, coordinates))
def test_the_sort_key_orders_like_the_coordinates(one: tuple[int, int], other: tuple[int, int]):
    keys = [slot_sort_key(format_slot_id(*place)) for place in (one, other)]

    assert (keys[0] < keys[1]) == (one < other)


@pytest.mark.parametrize(("row", "col"), [(-1, 0), (0, -1), (1000, 0), (0, 1000)])
def test_coordinates_outside_the_grid_have_no_id(row: int, col: int):
    with pytest.raises(ConfigError, match="between 0 and 999"):
        format_slot_id(row, col)
