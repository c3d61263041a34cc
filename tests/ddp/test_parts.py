"""Places, stragglers and divergences by themselves: what needs no second process."""

from __future__ import annotations

import pickle

import pytest

from esper.leyline.errors import ConfigError, LifecycleDivergence, RanksError
from esper.leyline.telemetry import RanksTroubledPayload
from esper.tolaria.ranks.group import refuse_differences
from esper.tolaria.ranks.meeting import place_in
from esper.tolaria.ranks.stragglers import Stragglers

LAUNCHED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_a_launchers_variables_say_which_rank_this_is() -> None:
    place = place_in(LAUNCHED)

    assert place is not None
    assert (place.rank, place.world, place.local_rank, place.attempt) == (3, 4, 1, 2)
    assert (place.address, place.port, place.launched) == ("here", 29500, True)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_process_that_no_launcher_has_started_is_alone(missing: str) -> None:
    assert place_in({name: value for name, value in LAUNCHED.items() if name != missing}) is None


def test_one_rank_is_a_process_alone() -> None:
    assert place_in(LAUNCHED | {"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(("name", "value"), [("RANK", "-1"), ("RANK", "4"), ("WORLD_SIZE", "two"), ("MASTER_PORT", "")])
def test_variables_that_are_no_place_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        place_in(LAUNCHED | {name: value})


def test_a_rank_that_takes_three_times_as_long_as_the_others_is_told_of_once() -> None:
    stragglers = Stragglers(factor=3.0)

    assert stragglers.judge([2.0, 2.0, 5.9]) == []
    assert stragglers.judge([0.1, 0.1, 0.9]) == []  # not a second later
    (told,) = stragglers.judge([2.0, 1.0, 7.0])
    assert told == RanksTroubledPayload(kind="slow", ranks=(2,), text="rank 2 took 7.0 s for what took the others 1.5")
    assert stragglers.judge([2.0, 1.0, 9.0]) == []
    assert [each.ranks for each in stragglers.judge([8.0, 1.0, 9.0]) if isinstance(each, RanksTroubledPayload)] == []
    assert len(stragglers.judge([8.0, 1.0, 1.0])) == 1


def test_of_two_ranks_the_slow_one_is_named_whichever_it_is() -> None:
    (told,) = Stragglers(factor=3.0).judge([9.0, 1.0])

    assert isinstance(told, RanksTroubledPayload)
    assert told.ranks == (0,)


def test_a_divergence_names_those_that_differ_from_most_and_arrives_whole_in_another_process() -> None:
    error = LifecycleDivergence(12, "slot r0c0: level", ("2", "3", "2"))
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert str(error) == ("rank 1 diverged at step 12 in slot r0c0: level: rank 0 has 2, rank 1 has 3, rank 2 has 2")
    assert (str(arrived), arrived.ranks, arrived.step, arrived.values) == (str(error), (1,), 12, ("2", "3", "2"))


def test_fingerprints_that_differ_are_refused_by_the_first_difference() -> None:
    same = {"torch": "2", "data": "a"}

    refuse_differences([same, dict(same)])
    with pytest.raises(RanksError, match=r"^rank 2 has another data than rank 0: b, not a; start all ranks alike$"):
        refuse_differences([same, same, {"torch": "2", "data": "b"}])
    with pytest.raises(RanksError, match="rank 1 has another threads than rank 0: 2, not nothing"):
        refuse_differences([same, {**same, "threads": "2"}])
