"""Sealed segments as Parquet beside them, a file per table: `ev/r0.1-000000.env_step.parquet` and so on.

They open several times as fast, and are safe to delete. Readers write them, never the trainer, and only where they may.
A segment's files are used if the stamps in them all say that they were made of this very segment and for these tables;
otherwise the segment itself is read, and they are written anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
import msgspec

from esper.karn.collector import Segment, Tally
from esper.karn.own_files import open_own
from esper.karn.tables import FINGERPRINT, TABLES, Table, quoted
from esper.leyline.telemetry import SCHEMA_VERSION

_KEY = "esper"
_END_BYTES = 1 << 16


class Stamp(msgspec.Struct, frozen=True):
    """What every file of a segment says about them all."""

    segment: str
    size: int  # of the segment, in bytes
    ends: str  # sha256 of its first and last 64 KiB; lines tell the time to the microsecond, so no other has the same
    schema_version: int
    tables: str  # fingerprint
    rows: dict[str, int]  # by table, without those that have none
    tally: Tally


def read_stamp(con: duckdb.DuckDBPyConnection, segment: Segment) -> Stamp | None:
    """The stamp of a sealed segment's files, or None where they are not there or not to be trusted."""
    files = {str(path): table.name for table in TABLES if (path := _path(segment, table)).is_file()}
    if not files:
        return None
    paths = [_exactly(path) for path in files]
    try:
        told = con.execute("SELECT value FROM parquet_kv_metadata($1) WHERE key = $2", [paths, _KEY]).fetchall()
        counted = con.execute("SELECT file_name, num_rows FROM parquet_file_metadata($1)", [paths]).fetchall()
        stamps = [msgspec.json.decode(value, type=Stamp) for (value,) in told]
        tally = stamps[0].tally if stamps else Tally()
        mine = _stamp(segment, {files[path]: count for path, count in counted}, tally)
    except (duckdb.Error, msgspec.DecodeError, UnicodeDecodeError, OSError):
        return None
    return mine if stamps == [mine] * len(files) and sum(mine.rows.values()) == tally.events else None


def load(con: duckdb.DuckDBPyConnection, run: str, stamps: Mapping[Segment, Stamp]) -> bool:
    """Fills the tables from the files of these segments. False, and nothing is filled, if one is broken."""
    con.begin()
    try:
        for writer in dict.fromkeys(segment.writer for segment in stamps):
            own = {segment: stamp for segment, stamp in stamps.items() if segment.writer == writer}
            for table in TABLES:
                _load(con, table, run, writer, [segment for segment in own if table.name in own[segment].rows])
    except duckdb.Error:
        con.rollback()
        return False
    con.commit()
    return True


def write(con: duckdb.DuckDBPyConnection, run: str, segment: Segment) -> None:
    """Writes the files of a sealed segment that the tables hold to its end. Where that cannot be, nothing happens."""
    tally = segment.tally
    if not tally.events or not os.access(segment.path.parent, os.W_OK):
        return
    of_segment = (
        f"run = {quoted(run)} AND writer = {quoted(segment.writer)} AND n BETWEEN {tally.first_n} AND {tally.last_n}"
    )
    counts = {
        table: con.execute(f"SELECT count(*) FROM {table.name} WHERE {of_segment}").fetchall() for table in TABLES
    }
    rows = {table: count for table, ((count,),) in counts.items() if count}
    if sum(rows.values()) != tally.events:  # counters that are used twice
        return
    with suppress(duckdb.Error, OSError):  # a disk that is full, or taken away; there is always the segment itself
        stamp = _stamp(segment, {table.name: count for table, count in rows.items()}, tally)
        metadata = quoted(msgspec.json.encode(stamp).decode())
        for table in TABLES:
            _path(segment, table).unlink(missing_ok=True)
        for table in rows:
            _write(con, table, of_segment, _path(segment, table), metadata)


def _load(con: duckdb.DuckDBPyConnection, table: Table, run: str, writer: str, segments: Sequence[Segment]) -> None:
    if not segments:
        return
    told = ", ".join("$writer" if column.name == "writer" else f'"{column.name}"' for column in table.columns)
    con.execute(
        f"INSERT INTO {table.name} SELECT $run, {told}, $attempt, false "
        "FROM read_parquet($files, hive_partitioning = false)",
        {
            "run": run,
            "writer": writer,
            "attempt": int(writer.partition(".")[2]),
            "files": [_exactly(str(_path(segment, table))) for segment in segments],
        },
    )


def _write(con: duckdb.DuckDBPyConnection, table: Table, which: str, path: Path, metadata: str) -> None:
    """A file that is complete or absent. A link that stands in its place is replaced, not written through."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns if column.name != "writer")
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")  # nobody can have put a link there before
    try:
        con.execute(
            f"COPY (SELECT {columns} FROM {table.name} WHERE {which}) TO {quoted(str(draft))} "
            f"(FORMAT parquet, COMPRESSION snappy, KV_METADATA {{{_KEY}: {metadata}}})"
        )
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _path(segment: Segment, table: Table) -> Path:
    return segment.path.with_name(f"{segment.name}.{table.name}.parquet")


def _stamp(segment: Segment, rows: dict[str, int], tally: Tally) -> Stamp:
    size = segment.path.stat().st_size
    with open_own(segment.path) as file:
        ends = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return Stamp(segment.name, size, ends.hexdigest(), SCHEMA_VERSION, FINGERPRINT, rows, tally)


def _exactly(path: str) -> str:
    """The path for functions of DuckDB that read `*`, `?` and `[` as patterns."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)
