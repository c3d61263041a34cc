"""Events back from their tables: what a filter finds, and that they are what was told."""

from __future__ import annotations

import pytest
from tests.karn.recorded import Recorded

from esper.karn.feed import Feed
from esper.karn.state import State
from esper.karn.told_again import Sought, episode, listed, listing
from esper.leyline.telemetry import EnvPayload, encode_event


@pytest.mark.parametrize(
    ("typed", "sought"),
    [
        ("", Sought()),
        ("type:gov env:5 loss", Sought(types=("gov",), env=5, words=("loss",))),
        ("env:e5 round:3 slot:r0c1 group:a", Sought(env=5, round=3, slot="r0c1", group="a")),
        ("TYPE env:five it's", Sought(words=("type", "five", "it's"))),
        ("type:seed type:gov", Sought(types=("seed", "gov"))),
    ],
)
def test_a_filter_is_what_a_person_types(typed: str, sought: Sought) -> None:
    assert Sought.of(typed) == sought


def test_events_come_back_as_they_were_told_newest_first(recorded: Recorded) -> None:
    found = listed(recorded.con, recorded.run, Sought(), 100_000)

    newest = sorted(recorded.told, key=lambda event: (event[0].time_s, event[0].writer, event[0].counter), reverse=True)
    assert [encode_event(*event) for event in found] == [encode_event(*event) for event in newest]
    assert listed(recorded.con, recorded.run, Sought(), 7) == newest[:7]


@pytest.mark.parametrize(
    ("typed", "fits"),
    [
        ("type:seed.level", lambda where, told: told.type.value == "seed.level"),
        ("type:ppo", lambda where, told: told.type.value.startswith("ppo")),
        ("env:1 round:0", lambda where, told: isinstance(told, EnvPayload) and (told.env_id, where.round) == (1, 0)),
        ("slot:r0c1 type:seed", lambda where, told: "seed." in told.type.value and told.slot_id == "r0c1"),
        ("type:seed.pruned controller", lambda where, told: told.type.value == "seed.pruned"
            and told.initiator == "controller"),
        ("group:a", lambda where, told: where.group == "a"),
        ("' or true --", lambda where, told: False),
        ("type:nothing", lambda where, told: False),
    ],
)  # fmt: skip
def test_a_filter_finds_what_fits_and_nothing_else(recorded: Recorded, typed: str, fits) -> None:
    found = listed(recorded.con, recorded.run, Sought.of(typed), 100_000)

    expected = {(where.writer, where.counter) for where, told in recorded.told if fits(where, told)}
    assert {(where.writer, where.counter) for where, _ in found} == expected


def test_later_rounds_are_left_out_where_a_replay_has_not_come_to_them(recorded: Recorded) -> None:
    found = listed(recorded.con, recorded.run, Sought(), 100_000, until=0)

    assert {where.round for where, _ in found} == {None, 0}
    rows = recorded.con.execute(listing(Sought(), 100_000, 0), {"run": recorded.run}).fetchall()
    assert len(rows) == len(found)


def test_an_episode_out_of_the_tables_is_the_one_of_the_lines(recorded: Recorded) -> None:
    state = State(retained=10**6)
    for event in Feed(recorded.folder, all_rounds=True).news():
        state.take(*event)

    for (round_, env), told in state.team().episodes.items():
        assert episode(recorded.con, recorded.run, None, round_, env) == told
    assert episode(recorded.con, recorded.run, None, 10_000, 0) is None
    assert episode(recorded.con, recorded.run, "b", 0, 0) is None
