"""Runs as one database in memory: `Store.open` reads their folders, `refresh` takes in what was told since.

    with Store.open([Path("runs/20261120-140233-digits-a1b2c3")]) as store:
        store.con.sql("SELECT op, count(*) FROM live_env_step GROUP BY op")
        store.refresh()

`tables.py` says what the tables of events are, `manifests.py` the others; `integrity`, `bad_lines` and `students_t`, by
which SQL makes the intervals of `leyline/statistics.py`, are made here.
Rows have no order of their own: `ORDER BY writer, n` is that of telling. Each event table `x` also exists as the view
`live_x`, without the rows that a later attempt of the same run has superseded.

All of it is a copy: the folders can be moved or deleted, and the connection closed to files, while it is asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

import duckdb
import numpy as np
from scipy.special import stdtrit

from esper.karn import manifests, segments_cache
from esper.karn.collector import Collector, Writer
from esper.karn.manifests import Named, State
from esper.karn.tables import LINES, TABLES, VOCABULARY, Table
from esper.leyline.statistics import CONFIDENCE
from esper.leyline.telemetry import TelemetryEventType
from esper.nissa.segments import WRITER

_BATCH = 200_000  # lines of a table that become rows at once: with half as many it takes longer, more need more memory
_INTEGRITY = """run VARCHAR, writer VARCHAR, attempt INTEGER, segments INTEGER, bytes BIGINT, events BIGINT,
    first_n BIGINT, last_n BIGINT, missing BIGINT, torn_bytes BIGINT, bad_lines BIGINT, first_bad VARCHAR,
    incomplete VARCHAR"""
_BAD_LINES = "run VARCHAR, writer VARCHAR, segment VARCHAR, line BIGINT, why VARCHAR, text VARCHAR"
_VALUES = np.arange(2, 1001)  # how many values a mean may be of; with more the quantile hardly changes
_SAID = re.compile(rf"({WRITER.pattern}): ")
_RESUMED = next(table for table in TABLES if table.event is TelemetryEventType.RUN_RESUMED)
_STARTED = next(table for table in TABLES if table.event is TelemetryEventType.RUN_STARTED)


@dataclass
class _Run:
    """A run in the database, and what the database last heard of it besides events."""

    named: Named
    collector: Collector
    state: State | None = None
    writers: Sequence[Writer] = ()


@final
class Store:
    """One connection, used by one thread at a time; `con.cursor()` gives others their own."""

    def __init__(self, runs: Sequence[Named]) -> None:
        """Empty tables; use `open`."""
        self._runs = [_Run(named, Collector(named.path)) for named in runs]
        self.con = duckdb.connect(":memory:")
        # SQL must not see variables of Python, and a reader leaves no files behind where it happens to be started.
        self.con.execute("SET python_enable_replacements = false")
        self.con.execute("SET temp_directory = ''")
        _create_tables(self.con)

    @staticmethod
    def open(folders: Sequence[Path], names: Sequence[str] | None = None, *, cache: bool = True) -> Store:
        """All that these runs have told so far.

        names: what to call them, instead of by their folders. cache: read and write `segments_cache.py`; only files
        that are sealed are concerned, and only folders that may be written. ConfigError for a folder that is no run,
        UnknownEventError for a run of another schema.
        """
        store = Store(manifests.named(folders, names))
        try:
            # Several put rows together in small heaps and then copy these to keep the order, which takes longer.
            store.con.execute("SET threads = 1")
            for run in store._runs:
                known = store._load_cached(run) if cache else set()
                store._take_in(run)
                if cache:
                    store._write_cache(run, known)
            store.con.execute("RESET threads")
        except BaseException:
            store.close()
            raise
        return store

    def refresh(self) -> int:
        """Takes in what was told since the last time; returns how many events that are.

        Reads files, writes none, and lets SQL do neither. After an error the store is not to be used again.
        """
        events = 0
        for run in self._runs:
            with self._transaction():
                events += self._take_in(run)
        return events

    def close(self) -> None:
        self.con.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- one run

    def _take_in(self, run: _Run) -> int:
        """What is new of a run; how many events."""
        name, state = run.named.run, State.of(run.named.path)
        told: dict[Table, int] = defaultdict(int)
        for table, lines in _batches(run.collector):
            self._insert(table, name, lines)
            told[table] += len(lines)
        opening = run.state is None  # then there may be rows that did not come as lines
        self._supersede(name, TABLES if opening or _RESUMED in told else list(told))
        if state != run.state or _STARTED in told:
            manifests.tell(self.con, run.named, state)
        writers = run.collector.writers()
        if state != run.state or writers != run.writers:
            self._tell_integrity(name, writers, state)
        run.state, run.writers = state, writers
        return sum(told.values())

    def _insert(self, table: Table, run: str, lines: list[str]) -> None:
        self.con.register(LINES, {"line": np.array(lines, dtype=object)})
        try:
            self.con.execute(table.insert, {"run": run})
        finally:
            self.con.unregister(LINES)

    def _supersede(self, run: str, tables: Sequence[Table]) -> None:
        """Marks what a later attempt of the same rank, going on from before it, has replaced.

        What has a round but no step was told when the round ended. Several teams go on from places of their own.
        """
        rank = "split_part(writer, '.', 1)"
        resumed = f"SELECT attempt, {rank} AS rank, g, from_round, from_step FROM run_resumed WHERE run = $run"
        if not self.con.execute(resumed, {"run": run}).fetchone():
            return
        for table in tables:
            self.con.execute(
                f"""UPDATE {table.name} AS told SET superseded = true FROM ({resumed}) AS later
                WHERE told.run = $run AND NOT told.superseded AND told.attempt < later.attempt
                AND {rank} = later.rank AND (later.g IS NULL OR told.g = later.g) AND (told.round > later.from_round
                OR told.round = later.from_round AND (told.step IS NULL OR told.step >= later.from_step))""",
                {"run": run},
            )

    def _tell_integrity(self, run: str, writers: Sequence[Writer], state: State) -> None:
        for name in ("integrity", "bad_lines"):
            self.con.execute(f"DELETE FROM {name} WHERE run = $run", {"run": run})
        for writer in writers:
            tally = writer.tally
            first_bad = next((f"{bad.segment}, line {bad.line}: {bad.why}" for bad in tally.bad_lines), None)
            row = (
                run, writer.name, int(writer.name.partition(".")[2]), writer.segments, tally.bytes, tally.events,
                tally.first_n, tally.last_n, writer.missing, writer.torn, tally.bad, first_bad,
                _said_by(writer.name, state.incomplete),
            )  # fmt: skip
            self.con.execute(f"INSERT INTO integrity VALUES ({', '.join('?' * len(row))})", row)
            for bad in tally.bad_lines:
                bad_row = (run, writer.name, bad.segment, bad.line, bad.why, bad.text)
                self.con.execute("INSERT INTO bad_lines VALUES (?, ?, ?, ?, ?, ?)", bad_row)

    # ---- sealed segments

    def _load_cached(self, run: _Run) -> set[str]:
        """Takes in the segments that have a cache; returns their names."""
        stamps = {}
        for segment in run.collector.segments():
            stamp = segments_cache.read_stamp(self.con, segment) if segment.sealed else None
            if stamp is not None:
                stamps[segment] = stamp
        if not segments_cache.load(self.con, run.named.run, stamps):
            return set()
        for segment, stamp in stamps.items():
            run.collector.know(segment, stamp.tally, stamp.size)
        return {segment.name for segment in stamps}

    def _write_cache(self, run: _Run, known: set[str]) -> None:
        for segment in run.collector.segments():
            if segment.sealed and segment.size >= 0 and segment.name not in known:
                segments_cache.write(self.con, run.named.run, segment)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Whoever asks meanwhile sees all of it or nothing."""
        self.con.begin()
        try:
            yield
        except BaseException:
            self.con.rollback()
            raise
        self.con.commit()


def _batches(collector: Collector) -> Iterator[tuple[Table, list[str]]]:
    """New lines, many of a table at once."""
    lines: dict[Table, list[str]] = defaultdict(list)
    for part in collector.news():
        for table, texts in part.lines.items():
            lines[table] += texts
            if len(lines[table]) >= _BATCH:
                yield table, lines.pop(table)
    for table in list(lines):
        yield table, lines.pop(table)


def _said_by(writer: str, incomplete: str | None) -> str | None:
    """Why lines of this writer are missing, of what all writers said; what names no writer is about each."""
    said = []
    for line in (incomplete or "").splitlines():
        named = _SAID.match(line)
        if named is None or named[1] == writer:
            said.append(line if named is None else line[named.end() :])
    return "\n".join(said) or None


def _create_tables(con: duckdb.DuckDBPyConnection) -> None:
    for table in TABLES:
        con.execute(table.create)
        con.execute(table.create_live)
    for name, (columns, rows) in VOCABULARY.items():
        con.execute(f"CREATE TABLE {name} ({columns})")
        con.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    manifests.create_tables(con)
    con.execute(
        "CREATE TABLE students_t AS SELECT unnest($n::INTEGER[]) AS n, unnest($quantile::DOUBLE[]) AS quantile",
        {"n": _VALUES.tolist(), "quantile": stdtrit(_VALUES - 1, 0.5 + CONFIDENCE / 2).tolist()},
    )
    con.execute(f"CREATE TABLE integrity ({_INTEGRITY})")
    con.execute(f"CREATE TABLE bad_lines ({_BAD_LINES})")
