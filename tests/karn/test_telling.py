"""Every event in one line."""

from __future__ import annotations

import pytest
from tests.karn.conftest import step
from tests.karn.sanctum.conftest import sample

from esper.karn.telling import SUMMARIES, fields_of, summary
from esper.leyline.telemetry import (
    EVENTS,
    GovernorRollbackPayload,
    LogPayload,
    SeedGateEvaluatedPayload,
    SeedInternalLevelChangedPayload,
    TelemetryEventType,
)

SEED = {"env_id": 0, "slot_id": "r0c2", "seed_id": "s", "blueprint_id": "conv_ladder"}


@pytest.mark.parametrize("event", TelemetryEventType, ids=lambda event: event.name)
def test_every_event_is_told_on_one_line_whether_there_are_words_for_it_or_not(event: TelemetryEventType) -> None:
    words = summary(sample(EVENTS[event], "word"))

    assert words
    assert "\n" not in words
    assert not words.startswith("  ")


def test_words_are_kept_for_events_that_there_are() -> None:
    assert SUMMARIES.keys() <= set(EVENTS.values())


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (LogPayload(level="warning", text="hot"), "warning: hot"),
        (step(0, done=False, refused_by="G2", why="too young"),
         "WAIT  refused by G2: too young  metric –  reward +0.000"),
        (SeedInternalLevelChangedPayload(**SEED, internal_kind=1, from_level=3, to_level=2, internal_max_level=4,
                                         params_before=9000, internal_effective_params=900),
         "r0c2 conv_ladder  3 -> 2 of 4 by op, eff -8.1k"),
        (SeedGateEvaluatedPayload(**SEED, gate="G2", passed=False,
                                  checks=(("age", 1.0, 3.0, False), ("r", None, 0.5, False), ("x", 1.0, 1.0, True))),
         "r0c2 conv_ladder  G2 refused: age 1.00 (limit 3.00), r – (limit 0.50)"),
    ],
)  # fmt: skip
def test_an_event_with_words_of_its_own(payload, told: str) -> None:
    assert summary(payload) == told


def test_an_event_without_words_is_told_by_its_fields_that_are_no_defaults() -> None:
    told = fields_of(sample(GovernorRollbackPayload, "diverged"))

    assert "reason diverged" in told
    assert "restored_epoch 1" in told
    assert "env_id" not in told
    assert fields_of(LogPayload(level="a", text="b")) == "level a, text b"
