"""Run folders written line by line, for what no writer of ours would leave behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from esper.leyline.telemetry import SCHEMA_VERSION, Envelope, LogPayload, Payload, RunStartedPayload, encode_event


class ByHand:
    """A run folder whose lines are told by the real encoder and put where a test wants them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ev = path / "ev"
        self.ev.mkdir(parents=True)
        self._counters: Counter[str] = Counter()

    def line(self, payload: Payload | str, writer: str = "r0.1", n: int | None = None, **where: int | str) -> bytes:
        """The next event of this writer, with its newline. A text is a `log`."""
        told = LogPayload(level="info", text=payload) if isinstance(payload, str) else payload
        counter = self._counters[writer] if n is None else n
        self._counters[writer] = counter + 1
        envelope = Envelope(t=told.type.name, counter=counter, writer=writer, time_s=1000.0 + counter, **where)
        return encode_event(envelope, told) + b"\n"

    def write(self, *lines: bytes, segment: str = "r0.1-000000.jsonl") -> Path:
        """Appends to a file of events."""
        path = self.ev / segment
        with path.open("ab") as file:
            file.write(b"".join(lines))
        return path


@pytest.fixture
def folder(tmp_path: Path) -> ByHand:
    return ByHand(tmp_path / "a-run")


def started(schema_version: int = SCHEMA_VERSION) -> RunStartedPayload:
    return RunStartedPayload(
        schema_version=schema_version, controller="ppo", task="digits", envs=2, rounds=3, episode_length=4
    )
