"""What `writer.py` promises of what is told, when it is on disk, and in which files."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nissa.telling import NEVER, bytes_on_disk, note, pruned, step, texts

from esper.leyline.errors import StorageError
from esper.leyline.telemetry import (
    LogPayload,
    Payload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    SeedContributionMeasuredPayload,
    SeedPrunedPayload,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import gaps, read_events, why_incomplete
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

# ---- what is told is read


def test_what_is_settled_is_on_the_disk_and_counted(run, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd))[1])
    with EventWriter(
        run / "ev", "r0.1", TelemetryConfig(flush_ms=60_000, fsync_s=3600.0, heartbeat_s=3600.0)
    ) as events:
        events.emit(note("one"))
        events.emit(note("two"))
        synced.clear()

        assert events.settle() == 2
        assert texts(run) == ["one", "two"]
        assert synced == [len(bytes_on_disk(run))]
        assert events.settle() == 2
    assert events.settle() == 2


def test_nobody_waits_for_a_disk_that_refuses(run):
    with EventWriter(run / "ev", "r0.1", TelemetryConfig(heartbeat_s=3600.0)) as events:
        os.close(events._segments._fd)
        events.emit(note("lost"))

        assert events.settle() == 1
        assert events.lost == 1
        events._segments._fd = os.open("/dev/null", os.O_WRONLY)


def test_what_is_told_is_read_in_order_with_its_place_and_time(run):
    before = time.time()
    with EventWriter(run / "ev", "r0.1") as events:
        events.emit(note("first"), round=2, episode=17, step=5)
        events.emit(pruned(), group="A")

    (first, said), (second, gone) = read_events(run)

    assert (said, gone) == (note("first"), pruned())
    assert (first.counter, first.writer, first.group, first.round, first.episode, first.step) == (
        0, "r0.1", None, 2, 17, 5,
    )  # fmt: skip
    assert (second.counter, second.writer, second.group, second.round) == (1, "r0.1", "A", None)
    assert before - 1 <= first.time_s <= second.time_s <= time.time() + 1


def test_a_burst_of_100_000_events_loses_none(run):
    with EventWriter(run / "ev") as events:
        for i in range(100_000):
            events.emit(note(), step=i)

    read = [(envelope.counter, envelope.step) for envelope, _ in read_events(run)]

    assert read == [(i, i) for i in range(100_000)]
    assert gaps(run) == []
    assert (events.incomplete, events.lost, why_incomplete(run)) == (None, 0, None)


def test_threads_may_share_a_writer(run):
    with EventWriter(run / "ev") as events:

        def tell(who: int) -> None:
            for i in range(500):
                events.emit(note(f"{who} {i}") if i % 50 else pruned(f"{who} {i}"))

        threads = [threading.Thread(target=tell, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    read = list(read_events(run))
    assert [envelope.counter for envelope, _ in read] == list(range(2000))
    for who in range(4):
        said = [p.text if isinstance(p, LogPayload) else p.seed_id for _, p in read]
        assert [text for text in said if text.startswith(f"{who} ")] == [f"{who} {i}" for i in range(500)]


@pytest.mark.parametrize(
    "payload",
    [
        step(train_loss=torch.tensor(1.0)),
        step(train_loss=np.float64(1.0)),
        step(train_loss=np.float32(1.0)),
        step(params=np.int64(5)),
        step(done=np.bool_(True)),
        step(alpha=(0.5, torch.tensor(0.5))),
        step(alpha=(0.5, np.float64(0.5))),
        step(stage=[1, 2]),
        step(op=None),
        note(5),
        "a note",
    ],
)
def test_a_tensor_or_any_other_wrong_type_is_refused_at_once_and_leaves_no_trace(run, payload):
    with EventWriter(run / "ev") as events:
        events.emit(note("before"))
        with pytest.raises(TypeError):
            events.emit(payload)
        events.emit(note("after"))

    assert texts(run) == ["before", "after"]
    assert gaps(run) == []


def test_a_value_that_is_not_finite_is_named_and_reads_as_nan_not_as_unmeasured(run):
    with EventWriter(run / "ev") as events:
        events.emit(step(train_loss=math.inf, val_loss=None, alpha=(0.5, math.nan)))

    line = json.loads(bytes_on_disk(run))
    ((_, read),) = read_events(run)

    assert line["nf"] == ["train_loss", "alpha.1"]
    assert line["train_loss"] is None
    assert math.isnan(read.train_loss)
    assert read.val_loss is None
    assert read.alpha[0] == 0.5
    assert math.isnan(read.alpha[1])


# ---- when it is on disk


def test_a_critical_event_is_with_the_kernel_before_emit_returns_and_takes_along_what_waited(run):
    with EventWriter(run / "ev", config=TelemetryConfig(flush_ms=NEVER)) as events:
        events.emit(note("waits"))
        assert bytes_on_disk(run) == b""

        events.emit(pruned())

        assert [type(payload) for _, payload in read_events(run)] == [LogPayload, SeedPrunedPayload]


def test_any_other_event_is_there_after_flush_ms(run):
    with EventWriter(run / "ev", config=TelemetryConfig(flush_ms=50)) as events:
        events.emit(note())
        time.sleep(0.5)

        assert texts(run) == ["a note"]


def test_256_kilobytes_do_not_wait_for_the_clock(run):
    with EventWriter(run / "ev", config=TelemetryConfig(flush_ms=NEVER)) as events:
        for _ in range(30):
            events.emit(note("x" * 10_000))
        deadline = time.monotonic() + 10
        while not bytes_on_disk(run) and time.monotonic() < deadline:
            time.sleep(0.01)

        assert len(texts(run)) >= 26


def test_signs_of_life_come_by_themselves(run):
    with EventWriter(run / "ev", config=TelemetryConfig(heartbeat_s=0.05, flush_ms=10)):
        time.sleep(0.6)

    beats = [payload for _, payload in read_events(run)]

    assert len(beats) >= 3
    assert all(isinstance(beat, RunHeartbeatPayload) and beat.rss_bytes > 5_000_000 for beat in beats)
    assert gaps(run) == []


def test_small_events_cost_at_most_ten_microseconds(run):
    contribution = SeedContributionMeasuredPayload(
        slot_id="r0c1", seed_id="e0-1", blueprint_id="conv_light", against="off",
        metric=1.5, metric_sem=0.1, loss=-0.02, loss_sem=0.001,
    )  # fmt: skip
    best_p99_ns = min(nanoseconds_per_emit(run / "ev", f"r0.{i}", contribution)[4950] for i in range(1, 8))

    assert best_p99_ns <= 10_000


def nanoseconds_per_emit(ev: Path, writer: str, payload: Payload) -> list[int]:
    taken = [0] * 5000
    with EventWriter(ev, writer) as events:
        for i in range(5000):
            began = time.perf_counter_ns()
            events.emit(payload, round=1, episode=2, step=i)
            taken[i] = time.perf_counter_ns() - began
    return sorted(taken)


# ---- files


def test_files_are_sealed_at_their_size_and_read_in_order(run):
    with EventWriter(run / "ev", config=TelemetryConfig(segment_mib=1, flush_ms=10)) as events:
        for i in range(500):
            events.emit(note(f"{i} {'x' * 10_000}") if i % 10 else RunFinishedPayload(status="done", seconds=float(i)))
        *sealed, last = sorted(path.name for path in (run / "ev").iterdir())
        assert last.endswith(".open")
        assert all(name.endswith(".jsonl") for name in sealed)
        live = [envelope.counter for envelope, _ in read_events(run)]
        assert live == list(range(len(live)))

    sizes = [path.stat().st_size for path in sorted((run / "ev").glob("*.jsonl"))]
    assert len(sizes) == len(sealed) + 1 == 5
    assert all(2**20 <= size <= 1.5 * 2**20 for size in sizes[:-1])
    assert [envelope.counter for envelope, _ in read_events(run)] == list(range(500))


def test_a_file_that_is_sealed_while_it_is_being_read_is_still_found(run):
    first, second = EventWriter(run / "ev", "r0.1"), EventWriter(run / "ev", "r1.1")
    first.emit(pruned("a"))
    second.emit(pruned("b"))

    reading = read_events(run)
    next(reading)
    first.close()
    second.close()

    assert [payload.seed_id for _, payload in reading] == ["b"]


def test_writers_are_read_by_rank_and_attempt_as_numbers(run):
    for writer in ("r10.1", "r2.1", "r0.10", "r0.9"):
        with EventWriter(run / "ev", writer) as events:
            events.emit(note(writer))

    assert texts(run) == ["r0.9", "r0.10", "r2.1", "r10.1"]
    assert gaps(run) == []


def test_a_writer_that_was_here_before_is_never_written_over(run):
    with EventWriter(run / "ev", "r0.1") as events:
        events.emit(note("the first attempt"))

    with EventWriter(run / "ev", RunFolder(run).next_writer()) as events:
        events.emit(note("the second attempt"))

    assert events.writer == "r0.2"
    assert texts(run) == ["the first attempt", "the second attempt"]
    os.rename(run / "ev" / "r0.1-000000.jsonl", run / "ev" / "r0.1-000000.open")
    with pytest.raises(StorageError, match="file exists; something is in the way"):
        EventWriter(run / "ev", "r0.1")


def test_closing_twice_is_no_harm(run):
    events = EventWriter(run / "ev")
    events.emit(note())
    events.close()
    events.close()

    assert texts(run) == ["a note"]
