"""What the experiment pack expects, on runs made by hand that are as expected, that are not, and that say nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.karn.made import Made, Planted

from esper.karn.memory import open_memory
from esper.karn.outcomes import EXPECTED
from esper.karn.verdicts import Verdict, answers

WAIT, GROW, SHRINK, PLANT, PRUNE = "WAIT", "GROW_INTERNAL", "SHRINK_INTERNAL", "GERMINATE", "PRUNE"
SLOTS = ("r0c0", "r0c1", "r0c2", "r0c3", "r0c4")
Outcome = tuple[float | None, bool | None]


def found(tmp_path: Path, number: int, treatment: Made, control: Made | None = None) -> dict[str, Verdict]:
    """All outcomes of a run of the pack by their names, over two seeds."""
    runs: dict[str, list[Path]] = {"t": [], "c": []}
    for name, made in (("t", treatment), ("c", control)):
        for seed in (0, 1) if made is not None else ():
            made.seed = seed
            runs[name].append(made.write(tmp_path, f"{name}{seed}"))
    with closing(open_memory([*runs["t"], *runs["c"]])) as store:
        verdicts = answers(EXPECTED[number], store.con, *([path.name for path in paths] for paths in runs.values()))
    return {verdict.name: verdict for verdict in verdicts}


def outcome(verdict: Verdict) -> Outcome:
    return (None if verdict.value is None else round(verdict.value, 6)), verdict.passed


def made(**facts: Any) -> Made:
    return Made(**{"ops": [[WAIT] * 4] * 5, "slots": SLOTS, **facts})


LIGHT, HEAVY = Planted("r0c1", "norm", 100), Planted("r0c2", "conv_heavy", 1600)


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ((HEAVY, HEAVY), (round(2 / 3 * 2 - 1, 6), True)),  # log2 of 400, 1600, 1600 less that of 400, 1600
        ((LIGHT, LIGHT), (round(-2 / 3 * 2 + 1, 6), False)),
        ((), (None, None)),
    ],
)
def test_seeds_count_as_heavier_when_the_heavy_ones_among_them_are_planted_more_often(
    tmp_path: Path, planted: tuple[Planted, ...], expected: Outcome
) -> None:
    assert outcome(found(tmp_path, 1, made(planted=planted))["heavier seeds"]) == expected


@pytest.mark.parametrize(
    ("slots", "planted", "expected"),
    [
        (SLOTS, (), (-0.4, True)),
        (SLOTS, (Planted("r0c3", "norm", 9), Planted("r0c4", "norm", 9)), (round(2 / 3 - 0.4, 6), False)),
        (SLOTS[:2], (), (None, None)),
    ],
)
def test_the_last_two_of_five_slots_count_as_late(
    tmp_path: Path, slots: tuple[str, ...], planted: tuple[Planted, ...], expected: Outcome
) -> None:
    assert outcome(found(tmp_path, 1, made(slots=slots, planted=planted))["late slots under-used"]) == expected


def test_prunes_per_seed_are_compared_with_run_1(tmp_path: Path) -> None:
    pruned = Planted("r0c1", "norm", 9, pruned=True)

    more = found(tmp_path / "more", 2, made(planted=(pruned,)), made())
    fewer = found(tmp_path / "fewer", 2, made(), made(planted=(pruned,)))

    assert outcome(more["more prunes"]) == (0.5, True)
    assert outcome(fewer["more prunes"]) == (-0.5, False)


def test_without_run_1_nothing_is_compared(tmp_path: Path) -> None:
    alone = found(tmp_path, 2, made(entropies=[0.5] * 5))

    assert outcome(alone["more prunes"]) == outcome(alone["pressure on entropy"]) == (None, None)
    assert alone["more prunes"].note == "needs run 1"


def test_pressure_on_entropy_is_a_mean_over_both_heads_lower_than_in_run_1(tmp_path: Path) -> None:
    pressed = found(tmp_path, 2, made(entropies=[0.4] * 5), made(entropies=[0.6] * 5))

    assert outcome(pressed["pressure on entropy"]) == (-0.1, True)  # the head `slot` has 1 in both


@pytest.mark.parametrize(
    ("entropies", "expected"),
    [([0.05, 0.05, 0.5, 0.05, 0.05, 0.05], (3.0, True)), ([0.5] + [0.05] * 5, (5.0, False))],
)
def test_a_collapse_is_five_updates_in_a_row(tmp_path: Path, entropies: list[float], expected: Outcome) -> None:
    run = made(ops=[[WAIT] * 4] * 6, entropies=entropies)

    assert outcome(found(tmp_path, 2, run)["no collapse"]) == expected


def test_run_3_asks_for_events_sensors_and_decisions_of_levels(tmp_path: Path) -> None:
    there = found(
        tmp_path / "there", 3, made(ops=[[GROW, WAIT, SHRINK, WAIT]] * 5, sensors=("internal_level_norm", "alpha"))
    )
    absent = found(tmp_path / "absent", 3, made(sensors=("alpha",)))

    assert outcome(there["events of levels"]) == (200.0, True)
    assert outcome(absent["events of levels"]) == (0.0, False)
    assert (there["the sensor of levels"].passed, there["the sensor of levels"].note) == (
        True,
        "internal_level_norm 0.5",
    )
    assert absent["the sensor of levels"].passed is False
    assert there["internal operations in the decisions"].note == "GROW_INTERNAL 10, SHRINK_INTERNAL 10"
    assert absent["internal operations in the decisions"].passed is False


@pytest.mark.parametrize(
    ("tests", "expected"),
    [([50.0, 51.0, 52.0], (1.0, True)), ([52.0, 51.0, 50.0], (-1.0, False)), ([50.0] * 3, (None, None))],
)
def test_internal_operations_are_correlated_with_what_episodes_were_worth(
    tmp_path: Path, tests: list[float], expected: Outcome
) -> None:
    ops = [[WAIT] * 4, [GROW, WAIT, WAIT, WAIT], [GROW, GROW, WAIT, WAIT]]

    assert outcome(found(tmp_path, 3, made(ops=ops, tests=tests))["internal operations go with ROI"]) == expected


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([GROW, SHRINK, GROW, PRUNE], (0.75, True)),
        ([GROW, PLANT, PLANT, PRUNE], (0.25, False)),
        ([WAIT] * 4, (None, None)),
    ],
)
def test_small_steps_are_weighed_against_planting_and_pruning(
    tmp_path: Path, ops: list[str], expected: Outcome
) -> None:
    assert outcome(found(tmp_path, 3, made(ops=[ops] * 5))["small steps rather than churn"]) == expected


def test_what_was_to_be_watched_stands_beside_its_outcome_with_the_numbers(tmp_path: Path) -> None:
    pruned = Planted("r0c1", "norm", 9, pruned=True)

    watched = found(tmp_path, 1, made(planted=(pruned, LIGHT, HEAVY), entropies=[0.4] * 5, rollbacks=[1, 0, 0, 0, 0]))

    assert watched["entropies"].note == "op 0.4, slot 1"
    assert watched["decisions that were done"].note == "WAIT 1"
    assert watched["fates"].note == "fossilised 0, pruned 0.25"
    assert watched["durations"].passed is True
    assert watched["rent and alpha shock"].note == "effective parameters 1.1"
    assert watched["governor and learner"].note == "rollbacks 20, skipped 0"


def test_what_was_to_be_watched_and_is_not_there_fails(tmp_path: Path) -> None:
    assert found(tmp_path, 1, made())["entropies"].passed is False
