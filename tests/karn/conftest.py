"""Run folders written line by line, for what no writer of ours would leave behind; whole ones; and what SQL says."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench.memory_store import ENVS, EPISODE, generate
from tests.karn.recorded import RUNS, Recorded
from tests.scripts.zygote import Zygote

from esper.karn.memory import load
from esper.karn.store import Store
from esper.karn.tables import TABLES
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    Envelope,
    EnvStepPayload,
    LogPayload,
    Payload,
    RunStartedPayload,
    encode_event,
)
from esper.nissa.reader import read_events

ROUND = ENVS * EPISODE
"""Steps of a run made up by `generate`."""


class ByHand:
    """A run folder whose lines are told by the real encoder and put where a test wants them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ev = path / "ev"
        self.ev.mkdir(parents=True)
        self._counters: Counter[str] = Counter()

    def line(self, payload: Payload | str, writer: str = "r0.1", n: int | None = None, **where: int | str) -> bytes:
        """The next event of this writer, with its newline. A text is a `log`."""
        told = LogPayload(level="info", text=payload) if isinstance(payload, str) else payload
        counter = self._counters[writer] if n is None else n
        self._counters[writer] = counter + 1
        envelope = Envelope(t=told.type.name, counter=counter, writer=writer, time_s=1000.0 + counter, **where)
        return encode_event(envelope, told) + b"\n"

    def write(self, *lines: bytes, segment: str = "r0.1-000000.jsonl") -> Path:
        """Appends to a file of events."""
        path = self.ev / segment
        with path.open("ab") as file:
            file.write(b"".join(lines))
        return path


@pytest.fixture
def folder(tmp_path: Path) -> ByHand:
    return ByHand(tmp_path / "a-run")


def started(schema_version: int = SCHEMA_VERSION) -> RunStartedPayload:
    return RunStartedPayload(
        schema_version=schema_version, controller="ppo", task="digits", envs=2, rounds=3, episode_length=4
    )


def step(step_: int, **fields: Any) -> EnvStepPayload:
    return EnvStepPayload(
        env_id=0, op="WAIT", op_mask=1, params=10, effective_params=10, flops=step_, stage=(1,), alpha=(0.0,),
        level=(0,), slot_params=(0,), grad_ratio=(None,), **fields,
    )  # fmt: skip


# ---- what a store holds


def all_of(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every event table and `integrity`, in an order of its own; NaN as a word, since it does not equal itself."""

    def comparable(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return "nan"
        if isinstance(value, list):
            return [comparable(item) for item in value]
        if isinstance(value, dict):
            return {name: comparable(item) for name, item in value.items()}
        return value

    tables = [(table.name, "run, writer, n, ts") for table in TABLES] + [("integrity", "run, writer")]
    tables.append(("bad_lines", "run, writer, segment, line"))
    found = {}
    for name, order in tables:
        rows = store.con.execute(f"SELECT * FROM {name} ORDER BY {order}").fetchall()
        found[name] = [tuple(map(comparable, row)) for row in rows]
    return found


def one(store: Store, sql: str, *parameters: object) -> Any:
    """The only value of the only row."""
    ((value,),) = store.con.execute(sql, parameters).fetchall()
    return value


def column(store: Store, sql: str) -> list[Any]:
    return [value for (value,) in store.con.execute(sql).fetchall()]


def parquet(folder: Path) -> list[Path]:
    return sorted((folder / "ev").glob("*.parquet"))


# ---- whole runs


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round in two sealed segments; tests copy it."""
    whole = tmp_path_factory.mktemp("made") / "whole"
    generate(whole, ROUND)
    lines = (whole / "ev" / "r0.1-000000.jsonl").read_bytes().splitlines(keepends=True)
    for number, part in enumerate((lines[:1000], lines[1000:])):
        (whole / "ev" / f"r0.1-{number:06d}.jsonl").write_bytes(b"".join(part))
    return whole


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs" / "whole"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of other numbers, with its Parquet."""
    other = tmp_path_factory.mktemp("other") / "x"
    generate(other, ROUND, seed=1)
    Store.open([other]).close()
    return other


@pytest.fixture(scope="session", params=RUNS)
def recorded(
    request: pytest.FixtureRequest, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    place = tmp_path_factory.mktemp(request.param)
    ended = zygote.run("train", *RUNS[request.param], cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*")
    with closing(load([str(folder)])) as store:
        yield Recorded(folder, store.con, list(read_events(folder)))
