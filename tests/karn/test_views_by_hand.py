"""Views on runs made by hand, for what a healthy recorded run does not show: thrash, rollbacks, losses, attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.karn.conftest import ByHand
from tests.karn.made import Made

from esper.karn.mcp.catalogue import listed
from esper.karn.memory import open_memory
from esper.leyline.telemetry import (
    Payload,
    RanksTroubledPayload,
    RunFinishedPayload,
    RunResumedPayload,
    SeedContributionMeasuredPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
)
from esper.nissa.writer import EventWriter

WAIT, GROW, SHRINK = "WAIT", "GROW_INTERNAL", "SHRINK_INTERNAL"
LADDER: dict[str, Any] = {"env_id": 0, "slot_id": "r0c0", "seed_id": "r0c0.1", "blueprint_id": "conv_ladder"}


@contextmanager
def opened(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with closing(open_memory([folder])) as store:
        yield store.con


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with opened(folder) as con:
        return con.execute(sql).fetchall()


def add(folder: Path, *told: tuple[int, Payload]) -> Path:
    """Events of round 0 from a writer of their own, each with its step."""
    with EventWriter(folder / "ev", "r1.1") as events:
        for step, payload in told:
            events.emit(payload, round=0, episode=0, step=step)
    return folder


def edit(folder: Path, part: str, **values: Any) -> Path:
    """Puts values into a part of the manifest, which is `metric` or one of the settings."""
    manifest = json.loads((folder / "run.json").read_text())
    (manifest[part] if part in manifest else manifest["config"][part]).update(values)
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


# --- levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ops", "thrash"),
    [
        ([WAIT, GROW, *[WAIT] * 8], False),  # a change in ten steps
        ([WAIT, GROW, *[WAIT] * 7], True),
        ([GROW, SHRINK, GROW, *[WAIT] * 37], False),  # three changes say nothing yet
        ([GROW, SHRINK, GROW, SHRINK, *[WAIT] * 36], True),  # back where it was
        ([GROW, SHRINK, GROW, SHRINK, GROW, GROW, SHRINK, GROW, *[WAIT] * 72], False),  # eight lead two levels up
    ],
)
def test_thrash_is_more_than_a_change_in_ten_steps_or_four_that_lead_nowhere(
    tmp_path: Path, ops: list[str], thrash: bool
) -> None:
    assert rows(Made([ops]).write(tmp_path, "made"), "select thrash from churn") == [(thrash,)]


def test_a_reversal_is_a_decision_that_takes_back_the_decision_before(tmp_path: Path) -> None:
    run = Made([[GROW, GROW, SHRINK, WAIT, GROW, SHRINK]]).write(tmp_path, "made")

    assert rows(run, "select changes, reversals, net_level_change from churn") == [(5, 3, 1)]


def test_what_rollbacks_do_to_a_level_counts_only_in_how_far_it_got(tmp_path: Path) -> None:
    def rolled_back(from_level: int, to_level: int) -> SeedInternalLevelChangedPayload:
        return SeedInternalLevelChangedPayload(
            **LADDER, internal_kind=1, from_level=from_level, to_level=to_level, internal_max_level=4, params_before=1,
            internal_effective_params=1, cause="rollback",
        )  # fmt: skip

    run = Made([[WAIT, GROW, WAIT, WAIT, WAIT]]).write(tmp_path, "made")
    add(run, (2, rolled_back(2, 1)), (3, rolled_back(1, 3)))

    found = rows(run, "select changes, grown, shrunk, reversals, net_level_change from churn")
    assert found == [(1, 1, 0, 0, 1 - 1 + 2)]


def test_a_contribution_measured_in_the_step_of_a_change_came_after_it(tmp_path: Path) -> None:
    def measured(value: float, against: str = "off") -> SeedContributionMeasuredPayload:
        return SeedContributionMeasuredPayload(
            **LADDER, against=against, metric=value, metric_sem=value / 10, loss=0.0, loss_sem=0.0
        )

    run = Made([[WAIT, WAIT, WAIT, GROW, WAIT, WAIT]]).write(tmp_path, "made")
    add(run, *[(step, measured(10.0 * step)) for step in range(1, 6)])
    with EventWriter(run / "ev", "r1.2") as events:
        for step in (4, 5):
            events.emit(measured(float(step), "level"), round=0, episode=0, step=step)

    found = rows(
        run, "select contribution_before, contribution_after, level_effect, level_effect_sem from level_changes"
    )
    assert found == [(20.0, 30.0, 4.0, 0.4)]


# --- the direction of the metric -----------------------------------------------------------------------------------


def test_where_less_is_better_gains_and_worth_turn_round(tmp_path: Path) -> None:
    metrics = [[5.0] * 2 + [3.0] * 22]
    run = Made([[WAIT, GROW, *[WAIT] * 22]], metrics=metrics, tests=[3.0], params=2000).write(tmp_path, "made")
    edit(run, "metric", higher_is_better=False)
    measured = SeedContributionMeasuredPayload(
        **LADDER, against="off", metric=2.0, metric_sem=0.1, loss=0.0, loss_sem=0.0
    )
    add(run, (5, measured))

    assert rows(run, "select j from episodes") == [(-3.0 - 3.0,)]  # minus the metric, minus the rent of a doubling
    assert rows(run, "select gain_20 from level_changes") == [(2.0,)]
    assert rows(run, "select contribution from blueprint_stats") == [(2.0,)]
    assert rows(run, "select gain from rent_roi") == [(2.0,)]


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_the_age_at_prune_is_a_mean(tmp_path: Path) -> None:
    run = Made([[WAIT] * 6]).write(tmp_path, "made")
    add(run, *[(age, SeedPrunedPayload(**LADDER, initiator="controller", age=age, params=1)) for age in (1, 4)])

    assert rows(run, "select pruned, age_at_prune from blueprint_stats") == [(2, 2.5)]


def test_a_stage_that_had_not_ended_reaches_to_the_last_step_that_was_told(tmp_path: Path) -> None:
    run = Made([[WAIT] * 10] * 2).write(tmp_path, "made")
    (segment,) = (run / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    last = [at for at, line in enumerate(lines) if b'"ENV_STEP"' in line and b'"rd":1' in line][3]
    segment.write_bytes(b"".join(lines[: last + 1]))  # killed after the fourth step of its second round

    assert rows(run, "select round, from_step, to_step, steps from lifecycle_spans order by round") == [
        (0, 0, 9, 10),
        (1, 0, 3, 4),
    ]
    assert rows(run, "select mean_steps, longest from stage_durations") == [(7.0, 10)]


# --- what went wrong -----------------------------------------------------------------------------------------------


def test_the_governor_is_told_with_the_decision_of_the_step_it_took_back(tmp_path: Path) -> None:
    run = Made([[WAIT] * 3, [GROW, SHRINK, WAIT]], rollbacks=[0, 2]).write(tmp_path, "made")
    edit(run, "run", envs=4)

    found = rows(run, "select round, episode, step, decision, rollbacks from governor order by step")

    assert found == [(1, 4, 0, "GROW_INTERNAL r0c0", 1), (1, 4, 1, "SHRINK_INTERNAL r0c0", 2)]
    assert rows(run, "select round, rollbacks from episodes order by round") == [(0, 0), (1, 2)]


def test_ranks_in_trouble_are_told_one_a_row_with_what_each_had(tmp_path: Path) -> None:
    run = add(
        Made([[WAIT] * 3]).write(tmp_path, "made"),
        (1, RanksTroubledPayload(kind="slow", ranks=(2,), text="late")),
        (
            2,
            RanksTroubledPayload(
                kind="diverged", ranks=(0, 2), steps=7, field="slot r0c0: level", values=("1", "2", "3"), text="apart"
            ),
        ),
    )

    found = rows(
        run,
        "select round, rank, kind, optimiser_steps, field, value, all_values, text from ddp_divergence "
        "order by n, rank",
    )

    lines = [json.loads(line) for path in (run / "ev").glob("*.jsonl") for line in path.read_text().splitlines()]
    told = [line for line in lines if line["t"] == "RANKS_TROUBLED"]
    assert found == [
        (
            line["rd"],
            rank,
            line["kind"],
            line.get("steps"),
            line.get("field"),
            line["values"][rank] if "values" in line else None,
            line.get("values", []),
            line["text"],
        )
        for line in told
        for rank in line["ranks"]
    ]
    assert [row[5] for row in found] == [None, "1", "3"]


def test_a_run_ended_as_its_last_attempt_did(folder: ByHand) -> None:
    first, second = (
        RunFinishedPayload(status="interrupted", seconds=2.0),
        RunFinishedPayload(status="done", seconds=3.0),
    )
    runs = f"select status, seconds from runs where run = '{folder.path.name}'"

    folder.write(folder.line(first))
    assert rows(folder.path, runs) == [("interrupted", 2.0)]

    resumed = folder.line(RunResumedPayload(from_round=0, from_step=0), "r0.2")
    folder.write(resumed, segment="r0.2-000000.open")
    assert rows(folder.path, runs) == [("died", 2.0)]
    assert [run.status for run in listed(folder.path.parent)] == ["died"]

    folder.write(folder.line(second, "r0.2"), segment="r0.2-000000.open")
    assert rows(folder.path, runs) == [("done", 3.0)]  # which holds the seconds of the attempts before it
    assert [run.status for run in listed(folder.path.parent)] == ["done"]


@pytest.mark.parametrize("how", ["bad line", "missing line", "said by the writer"])
def test_a_run_is_complete_only_if_no_line_is_bad_or_missing_and_no_writer_says_so(tmp_path: Path, how: str) -> None:
    run = Made([[WAIT] * 3]).write(tmp_path, "made")
    assert rows(run, "select complete from runs") == [(True,)]
    (segment,) = (run / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)

    if how == "bad line":
        segment.write_bytes(b"".join([*lines, b"{}\n"]))
    elif how == "missing line":
        segment.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    else:
        (run / "ev" / "INCOMPLETE").write_text("r0.1: no space left on device\n")

    assert rows(run, "select complete from runs") == [(False,)]


# --- the policy ----------------------------------------------------------------------------------------------------


def test_a_head_has_collapsed_below_a_tenth_of_the_entropy_of_even_choices(tmp_path: Path) -> None:
    run = Made([[WAIT] * 4] * 4, entropies=[0.09, 0.10, 0.099, 0.01]).write(tmp_path, "made")

    found = rows(run, "select collapsed, in_a_row from head_health join entropy_collapse using (update, head) "
                      "where head = 'op' order by update")  # fmt: skip

    assert found == [(True, 1), (False, 0), (True, 1), (True, 2)]


# --- series --------------------------------------------------------------------------------------------------------


def test_as_many_points_as_steps_are_the_steps(tmp_path: Path) -> None:
    run = Made([[WAIT] * 4], metrics=[[1.0, 2.0, 4.0, 8.0]]).write(tmp_path, "made")

    found = rows(run, "select x, low, mean, high, n from series('made', 'val_metric', null, null, null, 4)")

    assert found == [(at, value, value, value, 1) for at, value in enumerate((1.0, 2.0, 4.0, 8.0))]


def test_a_part_of_a_series_has_all_points_for_itself(tmp_path: Path) -> None:
    run = Made([[WAIT] * 4] * 2, metrics=[[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]]).write(tmp_path, "made")

    found = rows(run, "select x, low, mean, high, n from series('made', 'val_metric', 0, 2, 5, 2)")

    assert found == [(2, 4.0, 6.0, 8.0, 2), (4, 16.0, 24.0, 32.0, 2)]


def test_a_series_of_what_is_not_kept_is_refused(tmp_path: Path) -> None:
    run = Made([[WAIT] * 4]).write(tmp_path, "made")

    with pytest.raises(duckdb.Error, match="entropy: is not kept at every step"):
        rows(run, "from series('made', 'entropy', null, null, null, 4)")
