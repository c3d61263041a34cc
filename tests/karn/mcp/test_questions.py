"""What the MCP server answers: questions, verdicts, and events as they are told."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from scipy.stats import ttest_rel
from tests.karn.mcp.client import GROUP, Session, Shelf, table

from esper.karn.memory import open_memory
from esper.karn.phases import PHASES, gates
from esper.leyline.factored_actions import OPS
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import EnvStepPayload, SeedPayload, TelemetryEventType
from esper.nissa.reader import read_events
from esper.nissa.run_folder import RunFolder

LIVE = "20261120-000001-live-000000"

# --- questions -----------------------------------------------------------------------------------------------------


def test_sql_is_answered_as_the_lines_tell_it(session: Session, shelf: Shelf) -> None:
    found = session.call("query", sql="select op, count(*) from env_steps group by op", run=shelf.run)

    assert dict(found["rows"]) == Counter(p.op for _, p in shelf.told if isinstance(p, EnvStepPayload))


def test_parameters_are_bound_and_never_pasted(session: Session) -> None:
    hostile = "x'; drop table env_step; --"

    assert session.call("query", sql="select $x as x", params={"x": hostile})["rows"] == [[hostile]]
    assert session.call("query", sql="select ? + ?", params=[40, 2])["rows"] == [[42]]
    assert session.call("query", sql="select count(*) > 0 from env_step")["rows"] == [[True]]


def test_going_on_with_next_tells_every_row_once(session: Session, shelf: Shelf) -> None:
    rows, offset = [], 0
    while offset is not None:
        found = session.call("query", sql="from env_steps order by n", offset=offset)
        assert found["truncated"] == (found["next"] is not None)
        rows += table(found)
        offset = found["next"]

    assert [row["n"] for row in rows] == [w.counter for w, p in shelf.told if isinstance(p, EnvStepPayload)]


def test_long_texts_are_cut_until_they_fit(session: Session) -> None:
    found = session.call("query", sql="select repeat('ä', 1000000) as text from range(500)")

    assert found["truncated"]
    assert "1000000 characters" in found["rows"][0][0]


def test_a_plan_is_told_and_nothing_is_run(session: Session) -> None:
    found = session.call("query", sql="select count(*) from range(1000000000000)", explain=True)

    assert "RANGE" in found["rows"][0][1].upper()


def test_several_runs_can_be_asked_at_once(session: Session) -> None:
    sql = "select run from runs order by run"
    by_beginning = session.call("query", sql=sql, run=[f"{GROUP}/arms/heur", f"{GROUP}/arms/random-s"])

    arms = [[f"{GROUP}/arms/{rule}-s{seed}"] for rule in ("heuristic", "random") for seed in (0, 1)]
    assert by_beginning["rows"] == session.call("query", sql=sql, run=GROUP)["rows"] == arms


def test_a_series_has_the_smallest_mean_and_largest_of_each_bucket(session: Session, shelf: Shelf) -> None:
    found = session.call("series", metric="val_metric", run=shelf.run, points=7)

    length = shelf.manifest["config"]["run"]["episode_length"]
    points = [
        ((w.round or 0) * length + (w.step or 0), p.val_metric) for w, p in shelf.told if isinstance(p, EnvStepPayload)
    ]
    width = max(x for x, _ in points) + 1
    buckets: dict[int, list[tuple[int, float]]] = {}
    for x, y in points:
        assert y is not None
        buckets.setdefault(math.floor(x * 7 / width), []).append((x, y))
    expected = [
        [min(x for x, _ in b), min(y for _, y in b), sum(y for _, y in b) / len(b), max(y for _, y in b), len(b)]
        for _, b in sorted(buckets.items())
    ]
    assert found["unit"] == shelf.manifest["metric"]["unit"]
    assert found["buckets"]["rows"] == [pytest.approx(row) for row in expected]


def test_a_lifecycle_is_all_that_happened_in_an_episode_in_order(session: Session, shelf: Shelf) -> None:
    found = table(session.call("lifecycle", run=shelf.run, episode=5))

    told = [
        (w.counter, w.step, p.slot_id, p.seed_id)
        for w, p in shelf.told
        if isinstance(p, SeedPayload) and (w.round, p.env_id) == (2, 1)
    ]
    assert [(row["n"], row["step"], row["slot"], row["seed_id"]) for row in found] == sorted(
        told, key=lambda at: (at[1], at[0])
    )
    stays = [row for row in found if row["until_step"] is not None]
    assert stays
    assert all(row["event"] == "stage" and row["until_step"] >= row["step"] for row in stays)


def test_a_step_is_explained_as_the_lines_tell_it(session: Session, shelf: Shelf) -> None:
    step = next(i for i, told in enumerate(shelf.steps(4)) if told.op not in ("WAIT",) and i > 0)

    found = session.call("explain_step", run=shelf.run, env=0, episode=4, step=step)

    told = shelf.steps(4)
    slots = [slot["id"] for slot in shelf.manifest["slots"]]
    assert (found["decision"]["op"], found["decision"]["slot"]) == (told[step].op, told[step].slot)
    assert found["decision"]["possible_ops"] == [op.name for op in OPS if told[step].op_mask >> int(op) & 1]
    assert found["possible_slots"] == [slot for i, slot in enumerate(slots) if told[step].slot_mask >> i & 1]
    assert sum(row["value"] for row in table(found["reward"])) == pytest.approx(told[step].reward, abs=1e-4)
    stages = {(row["step"], row["slot"]): row["stage"] for row in table(found["slots"])}
    assert stages == {
        (at, slot): SeedStage(told[at].stage[i]).name for at in (step - 1, step) for i, slot in enumerate(slots)
    }
    around = range(step - 1, min(step + 6, len(told)))
    assert [row["reward"] for row in table(found["steps"])] == [pytest.approx(told[at].reward) for at in around]
    assert all(step <= row["step"] <= step + 5 for row in table(found["events"]))


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_a_comparison_has_differences_with_intervals_paired_by_seed(session: Session, shelf: Shelf) -> None:
    found = session.call("compare_runs", a=f"{GROUP}/arms/heuristic", b=f"{GROUP}/arms/random")

    def values(rule: str, of: Callable[[Any], float]) -> list[float]:
        folders = [shelf.root / GROUP / "arms" / f"{rule}-s{seed}" for seed in (0, 1)]
        ends = [p for f in folders for _, p in read_events(f) if p.type is TelemetryEventType.EPISODE_FINISHED]
        return [of(end) for end in ends]

    for measure, of in {"test_metric": lambda end: end.test_metric, "params": lambda end: end.params}.items():
        ours, theirs = values("heuristic", of), values("random", of)
        (row,) = [row for row in found["measures"] if row["measure"] == measure]
        interval = ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (row["a"], row["b"], row["seeds"]) == (pytest.approx(sum(ours) / 2), pytest.approx(sum(theirs) / 2), 2)
        assert row["difference"] == pytest.approx(row["a"] - row["b"])
        if math.isfinite(interval.low):
            assert (row["low"], row["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert ["run.controller", ['"heuristic"'], ['"random"']] in found["settings"]["rows"]
    assert not any(setting == "run.seed" for setting, _, _ in found["settings"]["rows"])
    assert found["warnings"] == []


def test_one_seed_is_warned_about_and_gets_no_interval(session: Session) -> None:
    found = session.call("compare_runs", a="latest", b="latest")

    assert any("one seed" in warning for warning in found["warnings"])
    assert any("on both sides" in warning for warning in found["warnings"])
    assert {(row["low"], row["high"], row["seeds"]) for row in found["measures"]} == {(None, None, 1)}


@pytest.mark.parametrize("phase", PHASES)
def test_gates_are_those_of_the_library(session: Session, shelf: Shelf, phase: int) -> None:
    found = session.call("gates", run=f"{GROUP}/arms/heuristic", vs=[f"{GROUP}/arms/random"], phase=phase)

    arms = shelf.root / GROUP / "arms"
    names = [[f"{GROUP}/arms/{rule}-s{seed}" for seed in (0, 1)] for rule in ("heuristic", "random")]
    with closing(
        open_memory([arms / f"{rule}-s{seed}" for rule in ("heuristic", "random") for seed in (0, 1)])
    ) as store:
        expected = gates(store.con, *names, phase)
    assert [found["runs"], found["vs"]] == names
    assert [(row["name"], row["passed"], row["note"]) for row in table(found["gates"])] == [
        (gate.name, gate.passed, gate.note) for gate in expected
    ]
    assert [row["value"] for row in table(found["gates"])] == [
        None if gate.value is None else pytest.approx(gate.value) for gate in expected
    ]


# --- following -----------------------------------------------------------------------------------------------------


def test_following_from_the_beginning_tells_every_event_once(session: Session, shelf: Shelf) -> None:
    events, after, more = [], "", True
    while more:
        found = session.call("tail", run=shelf.run, after=after, limit=200)
        events += found["events"]
        after, more = found["next"], found["truncated"]

    assert [(event["n"], event["type"]) for event in events] == [(w.counter, p.type.value) for w, p in shelf.told]
    assert session.call("tail", run=shelf.run, after=after)["events"] == []


def test_the_tail_is_the_last_events_of_the_types_that_are_asked_for(session: Session, shelf: Shelf) -> None:
    found = session.call("tail", run=shelf.run, types=["seed.stage", "round.finished"], limit=5)

    told = [w.counter for w, p in shelf.told if p.type.value in ("seed.stage", "round.finished")]
    assert [event["n"] for event in found["events"]] == told[-5:]
    assert found["next"] == f"r0.1:{shelf.told[-1][0].counter}"


def test_a_live_run_is_brought_up_to_date_before_each_answer(session: Session, shelf: Shelf) -> None:
    live = shelf.root / LIVE
    shutil.copytree(shelf.root / shelf.run, live, ignore=shutil.ignore_patterns("*.parquet"))
    (sealed,) = (live / "ev").glob("*.jsonl")
    lines = sealed.read_bytes().splitlines(keepends=True)
    sealed.unlink()
    segment = sealed.with_suffix(".open")
    segment.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    with RunFolder.open_existing(live):
        (listed,) = session.call("list_runs", status="running")["runs"]
        before = session.call("tail", run=LIVE)
        judged = session.call("gates", run=LIVE)

        segment.write_bytes(b"".join(lines))
        after = session.call("tail", run=LIVE, after=before["next"], types=["run.finished"])
        counted = session.call("query", run=LIVE, sql="select sum(events) from integrity")
        again = session.call("gates", run=LIVE)

    assert listed["run"] == LIVE
    assert before["events"][-1]["n"] == len(lines) // 2 - 1
    assert [event["n"] for event in after["events"]] == [len(lines) - 1]
    assert counted["rows"] == [[len(lines)]]
    (steps_before,), (steps_after,) = (
        [row["n"] for row in table(found["gates"]) if row["name"] == "anti-thrash"] for found in (judged, again)
    )
    assert steps_after >= steps_before
    assert judged["gates"] != again["gates"]
    shutil.rmtree(live)
