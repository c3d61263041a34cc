"""The tables of SQL, made from the events of `leyline/telemetry.py`: one per event, a column per field.

A struct or a field that is written there appears here by itself. Read `Table` first, then `_column`, which says what
becomes of one field. DuckDB itself turns lines of JSON into rows: Python would need minutes for a million of them.

In the SQL below `line` is the text of an event and `e` the same as a STRUCT, in which a field that the line leaves out,
or says to be null, is NULL.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import msgspec

from esper.leyline.factored_actions import HEADS, OPS
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import EFFECTIVE, LIVE, SeedStage
from esper.leyline.telemetry import EVENTS, Envelope, Payload, TelemetryEventType

LINES = "lines"
"""Name of the relation, with the one column `line`, that `Table.insert` reads."""

_SCALARS: dict[type, str] = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
_RANGES: dict[str, Any] = {
    "INTEGER": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "BIGINT": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
}
_ENVELOPE = {"n": "n", "w": "writer", "ts": "ts", "g": "g", "rd": "round", "ep": "episode", "st": "step"}
_INTEGERS = frozenset({"round", "episode", "step", "env"})  # the columns that are INTEGER, other ints being BIGINT
_ITEMS: dict[tuple[TelemetryEventType, str], tuple[str, ...]] = {
    (TelemetryEventType.SEED_GATE_EVALUATED, "checks"): ("name", "value", "limit", "passed"),
    (TelemetryEventType.OBSERVATIONS, "sensors"): ("name", "mean", "deviation", "outside", "saturated"),
}
"""What the items of a tuple of fixed length are called, where they are not (name, value)."""

assert {"t", *_ENVELOPE} == {field.encode_name for field in msgspec.structs.fields(Envelope)}


@dataclass(frozen=True)
class Column:
    """A field of an event, on its line and in its table."""

    name: str
    type: str  # in SQL
    key: str  # on the line
    shape: object  # what `json_transform` is to make of it
    value: str  # SQL of what goes into the column
    told_as: tuple[Any, ...]  # its type in Python and, where it may be left out, its default


@dataclass(frozen=True, eq=False)
class Table:
    """One event: where it is kept, and how it gets there."""

    name: str
    event: TelemetryEventType
    columns: tuple[Column, ...]  # of what a line says; `run`, `attempt` and `superseded` stand around them

    @property
    def create(self) -> str:
        columns = ", ".join(f'"{column.name}" {column.type}' for column in self.columns)
        return f"CREATE TABLE {self.name} (run VARCHAR, {columns}, attempt INTEGER, superseded BOOLEAN)"

    @property
    def create_live(self) -> str:
        return f"CREATE VIEW live_{self.name} AS SELECT * FROM {self.name} WHERE NOT superseded"

    @cached_property
    def insert(self) -> str:
        """Takes `$run`, and the lines from `LINES`; they must be events of this table by `line_type`."""
        shape = quoted(json.dumps({column.key: column.shape for column in self.columns}))
        values = ", ".join(column.value for column in self.columns)
        return (
            f"INSERT INTO {self.name} SELECT $run, {values}, split_part(e.w, '.', 2)::INTEGER, false "
            f"FROM (SELECT line, json_transform(line, {shape}) AS e FROM {LINES})"
        )

    @cached_property
    def line_type(self) -> type[msgspec.Struct]:
        """A line as `decode_event` would take it, with numbers that fit the columns and all of them finite.

        One look at the bytes costs a tenth of what decoding costs.
        """
        fields = [(column.key, *column.told_as) for column in self.columns if column.key != "nf"]
        return msgspec.defstruct(
            f"{self.name}_line", fields, kw_only=True, forbid_unknown_fields=True, gc=False,
            tag_field="t", tag=self.event.name,
        )  # fmt: skip


def table_of(event: TelemetryEventType, payload: type[Payload]) -> Table:
    """The table of an event with such a payload."""
    hints = typing.get_type_hints(Envelope)
    envelope = [
        _column(event, field, hints[field.name], _ENVELOPE[field.encode_name])
        for field in msgspec.structs.fields(Envelope)
        if field.encode_name in _ENVELOPE
    ]
    envelope.sort(key=lambda column: column.key != "w")  # who told it comes before the rest
    hints = typing.get_type_hints(payload)
    fields = [
        _column(event, field, hints[field.name], "env" if field.name == "env_id" else field.name)
        for field in msgspec.structs.fields(payload)
    ]
    not_finite = Column("nf", "VARCHAR[]", "nf", ["VARCHAR"], "coalesce(e.nf, [])", ())
    return Table(event.value.replace(".", "_"), event, (*envelope, *fields, not_finite))


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


# ---- one field -------------------------------------------------------------------------------------------------------


def _column(event: TelemetryEventType, field: msgspec.structs.FieldInfo, hint: Any, name: str) -> Column:
    kind = _Kind.of(hint, _ITEMS.get((event, field.name), ("name", "value")), "INTEGER" if name in _INTEGERS else "")
    key, value = field.encode_name, f'e."{field.encode_name}"'
    plain, careful = kind.read(value, None), kind.read(value, quoted(key))
    if careful != plain:  # rare, and several times as slow
        plain = f"CASE WHEN e.nf IS NOT NULL THEN {careful} ELSE {plain} END"
    if field.required:
        return Column(name, kind.sql, key, kind.shape, plain, (kind.told_as,))
    default = msgspec.json.encode(field.default).decode()
    value = f"json_transform({quoted(default)}, {quoted(json.dumps(kind.shape))})"
    default = kind.read(value, None)
    if kind.optional and field.default is not None:  # null is a value, and other than nothing
        path = quoted(f'$."{key}"')
        filled = f"CASE WHEN json_exists(line, {path}) THEN {plain} ELSE {default} END"
    else:
        filled = plain if field.default is None else f"coalesce({plain}, {default})"
    return Column(name, kind.sql, key, kind.shape, filled, (kind.told_as, field.default))


@dataclass(frozen=True)
class _Kind:
    """What the annotation of a field means on the line and in SQL."""

    sql: str  # type of the column
    shape: object  # for json_transform; the items of a tuple of fixed length come as text
    told_as: Any  # the annotation, ints being limited to what the column can hold
    optional: bool = False
    each: _Kind | None = None  # tuple[X, ...]
    items: tuple[tuple[str, _Kind], ...] = ()  # tuple[X, Y], by name

    @staticmethod
    def of(hint: Any, names: tuple[str, ...], integer: str = "") -> _Kind:
        """names: of the items of tuples of fixed length; integer: the type of SQL for an int, if not BIGINT."""
        args = typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union):
            (inner,) = (_Kind.of(arg, names, integer) for arg in args if arg is not types.NoneType)
            return _Kind(inner.sql, inner.shape, inner.told_as | None, True, inner.each, inner.items)
        if not args:
            sql = integer if hint is int and integer else _SCALARS[hint]
            return _Kind(sql, sql, _RANGES.get(sql, hint))
        if args[1:] == (...,):
            each = _Kind.of(args[0], names)
            return _Kind(f"{each.sql}[]", [each.shape], tuple[each.told_as, ...], each=each)  # type: ignore[name-defined]
        items = [_Kind.of(arg, names) for arg in args]
        assert len(names) == len(items), f"{hint}: name its items in _ITEMS"
        assert all(isinstance(item.shape, str) for item in items), f"{hint}: items of such a tuple must be plain values"
        sql = ", ".join(f'"{name}" {item.sql}' for name, item in zip(names, items, strict=True))
        told_as = types.GenericAlias(tuple, tuple(item.told_as for item in items))
        return _Kind(f"STRUCT({sql})", ["VARCHAR"], told_as, items=tuple(zip(names, items, strict=True)))

    def read(self, value: str, place: str | None, depth: int = 0) -> str:
        """SQL that makes the column's value of `value`, which has the shape.

        place: SQL of what `nf` would call it, for lines with values that are not finite; these become NaN.
        """
        if self.each is not None:
            x, i = f"x{depth}", f"i{depth}"
            item = self.each.read(x, None if place is None else f"{place} || '.' || ({i} - 1)", depth + 1)
            return value if item == x else f"list_transform({value}, lambda {x}, {i}: {item})"
        if self.items:
            parts = []
            for at, (name, kind) in enumerate(self.items):
                item = kind.read(f"{value}[{at + 1}]::{kind.sql}", None if place is None else f"{place} || '.{at}'")
                parts.append(f"'{name}': {item}")
            return f"{{{', '.join(parts)}}}"
        if place is None or self.sql != "DOUBLE":
            return value
        return f"CASE WHEN list_contains(e.nf, {place}) THEN 'nan'::DOUBLE ELSE {value} END"


# ---- all of them -----------------------------------------------------------------------------------------------------

TABLES: tuple[Table, ...] = tuple(table_of(event, payload) for event, payload in EVENTS.items())
TABLE_OF_LINE: dict[type[msgspec.Struct], Table] = {table.line_type: table for table in TABLES}
FINGERPRINT = hashlib.sha256("\n".join(table.create + table.insert for table in TABLES).encode()).hexdigest()
"""Changes with the tables, and with what they make of a line."""

VOCABULARY: dict[str, tuple[str, list[tuple[object, ...]]]] = {
    "ops": (
        "op_index INTEGER, op VARCHAR, short VARCHAR, price DOUBLE, needs_slot BOOLEAN, is_internal BOOLEAN",
        [
            (int(op), op.name, op.name.removesuffix("_INTERNAL").removesuffix("_TARGET"), row.price, row.needs_slot,
             op.name.endswith("_INTERNAL"))
            for op, row in OPS.items()
        ],
    ),
    "stages": (
        "stage_index INTEGER, stage VARCHAR, is_live BOOLEAN, is_effective BOOLEAN",
        [(int(stage), stage.name, stage in LIVE, stage in EFFECTIVE) for stage in SeedStage],
    ),
    "heads": ("head_index INTEGER, head VARCHAR", list(enumerate(HEADS))),
    "internal_kinds": ("kind_index INTEGER, kind VARCHAR", [(int(kind), kind.name) for kind in SeedInternalKind]),
    "event_types": ("event_type VARCHAR, table_name VARCHAR", [(table.event.name, table.name) for table in TABLES]),
}  # fmt: skip
"""Columns and rows of the tables that say what names and numbers mean, the same for all runs."""
