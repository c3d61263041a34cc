"""Screen 5, Events: everything that was told, filtered, newest first; and the record behind a line."""

from __future__ import annotations

import json
from typing import Any

from esper.karn.episodes import Told
from esper.karn.sanctum import ink
from esper.karn.sanctum.garden import event_line, window_of
from esper.karn.sanctum.ink import DIM, SELECTED, STRONG, Line, joined, safe, text, wrapped
from esper.karn.sanctum.scene import READING, Panel, Scene
from esper.karn.told_again import Sought, listing
from esper.leyline.telemetry import Envelope, Payload, encode_event

LISTED = 500
"""The most events that the list has."""


def chosen(scene: Scene) -> tuple[Envelope, Payload] | None:
    """The event that the cursor is on."""
    listed = scene.listed()
    if listed is None or not listed.events:
        return None
    return listed.events[min(scene.gaze.row, len(listed.events) - 1)]


def cursor_of(event: tuple[Envelope, Payload]) -> str:
    """What names an event for `esper sql` and for agents."""
    return json.dumps({"writer": event[0].writer, "n": event[0].counter})


def _list(scene: Scene, width: int, height: int) -> list[Line]:
    listed = scene.listed()
    if listed is None:
        return [READING]
    if not listed.events:
        return [text("no event fits", DIM)]
    at = min(scene.gaze.row, len(listed.events) - 1)
    lines = []
    for index in window_of(range(len(listed.events)), at, height):
        where, payload = listed.events[index]
        line = event_line(Told(where.time_s, where.writer, where.counter, where, payload))
        if index == at:
            line = text(ink.plain(ink.fitted(line, width - 1)), SELECTED)
        lines.append(joined(text("▸" if index == at else " ", STRONG), line))
    return lines


def _record(scene: Scene, width: int, _height: int) -> list[Line]:
    event = chosen(scene)
    if event is None:
        return [text("–", DIM)]
    told: dict[str, Any] = json.loads(encode_event(*event))
    lines: list[Line] = []
    for key, value in told.items():
        words = safe(value if isinstance(value, str) else json.dumps(value))
        for at, line in enumerate(wrapped(words, max(8, width - 18)) or [text("")]):
            lines.append(joined(text(f"{safe(key) if not at else '':<18}"[:18], DIM), line))
    return lines


def _title(scene: Scene) -> Line:
    listed, sought = scene.listed(), safe(scene.gaze.sought)
    n = "" if listed is None else f"  {len(listed.events)}{' newest' if listed.more else ''}"
    return joined(text(f"EVENTS{n}", ink.TITLE), text(f"  filter: {sought}" if sought else "  / filters", DIM))


def _sql(scene: Scene) -> str:
    return listing(Sought.of(scene.gaze.sought), LISTED)


LIST = Panel("list", _title, _list, _sql, least=8)
RECORD = Panel("record", lambda _scene: text("RECORD  as it was told", ink.TITLE), _record, _sql)
