from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.errors import CheckpointError
from esper.tolaria.ledger import Category, Ledger, Mark, TopologyCosts

PLAIN = [category for category in Category if category is not Category.TRAIN_SEEDS]
FLOPS = st.integers(0, 10**15)
SEEDS = st.sampled_from(["a", "b", "c"])

EVENTS = st.one_of(
    st.tuples(st.just("charge"), st.sampled_from(PLAIN), FLOPS),
    st.tuples(st.just("charge_seed"), SEEDS, FLOPS),
    st.tuples(st.just("write_off"), SEEDS),
    st.tuples(st.just("mark")),
    st.tuples(st.just("roll_back"), st.integers(0, 9)),
)


def play(events: list[tuple[Any, ...]], ledger: Ledger, marks: list[Mark]) -> int:
    """Does what the events say and returns the sum of their charges, kept by hand."""
    spent = 0
    for verb, *details in events:
        match verb:
            case "charge":
                ledger.charge(*details)
                spent += details[1]
            case "charge_seed":
                ledger.charge_seed(*details)
                spent += details[1]
            case "write_off":
                ledger.write_off(*details)
            case "mark":
                marks.append(ledger.mark())
            case "roll_back":
                ledger.roll_back(marks[details[0] % len(marks)])
    return spent


def trained_seed() -> Ledger:
    ledger = Ledger()
    ledger.charge(Category.TRAIN_HOST, 100)
    ledger.charge_seed("a", 30)
    return ledger


def test_every_category_adds_to_the_total():
    ledger = Ledger()

    for power, category in enumerate(PLAIN):
        ledger.charge(category, 10**power)
    ledger.charge_seed("a", 50_000)

    assert ledger.total == 51_111
    assert ledger.charged[Category.TRAIN_SEEDS] == 50_000
    assert ledger.wasted == 0


def test_a_pruned_seed_wasted_its_own_training_and_nothing_else():
    ledger = trained_seed()
    ledger.charge_seed("b", 7)

    written_off = ledger.write_off("a")

    assert written_off == 30
    assert (ledger.pruned, ledger.wasted, ledger.total) == (30, 30, 137)


def test_a_seed_that_never_trained_wastes_nothing_when_pruned():
    ledger = trained_seed()

    assert ledger.write_off("untrained") == 0
    assert ledger.wasted == 0


def test_a_seed_is_written_off_once():
    ledger = trained_seed()

    ledger.write_off("a")

    assert ledger.write_off("a") == 0
    assert ledger.pruned == 30


def test_a_rollback_wastes_all_work_since_the_mark_whatever_it_was_for():
    ledger = trained_seed()
    mark = ledger.mark()
    ledger.charge(Category.VALIDATION, 5)
    ledger.charge_seed("a", 6)

    wasted = ledger.roll_back(mark)

    assert wasted == 11
    assert (ledger.rolled_back, ledger.total) == (11, 141)


def test_work_rolled_back_is_not_wasted_again_when_its_seed_is_pruned():
    ledger = trained_seed()
    mark = ledger.mark()
    ledger.charge_seed("a", 6)
    ledger.roll_back(mark)

    ledger.write_off("a")

    assert (ledger.pruned, ledger.rolled_back) == (30, 6)


def test_a_rollback_brings_a_pruned_seed_and_its_work_back():
    ledger = trained_seed()
    mark = ledger.mark()
    ledger.charge_seed("a", 6)
    ledger.write_off("a")

    ledger.roll_back(mark)

    assert (ledger.pruned, ledger.rolled_back) == (0, 6)
    assert ledger.write_off("a") == 30


def test_two_rollbacks_to_one_mark_count_each_stretch_once():
    ledger = trained_seed()
    mark = ledger.mark()
    for _ in range(2):
        ledger.charge(Category.TRAIN_HOST, 10)
        ledger.roll_back(mark)

    assert ledger.rolled_back == 20


def test_rent_is_the_sum_of_parameters_over_epochs():
    ledger = Ledger()

    for params in (310, 310, 450):
        ledger.charge_rent(params)

    assert ledger.parameter_epochs == 1070
    assert ledger.total == 0


def test_training_of_a_seed_cannot_be_charged_without_naming_it():
    with pytest.raises(AssertionError, match="which seed"):
        Ledger().charge(Category.TRAIN_SEEDS, 1)


@given(st.lists(EVENTS, max_size=30))
def test_the_total_is_the_sum_of_the_charges_whatever_is_pruned_or_rolled_back(events: list[tuple[Any, ...]]):
    ledger = Ledger()

    spent = play(events, ledger, [ledger.mark()])

    assert ledger.total == spent


@given(st.lists(EVENTS, max_size=30))
def test_waste_and_living_seeds_never_exceed_what_was_spent(events: list[tuple[Any, ...]]):
    ledger = Ledger()

    play(events, ledger, [ledger.mark()])

    assert 0 <= ledger.wasted <= ledger.total
    assert ledger.pruned + sum(ledger.seed_work.values()) <= ledger.charged[Category.TRAIN_SEEDS]
    assert ledger.wasted + sum(ledger.seed_work.values()) <= ledger.total


@given(st.lists(EVENTS, max_size=30), st.lists(EVENTS, max_size=10))
def test_a_ledger_read_back_is_the_same_and_goes_on_the_same(
    before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]
):
    ledger = Ledger()
    marks = [ledger.mark()]
    play(before, ledger, marks)

    again = Ledger.from_dict(json.loads(json.dumps(ledger.as_dict())))

    assert again.as_dict() == ledger.as_dict()
    play(after, ledger, list(marks))
    play(after, again, list(marks))
    assert again.as_dict() == ledger.as_dict()


def test_what_a_ledger_hands_out_does_not_change_with_it():
    ledger = trained_seed()
    saved, mark = ledger.as_dict(), ledger.mark()

    ledger.charge_seed("a", 1)

    assert saved["seed_work"] == mark.seed_work == {"a": 30}


@pytest.mark.parametrize(
    ("damage", "message"),
    [({"surplus": 1}, "want the entries"), ({"charged": {}}, "want the entries"), ({"pruned": 10**6}, "wasted")],
)
def test_a_damaged_ledger_is_refused(damage: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        Ledger.from_dict(trained_seed().as_dict() | damage)


def test_each_topology_and_batch_shape_is_counted_once():
    costs = TopologyCosts[int]()
    counted = []

    def cost_of(topology: tuple[str, ...], batch: int) -> int:
        def count() -> int:
            counted.append((topology, batch))
            return len(counted)

        return costs.of(topology, (batch, 64), count)

    first = [cost_of(("bare",), 32), cost_of(("bare", "seed"), 32), cost_of(("bare",), 7)]

    assert [cost_of(("bare",), 32), cost_of(("bare", "seed"), 32), cost_of(("bare",), 7)] == first == [1, 2, 3]
    assert len(counted) == 3
