"""A source as small as one can be, for the tests of the query process; its child imports this file and little else."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb

from esper.leyline.errors import ConfigError

ROWS = 1000


class ToySource:
    """A table `t(i, s)`, a view `v` of it, and the numbers in the file `new.txt` of a folder as the table `told`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.con = duckdb.connect()
        self.con.execute(f"CREATE TABLE t AS SELECT range AS i, 'x' || range AS s FROM range({ROWS})")
        self.con.execute("CREATE VIEW v AS SELECT i % 3 AS k, count(*) AS c FROM t GROUP BY ALL ORDER BY ALL")
        self.con.execute("CREATE TABLE told (number BIGINT)")

    def refresh(self) -> int:
        new = self._folder / "new.txt"
        known = self.con.execute("SELECT count(*) FROM told").fetchall()[0][0]
        lines = new.read_text().splitlines()[known:] if new.exists() else []
        if "no number" in lines:
            raise ConfigError("new.txt: holds what is no number")
        if lines:
            self.con.executemany("INSERT INTO told VALUES (?)", [[int(line)] for line in lines])
        return len(lines)


def open_toy(folder: str) -> ToySource:
    if not Path(folder).is_dir():
        raise ConfigError(f"{Path(folder).name}: no such folder")
    return ToySource(Path(folder))


def break_down(_: object) -> ToySource:
    os.abort()
