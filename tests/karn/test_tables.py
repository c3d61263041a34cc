"""What is told comes back from SQL as `decode_event` gives it, whatever the event."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import typing
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.karn.conftest import ByHand
from tests.leyline.test_telemetry import comparable, every_event, example, from_fields

from esper.karn.collector import Collector
from esper.karn.tables import LINES, TABLES, VOCABULARY, Table, table_of
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    EVENTS,
    SCHEMA_VERSION,
    Envelope,
    EnvStepPayload,
    GovernorRollbackPayload,
    ObservationsPayload,
    Payload,
    RunStartedPayload,
    SeedGateEvaluatedPayload,
    TelemetryEventType,
    UnknownEventError,
    decode_event,
    encode_event,
)

TABLE = {table.event: table for table in TABLES}
PLACE = ["run", "writer", "n", "ts", "g", "round", "episode", "step"]


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(":memory:")
    for table in TABLES:
        con.execute(table.create)
    return con


def columns_of(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {table}").fetchall()}


def rows_of(con: duckdb.DuckDBPyConnection, table: Table, lines: list[str]) -> list[dict[str, Any]]:
    """The lines put into the table, and what it holds then."""
    con.execute(f"DELETE FROM {table.name}")
    con.register(LINES, {"line": np.array(lines, dtype=object)})
    con.execute(table.insert, {"run": "a-run"})
    con.unregister(LINES)
    found = con.execute(f"SELECT * FROM {table.name} ORDER BY n").fetchall()
    return [dict(zip(columns_of(con, table.name), row, strict=True)) for row in found]


def as_told(row: dict[str, Any], payload_type: type[Payload]) -> dict[str, Any]:
    """The payload's fields of a row, in the types of Python that the payload has."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuple(item.values()) if isinstance(item, dict) else item for item in value)
        return value

    names = [field.name for field in msgspec.structs.fields(payload_type)]
    return {name: plain(row["env" if name == "env_id" else name]) for name in names}


def within(value: Any, bits: int) -> Any:
    """Whole numbers brought into the range of a column."""
    if isinstance(value, tuple):
        return tuple(within(item, bits) for item in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) if whole else value


def fitting(struct: msgspec.Struct, short: frozenset[str]) -> Any:
    values = msgspec.structs.asdict(struct)
    fitted = {name: within(value, 32 if name in short else 64) for name, value in values.items()}
    if isinstance(struct, RunStartedPayload):
        fitted["schema_version"] = SCHEMA_VERSION
    return msgspec.structs.replace(struct, **fitted)


# ---- there and back


@every_event
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_event_is_in_its_table_as_the_decoder_gives_it(con, tmp_path_factory, event, data):
    payloads = data.draw(st.lists(from_fields(EVENTS[event]), min_size=1, max_size=4))
    where = from_fields(Envelope, t=st.just(event.name), writer=st.just("r3.12"), time_s=st.floats(0, 1e12))
    folder = ByHand(tmp_path_factory.mktemp("told") / "a-run")
    lines = []
    for n, payload in enumerate(payloads):
        envelope = fitting(data.draw(where), frozenset({"round", "episode", "step"}))
        envelope = msgspec.structs.replace(envelope, counter=n)
        lines.append(encode_event(envelope, fitting(payload, frozenset({"env_id"}))))
    folder.write(*(line + b"\n" for line in lines), segment="r3.12-000000.open")

    (part,) = Collector(folder.path).news()
    rows = rows_of(con, TABLE[event], part.lines[TABLE[event]])

    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        envelope, payload = decode_event(line)
        assert comparable(as_told(row, EVENTS[event])) == comparable(msgspec.structs.asdict(payload))
        assert [row[name] for name in PLACE] == [
            "a-run", "r3.12", envelope.counter, envelope.time_s, envelope.group, envelope.round, envelope.episode,
            envelope.step,
        ]  # fmt: skip
        assert row["nf"] == json.loads(line).get("nf", [])
        assert (row["attempt"], row["superseded"]) == (12, False)


scraps = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", "x", "alpha.1", "checks.0.1"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=6,
)  # fmt: skip


@every_event
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_line_is_an_event_exactly_where_the_decoder_takes_it(tmp_path_factory, event, data):
    line = json.loads(
        encode_event(Envelope(t=event.name, counter=0, writer="r0.1", time_s=1.0), example(EVENTS[event]))
    )
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from([*TABLE[event].line_type.__struct_fields__, "nf", "else"]))
        line[key] = data.draw(scraps)
        if data.draw(st.booleans()) and len(line) > 1:
            del line[data.draw(st.sampled_from(sorted(line)))]
    text = json.dumps(line).encode()
    folder = ByHand(tmp_path_factory.mktemp("told") / "a-run")
    folder.write(text + b"\n")

    version = line.get("schema_version") if line.get("t") == "RUN_STARTED" else None
    if type(version) is int and version != SCHEMA_VERSION:
        with pytest.raises(UnknownEventError, match=f"of schema {version}, and this program reads schema"):
            list(Collector(folder.path).news())
        return
    try:
        told = decode_event(text)[0].writer == "r0.1"
    except UnknownEventError:
        told = False
    collector = Collector(folder.path)
    list(collector.news())
    (writer,) = collector.writers()

    assert (writer.tally.events, writer.tally.bad) == ((1, 0) if told else (0, 1))


# ---- columns


@every_event
def test_a_table_has_the_columns_of_its_event_between_where_it_was_told_and_by_which_attempt(con, event):
    sql = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
    hints = typing.get_type_hints(EVENTS[event])
    fields = [field.name for field in msgspec.structs.fields(EVENTS[event])]

    columns = columns_of(con, event.value.replace(".", "_"))

    names = ["env" if name == "env_id" else name for name in fields]
    assert list(columns) == [*PLACE, *names, "nf", "attempt", "superseded"]
    for name in fields:
        plain = [kind for kind in (hints[name], *typing.get_args(hints[name])) if kind in sql]
        if name != "env_id" and plain and typing.get_origin(hints[name]) is not tuple:
            assert columns[name] == sql[plain[0]]
    assert all(columns[name] == "INTEGER" for name in ("round", "episode", "step", "attempt"))
    assert columns.get("env", "INTEGER") == "INTEGER"


def test_lists_of_values_and_of_named_values_have_types_of_their_own(con):
    steps, gates = columns_of(con, "env_step"), columns_of(con, "seed_gate")

    assert steps["stage"] == "BIGINT[]"
    assert steps["grad_ratio"] == "DOUBLE[]"
    assert steps["terms"].replace('"', "") == "STRUCT(name VARCHAR, value DOUBLE)[]"
    assert columns_of(con, "ppo_updated")["relevant"].replace('"', "") == "STRUCT(name VARCHAR, value BIGINT)[]"
    assert columns_of(con, "episode_finished")["drawn"].replace('"', "") == "STRUCT(name VARCHAR, value VARCHAR)[]"
    assert gates["checks"].replace('"', "") == "STRUCT(name VARCHAR, value DOUBLE, limit DOUBLE, passed BOOLEAN)[]"
    assert columns_of(con, "obs_stats")["sensors"].replace('"', "") == (
        "STRUCT(name VARCHAR, mean DOUBLE, deviation DOUBLE, outside DOUBLE, saturated DOUBLE)[]"
    )


# ---- values


def line_of(payload: Payload) -> str:
    return encode_event(Envelope(t=payload.type.name, counter=0, writer="r0.1", time_s=1.0), payload).decode()


def test_what_is_not_finite_is_nan_and_what_was_not_measured_is_null(con):
    step = msgspec.structs.replace(
        example(EnvStepPayload),
        train_loss=math.inf,
        val_loss=None,
        alpha=(0.5, math.nan),
        grad_ratio=(None, -math.inf),
        terms=(("rent", 1.0), ("churn", math.nan)),
    )
    gate = msgspec.structs.replace(
        example(SeedGateEvaluatedPayload), checks=(("a", None, 1.0, False), ("b", math.nan, None, True))
    )
    sensors = ObservationsPayload(sensors=(("t", 1.0, math.nan, 0.0, 0.5),))

    (row,) = rows_of(con, TABLE[TelemetryEventType.ENV_STEP], [line_of(step)])
    (checked,) = rows_of(con, TABLE[TelemetryEventType.SEED_GATE_EVALUATED], [line_of(gate)])
    (read,) = rows_of(con, TABLE[TelemetryEventType.OBSERVATIONS], [line_of(sensors)])

    assert math.isnan(row["train_loss"])
    assert row["val_loss"] is None
    assert row["alpha"][0] == 0.5
    assert math.isnan(row["alpha"][1])
    assert row["grad_ratio"][0] is None
    assert math.isnan(row["grad_ratio"][1])
    assert row["terms"][0] == {"name": "rent", "value": 1.0}
    assert math.isnan(row["terms"][1]["value"])
    assert sorted(row["nf"]) == ["alpha.1", "grad_ratio.1", "terms.1.1", "train_loss"]
    assert checked["checks"][0] == {"name": "a", "value": None, "limit": 1.0, "passed": False}
    assert math.isnan(checked["checks"][1]["value"])
    assert checked["checks"][1]["limit"] is None
    assert math.isnan(read["sensors"][0]["deviation"])


def test_what_was_left_out_has_its_default(con):
    (step,) = rows_of(con, TABLE[TelemetryEventType.ENV_STEP], [line_of(example(EnvStepPayload))])
    back = msgspec.structs.replace(example(GovernorRollbackPayload), env_id=3)
    (rollback,) = rows_of(con, TABLE[TelemetryEventType.GOVERNOR_ROLLBACK], [line_of(back)])

    assert (step["env"], step["done"], step["why"], step["slot_mask"]) == (-1, True, "", 0)
    assert (step["reward"], step["terms"], step["slot"], step["nf"]) == (0.0, [], None, [])
    assert rollback["env"] == 3


class Later(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event as somebody may write it one day."""

    limit: float | None = 1.5
    order: str = "it's"
    pairs: tuple[tuple[str, bool], ...] = (("a", True),)
    deep: tuple[tuple[float, ...], ...] = ()
    on: bool = False
    count: int | None = None


def test_a_new_event_has_a_table_without_another_line(con):
    table = table_of(TelemetryEventType.LOG, Later)
    con.execute(table.create.replace(" log ", " later "))
    head = '{"t":"LOG","n":%d,"w":"r0.1","ts":1.0'
    lines = [
        head % 0 + "}",
        head % 1 + ',"limit":null,"order":"","pairs":[],"deep":[[1.0,null],[]],"on":true,"count":7,"nf":["deep.0.1"]}',
        head % 2 + ',"limit":2,"pairs":[["b",false],["c",true]]}',
    ]
    con.register(LINES, {"line": np.array(lines, dtype=object)})
    con.execute(table.insert.replace(" log ", " later "), {"run": "a-run"})

    rows = con.execute('SELECT "limit", "order", pairs, deep, "on", count FROM later ORDER BY n').fetchall()

    assert rows[0] == (1.5, "it's", [{"name": "a", "value": True}], [], False, None)
    assert rows[1][:3] == (None, "", [])
    assert rows[1][3][0][0] == 1.0
    assert math.isnan(rows[1][3][0][1])
    assert rows[1][3][1:] == [[]]
    assert rows[1][4:] == (True, 7)
    assert rows[2][:3] == (2.0, "it's", [{"name": "b", "value": False}, {"name": "c", "value": True}])


# ---- words


def test_every_word_of_the_house_is_in_a_table():
    names = {table: [row[1] for row in rows] for table, (_, rows) in VOCABULARY.items()}

    assert names["ops"] == [op.name for op in LifecycleOp]
    assert names["stages"] == [stage.name for stage in SeedStage]
    assert names["heads"] == list(HEADS)
    assert names["event_types"] == [event.value.replace(".", "_") for event in EVENTS]
    assert (6, "GROW_INTERNAL", "GROW", 0.005, True, True) in VOCABULARY["ops"][1]
    assert (0, "WAIT", "WAIT", 0.0, False, False) in VOCABULARY["ops"][1]
    assert (3, "TRAINING", True, False) in VOCABULARY["stages"][1]
    assert (7, "FOSSILIZED", False, True) in VOCABULARY["stages"][1]
    assert names["internal_kinds"][0] == "NONE"


def test_short_names_of_operations_are_unique():
    shorts = [row[2] for row in VOCABULARY["ops"][1]]

    assert len(set(shorts)) == len(shorts)


def test_nothing_of_torch_is_needed():
    code = "import sys, esper.karn.store; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
