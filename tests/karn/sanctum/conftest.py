"""Screens as text: a made-up run whose numbers never change, a run in which everything occurs, and golden files."""

from __future__ import annotations

import os
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench.memory_store import ENVS, EPISODE, generate
from tests.karn.conftest import ByHand

from esper.karn.sanctum.ink import plain
from esper.karn.sanctum.once import once
from esper.karn.sanctum.watching import Watch
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    EVENTS,
    SCHEMA_VERSION,
    EnvPayload,
    EnvStepPayload,
    Payload,
    RunFinishedPayload,
    RunResumedPayload,
    RunStartedPayload,
    TelemetryEventType,
)

SIZES = ((80, 24), (120, 40), (200, 60))
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times on the screen are local; everybody who runs this is in Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares with a file that was looked at; with GOLDEN=write in the environment it writes the file."""

    def check(name: str, told: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("GOLDEN") == "write":
            path.write_text(told)
        assert told == path.read_text(), f"{path} is different; look at it, and run with GOLDEN=write"

    return check


@pytest.fixture(scope="session")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made-up rounds; the numbers are drawn with a seed."""
    folder = tmp_path_factory.mktemp("garden") / "garden"
    generate(folder, 3 * ENVS * EPISODE)
    return folder


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a slot in every stage and one of every event; at its n-th step the n-th operation is done."""
    return tell_everything(tmp_path_factory.mktemp("everything") / "everything")


def tell_everything(path: Path, text: str = "x") -> Path:
    folder, stages = ByHand(path), list(SeedStage)
    slots = [f"r0c{i}" for i in range(len(stages))]
    (path / "run.json").write_bytes(msgspec.json.encode({
        "schema_version": SCHEMA_VERSION,
        "config": {"task": {"name": text}, "run": {"controller": text, "envs": 1, "rounds": 1, "episode_length": 8},
                   "reward": {"rent": 3.0}},
        "slots": [{"id": slot, "order": i, "surface": "BLOCK_END", "channels": 8} for i, slot in enumerate(slots)],
        "heads": {head: [] for head in HEADS},
        "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
    }))  # fmt: skip
    lines = [folder.line(RunStartedPayload(schema_version=SCHEMA_VERSION, controller=text, task=text, envs=1, rounds=1,
                                           episode_length=len(LifecycleOp)))]  # fmt: skip
    n = len(slots)
    for step, op in enumerate(LifecycleOp):
        lines.append(folder.line(EnvStepPayload(
            env_id=0, op=op.name, slot=slots[0], op_mask=(1 << len(LifecycleOp)) - 1, params=1, effective_params=1,
            flops=1, stage=tuple(map(int, stages)), alpha=(0.5,) * n, level=(1,) * n, slot_params=(1,) * n,
            grad_ratio=(None,) * n,
        ), round=0, episode=0, step=step))  # fmt: skip
    told_already = {EnvStepPayload, RunStartedPayload, RunResumedPayload, RunFinishedPayload}
    for kind in EVENTS.values():
        if kind not in told_already:
            where = {"round": 0, "step": 3} if issubclass(kind, EnvPayload) else {"round": 0}
            lines.append(folder.line(sample(kind, text), **where))
    folder.write(*lines)
    resumed = folder.line(RunResumedPayload(from_round=7, from_step=0), "r0.2")
    folder.write(resumed, folder.line(sample(RunFinishedPayload, text), "r0.2"), segment="r0.2-000000.jsonl")
    return path


def sample(kind: type[Payload], text: str = "x") -> Payload:
    """An event of any kind, whatever its fields; heads and operations have their names."""
    hints = typing.get_type_hints(kind)
    told = {field.name: _value(hints[field.name], text) for field in msgspec.structs.fields(kind) if field.required}
    if issubclass(kind, EnvPayload):
        told["env_id"] = 0
    if kind.type is TelemetryEventType.PPO_UPDATED:
        told["entropy"] = tuple((head, 0.5) for head in HEADS)
    if "slot_id" in told:
        told["slot_id"] = "r0c0"
    return kind(**told)


def _value(hint: Any, text: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None
    if origin is tuple:
        return (_value(args[0], text),) if args[1:] == (...,) else tuple(_value(arg, text) for arg in args)
    return {str: text, int: 1, float: 1.5, bool: True}[hint]


def page(folder: Path, screen: int, size: tuple[int, int] = (120, 40)) -> str:
    """A screen of a run as text."""
    watch = Watch(folder, folder.parent)
    try:
        lines = once(watch, screen, *size)
    finally:
        watch.close()
    return "\n".join(plain(line) for line in lines) + "\n"
