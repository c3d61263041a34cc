"""Reading a run back, whether it is live, finished or was killed: the inverse of `writer.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    Envelope,
    Payload,
    RunResumedPayload,
    RunStartedPayload,
    UnknownEventError,
    decode_event,
)
from esper.nissa.segments import segment_files
from esper.nissa.storage import reason, shown, storage_errors
from esper.nissa.writer import INCOMPLETE


def read_events(folder: Path) -> Iterator[tuple[Envelope, Payload]]:
    """All events of a run folder, writer after writer, each in the order in which it told them.

    Of a last line that is still being written nothing is seen. UnknownEventError, with file and line, for a line
    that is no event of this schema: a reader never guesses.
    """
    for path in _files(folder):
        with storage_errors(path):
            file = _open(path)
        with file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                yield _decode(line, f"{shown(path)}, line {number}")


def live_events(folder: Path) -> Iterator[tuple[Envelope, Payload]]:
    """Events as if the run had never been interrupted: without what a later attempt has told again."""
    resumed = [(each, payload) for each, payload in read_events(folder) if isinstance(payload, RunResumedPayload)]
    for envelope, payload in read_events(folder):
        if not any(supersedes(later, begin, envelope) for later, begin in resumed):
            yield envelope, payload


def supersedes(later: Envelope, begin: RunResumedPayload, told: Envelope) -> bool:
    """Whether a later attempt that begins there replaces what was told: a round but no step is the round's end."""
    (rank, attempt), (told_rank, told_attempt) = _who(later.writer), _who(told.writer)
    of_one_team = later.group is None or later.group == told.group
    if rank != told_rank or told_attempt >= attempt or not of_one_team or told.round is None:
        return False
    if told.round != begin.from_round:
        return told.round > begin.from_round
    return told.step is None or told.step >= begin.from_step


def _who(writer: str) -> tuple[int, int]:
    rank, _, attempt = writer.removeprefix("r").partition(".")
    return int(rank), int(attempt)


@dataclass(frozen=True)
class Gap:
    """Events `first` to `first + count - 1` of a writer are missing."""

    writer: str
    first: int
    count: int


def gaps(folder: Path) -> list[Gap]:
    """Where events are missing. What a killed writer had not written when it died leaves no gap."""
    found: list[Gap] = []
    expected: dict[str, int] = {}
    for envelope, _ in read_events(folder):
        want = expected.get(envelope.writer, 0)
        if envelope.counter > want:
            found.append(Gap(envelope.writer, want, envelope.counter - want))
        expected[envelope.writer] = envelope.counter + 1
    return found


def why_incomplete(folder: Path) -> str | None:
    """What a writer said when the disk failed it, or None. A run of which lines are missing deserves no verdict."""
    try:
        return (folder / "ev" / INCOMPLETE).read_text(errors="replace").strip() or "a writer could not write"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{INCOMPLETE} cannot be read: {reason(error)}"


def _files(folder: Path) -> list[Path]:
    ev = folder / "ev"
    if not ev.is_dir():
        raise ConfigError(f"{shown(folder)}: not a run folder: it has no ev/")
    with storage_errors(ev):
        return segment_files(ev)


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:  # sealed since it was listed
        return path.with_suffix(".jsonl").open("rb")


def _decode(line: bytes, where: str) -> tuple[Envelope, Payload]:
    try:
        envelope, payload = decode_event(line)
    except UnknownEventError as error:
        raise UnknownEventError(f"{where}: {error}") from error
    if isinstance(payload, RunStartedPayload) and payload.schema_version != SCHEMA_VERSION:
        raise UnknownEventError(
            f"{where}: events of schema {payload.schema_version}, and this program reads schema {SCHEMA_VERSION}; "
            "read the run with the version of esper that wrote it"
        )
    return envelope, payload
