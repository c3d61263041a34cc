"""What `reader.py` promises of lines that are torn, foreign or from another schema."""

from __future__ import annotations

import pytest
from tests.nissa.telling import note

from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    RunStartedPayload,
    UnknownEventError,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import Gap, gaps, read_events
from esper.nissa.writer import EventWriter


def started(schema_version: int) -> RunStartedPayload:
    return RunStartedPayload(
        schema_version=schema_version, controller="ppo", task="digits", envs=1, rounds=1, episode_length=5
    )


def test_a_run_of_another_schema_is_refused(run):
    with EventWriter(run / "ev") as events:
        events.emit(started(SCHEMA_VERSION + 1))

    with pytest.raises(UnknownEventError) as caught:
        list(read_events(run))

    assert f"events of schema {SCHEMA_VERSION + 1}, and this program reads schema {SCHEMA_VERSION}" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['{"t":"SEED_SANG","n":2,"w":"r0.1","ts":1.0}', '{"t":"LOG","n":2,"w":"r0.1","ts":1.0,"level":"x"}', "", "no"],
)
def test_a_line_that_is_no_event_of_this_schema_is_named_by_file_and_number(run, line):
    with EventWriter(run / "ev") as events:
        events.emit(started(SCHEMA_VERSION))
        events.emit(note())
    path = run / "ev" / "r0.1-000000.jsonl"
    with path.open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(UnknownEventError) as caught:
        list(read_events(run))

    assert str(caught.value).startswith(f"{path}, line 3: not an event of schema {SCHEMA_VERSION}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_without_events_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder: it has no ev/"):
        list(read_events(tmp_path))


def test_gaps_are_found_per_writer(run):
    for writer in ("r0.1", "r1.1"):
        with EventWriter(run / "ev", writer) as events:
            for i in range(6):
                events.emit(note(str(i)))
    path = run / "ev" / "r1.1-000000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:3] + lines[5:]))

    assert gaps(run) == [Gap("r1.1", first=0, count=1), Gap("r1.1", first=3, count=2)]


def test_the_settings_refuse_what_makes_no_sense():
    with pytest.raises(ConfigError, match=r"TelemetryConfig\.flush_ms: 0 is out of range"):
        TelemetryConfig(flush_ms=0)
