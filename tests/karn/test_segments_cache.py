"""From Parquet comes exactly what comes from lines; and files that do not fit are neither believed nor kept."""

from __future__ import annotations

import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from tests.karn.conftest import ROUND, all_of, column, one, parquet, step

from esper.karn.store import Store


def test_from_parquet_comes_exactly_what_comes_from_lines(copied):
    with Store.open([copied], cache=False) as store:
        expected = all_of(store)
    assert parquet(copied) == []

    with Store.open([copied]) as store:
        assert all_of(store) == expected
    written = {path: path.stat().st_mtime_ns for path in parquet(copied)}
    assert {path.name.split(".")[1].partition("-")[2] for path in written} == {"000000", "000001"}
    with Store.open([copied]) as store:
        assert all_of(store) == expected
        assert store.refresh() == 0

    assert {path: path.stat().st_mtime_ns for path in parquet(copied)} == written
    assert expected["env_step"]
    assert len(expected["env_step"]) == ROUND


def test_values_that_are_not_finite_gaps_and_bad_lines_survive_parquet(folder):
    nan = math.nan
    folder.write(folder.line(step(0, train_loss=nan, terms=(("rent", nan),)), round=0, step=0), b"100 % garbage'\n")
    folder.write(folder.line(step(1), n=7), b"torn")

    with Store.open([folder.path]) as store:
        expected = all_of(store)
    os.utime(folder.ev / "r0.1-000000.jsonl", (0, 0))
    assert parquet(folder.path)
    with Store.open([folder.path]) as store:
        assert all_of(store) == expected
        assert one(store, "SELECT isnan(train_loss) AND isnan(terms[1].value) FROM env_step WHERE n = 0")


def test_the_files_can_be_asked_by_anyone(copied):
    Store.open([copied]).close()

    pattern = str(copied / "ev" / "*.env_step.parquet")
    ((steps,),) = duckdb.connect().execute("SELECT count(*) FROM read_parquet($1)", [pattern]).fetchall()

    assert steps == ROUND


def cut_short(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path, _other: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path, _other: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def pages_destroyed(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    path.write_bytes(data)


def removed(path: Path, _other: Path) -> None:
    path.unlink()


def of_another_segment(path: Path, _other: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("-000000.", "-000001.")), path)


def of_another_run(path: Path, other: Path) -> None:
    for theirs in parquet(other):
        shutil.copy(theirs, path.parent)


def of_anybody(path: Path, _other: Path) -> None:
    duckdb.connect().execute(f"COPY (SELECT 1 AS a) TO '{path}' (FORMAT parquet)")


def with_a_row_more(path: Path, _other: Path) -> None:
    con = duckdb.connect()
    (stamp,) = con.execute("SELECT value FROM parquet_kv_metadata($1) WHERE key = 'esper'", [str(path)]).fetchone()
    copy = f"COPY (FROM t UNION ALL FROM t LIMIT 1) TO '{path}' (FORMAT parquet, KV_METADATA {{esper: '%s'}})"
    con.execute("CREATE TABLE t AS FROM read_parquet($1)", [str(path)])
    con.execute(copy.replace("FROM t UNION ALL FROM t LIMIT 1", "FROM t UNION ALL (FROM t LIMIT 1)") % stamp.decode())


def for_other_tables(path: Path, _other: Path) -> None:
    data = path.read_bytes()
    at = data.index(b'"tables":"') + len(b'"tables":"')
    path.write_bytes(data[:at] + b"0000" + data[at + 4 :])


@pytest.mark.parametrize(
    "harm",
    [
        cut_short, emptied, garbage, pages_destroyed, removed, of_another_segment, of_another_run, of_anybody,
        with_a_row_more, for_other_tables,
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_not_believed_and_written_anew(copied, other, harm):
    with Store.open([copied]) as store:
        expected = all_of(store)
    (victim,) = (copied / "ev").glob("r0.1-000000.env_step.parquet")
    before = victim.read_bytes()

    harm(victim, other)
    with Store.open([copied]) as store:
        assert all_of(store) == expected

    assert [path for path in (copied / "ev").iterdir() if path.name.startswith(".")] == []
    with Store.open([copied]) as store:
        assert all_of(store) == expected
    con = duckdb.connect()
    rows = [con.execute("SELECT count(*) FROM read_parquet($1)", [str(victim)]).fetchall()]
    victim.write_bytes(before)
    assert rows == [con.execute("SELECT count(*) FROM read_parquet($1)", [str(victim)]).fetchall()]


def test_a_segment_that_is_not_the_one_the_files_were_made_of_is_read_itself(copied):
    Store.open([copied]).close()
    segment = copied / "ev" / "r0.1-000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b'"done"', b'"lost"')]))  # as long as before

    with Store.open([copied]) as store:
        assert one(store, "SELECT status FROM run_finished") == "lost"


def test_only_sealed_segments_have_parquet(folder):
    folder.write(folder.line("one"))
    folder.write(folder.line("two"), segment="r0.1-000001.open")

    with Store.open([folder.path]) as store:
        assert column(store, "SELECT text FROM log ORDER BY n") == ["one", "two"]
    assert [path.name for path in parquet(folder.path)] == ["r0.1-000000.log.parquet"]


@contextmanager
def as_somebody_who_may_not_write(folder: Path) -> Iterator[None]:
    """Root may write everywhere, so it becomes nobody for a while."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_folder_that_cannot_be_written_can_be_read_with_what_is_there(made):
    with tempfile.TemporaryDirectory() as top:  # pytest's own folders are closed to others
        os.chmod(top, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH | stat.S_IRGRP | stat.S_IROTH)
        folder = Path(shutil.copytree(made, Path(top) / "whole"))
        with as_somebody_who_may_not_write(folder):
            with Store.open([folder]) as store:
                expected = all_of(store)
            assert parquet(folder) == []
        Store.open([folder]).close()
        with as_somebody_who_may_not_write(folder), Store.open([folder]) as store:
            assert all_of(store) == expected
        assert len(expected["env_step"]) == ROUND


@pytest.mark.parametrize("name", ["st*r", "[x]", "what?", "it's", "step=7", "50%", "white space"])
def test_a_folder_may_be_called_anything(made, other, tmp_path, name):
    """Others lie beside it that its name would match as a pattern."""
    for others in ("x", "star", "whats"):
        shutil.copytree(other, tmp_path / others)
    folder = Path(shutil.copytree(made, tmp_path / name))

    with Store.open([folder]) as store:
        expected = all_of(store)
    written = {path: path.stat().st_mtime_ns for path in parquet(folder)}
    with Store.open([folder]) as store:
        assert all_of(store) == expected
        assert one(store, "SELECT DISTINCT run FROM env_step") == name
    assert written
    assert {path: path.stat().st_mtime_ns for path in parquet(folder)} == written
