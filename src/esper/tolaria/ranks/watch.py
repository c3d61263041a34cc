"""A thread in every rank that knows within moments which rank has died or hangs, whatever the main thread waits for.

Every rank sends rank 0 its pulse: that it lives, and how many answers or collectives its main thread has come to. A
process that ends closes its line, which the kernel tells at once. Rank 0 judges and tells the others, and a rank that
loses rank 0 ends by itself. `Watch` is one rank's end of it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from esper.leyline.errors import ExitCode, RanksError

BEAT_S = 0.25
GRACE_S = 3.0
"""How long the main thread of rank 0 has to save and to leave once it has been told."""
ALARM = signal.SIGUSR1


class Watch:
    """One rank's thread. `beat` is for the main thread; whatever is wrong becomes `trouble`."""

    def __init__(self, rank: int, lines: Mapping[int, Connection], timeout_s: float) -> None:
        """lines: on rank 0 one to each other rank, on the others one to rank 0."""
        self._rank, self._lines, self._timeout_s = rank, dict(lines), timeout_s
        self.trouble: RanksError | None = None
        self._known = threading.Event()  # that there is trouble
        self._taken = False
        self._over = threading.Event()
        now = time.monotonic()
        self._count = 0
        self._heard = dict.fromkeys(lines, now)
        self._counts = dict.fromkeys((rank, *lines), 0)
        self._moved = dict.fromkeys((rank, *lines), now)  # when the count changed last
        watching = self._watch_others if rank == 0 else self._watch_rank_0
        self._thread = threading.Thread(target=watching, name=f"watch of rank {rank}", daemon=True)

    def start(self) -> None:
        """On rank 0 a signal handler for `ALARM` has to be in place by now."""
        self._thread.start()

    def beat(self) -> None:
        """The main thread has come to one more answer or collective, as every rank's will that is well."""
        self._count += 1

    def take_trouble(self, seconds: float = 0.0) -> RanksError | None:
        """What is wrong, if that is known by then; once, so that it is raised once."""
        return None if self._taken else self.trouble_within(seconds)

    def trouble_within(self, seconds: float) -> RanksError | None:
        """What is wrong, if that is known by then, taken or not."""
        self._known.wait(seconds)
        self._taken = self.trouble is not None
        return self.trouble

    def tell(self, error: RanksError) -> None:
        """From another rank than 0: why this one cannot go on."""
        with suppress(OSError):
            self._lines[0].send(("failed", error))

    def close(self, code: int, text: str = "") -> None:
        """On rank 0: the run is over, and all others end with this exit code. Returns when they have.

        text: what they shall say on stderr.
        """
        self._over.set()
        self._thread.join()
        self._send_all(("end", code, text))
        deadline = time.monotonic() + GRACE_S
        while self._lines and (left := deadline - time.monotonic()) > 0:
            for line in wait(list(self._lines.values()), left):
                assert isinstance(line, Connection)
                with suppress(EOFError, OSError):
                    line.recv()
                    continue
                self._lines = {rank: kept for rank, kept in self._lines.items() if kept is not line}

    # --- rank 0 -------------------------------------------------------------------------------------------------

    def _watch_others(self) -> None:
        beats = time.monotonic()
        while not self._over.is_set():
            trouble = self._listen(BEAT_S / 2) or self._silent_or_behind()
            if trouble is not None:
                self._end_all(trouble)
                return
            if time.monotonic() >= beats:
                self._send_all(("beat",))
                beats = time.monotonic() + BEAT_S

    def _listen(self, seconds: float) -> RanksError | None:
        ranks = {line: rank for rank, line in self._lines.items()}
        for line in wait(list(ranks), seconds):
            assert isinstance(line, Connection)
            rank = ranks[line]
            try:
                kind, what = line.recv()
            except (EOFError, OSError):
                return RanksError("died", [rank], f"rank {rank} died; look at what it said, then go on with its run")
            if kind == "failed":
                return what if isinstance(what, RanksError) else RanksError("failed", [rank], str(what))
            self._heard[rank] = time.monotonic()
            self._note(rank, what)
        self._note(self._rank, self._count)
        return None

    def _note(self, rank: int, count: int) -> None:
        if count != self._counts[rank]:
            self._counts[rank], self._moved[rank] = count, time.monotonic()

    def _silent_or_behind(self) -> RanksError | None:
        now, limit = time.monotonic(), self._timeout_s
        for rank, heard in self._heard.items():
            if now - heard > limit:
                return RanksError("stuck", [rank], f"rank {rank} has been silent for {limit:g} s (run.ranks.timeout_s)")
        first = max(self._counts.values())
        if now - max(self._moved[rank] for rank, count in self._counts.items() if count == first) <= limit:
            return None
        behind = [rank for rank, count in self._counts.items() if count < first and now - self._moved[rank] > limit]
        if not behind:
            return None
        names = f"rank{'s' * (len(behind) > 1)} {', '.join(map(str, behind))}"
        text = f"{names} kept the others waiting for {limit:g} s (run.ranks.timeout_s)"
        return RanksError("stuck", behind, text)

    def _end_all(self, trouble: RanksError) -> None:
        """Tells all, wakes the main thread, and ends the process itself if that one does not."""
        self.trouble = trouble
        self._known.set()
        gone = trouble.ranks if trouble.kind == "died" else ()
        self._lines = {rank: line for rank, line in self._lines.items() if rank not in gone}
        self._send_all(("end", int(trouble.exit_code), str(trouble)))
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, ALARM)
        if not self._over.wait(GRACE_S):
            leave(self._rank, trouble)

    def _send_all(self, message: Any) -> None:
        for line in self._lines.values():
            with suppress(OSError):  # its own end will be noticed
                line.send(message)

    # --- the others ---------------------------------------------------------------------------------------------

    def _watch_rank_0(self) -> None:
        """Ends the process when rank 0 says so, has died, or is silent for too long."""
        line, heard = self._lines[0], time.monotonic()
        while True:
            try:
                line.send(("beat", self._count))
                if line.poll(BEAT_S):
                    message = line.recv()
                    heard = time.monotonic()
                    if message[0] == "end":
                        _, code, text = message
                        leave(self._rank, RanksError("failed", (), text) if text else None, code)
            except (EOFError, OSError):
                leave(self._rank, RanksError("died", [0], "rank 0 died; go on with its run"))
            if time.monotonic() - heard > self._timeout_s:
                silent = f"rank 0 has been silent for {self._timeout_s:g} s (run.ranks.timeout_s)"
                leave(self._rank, RanksError("stuck", [0], silent))


def leave(rank: int, trouble: RanksError | None, code: int = ExitCode.RANKS) -> NoReturn:
    """Ends this process from whichever thread."""
    if trouble is not None:
        print(f"esper: rank {rank}: {trouble}", file=sys.stderr, flush=True)

    os._exit(code)
