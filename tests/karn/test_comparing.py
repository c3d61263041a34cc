"""The macro `compare` against plain Python over the raw lines: what two sets of runs came to, paired by seed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import duckdb
import pytest
from scipy.stats import ttest_rel
from tests.karn.conftest import column
from tests.karn.made import Made
from tests.karn.recorded import Recorded, near

from esper.karn.gates import LATE
from esper.karn.memory import open_memory
from esper.karn.store import Store
from esper.leyline.config import read_json
from esper.leyline.statistics import estimate
from esper.leyline.telemetry import EnvStepPayload, EpisodeFinishedPayload, GovernorRollbackPayload
from esper.nissa.reader import read_events

MEASURES = (
    *("test_metric", "val_metric", "j", "reward", "params", "doublings", "fossilized", "operations", "refused"),
    *("rollbacks", "flops", "flops_wasted"),
)


def compared(store: Store, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by their measure."""
    found = store.con.execute("from compare($ours, $theirs)", {"ours": ours, "theirs": theirs})
    names = [column[0] for column in found.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    return {row["measure"]: row for row in rows}


def late_means(folder: Path) -> dict[str, float]:
    """Of each measure the mean over the episodes of the last fifth of the rounds, from the lines."""
    told = list(read_events(folder))
    steps, ends, back = defaultdict(list), {}, Counter[tuple[Any, int]]()
    for where, payload in told:
        if isinstance(payload, EnvStepPayload):
            steps[where.round, payload.env_id].append(payload)
        elif isinstance(payload, EpisodeFinishedPayload):
            ends[where.round, payload.env_id] = payload
        elif isinstance(payload, GovernorRollbackPayload):
            back[where.round, payload.env_id] += 1
    rounds = 1 + max(round_ for round_, _ in ends)
    rent = read_json(folder / "run.json")["config"]["reward"]["rent"]
    values = defaultdict(list)
    for place, end in ends.items():
        if place[0] < math.floor(LATE * rounds):
            continue
        doublings = math.log2(end.params / end.host_params)
        own = {name: getattr(end, name) for name in MEASURES if hasattr(end, name)}
        own |= {"doublings": doublings, "j": end.test_metric - rent * doublings, "rollbacks": back[place]}
        own["operations"] = sum(step.op != "WAIT" for step in steps[place])
        own["refused"] = sum(not step.done for step in steps[place])
        for name, value in own.items():
            values[name].append(value)
    return {name: fmean(of) for name, of in values.items()}


THRASH = ["GROW_INTERNAL", "SHRINK_INTERNAL", "WAIT", "WAIT"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    """Five runs of seeds 0 to 4 beside four of seeds 2 to 5, ten rounds each."""
    root = tmp_path_factory.mktemp("shelf")
    folders = [
        Made(
            [THRASH[: 2 + seed % 3] + ["WAIT"] * (4 - seed % 3)] * 10,
            tests=[10.0 * i for i in range(8)] + [60.0 + seed, 61.0], params=1000 + 100 * seed,
            rollbacks=[3] * 8 + [seed, 1], refused=2, seed=seed,
        ).write(root, f"ours-{seed}")
        for seed in range(5)
    ]  # fmt: skip
    folders += [
        Made([["WAIT"] * 6] * 10, tests=[0.0] * 8 + [50.0 + 1.7 * seed, 55.0 - seed**2], params=900, seed=seed).write(
            root, f"theirs-{seed}"
        )
        for seed in range(2, 6)
    ]
    with closing(open_memory(folders)) as store:
        yield store, root


OURS, THEIRS = [f"ours-{seed}" for seed in range(5)], [f"theirs-{seed}" for seed in range(2, 6)]


def test_a_comparison_has_the_late_means_of_both_and_their_difference_paired_by_seed(shelf) -> None:
    store, root = shelf
    found = compared(store, OURS, THEIRS)

    means = {name: late_means(root / name) for name in (*OURS, *THEIRS)}
    assert tuple(found) == MEASURES
    for measure, row in found.items():
        ours, theirs = ([means[f"{side}-{seed}"][measure] for seed in (2, 3, 4)] for side in ("ours", "theirs"))
        assert row["a"] == near(fmean(means[name][measure] for name in OURS))
        assert row["b"] == near(fmean(means[name][measure] for name in THEIRS))
        assert row["seeds"] == 3
        assert row["difference"] == near(fmean(ours) - fmean(theirs))
        if stdev(one - other for one, other in zip(ours, theirs, strict=True)):
            interval = ttest_rel(ours, theirs).confidence_interval(0.95)
            assert (row["low"], row["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
        else:
            assert row["low"] == row["difference"] == row["high"]
    differ = {measure for measure, row in found.items() if row["difference"]}
    assert differ >= {"test_metric", "j", "params", "doublings", "operations", "rollbacks"}


def test_the_other_way_round_every_difference_has_the_other_sign(shelf) -> None:
    store, _ = shelf
    there, back = compared(store, OURS, THEIRS), compared(store, THEIRS, OURS)

    for measure, row in there.items():
        other = back[measure]
        assert [row["a"], row["b"], row["difference"]] == near([other["b"], other["a"], -other["difference"]])
        assert [row["low"], row["high"], row["seeds"]] == near([-other["high"], -other["low"], other["seeds"]])


def test_one_seed_gives_no_interval_and_none_in_common_compares_means(shelf) -> None:
    store, _ = shelf

    one = compared(store, ["ours-2", "ours-0"], ["theirs-2"])["test_metric"]
    none = compared(store, ["ours-0", "ours-1"], ["theirs-5"])["test_metric"]

    assert (one["a"], one["b"], one["seeds"]) == (near((61.5 + 60.5) / 2), near((53.4 + 51.0) / 2), 1)
    assert (one["difference"], one["low"], one["high"]) == (near(61.5 - 52.2), None, None)
    assert (none["seeds"], none["low"], none["high"]) == (0, None, None)
    assert none["difference"] == near(none["a"] - none["b"])


def test_a_seed_that_ran_twice_counts_once_with_its_mean_and_a_run_named_twice_is_one_run(tmp_path: Path) -> None:
    tests = {"once": 60.0, "again": 70.0, "other": 80.0}
    folders = [
        Made([["WAIT"]], tests=[test], seed=int(name == "other")).write(tmp_path, name) for name, test in tests.items()
    ]
    with closing(open_memory(folders)) as store:
        twice = compared(store, ["once", "again", "other"], ["other"])["test_metric"]
        repeated = compared(store, ["once", "other", "once", "once"], ["other"])["test_metric"]

    assert (twice["a"], twice["difference"], twice["seeds"]) == ((65.0 + 80.0) / 2, 0.0, 1)
    assert repeated["a"] == (60.0 + 80.0) / 2


def test_what_was_not_measured_or_is_not_finite_is_left_out(tmp_path: Path) -> None:
    folders = [Made([["WAIT"]] * 5, seed=seed).write(tmp_path, f"r{seed}") for seed in range(3)]
    with closing(open_memory(folders)) as store:
        store.con.execute("update episode_finished set test_metric = null where run = 'r0'")
        store.con.execute("update episode_finished set test_metric = 'nan' where run = 'r1'")
        nothing = compared(store, ["r0", "r1"], ["r2"])
        something = compared(store, ["r0", "r1", "r2"], ["r2"])

    assert nothing.keys() == set(MEASURES) - {"test_metric", "j"}
    assert something["test_metric"]["a"] == 50.0
    assert something["test_metric"]["seeds"] == 1


def test_a_real_run_compared_with_itself_differs_in_nothing(recorded: Recorded) -> None:
    rows = recorded.rows(f"from compare(['{recorded.run}'], ['{recorded.run}'])")

    means = late_means(recorded.folder)
    assert [row[0] for row in rows] == list(MEASURES)
    for measure, a, b, difference, low, high, seeds in rows:
        assert (a, b) == (near(means[measure]), near(means[measure]))
        assert (difference, low, high, seeds) == (0.0, None, None, 1)


def test_runs_that_are_not_there_or_not_whole_are_refused(tmp_path: Path) -> None:
    whole, torn = (Made([["WAIT"] * 9], seed=seed).write(tmp_path, name) for seed, name in enumerate(("whole", "torn")))
    (segment,) = (torn / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:5] + lines[6:]))
    with closing(open_memory([whole, torn])) as store:
        for pair in ((["whole"], ["torn"]), (["torn", "whole"], ["whole"])):
            with pytest.raises(duckdb.Error, match="run torn: lines of it are missing on the disk, so it deserves no"):
                compared(store, *pair)
        with pytest.raises(duckdb.Error, match="run absent: is not open here"):
            compared(store, ["whole", "absent"], ["whole"])


def test_intervals_in_sql_are_as_wide_as_those_of_the_library() -> None:
    with closing(open_memory([])) as store:
        quantiles = column(store, "select quantile from students_t order by n")

    for n in (2, 3, 5, 30, 1000):
        values = [float(value**2 % 7) for value in range(n)]
        half_width = estimate(values).half_width
        assert half_width is not None
        assert quantiles[n - 2] * stdev(values) / math.sqrt(n) == pytest.approx(half_width)
    assert quantiles[0] == pytest.approx(12.7062047)  # of a printed table
    assert len(quantiles) == 999
