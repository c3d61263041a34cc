"""Events back from their tables as they were told: a window of a run's events, and an episode that a state let go.

listed(con, "20261120-140233-digits-a1b2c3", Sought.of("type:gov env:5 loss"), 200)     # newest first
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import msgspec

from esper.karn.episodes import Episode
from esper.karn.state import State
from esper.karn.tables import TABLES, Table, quoted
from esper.leyline.telemetry import EVENTS, Envelope, Payload

Event = tuple[Envelope, Payload]

_WORD = re.compile(r"(?:(type|env|round|slot|group):)?(\S+)")
_OF_ENVELOPE = {field.encode_name: field.name for field in msgspec.structs.fields(Envelope) if field.name != "t"}
_WITH_ENV = tuple(table for table in TABLES if any(column.name == "env" for column in table.columns))


@dataclass(frozen=True)
class Sought:
    """Which events are wanted: `type:gov env:5 round:3 slot:r0c1 words`, all of it together."""

    types: tuple[str, ...] = ()
    env: int | None = None
    round: int | None = None
    group: str | None = None
    slot: str | None = None
    words: tuple[str, ...] = ()

    @staticmethod
    def of(line: str) -> Sought:
        """Whatever a person types; what is no number where one is wanted is a word to be found."""
        told: dict[str, Any] = {"types": [], "words": []}
        for key, value in _WORD.findall(line):
            number = re.fullmatch(r"e?(\d{1,6})", value)
            if key == "type":
                told["types"].append(value.lower())
            elif key in ("env", "round") and number:
                told[key] = int(number[1])
            elif key in ("slot", "group"):
                told[key] = value
            else:
                told["words"].append(value.lower())
        return Sought(**told | {"types": tuple(told["types"]), "words": tuple(told["words"])})


def listing(sought: Sought, most: int, until: int | None = None) -> str:
    """SQL of the newest events that fit, newest first. Takes `$run`. until: later rounds are left out."""
    told = " union all ".join(
        f"select ts, writer, n, '{table.name}' as event_table, round, step from live_{table.name} t "
        f"where run = $run{''.join(f' and {part}' for part in _conditions(table, sought, until))}"
        for table in _tables(sought)
    )
    return f"from ({told}) order by ts desc, writer desc, n desc limit {most}" if told else _NONE


_NONE = "select 0.0 as ts, '' as writer, 0 as n, '' as event_table, 0 as round, 0 as step where $run is null"


def listed(
    con: duckdb.DuckDBPyConnection, run: str, sought: Sought, most: int, until: int | None = None
) -> list[Event]:
    """The newest events that fit, newest first."""
    heads = con.execute(listing(sought, most, until), {"run": run}).fetchall()
    found: dict[tuple[str, int], Event] = {}
    for table in TABLES:
        keys = [(writer, n) for _, writer, n, name, *_ in heads if name == table.name]
        if keys:
            bound = {"run": run, "writers": [writer for writer, _ in keys], "counters": [n for _, n in keys]}
            events = _events(con, table, _AMONG, bound)
            found |= {(where.writer, where.counter): (where, told) for where, told in events}
    return [found[writer, n] for _, writer, n, *_ in heads]


_AMONG = "run = $run and (writer, n) in (select unnest($writers::VARCHAR[]), unnest($counters::BIGINT[]))"


def episode(con: duckdb.DuckDBPyConnection, run: str, group: str | None, round_: int, env: int) -> Episode | None:
    """One host from its start on, out of the tables; None where nothing was told of it."""
    bound = {"run": run, "g": group, "round": round_, "env": env}
    where = "run = $run and g is not distinct from $g and round = $round and env = $env"
    told = [event for table in _WITH_ENV for event in _events(con, table, where, bound)]
    state = State()
    for event in sorted(told, key=lambda each: (each[0].time_s, each[0].writer, each[0].counter)):
        state.take(*event)
    return state.team(group).episode(round_, env)


# ---- one table -----------------------------------------------------------------------------------------------------


def _events(con: duckdb.DuckDBPyConnection, table: Table, where: str, bound: Mapping[str, Any]) -> list[Event]:
    names = ", ".join(f't."{column.name}"' for column in table.columns if column.key != "nf")
    rows = con.execute(f"select {names} from live_{table.name} t where {where}", dict(bound)).fetchall()
    keys = [column.key for column in table.columns if column.key != "nf"]
    return [_event(table, dict(zip(keys, row, strict=True))) for row in rows]


def _event(table: Table, told: dict[str, Any]) -> Event:
    """What a row holds, as it was told: NULL is what was left out, items of fixed length are rows of their own."""
    told = {key: _plain(value) for key, value in told.items() if value is not None}
    place = {name: told.pop(key) for key, name in _OF_ENVELOPE.items() if key in told}
    for field in msgspec.structs.fields(EVENTS[table.event]):
        if not field.required and told.get(field.encode_name) in (field.default, _plain(field.default)):
            told.pop(field.encode_name, None)  # the encoder leaves out what was never set
    return Envelope(t=table.event.name, **place), msgspec.convert(told, EVENTS[table.event])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return [_plain(item) for item in value.values()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _tables(sought: Sought) -> Sequence[Table]:
    """Those whose event begins with one of the types, or has it in its name."""
    fits = [t for t in TABLES if any(s in t.event.value or s in t.event.name.lower() for s in sought.types)]
    fits = fits if sought.types else list(TABLES)
    wanted = (("env", sought.env), ("slot", sought.slot), ("round", sought.round))
    names = [name for name, value in wanted if value is not None]
    return [t for t in fits if all(_column(t, name) is not None for name in names)]


def _column(table: Table, name: str) -> str | None:
    """The column by which a table knows this; slots are `slot` in decisions and `slot_id` elsewhere."""
    own = {column.name for column in table.columns}
    return next((each for each in (name, f"{name}_id") if each in own), None)


def _conditions(table: Table, sought: Sought, until: int | None) -> list[str]:
    known = (("env", sought.env), ("round", sought.round))
    parts = [f"t.{name} = {value}" for name, value in known if value is not None]
    if sought.slot is not None:
        parts.append(f"t.{_column(table, 'slot')} = {quoted(sought.slot)}")
    if sought.group is not None:
        parts.append(f"t.g = {quoted(sought.group)}")
    if until is not None:
        parts.append(f"(t.round is null or t.round <= {until})")
    return parts + [f"contains(lower(t::VARCHAR), {quoted(word)})" for word in sought.words]
