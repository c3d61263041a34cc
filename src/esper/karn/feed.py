"""Events of a run as objects, while it is written or afterwards: what a `State` is made of.

    feed = Feed(folder)
    for where, payload in feed.news():     # again and again; each event is handed out once
        state.take(where, payload)
    state.hear(feed.condition())

`Replay` hands out a run that has ended as if it ran again, faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import final

import msgspec

from esper.karn.collector import Collector, Part
from esper.karn.manifests import is_running
from esper.karn.state import RETAINED, Condition
from esper.karn.tables import TABLES
from esper.leyline.telemetry import Envelope, Payload, TelemetryEventType, decode_event
from esper.nissa.reader import why_incomplete

Event = tuple[Envelope, Payload]

_MANY = frozenset(
    table
    for table in TABLES
    if table.event in (TelemetryEventType.ENV_STEP, TelemetryEventType.SEED_CONTRIBUTION_MEASURED)
)
"""Events of which there are so many that old ones are not worth an object."""


class _Place(msgspec.Struct):
    """What decides whether a line is looked at more closely."""

    rd: int | None = None


_place = msgspec.json.Decoder(_Place).decode


@final
class Feed:
    """One run folder. Reads files and writes none; used by one thread at a time."""

    def __init__(self, folder: Path, *, all_rounds: bool = False) -> None:
        """all_rounds: steps of rounds that no state retains are handed out too. ConfigError for a folder that is no
        run."""
        self._folder, self._all_rounds = folder, all_rounds
        self._collector = Collector(folder)

    def news(self) -> Iterator[Event]:
        """What was told since the last time, writer after writer. UnknownEventError for a run of another schema."""
        for part in self._collector.news():
            yield from self._in_order(part)

    def condition(self) -> Condition:
        writers = self._collector.writers()
        return Condition(
            running=is_running(self._folder),
            lost=sum(writer.missing for writer in writers),
            bad_lines=sum(writer.tally.bad for writer in writers),
            incomplete=why_incomplete(self._folder),
        )

    def _in_order(self, part: Part) -> list[Event]:
        """Events of a segment as they were told; a part has them by table."""
        many = [line for table in _MANY & part.lines.keys() for line in part.lines[table]]
        rounds = [_place(line).rd or 0 for line in many]
        first = 0 if self._all_rounds else max(rounds, default=0) - RETAINED + 1
        lines = [line for line, round_ in zip(many, rounds, strict=True) if round_ >= first]
        lines += [line for table, texts in part.lines.items() if table not in _MANY for line in texts]
        return sorted((decode_event(line.encode()) for line in lines), key=lambda event: event[0].counter)


@final
class Replay:
    """A run that has ended, told again `speed` times as fast as it was, from the moment that it is first asked."""

    def __init__(self, folder: Path, speed: float) -> None:
        feed = Feed(folder, all_rounds=True)
        self._events = sorted(feed.news(), key=lambda event: (event[0].time_s, event[0].writer, event[0].counter))
        self._condition, self._speed, self._at = feed.condition(), speed, 0

    def until(self, seconds: float) -> list[Event]:
        """What was told in so many seconds since the beginning, and was not handed out yet."""
        if not self._events:
            return []
        end, first = self.clock(seconds), self._at
        while self._at < len(self._events) and self._events[self._at][0].time_s <= end:
            self._at += 1
        return self._events[first : self._at]

    def clock(self, seconds: float) -> float:
        """The time of the run so many seconds after the replay began."""
        return self._events[0][0].time_s + seconds * self._speed if self._events else 0.0

    @property
    def over(self) -> bool:
        return self._at == len(self._events)

    def condition(self) -> Condition:
        """As long as it is told again it runs."""
        return self._condition if self.over else replace(self._condition, running=True)
