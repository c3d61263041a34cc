"""Each gate on runs made by hand that pass it, fail it, and leave it nothing to judge."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.karn.made import Made, Planted

from esper.karn.gates import GATES
from esper.karn.memory import open_memory
from esper.karn.phases import gates
from esper.karn.verdicts import Verdict

WAIT, GROW, SHRINK, TUNE = "WAIT", "GROW_INTERNAL", "SHRINK_INTERNAL", "SET_ALPHA_TARGET"
QUIET = [WAIT] * 12
Cohort = list[Made]


def judged(tmp_path: Path, treatment: Cohort, control: Cohort | None = None) -> dict[str, Verdict]:
    """All gates by their names."""
    runs: dict[str, list[Path]] = {"t": [], "c": []}
    for name, cohort in (("t", treatment), ("c", control or [])):
        for number, made in enumerate(cohort):
            made.seed = number
            runs[name].append(made.write(tmp_path, f"{name}{number}"))
    with closing(open_memory([*runs["t"], *runs["c"]])) as store:
        found = gates(store.con, *([path.name for path in paths] for paths in runs.values()))
    return {gate.name: gate for gate in found}


def cohort(count: int = 3, **facts: Any) -> Cohort:
    return [Made(**{"ops": [QUIET] * 5, **facts}) for _ in range(count)]


def verdict(gate: Verdict) -> tuple[float | None, bool | None]:
    return (None if gate.value is None else round(gate.value, 6)), gate.passed


# --- usage ---------------------------------------------------------------------------------------------------------


def test_usage_counts_the_last_fifth_of_the_rounds_and_decisions_that_a_ladder_preceded(tmp_path: Path) -> None:
    early, late = [WAIT, TUNE, TUNE, WAIT], [GROW, GROW, TUNE, TUNE]  # the first decision precedes the seed

    found = judged(tmp_path, cohort(ops=[early] * 4 + [late]))["usage"]

    assert verdict(found) == (round(1 / 3, 6), True)
    assert found.n == 9
    assert found.note == "28.6% if all that was possible had been as likely"  # 2 of 7 operations


def test_usage_passes_at_a_tenth_and_fails_below(tmp_path: Path) -> None:
    tenth = judged(tmp_path / "tenth", cohort(1, ops=[[WAIT] + [TUNE] * 9 + [GROW]] * 5))["usage"]

    assert verdict(tenth) == (0.1, True)
    assert verdict(judged(tmp_path, cohort(ops=[[WAIT] + [TUNE] * 19 + [GROW]] * 5))["usage"]) == (0.05, False)


def test_usage_of_runs_without_ladders_is_not_judged(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort(blueprint="conv_heavy", ops=[[WAIT, TUNE, TUNE]] * 5))["usage"]

    assert verdict(found) == (None, None)
    assert found.note == "no decision was taken while a ladder seed lived"


# --- against a control ---------------------------------------------------------------------------------------------


def test_roi_is_the_paired_difference_of_worth_in_the_last_fifth_of_the_rounds(tmp_path: Path) -> None:
    ours = [Made([QUIET] * 5, tests=[0.0] * 4 + [test], params=2000) for test in (60.0, 62.0, 64.0)]
    theirs = [Made([QUIET] * 5, tests=[99.0] * 4 + [test]) for test in (56.0, 59.0, 60.0)]

    found = judged(tmp_path, ours, theirs)["ROI"]

    # 60 - 3, 62 - 3, 64 - 3 against 56, 59, 60: 1, 0, 1; mean 2/3, deviation 0.5774, t(0.975, 2) = 4.3027
    assert verdict(found) == (round(2 / 3, 6), False)
    assert found.low == pytest.approx(2 / 3 - 4.30265 * 0.57735 / 3**0.5, abs=1e-4)
    assert found.note == "test 62.00 against 58.33, parameters 2000 against 1000"


def test_roi_passes_where_even_its_lower_bound_loses_little(tmp_path: Path) -> None:
    ours, theirs = ([Made([QUIET] * 5, tests=[test] * 5) for test in tests] for tests in ((51, 52, 53), (50, 51, 52)))

    assert verdict(judged(tmp_path, ours, theirs)["ROI"]) == (1.0, True)


BITS: dict[str, Any] = {"metric": ("bits per character", "bits", False), "rent": 0.06}


@pytest.mark.parametrize(("lost", "passed"), [(0.009, True), (0.011, False)])
def test_where_the_metric_is_in_bits_a_loss_is_a_rise_and_a_hundredth_is_little(
    tmp_path: Path, lost: float, passed: bool
) -> None:
    ours = [Made([QUIET] * 5, tests=[bits + lost] * 5, **BITS) for bits in (2.1, 2.2, 2.3)]
    theirs = [Made([QUIET] * 5, tests=[bits] * 5, **BITS) for bits in (2.1, 2.2, 2.3)]

    found = judged(tmp_path, ours, theirs)["ROI"]

    assert verdict(found) == (-lost, passed)
    assert found.limit == ">= -0.01"


def test_what_a_seed_brings_is_good_whichever_way_the_metric_runs(tmp_path: Path) -> None:
    path = Made([QUIET] * 2, brings=0.2, **BITS).write(tmp_path, "bits")

    with closing(open_memory([path])) as store:
        (gain,) = store.con.execute("select gain from rent_roi").fetchall()
        (brought,) = store.con.execute("select contribution from blueprint_stats").fetchall()
        (worth,) = store.con.execute("select distinct j from episodes").fetchall()

    assert (gain, brought, worth) == ((0.2,), (0.2,), (-50.0,))  # a test metric of 50 bits, no parameters grown


@pytest.mark.parametrize(("lost", "passed"), [(0.5, True), (0.5625, False)])
def test_roi_may_lose_half_a_point_and_no_more(tmp_path: Path, lost: float, passed: bool) -> None:
    found = judged(tmp_path, cohort(tests=[50.0 - lost] * 5), cohort())["ROI"]

    assert verdict(found) == (-lost, passed)


def test_one_seed_gives_no_interval_and_no_verdict_on_roi(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort(1, tests=[60.0] * 5), cohort(1))["ROI"]

    assert verdict(found) == (10.0, None)
    assert found.low is None
    assert found.note.endswith("one seed gives no interval")


def test_runs_of_one_seed_count_as_one_by_their_mean(tmp_path: Path) -> None:
    ours, theirs = cohort(2), cohort(1, tests=[50.0] * 5)
    ours[0].tests, ours[1].tests = [60.0] * 5, [70.0] * 5
    for made in ours:
        made.write(tmp_path, f"run{made.tests}".replace("[", "").split(".")[0])
    paths = [theirs[0].write(tmp_path, "control"), *sorted(tmp_path.glob("run*"))]

    with closing(open_memory(paths)) as store:
        found = {gate.name: gate for gate in gates(store.con, ["run60", "run70"], ["control"])}["ROI"]

    assert (found.value, found.n) == (15.0, 1)


def test_only_seeds_that_both_cohorts_have_are_counted(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort(3, tests=[60.0] * 5), cohort(2))["ROI"]

    assert (verdict(found), found.n) == ((10.0, True), 2)


def test_what_needs_a_control_says_so(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort())

    for name in ("dominance", "ROI", "rollbacks", "invalid actions"):
        assert found[name].passed is None
        assert "needs a control" in found[name].note


def test_dominance_passes_where_fewer_heavy_seeds_are_planted_at_no_loss(tmp_path: Path) -> None:
    ours, theirs = cohort(), cohort(blueprint="conv_heavy")

    assert verdict(judged(tmp_path, ours, theirs)["dominance"]) == (-1.0, True)


def test_dominance_fails_where_less_was_worth_less(tmp_path: Path) -> None:
    ours, theirs = cohort(tests=[40.0] * 5), cohort(blueprint="conv_heavy")

    assert verdict(judged(tmp_path, ours, theirs)["dominance"]) == (-1.0, False)


def test_both_learners_of_an_ab_run_count_as_one_cohort_in_dominance(tmp_path: Path) -> None:
    heavy, light = Planted("r0c0", "conv_heavy", 9), Planted("r0c0", "norm", 9)
    ours = [Made([QUIET] * 2, blueprint="norm", planted=(heavy,), groups=("a", "b"))]
    theirs = [Made([QUIET] * 2, blueprint="norm", planted=(light, light, light))]

    assert judged(tmp_path, ours, theirs)["dominance"].value == 0.5  # of both learners' seeds, not of each's


@pytest.mark.parametrize("control", [Made([QUIET], unfinished=True), Made([], unfinished=True)])
def test_a_control_that_came_to_no_end_leaves_nothing_to_compare(tmp_path: Path, control: Made) -> None:
    found = judged(tmp_path, cohort(1), [control])

    for name in ("ROI", "rollbacks"):
        assert found[name].passed is None
        assert found[name].note.startswith("no such episode of the control came to a sound end")
    assert found["invalid actions"].passed is (True if control.ops else None)


def test_runs_that_do_not_say_their_seed_are_not_paired(tmp_path: Path) -> None:
    paths = [Made([QUIET] * 5, tests=[test] * 5).write(tmp_path, name) for name, test in (("t0", 60.0), ("c0", 50.0))]
    for path in paths:
        manifest = json.loads((path / "run.json").read_text())
        del manifest["config"]["run"]["seed"]
        (path / "run.json").write_text(json.dumps(manifest))

    with closing(open_memory(paths)) as store:
        found = {gate.name: gate for gate in gates(store.con, ["t0"], ["c0"])}["ROI"]

    assert (verdict(found), found.low) == ((10.0, None), None)


def test_dominance_fails_where_as_many_heavy_seeds_are_planted(tmp_path: Path) -> None:
    assert verdict(judged(tmp_path, cohort(), cohort())["dominance"]) == (0.0, False)


def test_dominance_is_vacuous_where_nothing_heavy_is_offered(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort(offered=("conv_ladder",)), cohort(blueprint="conv_heavy"))["dominance"]

    assert found.passed is None
    assert found.note.startswith("vacuous")


@pytest.mark.parametrize(("ours", "passed"), [([0, 0, 0, 0, 0], True), ([1, 1, 1, 1, 1], False)])
def test_rollbacks_are_counted_per_hundred_episodes(tmp_path: Path, ours: list[int], passed: bool) -> None:
    found = judged(tmp_path, cohort(rollbacks=ours), cohort())["rollbacks"]

    assert verdict(found) == (20.0 * sum(ours), passed)


@pytest.mark.parametrize(("back", "passed"), [((1, 1, 1), True), ((0, 0, 2), False)])
def test_one_rollback_more_in_a_hundred_episodes_is_the_upper_bound(
    tmp_path: Path, back: tuple[int, ...], passed: bool
) -> None:
    ours = [Made([[WAIT]] * 100, rollbacks=[count, *[0] * 99]) for count in back]

    found = judged(tmp_path, ours, [Made([[WAIT]]) for _ in back])["rollbacks"]

    assert verdict(found) == (round(sum(back) / 3, 6), passed)


@pytest.mark.parametrize(("ours", "theirs", "passed"), [(1, 1, True), (2, 3, True), (3, 1, False)])
def test_refused_decisions_must_not_be_more_than_the_controls(
    tmp_path: Path, ours: int, theirs: int, passed: bool
) -> None:
    found = judged(tmp_path, cohort(refused=ours), cohort(refused=theirs))["invalid actions"]

    assert verdict(found) == (round((ours - theirs) / 12, 6), passed)
    assert found.note.startswith(f"G1 {3 * 5 * ours}")


# --- levels --------------------------------------------------------------------------------------------------------


def rising(gain: float, at: int = 1, steps: int = 24) -> list[float]:
    """A metric that stands at 50 until a step and then `gain` higher."""
    return [50.0 + (gain if step > at else 0.0) for step in range(steps)]


def test_a_grow_that_brings_points_after_20_steps_pays(tmp_path: Path) -> None:
    ops = [WAIT, GROW, *[WAIT] * 22]
    seeds = [Made([ops] * 2, metrics=[rising(gain)] * 2) for gain in (1.0, 1.1, 0.9)]

    found = judged(tmp_path, seeds)["internal ops pay"]

    assert verdict(found) == (10.0, True)  # one point for 100 parameters
    assert found.low == pytest.approx(10 - 4.30265 * 1 / 3**0.5, abs=1e-4)  # three seeds, however many changes


def test_many_changes_of_one_seed_are_no_verdict_on_internal_ops(tmp_path: Path) -> None:
    ops = [WAIT, GROW, *[WAIT] * 22]
    metrics = [rising(gain) for gain in (1.0, 1.1, 0.9, 1.0, 1.0)]

    found = judged(tmp_path, cohort(1, ops=[ops] * 5, metrics=metrics))["internal ops pay"]

    assert (verdict(found), found.n) == ((10.0, None), 1)
    assert found.note.endswith("one seed gives no interval")


def test_a_shrink_pays_its_rent_only_where_the_metric_stayed(tmp_path: Path) -> None:
    ops = [WAIT, SHRINK, *[WAIT] * 22]

    spared = judged(tmp_path / "a", cohort(2, ops=[ops], metrics=[rising(0.2)]))["internal ops pay"]
    lost = judged(tmp_path / "b", cohort(2, ops=[ops], metrics=[rising(-2.0)]))["internal ops pay"]

    assert spared.passed is True
    assert spared.value == pytest.approx(0.41251, abs=1e-4)  # 3 x log2(1100 / 1000)
    assert verdict(lost) == (None, None)


def test_a_grow_that_brings_nothing_fails(tmp_path: Path) -> None:
    ops = [WAIT, GROW, *[WAIT] * 22]
    seeds = [Made([ops], metrics=[rising(gain)]) for gain in (1.0, -1.0, 0.5, -0.5)]

    assert verdict(judged(tmp_path, seeds)["internal ops pay"]) == (0.0, False)


@pytest.mark.parametrize(
    ("ops", "passed", "why"),
    [
        ([[WAIT, GROW] + [WAIT] * 18] * 3, True, "a change in twenty steps, all one way"),
        ([[WAIT, GROW, SHRINK, GROW, SHRINK] + [WAIT] * 35] * 3, False, "round in circles"),
        ([[WAIT, GROW, GROW, GROW] + [WAIT] * 4] * 3, False, "too often"),
        ([[WAIT] * 20, [WAIT] * 20, [WAIT, GROW] + [WAIT] * 18], False, "more and more"),
        ([[WAIT] * 20] * 3, True, "never"),
        ([[WAIT, GROW] + [WAIT] * 8] * 3, True, "a change in ten steps"),
        ([[WAIT, GROW] + [WAIT] * 6] * 3, False, "a change in eight steps"),
        ([[GROW, SHRINK] * 3 + [GROW, GROW] + [WAIT] * 72] * 3, True, "eight changes that lead two levels up"),
        ([[GROW, SHRINK] * 5 + [GROW] * 3 + [WAIT] * 117] * 3, False, "thirteen changes that lead three levels up"),
        ([[WAIT, GROW] + [WAIT] * 18, [WAIT, SHRINK] + [WAIT] * 18] * 3, True, "one way in each host"),
        ([[WAIT, GROW] + [WAIT] * 18] * 2 + [[WAIT] * 20] * 2 + [[WAIT, GROW] + [WAIT] * 18], True, "as in the first"),
    ],
)
def test_thrash_is_too_often_in_circles_or_more_and_more(
    tmp_path: Path, ops: list[list[str]], passed: bool, why: str
) -> None:
    assert judged(tmp_path, cohort(1, ops=ops))["anti-thrash"].passed is passed, why


# --- entropy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropies", "passed"),
    [([0.05] * 5, False), ([0.05] * 4 + [0.5], True), ([0.05] * 3 + [0.5] + [0.05] * 4, True), ([0.5] * 5, True)],
)
def test_a_collapse_is_five_updates_in_a_row(tmp_path: Path, entropies: list[float], passed: bool) -> None:
    found = judged(tmp_path, cohort(1, ops=[QUIET] * len(entropies), entropies=entropies))["entropy"]

    assert found.passed is passed
    assert found.note == ("" if passed else "op")


def test_a_collapse_that_the_control_has_too_is_not_the_treatments(tmp_path: Path) -> None:
    found = judged(tmp_path, cohort(1, entropies=[0.01] * 5), cohort(1, entropies=[0.02] * 5))["entropy"]

    assert verdict(found) == (0, True)
    assert "in the control too: op" in found.note


def test_rules_have_no_entropy_to_judge(tmp_path: Path) -> None:
    assert verdict(judged(tmp_path, cohort())["entropy"]) == (None, None)


# --- all -----------------------------------------------------------------------------------------------------------


def test_every_gate_of_the_plan_is_asked_in_order(tmp_path: Path) -> None:
    names = list(judged(tmp_path, cohort()))

    assert len(names) == len(GATES)
    assert names == [
        "usage", "dominance", "ROI", "internal ops pay", "entropy", "rollbacks", "anti-thrash", "invalid actions"
    ]  # fmt: skip
