"""What the views answer, asked beside the screen: whoever draws takes what is known by then and never waits.

    history = History(lambda: open_memory([folder]), tell=redraw)
    history.ask(("sql", sql), lambda con: con.execute(sql).fetchall())     # None at first, the rows some time later

A thread of its own holds the tables. While a run is told they are brought up to date once a second, and what was asked
for lately is answered again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, final

import duckdb

from esper.karn.phases import create_gates
from esper.karn.sanctum.scene import Rows
from esper.karn.store import Store
from esper.leyline.errors import EsperError
from esper.nissa.storage import shown

Job = Callable[[duckdb.DuckDBPyConnection], Any]

REFRESH_S = 1.0
_LATELY_S = 5.0
_KEPT = 200  # answers
_PATIENCE_S = 2.0


@final
class History:
    """A store in a thread. `trouble` is the last sentence by which a question was refused, if one was."""

    def __init__(self, open_store: Callable[[], Store], tell: Callable[[], None], live: bool = True) -> None:
        """tell: is called, in that thread, when there are answers that were not there before."""
        self._open, self._tell, self._live = open_store, tell, live
        self._lock = threading.Condition()
        self._jobs: dict[Hashable, tuple[Job, float]] = {}  # and when each was asked for last
        self._answers: dict[Hashable, Any] = {}
        self._due: list[Hashable] = []
        self._closing = self._busy = self._dead = False
        self.trouble: str | None = None
        self._thread: threading.Thread | None = None
        self._con: duckdb.DuckDBPyConnection | None = None

    def ask(self, key: Hashable, job: Job) -> Any:
        """The last answer, or None as long as there is none. Equal keys stand for equal jobs."""
        with self._lock:
            if key not in self._jobs:
                self._due.append(key)
                self._lock.notify_all()
            self._jobs[key] = job, time.monotonic()
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="history", daemon=True)
                self._thread.start()
            return self._answers.get(key)

    def rows(self, sql: str, bound: Mapping[str, Any]) -> Rows | None:
        """Rows of a statement with values for its parameters. How far a replay has come makes no other question."""
        asked = dict(bound)
        key = (sql, tuple((name, value) for name, value in asked.items() if name != "until"))
        found: Rows | None = self.ask(key, lambda con: con.execute(sql, asked).fetchall())
        return found

    def again(self) -> None:
        """Everything that was asked lately is asked again, as when a replay has gone on."""
        with self._lock:
            self._due += [key for key in self._lately() if key not in self._due]
            self._lock.notify_all()

    def settle(self, timeout_s: float) -> None:
        """Waits until everything is answered, or has failed."""
        with self._lock:
            self._lock.wait_for(lambda: not (self._due or self._busy) or self._dead, timeout_s)

    def close(self) -> bool:
        """Ends the thread; False if it is reading a run still, and ends by itself soon after."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
            con, thread = self._con, self._thread
        if con is not None:
            con.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE_S)
            return not thread.is_alive()
        return True

    # ---- in the thread

    def _work(self) -> None:
        try:
            with self._open() as store:
                self._con = store.con
                self._serve(store)
        except (EsperError, duckdb.Error) as error:
            with self._lock:
                self.trouble, self._dead = shown(error), True
                self._lock.notify_all()
                if self._closing:
                    return
            self._tell()

    def _serve(self, store: Store) -> None:
        create_gates(store.con)
        refreshed = time.monotonic()
        while True:
            with self._lock:
                if not self._due:
                    self._lock.wait(REFRESH_S if self._live else None)
                if self._closing:
                    return
                due, self._due = [(key, self._jobs[key][0]) for key in self._due], []
                self._busy = True
            if self._live and time.monotonic() - refreshed >= REFRESH_S:
                refreshed = time.monotonic()
                if store.refresh():
                    create_gates(store.con)
                    with self._lock:
                        asked = {key for key, _ in due}
                        due += [(key, self._jobs[key][0]) for key in self._lately() if key not in asked]
            answers, trouble = {}, None
            for key, job in due:
                try:
                    answers[key] = job(store.con)
                except duckdb.Error as error:  # a comparison that is refused, say
                    trouble = shown(error)
            with self._lock:
                self._answers |= answers
                self._busy, self.trouble = False, trouble or self.trouble
                self._let_go()
                self._lock.notify_all()
            if due:
                self._tell()

    def _lately(self) -> list[Hashable]:
        now = time.monotonic()
        return [key for key, (_, asked) in self._jobs.items() if now - asked < _LATELY_S]

    def _let_go(self) -> None:
        """Of what nobody asks for any more."""
        while len(self._jobs) > _KEPT:
            oldest = min(self._jobs, key=lambda key: self._jobs[key][1])
            del self._jobs[oldest]
            self._answers.pop(oldest, None)
