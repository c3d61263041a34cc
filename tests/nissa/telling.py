"""Events to tell, and what of them is on the disk; for the tests of writers and readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from esper.leyline.telemetry import (
    EnvStepPayload,
    LogPayload,
    SeedPrunedPayload,
)
from esper.nissa.reader import read_events

NEVER = 60_000  # flush_ms of a writer that writes only when it must


def note(text: str = "a note") -> LogPayload:
    return LogPayload(level="info", text=text)


def pruned(seed: str = "e0-1") -> SeedPrunedPayload:
    return SeedPrunedPayload(
        slot_id="r0c1", seed_id=seed, blueprint_id="conv_light", initiator="governor", age=3, params=10
    )


def step(**fields: Any) -> EnvStepPayload:
    known: dict[str, Any] = {
        "env_id": 3,
        "op": "WAIT",
        "op_mask": 255,
        "params": 123_456,
        "effective_params": 100_000,
        "flops": 12_345_678_901,
        "train_loss": 1.234567,
        "stage": (1, 2, 3, 4, 6),
        "alpha": (0.0, 0.5, 1.0, 0.25, 0.0),
        "level": (0, 1, 2, 3, 4),
        "slot_params": (0, 10, 20, 30, 40),
        "grad_ratio": (None, 0.1, 0.2, 0.3, None),
    }
    return EnvStepPayload(**{**known, **fields})


def bytes_on_disk(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run / "ev").glob("r*")))


def texts(run: Path) -> list[str]:
    return [payload.text for _, payload in read_events(run) if isinstance(payload, LogPayload)]


def python(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out


PREAMBLE = """
import os, sys, time
from pathlib import Path
from esper.leyline.telemetry import LogPayload, RunFinishedPayload
from esper.nissa.config import TelemetryConfig
from esper.nissa.writer import EventWriter
ev = Path(sys.argv[1]) / "ev"
def note(text="a note"):
    return LogPayload(level="info", text=text)
critical = RunFinishedPayload(status="done", seconds=1.0)
"""
