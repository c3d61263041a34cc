"""What is left when processes are killed and disks fail: with real processes, real signals and real files."""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.nissa.telling import NEVER, PREAMBLE, bytes_on_disk, finished, note, pruned, python, texts

from esper.leyline.errors import StorageError
from esper.leyline.telemetry import (
    RunFinishedPayload,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import Gap, gaps, read_events, why_incomplete
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

# ---- processes that end badly


KILLED = (
    PREAMBLE
    + """
import mmap, struct
file = open(sys.argv[2], "r+b")
times = mmap.mmap(file.fileno(), 0)
every = int(sys.argv[3])
events = EventWriter(ev)
for n in range(len(times) // 8):
    events.emit(critical if every and n % every == every - 1 else note(), step=n)
    struct.pack_into("d", times, 8 * n, time.time())
    if not every:
        time.sleep(0.0005)      # so few that only the clock flushes them
"""
)


@pytest.mark.parametrize("critical_every", [0, 20, 2000])
def test_kill_9_costs_at_most_flush_ms_of_notes_and_nothing_critical(run, critical_every):
    times = run / "times"
    with times.open("wb") as file:
        file.truncate(8 * 2_000_000)
    child = python(KILLED, run, times, critical_every)
    wait_for_bytes(run)
    time.sleep(random.uniform(0.2, 0.5))
    killed_at = time.time()
    child.kill()
    child.communicate(timeout=60)

    with times.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as table:
        told_at = [told for (told,) in struct.iter_unpack("d", table[:]) if told]
    read = [(envelope.counter, envelope.step) for envelope, _ in read_events(run)]

    assert read == [(n, n) for n in range(len(read))]
    lost = range(len(read), len(told_at))
    assert not [n for n in lost if critical_every and n % critical_every == critical_every - 1]
    waited_s = killed_at - told_at[lost[0]] if lost else 0.0
    assert waited_s <= 0.1 + 0.15, "flush_ms, and what two busy cores may delay a thread"


def wait_for_bytes(run: Path) -> None:
    deadline = time.monotonic() + 30
    while not bytes_on_disk(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_a_torn_last_line_nothing_is_seen_wherever_it_was_torn(run):
    with EventWriter(run / "ev") as events:
        for text in ("one", "two", "three"):
            events.emit(note(text))
    whole = bytes_on_disk(run)
    (path,) = (run / "ev").iterdir()
    second_ends = whole.index(b"\n", whole.index(b"two")) + 1

    for cut in range(second_ends, len(whole)):
        path.write_bytes(whole[:cut])
        assert texts(run) == ["one", "two"]


def test_a_program_that_forgets_to_close_or_crashes_loses_nothing(run):
    told = "events = EventWriter(ev, sys.argv[2], TelemetryConfig(flush_ms=60_000)); events.emit(note(sys.argv[2]))\n"

    finished(python(PREAMBLE + told, run, "r0.1"))
    crashed = python(PREAMBLE + told + "raise RuntimeError", run, "r0.2")
    crashed.communicate(timeout=60)

    assert crashed.returncode == 1
    assert texts(run) == ["r0.1", "r0.2"]
    assert sorted(path.name for path in (run / "ev").iterdir()) == ["r0.1-000000.jsonl", "r0.2-000000.jsonl"]


def test_interrupts_in_the_middle_of_emit_neither_tear_nor_lose_nor_repeat_a_line(run):
    code = (
        PREAMBLE
        + """
import signal
armed, caught = False, 0
def interrupt(number, frame):
    global armed, caught
    if armed:
        armed, caught = False, caught + 1
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
events = EventWriter(ev)
print("ready", flush=True)
end = time.monotonic() + 1.5
n = 0
def tell():
    global armed, n
    armed = True
    while time.monotonic() < end:
        events.emit(critical if n % 5 == 0 else note("x" * 2000))
        n += 1
    armed = False
while time.monotonic() < end:
    try:
        tell()
    except KeyboardInterrupt:
        pass
events.close()
print(caught)
"""
    )
    child = python(code, run)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        child.send_signal(signal.SIGINT)
        time.sleep(random.uniform(0.001, 0.004))

    assert int(finished(child)) > 50
    counters = [envelope.counter for envelope, _ in read_events(run)]
    assert counters == list(range(len(counters)))
    assert len(counters) > 100


def test_a_forked_child_repeats_no_line_and_keeps_no_lock(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
from esper.leyline.telemetry import LogPayload
from esper.nissa.config import TelemetryConfig
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter
folder = RunFolder.create(Path(sys.argv[1]), "forks", "forks")
folder.write_manifest({})
events = EventWriter(folder.ev, config=TelemetryConfig(flush_ms=60_000))
events.emit(LogPayload(level="info", text="before the fork"))
child = os.fork()
if child == 0:
    try:
        events.emit(LogPayload(level="info", text="from the child"))
        os._exit(9)
    except AssertionError:
        pass
    events.close()
    if os.fork() == 0:
        os.close(2)
        time.sleep(10)          # outlives everybody, and must not hold the folder
        os._exit(0)
    sys.exit(7)                 # runs what is registered for the exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert Path(sys.argv[1], "forks", "ev", "r0.1-000000.open").exists()
events.emit(LogPayload(level="info", text="after the fork"))
events.close()
"""
    # Python 3.12 and newer warn of any fork of a process with threads; what happens then is the question here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tmp_path)]
    out = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20)

    assert (out.returncode, out.stderr) == (0, "")
    assert texts(tmp_path / "forks") == ["before the fork", "after the fork"]
    RunFolder.open_existing(tmp_path / "forks").close()


# ---- disks that fail


FULL_DISK = (
    PREAMBLE
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
events = EventWriter(ev)
for n in range(3000):
    events.emit(critical if n % 100 == 0 else note("x" * 50), step=n)
assert events.incomplete is not None
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
events.emit(note("there is room again"), step=3000)
events.close()
print(events.lost, events.incomplete)
"""
)


def test_a_full_disk_stops_nothing_and_is_not_kept_secret(run):
    lost, _, why = finished(python(FULL_DISK, run)).strip().partition(" ")
    steps = [envelope.step for envelope, _ in read_events(run)]

    assert why == "file too large"
    assert why_incomplete(run) == "r0.1: file too large"
    assert 500 < len(steps) < 1000, "lines of some 120 bytes in a file of 100,000"
    assert steps == sorted(set(steps))
    assert steps[-1] == 3000
    assert int(lost) == 3001 - len(steps) == sum(gap.count for gap in gaps(run))


def test_a_line_that_the_disk_tore_is_cut_off_even_if_cutting_fails(run, monkeypatch):
    real = os.write
    room = [40, 0]

    def short_write(fd: int, data: memoryview) -> int:
        if not room:
            return real(fd, data)
        if size := room.pop(0):
            return real(fd, data[:size])
        raise OSError(28, "No space left on device")

    def no_truncate(fd: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    events = EventWriter(run / "ev", config=TelemetryConfig(flush_ms=NEVER))
    monkeypatch.setattr("esper.nissa.segments.os.write", short_write)
    monkeypatch.setattr("esper.nissa.segments.os.ftruncate", no_truncate)
    events.emit(note("torn"))
    events.emit(RunFinishedPayload(status="done", seconds=1.0))
    events.emit(note("whole"))
    events.close()

    assert texts(run) == ["whole"]
    assert gaps(run) == [Gap("r0.1", 0, 2)]
    assert events.incomplete == "no space left on device"
    assert len(list((run / "ev").glob("r0.1-*.jsonl"))) == 2


def test_a_sync_that_fails_marks_the_run(run, monkeypatch):
    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    events = EventWriter(run / "ev", config=TelemetryConfig(fsync_s=0.01, flush_ms=10))
    monkeypatch.setattr("esper.nissa.segments.os.fsync", broken)
    events.emit(note())
    time.sleep(0.2)
    events.close()

    assert events.incomplete == "input/output error"
    assert texts(run) == ["a note"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_even_if_the_writing_thread_dies_training_goes_on(run, monkeypatch):
    def no_memory(self: object, lines: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("esper.nissa.segments.Segments.append", no_memory)
    events = EventWriter(run / "ev")
    for _ in range(3):
        events.emit(pruned())
    events.close()

    assert events.incomplete == "the thread that writes ended with MemoryError"


def test_a_disk_that_stalls_makes_emit_wait_and_drops_nothing(run, monkeypatch):
    real, stalled = os.write, threading.Event()

    def slow_write(fd: int, data: memoryview) -> int:
        stalled.wait(30)
        return real(fd, data)

    told = [0]
    events = EventWriter(run / "ev", config=TelemetryConfig(buffer_mib=1))
    monkeypatch.setattr("esper.nissa.segments.os.write", slow_write)

    def tell() -> None:
        for _ in range(400):
            events.emit(note("x" * 10_000))
            told[0] += 1

    teller = threading.Thread(target=tell)
    teller.start()
    time.sleep(0.5)
    told_while_stalled = told[0]
    stalled.set()
    teller.join(timeout=30)
    events.close()

    assert 100 <= told_while_stalled <= 107, "1 MiB of lines of ten kilobytes"
    assert len(texts(run)) == 400
    assert (gaps(run), events.incomplete) == ([], None)


def test_a_place_that_cannot_hold_events_is_refused_before_training_starts(run):
    with pytest.raises(StorageError) as caught:
        EventWriter(run / "nowhere")

    assert str(caught.value) == f"{run}/nowhere: no such file or directory; check the disk or choose another folder"
