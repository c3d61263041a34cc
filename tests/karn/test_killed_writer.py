"""Writers that are killed at random, a hundred and more: what a reader of the folder finds, and what is lost.

A light process forks the writers (`NURSERY`). Right after each `emit` a writer notes the time in memory that it shares
with the test and that outlives it: what is noted there was told. What it does until it is killed is one of `LIVES`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from esper.karn.memory import open_memory
from esper.karn.store import Store
from esper.leyline.errors import ConfigError

KILLS = 20  # of each of the lives
FLUSH_S = 0.1  # `flush_ms` by default
BUSY_S = 0.4  # by which two busy cores and their disk may delay a thread
NOTE = struct.Struct("@?d")  # whether the event is critical, and when `emit` had returned; 0.0: it has not
ROOM = 50_000  # notes of a writer

NURSERY = """
import json, mmap, os, struct, sys, time
from pathlib import Path
from esper.leyline.telemetry import (
    SCHEMA_VERSION, EnvStepPayload, GovernorRollbackPayload, RunResumedPayload, RunStartedPayload, SeedPrunedPayload,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

NOTE = struct.Struct(sys.argv[1])

def step(n, why=""):
    lists = dict(stage=(1,), alpha=(0.0,), level=(0,), slot_params=(0,), grad_ratio=(None,))
    return EnvStepPayload(env_id=0, op="WAIT", op_mask=1, params=1, effective_params=1, flops=n, why=why, **lists)

def seed(n):
    return SeedPrunedPayload(
        env_id=0, slot_id="r0c0", seed_id=f"r0c0.{n}", blueprint_id="norm", initiator="fade", age=n, params=1
    )

def rollback(n):
    return GovernorRollbackPayload(
        env_id=0, reason="made", detector="burst", steps=8, restored_epoch=0, restored_steps=0, rollbacks=n
    )

KINDS = {"s": step, "l": lambda n: step(n, "long" * 1000), "p": seed, "r": rollback}

def write(path, notes, telling, pause_s):
    with open(notes, "r+b") as file:
        told = mmap.mmap(file.fileno(), 0)
    if path.exists():
        folder, begin = RunFolder.open_existing(path), RunResumedPayload(from_round=0, from_step=0)
    else:
        folder = RunFolder.create_in(path)
        folder.write_manifest({"schema_version": SCHEMA_VERSION})
        begin = RunStartedPayload(
            schema_version=SCHEMA_VERSION, controller="ppo", task="digits", envs=1, rounds=1, episode_length=9
        )
    # No heartbeats, so that the n-th event is the n-th note.
    events = EventWriter(folder.ev, folder.next_writer(), TelemetryConfig(segment_mib=1, buffer_mib=1, heartbeat_s=99))
    for n in range(len(told) // NOTE.size):
        event = begin if n == 0 else KINDS[telling[n % len(telling)]](n)
        events.emit(event, round=0, episode=0, step=n)
        NOTE.pack_into(told, n * NOTE.size, event.critical, time.monotonic())
        time.sleep(pause_s)
    time.sleep(60)

for line in sys.stdin:
    folder, notes, telling, pause_s = json.loads(line)
    writer = os.fork()
    if writer == 0:
        write(Path(folder), notes, telling, pause_s)
        os._exit(0)
    print(writer, flush=True)
    sys.stdin.readline()
    os.waitpid(writer, 0)
    print("dead", flush=True)
"""


@dataclass(frozen=True)
class Life:
    """What a writer does until it is killed."""

    telling: str  # kinds of events, over and over
    pause_s: float  # after each
    files: int  # that it has made when its last hour strikes; 0: perhaps not even a folder
    longest_s: float  # from then to its end
    attempts: int = 1  # writers that are killed in one folder, one after the other


LIVES = {
    "has just begun": Life("sp", 0.0, 0, 0.1),
    "tells a step now and then": Life("s" * 150 + "pr", 0.001, 1, 0.2),
    "prunes and rolls back": Life("prp", 0.0, 1, 0.03),
    "goes on in another file": Life("l" * 30 + "p", 0.0, 2, 0.01),
    "goes on after it was killed": Life("l" * 30 + "r", 0.0, 1, 0.03, attempts=2),
}


@dataclass(frozen=True)
class Killed:
    """A writer that is dead."""

    folder: Path
    writer: str
    notes: list[tuple[bool, float]]  # of every `emit` that had returned: whether it was critical, and when
    at: float  # when it was killed

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in (self.folder / "ev").glob(f"{self.writer}-*") if path.suffix != ".parquet")

    @property
    def data(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.files)

    @property
    def torn_bytes(self) -> int:
        """What stands behind its last newline."""
        return len(self.data) - self.data.rfind(b"\n") - 1

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Its whole lines, or those of one event."""
        told = [json.loads(line) for line in self.data.split(b"\n")[:-1]]
        return [line for line in told if event in ("", line["t"])]

    def lost(self) -> list[tuple[bool, float]]:
        """Notes of events that it told and that stand nowhere."""
        return self.notes[len(self.lines()) :]


class Nursery:
    """Forks writers and buries them."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", NURSERY, NOTE.format]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill(self, life: Life, folder: Path, writer: str) -> Killed:
        """Lets a writer begin, or go on, in the folder, and kills it."""
        notes = folder.with_suffix(f".{writer}")
        with notes.open("wb") as file:
            file.truncate(ROOM * NOTE.size)
        pid = int(self._ask(json.dumps([str(folder), str(notes), life.telling, life.pause_s])))
        deadline = time.monotonic() + 30
        while len(list((folder / "ev").glob(f"{writer}-*"))) < life.files and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(random.uniform(0.0, life.longest_s))
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        assert self._ask("bury it") == "dead\n"
        told = [(critical, when) for critical, when in NOTE.iter_unpack(notes.read_bytes()) if when]
        return Killed(folder, writer, told, at)

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@dataclass(frozen=True)
class Found:
    """Dead writers that lived alike, and a store of their runs."""

    life: Life
    killed: list[Killed]
    store: Store

    def rows(self, killed: Killed, sql: str) -> list[tuple[Any, ...]]:
        """What a query says that asks for `$run` and `$writer`."""
        return self.store.con.execute(sql, {"run": killed.folder.name, "writer": killed.writer}).fetchall()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module", params=LIVES)
def found(
    request: pytest.FixtureRequest, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Found]:
    place, life = tmp_path_factory.mktemp("killed"), LIVES[request.param]
    folders = [place / f"run-{number:02}" for number in range(KILLS)]
    killed = [nursery.kill(life, path, f"r0.{at + 1}") for path in folders for at in range(life.attempts)]
    with open_memory([path for path in folders if (path / "ev").is_dir()]) as store:
        yield Found(life, killed, store)
    shutil.rmtree(place)


# ---- what is found


def test_every_line_of_a_killed_writer_is_whole_and_no_counter_is_left_out(found: Found) -> None:
    for killed in found.killed:
        told = killed.lines()  # raises if one is no JSON

        assert [line["n"] for line in told] == list(range(len(told)))
        assert {line["w"] for line in told} <= {killed.writer}


def test_the_store_counts_what_a_killed_writer_told_and_finds_nothing_missing(found: Found) -> None:
    sql = """select segments, events, first_n, last_n, missing, bad_lines, torn_bytes from integrity
        where run = $run and writer = $writer"""
    for killed in found.killed:
        events = len(killed.lines())
        ends = (0, events - 1) if events else (None, None)

        assert found.rows(killed, sql) == (
            [(len(killed.files), events, *ends, 0, 0, killed.torn_bytes)] if killed.files else []
        )


def test_the_tables_hold_what_the_lines_of_a_killed_writer_say(found: Found) -> None:
    tables = {
        "env_step": ("ENV_STEP", {"step": "st", "flops": "flops", "why": "why"}),
        "seed_pruned": ("SEED_PRUNED", {"step": "st", "seed_id": "seed_id", "age": "age"}),
        "gov_rollback": ("GOVERNOR_ROLLBACK", {"step": "st", "rollbacks": "rollbacks"}),
        "run_started": ("RUN_STARTED", {"task": "task"}),
        "run_resumed": ("RUN_RESUMED", {"from_round": "from_round"}),
    }
    for killed in found.killed:
        rows = 0
        for table, (event, columns) in tables.items():
            sql = f"select n, {', '.join(columns)} from {table} where run = $run and writer = $writer order by n"
            held = found.rows(killed, sql)
            told = [(line["n"], *(line.get(key, "") for key in columns.values())) for line in killed.lines(event)]

            assert held == told
            rows += len(held)
        assert rows == len(killed.lines())


def test_a_run_whose_writer_was_killed_has_died_and_nothing_of_it_is_called_incomplete(found: Found) -> None:
    for killed in found.killed:
        if (killed.folder / "ev").is_dir():
            told = found.store.con.execute("select status, complete from runs where run = ?", [killed.folder.name])
            assert told.fetchall() == [("died", True)]
        else:  # it did not come so far
            assert (found.life.files, killed.notes) == (0, [])
            with pytest.raises(ConfigError, match="not a run folder"):
                open_memory([killed.folder])


# ---- what is lost


def test_a_killed_writer_takes_nothing_critical_with_it(found: Found) -> None:
    for killed in found.killed:
        assert not [critical for critical, _ in killed.lost() if critical]


def test_a_killed_writer_takes_with_it_at_most_the_steps_of_flush_ms(found: Found) -> None:
    waited_s = [killed.at - killed.lost()[0][1] if killed.lost() else 0.0 for killed in found.killed]

    assert max(waited_s) <= FLUSH_S + BUSY_S
    assert median(waited_s) <= FLUSH_S


def test_what_stands_on_the_disk_was_told(found: Found) -> None:
    for killed in found.killed:
        assert len(killed.lines()) <= len(killed.notes) + 1, "one may have been told whose `emit` had yet to return"


def test_the_writers_were_killed_at_work(found: Found) -> None:
    """Or the tests above would say nothing."""
    assert any(killed.lines() for killed in found.killed)
    assert all(len(killed.files) >= found.life.files for killed in found.killed)
