"""Events of a run since a cursor. A cursor is the counter of the last event told of each writer: `r0.1:1281 r1.1:40`.

Within a writer events are told in the order of their counters, writers one after another: so what is cut off at the
end of an answer is exactly what the next one begins with.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.karn.manifests import Named
from esper.karn.mcp.answers import ROOM, Tail, that_fit
from esper.karn.mcp.desk import Desk, Tables, tables_of
from esper.karn.tables import TABLES
from esper.leyline.errors import ConfigError, did_you_mean
from esper.nissa.segments import WRITER
from esper.nissa.storage import shown

_CURSOR = re.compile(rf"(?P<writer>{WRITER.pattern}):(?P<n>\d{{1,18}})")
_MOST_WRITERS = 1_000
_NAMES_OF_FIELDS = 2_000  # characters
_NAMES = {table.event.value: table.name for table in TABLES}
_WITHIN = (
    "n > coalesce(map($writers::VARCHAR[], $after::BIGINT[])[writer], -1) "
    "and n <= coalesce(map($ends::VARCHAR[], $until::BIGINT[])[writer], -1)"
)

Cursor = Mapping[str, int]  # counter of the last event that was told, by writer


def tail(desk: Desk, folder: Path, types: Sequence[str] | None, after: str | None, limit: int) -> Tail:
    """The first `limit` events after the cursor; without one the last, as many as fit."""
    tables = _tables(types)
    source = tables_of([folder])
    begin = {} if after is None else _decode(after, Named.of(folder).run)
    ends = {str(writer): int(n) for writer, n in desk.rows(source, _ENDS).rows}
    bounds = {"writers": list(begin), "after": list(begin.values()), "ends": list(ends), "until": list(ends.values())}
    told = " union all ".join(f"select writer, n, ts, '{name}' as type from {name} where {_WITHIN}" for name in tables)
    order = "writer, n" if after is not None else "ts desc, writer desc, n desc"
    found = desk.rows(source, f"from ({told}) order by {order} limit {limit + 1}", bounds, chars=4 * ROOM)
    heads = [(str(writer), int(n), str(name)) for writer, n, _, name in found.rows[:limit]]
    kept = that_fit(_events(desk, source, heads, chars=40 * ROOM))
    if heads and not kept:  # one event fills more than an answer: its texts are cut
        kept = _events(desk, source, heads[:1], chars=ROOM - _NAMES_OF_FIELDS)
    if after is None:
        return Tail(tuple(reversed(kept)), False, _encode(ends))
    more = found.truncated or len(kept) < len(found.rows)
    last = {**begin, **{event["writer"]: event["n"] for event in kept}} if more else {**begin, **ends}
    return Tail(tuple(kept), more, _encode(last))


_ENDS = "select writer, last_n from integrity where last_n is not null order by writer"


def _events(desk: Desk, source: Tables, heads: Sequence[tuple[str, int, str]], chars: int) -> list[dict[str, Any]]:
    """The events with these writers and counters, from these tables, in this order."""
    wanted: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for writer, n, name in heads:
        wanted[name].append((writer, n))
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for name, keys in wanted.items():
        at = {"writers": [writer for writer, _ in keys], "counters": [n for _, n in keys]}
        rows = desk.rows(
            source,
            f"select t.* exclude (run, attempt) from {name} t "
            "join (select unnest($writers::VARCHAR[]) as writer, unnest($counters::BIGINT[]) as n) using (writer, n)",
            at,
            chars,
        )
        for cells in rows.rows:
            event = dict(zip(rows.columns, cells, strict=True))
            found[event["writer"], event["n"], name] = {"type": name.replace("_", ".", 1), **_without_empty(event)}
    return [found[head] for head in heads if head in found]


def _without_empty(event: Mapping[str, Any]) -> dict[str, Any]:
    """What was told: defaults are left out, as on the line, but for numbers."""
    kept = {name: value for name, value in event.items() if value not in (None, "", [])}
    if not kept["superseded"]:
        del kept["superseded"]
    return kept


def _tables(types: Sequence[str] | None) -> list[str]:
    if types is None:
        return list(_NAMES.values())
    for name in types:
        if name not in _NAMES:
            hint = did_you_mean(name, _NAMES) or f"; there are {', '.join(_NAMES)}"
            raise ConfigError(f"types: no event is called {shown(repr(name))}{hint}")
    return [_NAMES[name] for name in dict.fromkeys(types)] or list(_NAMES.values())


def _encode(cursor: Cursor) -> str:
    return " ".join(f"{writer}:{n}" for writer, n in cursor.items())


def _decode(text: str, run: str) -> dict[str, int]:
    """ConfigError for what was no cursor."""
    parts = text.split(" ") if text else []
    found = [_CURSOR.fullmatch(part) for part in parts[:_MOST_WRITERS]]
    if len(parts) > _MOST_WRITERS or not all(found):
        raise ConfigError(f"after: {shown(repr(text))} is no cursor; give `next` of an answer before about {run!r}")
    return {match["writer"]: int(match["n"]) for match in found if match is not None}
