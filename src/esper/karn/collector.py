"""Which lines of a run folder are new: follows its segments while they grow, and counts what it saw.

    collector = Collector(Path("runs/20261120-140233-digits-a1b2c3"))
    for part in collector.news():        # again and again; each line is handed out once
        part.lines[table]                # the events of that table, as text
    collector.writers()                  # what was told and what is missing, by writer

A segment is read up to its last newline; what stands behind it is being written, or was torn when its writer died. A
line is an event by the rules of `decode_event`; others are counted and kept for a person to look at, never guessed at.
"""

from __future__ import annotations

import re
import typing
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, final

import msgspec

from esper.karn.own_files import check_own, open_own
from esper.karn.tables import TABLE_OF_LINE, TABLES, Table
from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import SCHEMA_VERSION, TelemetryEventType, UnknownEventError, decode_event
from esper.nissa.segments import segment_files
from esper.nissa.storage import shown, storage_errors

KEPT = 20
"""Lines of a writer that are no event and that are kept; more are counted."""
_CHUNK = 16 << 20

_STARTS = next(table for table in TABLES if table.event is TelemetryEventType.RUN_STARTED)
_Line: Any = typing.Union[tuple(TABLE_OF_LINE)]  # noqa: UP007
_decode = msgspec.json.Decoder(_Line).decode


class _Started(msgspec.Struct):
    """What the first event of a run says in every schema."""

    t: typing.Literal["RUN_STARTED"]
    schema_version: int


@dataclass(frozen=True)
class BadLine:
    """A line that is no event of this schema."""

    segment: str
    line: int  # in its segment, from 1
    why: str
    text: str  # printable and shortened


@dataclass(frozen=True)
class Tally:
    """What was seen of a segment, or of all segments of a writer."""

    lines: int = 0
    bytes: int = 0  # of whole lines
    events: int = 0
    first_n: int | None = None  # counter of the first event
    last_n: int | None = None
    missing: int = 0  # counters that were left out between them
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()  # the first of them

    def followed_by(self, later: Tally) -> Tally:
        """Both, `later` having been told by the same writer after this."""
        gap = 0 if self.last_n is None or later.first_n is None else max(0, later.first_n - self.last_n - 1)
        return Tally(
            lines=self.lines + later.lines,
            bytes=self.bytes + later.bytes,
            events=self.events + later.events,
            first_n=later.first_n if self.first_n is None else self.first_n,
            last_n=self.last_n if later.last_n is None else later.last_n,
            missing=self.missing + gap + later.missing,
            bad=self.bad + later.bad,
            bad_lines=(self.bad_lines + later.bad_lines)[:KEPT],
        )


@dataclass(eq=False)
class Segment:
    """How far a file of events has been read."""

    path: Path
    tally: Tally = field(default_factory=Tally)
    torn: int = 0  # bytes after the last newline
    size: int = -1  # of the file when it was last read; -1: never

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def writer(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def place(self) -> tuple[int, ...]:
        """Rank, attempt and number."""
        return tuple(map(int, re.findall(r"\d+", self.name)))

    @property
    def sealed(self) -> bool:
        return self.path.suffix == ".jsonl"


@dataclass(frozen=True)
class Part:
    """New events of one segment, by table and in the order in which they were told."""

    segment: Segment
    lines: dict[Table, list[str]]
    bytes: int


@dataclass(frozen=True)
class Writer:
    """All that was seen of one writer."""

    name: str
    segments: int
    tally: Tally
    torn: int  # bytes; of a writer that lives, what it has half written

    @property
    def missing(self) -> int:
        """Events that it counted and that no line tells; those that a killed writer took with it do not show."""
        return self.tally.missing + (self.tally.first_n or 0)


@final
class Collector:
    """Reads one run folder, whoever writes to it. Nothing in the folder is changed."""

    def __init__(self, folder: Path) -> None:
        """Reads nothing yet. ConfigError for a folder that is no run."""
        self._folder, self._ev = folder, folder / "ev"
        if not self._ev.is_dir():
            raise ConfigError(f"{shown(folder)}: not a run folder: it has no ev/")
        self._segments: dict[str, Segment] = {}

    def segments(self) -> list[Segment]:
        """All that there are, or were when they were read, by writer and number. ConfigError by `check_own`."""
        check_own(self._folder)
        with storage_errors(self._ev):
            listed = {path.stem: path for path in segment_files(self._ev)}
        found = self._segments | {name: self._seen(name, path) for name, path in listed.items()}
        self._segments = dict(sorted(found.items(), key=lambda item: item[1].place))
        return list(self._segments.values())

    def know(self, segment: Segment, tally: Tally, size: int) -> None:
        """What a sealed segment of so many bytes tells is known already; it is not read."""
        assert segment.sealed
        assert not segment.tally.lines
        segment.tally, segment.torn, segment.size = tally, size - tally.bytes, size

    def news(self) -> Iterator[Part]:
        """What was told since the last time. UnknownEventError for another schema, ConfigError by `check_own`."""
        for segment in self.segments():
            yield from self._news_of(segment)

    def writers(self) -> list[Writer]:
        """What was seen so far, by rank and attempt."""
        found: dict[str, Writer] = {}
        for segment in self._segments.values():
            before = found.get(segment.writer, Writer(segment.writer, 0, Tally(), 0))
            tally = before.tally.followed_by(segment.tally)
            found[segment.writer] = Writer(segment.writer, before.segments + 1, tally, before.torn + segment.torn)
        return list(found.values())

    def _seen(self, name: str, path: Path) -> Segment:
        segment = self._segments.get(name) or Segment(path)
        if segment.path != path:
            segment.path, segment.size = path, -1  # sealed since, and perhaps grown before
        return segment

    def _news_of(self, segment: Segment) -> Iterator[Part]:
        with storage_errors(segment.path):
            file = _open(segment)
        if file is None:
            return
        with file:
            size = file.seek(0, 2)
            if size == segment.size:
                return
            file.seek(segment.tally.bytes)
            for data in _whole_lines(file, segment):
                lines, tally = _sorted(data, segment)
                segment.tally = segment.tally.followed_by(tally)
                yield Part(segment, lines, len(data))
            segment.size = size


def _open(segment: Segment) -> IO[bytes] | None:
    """None for a segment that somebody has removed."""
    try:
        return open_own(segment.path)
    except FileNotFoundError:  # sealed since it was listed
        segment.path = segment.path.with_suffix(".jsonl")
    try:
        return open_own(segment.path)
    except FileNotFoundError:
        return None


def _whole_lines(file: IO[bytes], segment: Segment) -> Iterator[bytes]:
    rest = b""
    while data := file.read(_CHUNK):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
    segment.torn = len(rest)


# ---- lines -----------------------------------------------------------------------------------------------------------


def _sorted(data: bytes, segment: Segment) -> tuple[dict[Table, list[str]], Tally]:
    """The events among these whole lines, by table, and what was seen of them."""
    found: dict[type[msgspec.Struct], list[str]] = defaultdict(list)
    writer, before = segment.writer, segment.tally.lines
    lines = data.split(b"\n")[:-1]
    first = last = None
    missing = bad = 0
    kept: list[BadLine] = []
    for at, line in enumerate(lines, start=before + 1):
        try:
            event = _event(line, writer)
        except UnknownEventError as error:
            _check_start(line, segment)
            bad += 1
            if len(kept) < KEPT:
                kept.append(BadLine(segment.name, at, str(error), shown(line.decode(errors="replace"))))
            continue
        if last is None:
            first = event.n
        elif event.n > last + 1:
            missing += event.n - last - 1
        last = event.n
        found[type(event)].append(line.decode())
    tables = {TABLE_OF_LINE[kind]: texts for kind, texts in found.items()}
    for text in tables.get(_STARTS, ()):
        _check_start(text.encode(), segment)
    return tables, Tally(len(lines), len(data), len(lines) - bad, first, last, missing, bad, tuple(kept))


def _event(line: bytes, writer: str) -> Any:
    """The line as its `Table.line_type`. UnknownEventError unless it is an event of this writer."""
    try:
        event = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event = _event_not_finite(line)
    if event.w != writer:
        raise UnknownEventError(f"told by writer {shown(repr(event.w))} in a file of {writer}")
    return event


def _event_not_finite(line: bytes) -> Any:
    """The same for an event with values that are not finite: they are 0 here."""
    decode_event(line)
    raw: Any = msgspec.json.decode(line)
    for place in raw.pop("nf", ()):
        *parents, last = place.split(".")
        inner = raw
        for key in parents:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        inner[int(last) if isinstance(inner, list) else last] = 0.0
    try:
        return msgspec.convert(raw, _Line)
    except msgspec.ValidationError as error:  # a number that no column can hold
        raise UnknownEventError(str(error)) from error


def check_schema(version: int, where: str) -> None:
    """UnknownEventError unless this program reads events of this schema."""
    if version != SCHEMA_VERSION:
        raise UnknownEventError(
            f"{where}: events of schema {version}, and this program reads schema {SCHEMA_VERSION}; "
            "read the run with the version of esper that wrote it"
        )


def _check_start(line: bytes, segment: Segment) -> None:
    """If the line starts a run, the run must be of our schema."""
    try:
        started = msgspec.json.decode(line, type=_Started)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    check_schema(started.schema_version, shown(segment.path))
