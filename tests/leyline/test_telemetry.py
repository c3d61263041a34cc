"""The same questions to every event. `event_schema.json` freezes what is on the wire.

Write the frozen schema anew with `python tests/leyline/test_telemetry.py`, after raising SCHEMA_VERSION.
"""

from __future__ import annotations

import json
import math
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline.telemetry import (
    EVENTS,
    SCHEMA_VERSION,
    UNSTAMPED,
    Envelope,
    EnvStepPayload,
    LogPayload,
    Payload,
    SeedInternalLevelChangedPayload,
    TelemetryEventType,
    UnknownEventError,
    decode_event,
    encode_event,
)

FROZEN = Path(__file__).parent / "event_schema.json"
every_event = pytest.mark.parametrize("event", list(TelemetryEventType), ids=lambda event: event.name)


def from_fields(struct: type[msgspec.Struct], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Anything that the annotations of a struct allow, NaN and infinities too."""
    hints = typing.get_type_hints(struct)
    names = [field.name for field in msgspec.structs.fields(struct)]
    return st.builds(struct, **{name: st.from_type(hints[name]) for name in names} | fixed)


def envelope_of(payload: Payload) -> Envelope:
    return Envelope(t=payload.type.name, counter=7, writer="r0.1", time_s=1234.5)


def line_of(payload: Payload) -> dict[str, Any]:
    """The line as any other reader of JSON sees it; NaN and Infinity, which are not JSON, are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(encode_event(envelope_of(payload), payload), parse_constant=refuse)


def comparable(value: Any) -> Any:
    """NaN equals NaN, and every infinity reads as NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    if isinstance(value, dict):
        return {name: comparable(inner) for name, inner in value.items()}
    return value


def example(payload_type: type[Payload]) -> Payload:
    """One payload with the plainest value of each type."""
    plain: dict[Any, Any] = {str: "x", int: 1, float: 0.5, bool: True}
    hints = typing.get_type_hints(payload_type)
    values = {
        field.name: plain.get(hints[field.name], ()) for field in msgspec.structs.fields(payload_type) if field.required
    }
    return payload_type(**values)


# ---- both ways


@every_event
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_event_is_read_as_it_was_told(event, data):
    payload = data.draw(from_fields(EVENTS[event]))
    envelope = data.draw(from_fields(Envelope, t=st.just(event.name), time_s=st.floats(0, 1e12)))

    line = encode_event(envelope, payload)
    read_envelope, read = decode_event(line)

    assert read_envelope == envelope
    assert type(read) is EVENTS[event]
    assert comparable(msgspec.structs.asdict(read)) == comparable(msgspec.structs.asdict(payload))
    assert b"\n" not in line


def test_a_zero_takes_no_place_in_the_line_of_a_step():
    payload = example(EnvStepPayload)
    line = encode_event(envelope_of(payload), payload)

    assert not [name for name in (b"reward", b"alpha_delta_sq_sum", b"effective_seed_params") if name in line]
    assert decode_event(line)[1].reward == 0.0


@every_event
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_exactly_the_values_that_are_not_finite_are_named(event, data):
    payload = data.draw(from_fields(EVENTS[event]))

    def places(value: Any, place: str) -> list[str]:
        if isinstance(value, tuple):
            return [found for i, item in enumerate(value) for found in places(item, f"{place}.{i}")]
        return [place] if isinstance(value, float) and not math.isfinite(value) else []

    expected = [
        found
        for field in msgspec.structs.fields(payload)
        for found in places(getattr(payload, field.name), field.encode_name)
    ]

    line = line_of(payload)

    assert line.get("nf", []) == expected


@every_event
def test_the_line_names_its_type_and_leaves_defaults_out(event):
    payload = example(EVENTS[event])

    line = line_of(payload)

    required = {field.encode_name for field in msgspec.structs.fields(payload) if field.required}
    assert line["t"] == event.name
    assert set(line) == {"t", "n", "w", "ts"} | required
    assert decode_event(encode_event(envelope_of(payload), payload)) == (envelope_of(payload), payload)


# ---- what is refused


@every_event
def test_no_field_takes_a_value_of_another_type(event):
    good = example(EVENTS[event])

    for field in msgspec.structs.fields(good):
        for wrong in (np.float64(1.0), np.int64(1), np.bool_(True), object(), [1], {"a": 1}, b"x"):
            bad = msgspec.structs.replace(good, **{field.name: wrong})
            with pytest.raises(TypeError, match=rf"{field.encode_name} is a "):
                encode_event(envelope_of(good), bad)


@every_event
def test_a_line_with_a_field_more_or_less_is_no_event(event):
    whole = line_of(example(EVENTS[event]))

    for key in whole:
        less = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(UnknownEventError):
            decode_event(json.dumps(less).encode())
    with pytest.raises(UnknownEventError):
        decode_event(json.dumps(whole | {"surprise": 1}).encode())


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
            lambda inner: st.one_of(
                st.lists(inner), st.dictionaries(st.sampled_from(["t", "n", "w", "ts", "nf", "text", "level"]), inner)
            ),
        ).map(lambda plain: json.dumps(plain).encode()),
    )
)
def test_whatever_else_a_line_holds_is_one_kind_of_error(line):
    with pytest.raises(UnknownEventError):
        decode_event(line)


def test_a_place_that_does_not_exist_cannot_be_not_finite():
    line = line_of(LogPayload(level="info", text="x"))

    for place in ("text", "text.0", "gone.1", "", 5):
        with pytest.raises(UnknownEventError):
            decode_event(json.dumps(line | {"nf": [place]}).encode())


# ---- the catalogue


def test_every_event_type_has_exactly_one_payload_and_every_payload_one_type():
    assert set(EVENTS) == set(TelemetryEventType)
    assert len(set(EVENTS.values())) == len(EVENTS)
    assert all(payload.type is event for event, payload in EVENTS.items())


def test_names_and_short_forms_are_unique():
    assert len({event.value for event in TelemetryEventType}) == len(TelemetryEventType)


@every_event
def test_no_field_hides_one_of_the_envelope(event):
    reserved = {field.encode_name for field in msgspec.structs.fields(Envelope)} | {"nf"}

    assert reserved.isdisjoint(field.encode_name for field in msgspec.structs.fields(EVENTS[event]))


def test_critical_are_the_run_its_rounds_and_the_life_of_seeds_but_not_measurements():
    measurements = {"env.step", "seed.cf", "obs.stats", "log"}

    assert {event.value for event, payload in EVENTS.items() if not payload.critical} == measurements


def test_the_documented_names_are_on_the_wire():
    payload = SeedInternalLevelChangedPayload(
        slot_id="r0c1", env_id=2, seed_id="e2-5", blueprint_id="conv_ladder", internal_kind=1,
        from_level=1, to_level=2, internal_max_level=4, params_before=100, internal_effective_params=200,
    )  # fmt: skip

    line = line_of(payload)

    assert line["t"] == "SEED_INTERNAL_LEVEL_CHANGED"
    assert line["env"] == 2
    assert (line["slot_id"], line["from_level"], line["to_level"]) == ("r0c1", 1, 2)
    assert EnvStepPayload.__struct_defaults__[0] == UNSTAMPED == -1


# ---- the frozen schema


def schema() -> dict[str, Any]:
    """Names, types and defaults of everything that is on the wire."""
    return {
        "schema_version": SCHEMA_VERSION,
        "envelope": fields_of(Envelope),
        "events": {
            event.name: {"short": event.value, "fields": fields_of(EVENTS[event])} for event in TelemetryEventType
        },
    }


def fields_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    hints = typing.get_type_hints(struct)
    return {
        field.encode_name: spelled(hints[field.name]) + ("" if field.required else f" = {field.default!r}")
        for field in msgspec.structs.fields(struct)
    }


def spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def test_the_wire_is_as_it_was_frozen():
    frozen = json.loads(FROZEN.read_text())

    assert schema() == frozen, (
        f"the events differ from {FROZEN.name}, and runs that exist were written with it: raise SCHEMA_VERSION in "
        "src/esper/leyline/telemetry.py, then run `python tests/leyline/test_telemetry.py`"
    )


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(schema(), indent=2) + "\n")
