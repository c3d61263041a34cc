"""Which folders a client may mean by the name of a run, and the processes that hold their tables.

    desk = Desk(Path("runs"))
    desk.ask(desk.tables(["latest"]), Question("from churn"))

A name leads nowhere but to a run below the root: ids are looked up, never joined to a path, and what `own_files.py`
refuses is not opened. All SQL is answered by a `QueryProcess`; the least recently used ones are closed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from esper.karn.manifests import Named
from esper.karn.mcp.answers import MOST_ROWS, ROOM, Rows, as_json
from esper.karn.memory import load
from esper.karn.own_files import check_own, own_arms
from esper.karn.query_process import QueryLimits, QueryProcess, Source
from esper.karn.sql_gate import Answer, Question
from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import ARMS, find
from esper.nissa.storage import shown

MOST_RUNS = 32
_KEPT = 3  # sets of runs; each has two processes, and both hold all tables
_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Tables:
    """What a process holds: the function that loads it there, and what that function is told."""

    load: Callable[[Any], Source]
    argument: tuple[Any, ...]  # text, or tuples of it
    made: tuple[int, ...]  # when the folders came to be: one that has been replaced is another run


@final
class Desk:
    """One question at a time, from any thread."""

    def __init__(self, root: Path, limits: QueryLimits | None = None) -> None:
        self.root = root
        self._limits = limits
        self._lock = threading.Lock()
        self._closed = False
        self._open: OrderedDict[Tables, QueryProcess] = OrderedDict()

    # ---- names

    def folders(self, names: str | Sequence[str]) -> list[Path]:
        """The folders of these runs; of a run with arms, those of its arms. ConfigError if there is none.

        An arm is `RUN/arms/NAME`; the beginning of its name stands for all arms that begin so.
        """
        asked = [names] if isinstance(names, str) else names
        found = list(dict.fromkeys(folder for name in asked for folder in self._folders(name)))
        if not found:
            raise ConfigError("run: none is named; write an id, or 'latest'")
        if len(found) > MOST_RUNS:
            raise ConfigError(f"run: these are {len(found)} runs; at most {MOST_RUNS} can be opened together")
        for folder in found:
            check_own(folder)
        return [folder.resolve() for folder in found]

    def folder(self, name: str) -> Path:
        """The same for a name that must mean one run."""
        found = self.folders(name)
        if len(found) > 1:
            some = ", ".join(Named.of(folder).run for folder in found[:3])
            raise ConfigError(f"run {shown(repr(name))}: has {len(found)} arms; name one of them, such as {some}")
        return found[0]

    def manifest_folder(self, name: str) -> Path:
        """The folder whose manifest is meant: of a run with arms its own, which says what they are for."""
        folder = find(self.root, name) if ARMS not in name.split("/") else self.folder(name)
        check_own(folder)
        return folder

    def tables(self, names: str | Sequence[str]) -> Tables:
        return tables_of(self.folders(names))

    def _folders(self, name: str) -> list[Path]:
        top, is_arm, arm = name.partition(f"/{ARMS}/")
        folder = find(self.root, top)
        known = {each.name: each for each in own_arms(folder)}
        fits = [known[arm]] if arm in known else [each for other, each in known.items() if other.startswith(arm)]
        if is_arm and not (arm and fits):
            has = shown(", ".join(known) or "none")
            raise ConfigError(f"run {folder.name!r}: has no arm {shown(repr(arm))}; it has {has}")
        return fits or [folder]

    # ---- questions

    def ask(self, tables: Tables, question: Question) -> Answer:
        """The answer, of live runs too as they are now. ConfigError in one sentence."""
        with self._lock:
            return self._process(tables).ask(question)

    def rows(
        self,
        tables: Tables,
        sql: str,
        params: Mapping[str, Any] | None = None,
        chars: int = ROOM,
        offset: int = 0,
    ) -> Rows:
        """The answer to a question of our own, with the question, in about so many characters."""
        bound = dict(params or {})
        left = chars - len(sql) - len(as_json(bound))
        answer = self.ask(tables, Question(sql, bound, MOST_ROWS, max(left, 1_000), offset))
        names = tuple(column.name for column in answer.columns)
        return Rows(names, answer.rows, answer.truncated, answer.next_offset, sql, bound)

    def close(self) -> bool:
        """End all processes and wait for them; False if one is at work, which ends by itself soon after this one."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return False
        try:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close()
        finally:
            self._lock.release()
        return True

    def _process(self, tables: Tables) -> QueryProcess:
        if self._closed:
            raise ConfigError("server: it is closing")
        if tables not in self._open:
            while len(self._open) >= _KEPT:
                self._open.popitem(last=False)[1].close()
            self._open[tables] = QueryProcess(tables.load, tables.argument, self._limits)
        self._open.move_to_end(tables)
        return self._open[tables]


def tables_of(folders: Sequence[Path]) -> Tables:
    return Tables(load, tuple(map(str, folders)), made(folders))


def made(folders: Sequence[Path]) -> tuple[int, ...]:
    """Of each folder, when its manifest was written; 0 for one that has none yet."""
    manifests = [folder / "run.json" for folder in folders]
    return tuple(path.stat().st_ctime_ns if path.exists() else 0 for path in manifests)
