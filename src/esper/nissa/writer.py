"""How events get to disk: `emit` appends a line in memory, one thread writes. A full disk never stops training.

    with EventWriter(folder.ev, folder.next_writer(), config.telemetry) as events:
        events.emit(payload, round=3, episode=24, step=7)

What a crash can cost: nothing of critical events (they are with the kernel before `emit` returns), at most
`flush_ms` of the others. Only the flusher thread touches the files, so a Ctrl-C in the middle of `emit`
can neither tear a line nor lose one. `segments.py` has the files, `reader.py` the way back.

Threads wait for each other on bare locks here: one that is interrupted inside `threading.Condition.wait` may find
itself without the lock that it is about to release.
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import final

from esper.leyline.telemetry import EVENTS, Envelope, Payload, RunHeartbeatPayload, encode_event
from esper.nissa.config import TelemetryConfig
from esper.nissa.segments import WRITER, Segments
from esper.nissa.storage import disown_in_forked_children, reason, storage_errors

INCOMPLETE = "INCOMPLETE"
"""Name of the file in `ev/` that says that, and why, lines are missing."""
_FLUSH_BYTES = 256 << 10
_MIB = 1 << 20
_DEFAULTS = TelemetryConfig()
_NAMES = {payload: event.name for event, payload in EVENTS.items()}  # Enum.name costs as much as a small event


@final
class EventWriter:
    """Writes the events of one process. Threads may share it; a forked child may not."""

    def __init__(self, ev: Path, writer: str = "r0.1", config: TelemetryConfig = _DEFAULTS) -> None:
        """StorageError if the first file cannot be made. Later troubles never raise, see `incomplete`."""
        assert WRITER.fullmatch(writer), f"{writer!r} is not r<rank>.<attempt>"
        self.writer = writer
        self.incomplete: str | None = None
        """Why lines are, or may be, missing on the disk; None as long as there is no reason to think so."""
        self.lost = 0
        """Events that the disk did not take."""
        self._ev, self._config = ev, config
        with storage_errors(ev):
            self._segments = Segments(ev, writer)
        self._lock = threading.Lock()  # guards all that follows
        self._buffer = bytearray()
        self._counter = 0
        self._accepted_bytes = 0  # ever appended to the buffer
        self._settled_bytes = 0  # of these, written or given up
        self._gates: list[tuple[int, threading.Lock]] = []  # each opens when so many bytes are settled
        self._closing = False
        self._awaiting_sync: list[threading.Lock] = []  # gates that open when all before them is on the disk itself
        self._ended = False  # the flusher has
        self._disowned = False
        self._reported = False
        self._bell = threading.Lock()  # released: the flusher has something to do
        self._bell.acquire()
        self._nap_s = min(config.flush_ms / 1000, config.fsync_s, config.heartbeat_s)
        self._flusher = threading.Thread(target=self._flush_until_closed, name=f"events-{writer}", daemon=True)
        disown_in_forked_children(self)
        atexit.register(self.close)
        self._flusher.start()

    def emit(
        self,
        payload: Payload,
        *,
        group: str | None = None,
        round: int | None = None,
        episode: int | None = None,
        step: int | None = None,
    ) -> None:
        """Tell one event. Raises TypeError for a field of the wrong type, and then nothing is told.

        Blocks while a critical event is written, and while a slow disk has `buffer_mib` still to take. Not for
        signal handlers: one that interrupts an `emit` would wait for it for ever.
        """
        with self._lock:
            assert not self._closing, "this writer is closed, or belongs to the process that forked this one"
            self._append(payload, group, round, episode, step)
            full = len(self._buffer) >= _FLUSH_BYTES
            gate = self._hand_over(payload.critical) if full or payload.critical else None
        if gate is not None:
            gate.acquire()

    def settle(self) -> int:
        """Waits until the disk itself has all that was told so far, or has refused it; how many events that is."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            told = self._counter
            if self._ended:
                return told
            self._awaiting_sync.append(gate)
            self._ring()
        gate.acquire()
        return told

    def close(self) -> None:
        """Write what is left, sync and seal. Doing it twice is no harm, and it happens at exit if it was forgotten."""
        if self._disowned:
            return
        with self._lock:
            self._closing = True
            self._ring()
        self._flusher.join()
        atexit.unregister(self.close)

    def disown(self) -> None:
        self._segments.abandon()  # only the child's copy of the descriptor
        self._lock = threading.Lock()  # the parent may have held it; a flusher the child has none
        self._disowned = self._closing = True

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- under the lock

    def _append(
        self, payload: Payload, group: str | None, round: int | None, episode: int | None, step: int | None
    ) -> None:
        name = _NAMES.get(type(payload))
        if name is None:
            raise TypeError(f"{type(payload).__name__} is not an event")
        envelope = Envelope(
            t=name,
            counter=self._counter,
            writer=self.writer,
            time_s=time.time(),
            group=group,
            round=round,
            episode=episode,
            step=step,
        )
        line = encode_event(envelope, payload) + b"\n"
        size = len(line)
        # Three statements without a call, so no signal handler can raise between them.
        self._buffer += line
        self._counter += 1
        self._accepted_bytes += size

    def _hand_over(self, critical: bool) -> threading.Lock | None:
        """Wake the flusher. Returns a gate that opens when it has got far enough, None if it has already."""
        self._ring()
        far_enough = self._accepted_bytes - (0 if critical else self._config.buffer_mib * _MIB)
        if far_enough <= self._settled_bytes or self._ended:
            return None
        gate = threading.Lock()
        gate.acquire()
        self._gates.append((far_enough, gate))
        return gate

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _settle(self, size: int) -> None:
        self._settled_bytes += size
        waiting, self._gates = self._gates, []
        for far_enough, gate in waiting:
            if far_enough <= self._settled_bytes or self._ended:
                gate.release()
            else:
                self._gates.append((far_enough, gate))

    # ---- the flusher thread

    def _flush_until_closed(self) -> None:
        try:
            sync_at = time.monotonic() + self._config.fsync_s
            beat_at = time.monotonic() + self._config.heartbeat_s
            while not self._flush():
                now = time.monotonic()
                if now >= sync_at:
                    self._guarded(self._segments.sync)
                    sync_at = time.monotonic() + self._config.fsync_s
                if now >= beat_at:
                    self._beat()
                    beat_at = now + self._config.heartbeat_s
            self._guarded(self._segments.close)
            self._report()
        except BaseException as error:  # no memory, or a bug; threading prints it
            self.incomplete = f"the thread that writes ended with {type(error).__name__}"
            raise
        finally:  # whatever ends this thread, nobody may wait for it
            with self._lock:
                self._ended = True
                self._settle(0)
                for gate in self._awaiting_sync:
                    gate.release()

    def _flush(self) -> bool:
        """Wait for the bell or for `flush_ms`, then write all there is. Returns whether that was the last time."""
        self._bell.acquire(timeout=self._nap_s)
        with self._lock:
            last = self._closing
            awaiting, self._awaiting_sync = self._awaiting_sync, []
            lines, self._buffer = self._buffer, bytearray()
        try:
            if lines:
                self._store(lines)
                with self._lock:
                    self._settle(len(lines))
            if awaiting:
                self._guarded(self._segments.sync)
        finally:
            for gate in awaiting:
                gate.release()
        if self._segments.size >= self._config.segment_mib * _MIB and not last:
            self._guarded(self._segments.roll)
        return last

    def _store(self, lines: bytearray) -> None:
        stored, error = self._segments.append(lines)
        if error is not None:
            self.lost += lines.count(b"\n", stored)
            self._mark_incomplete(error)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._mark_incomplete(error)

    def _mark_incomplete(self, error: OSError) -> None:
        """The next flush tries again: a disk may get room. What was lost shows as a gap in the counters."""
        self.incomplete = self.incomplete or reason(error)
        self._report()

    def _report(self) -> None:
        if self.incomplete is None or self._reported:
            return
        try:
            with (self._ev / INCOMPLETE).open("a") as file:
                file.write(f"{self.writer}: {self.incomplete}\n")
        except OSError:  # as full as the events' own disk; an empty file says enough, and there is a next time
            return
        self._reported = True

    def _beat(self) -> None:
        memory = resident_bytes()
        with self._lock:
            if not self._closing:
                beat = RunHeartbeatPayload(rss_bytes=memory, buffered_bytes=self._accepted_bytes - self._settled_bytes)
                self._append(beat, None, None, None, None)
                self._ring()


def resident_bytes() -> int:
    """Memory of this process: what it has now where /proc tells, else the most it ever had."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
