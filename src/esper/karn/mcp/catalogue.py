"""What runs there are, told without opening them: by their manifests, their locks and their last lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from esper.karn.manifests import Named, is_running
from esper.karn.mcp.answers import ListedRun
from esper.karn.own_files import check_own, open_own, own_arms
from esper.leyline.errors import ConfigError, EsperError
from esper.leyline.telemetry import RunFinishedPayload, UnknownEventError, decode_event
from esper.nissa.run_folder import runs
from esper.nissa.segments import segment_files
from esper.nissa.storage import shown, storage_errors

MOST_MANIFEST = 1 << 20  # bytes
_TAIL = 1 << 16  # bytes; the last event of a writer says how the run ended


class _Task(msgspec.Struct):
    name: str | None = None


class _Settings(msgspec.Struct):
    controller: str | None = None
    seed: int | None = None
    rounds: int | None = None


class _Config(msgspec.Struct):
    task: _Task = msgspec.field(default_factory=_Task)
    run: _Settings = msgspec.field(default_factory=_Settings)


class _Manifest(msgspec.Struct):
    """What is shown of a run.json."""

    config: _Config = msgspec.field(default_factory=_Config)
    started: str | None = None


def listed(root: Path) -> Iterator[ListedRun]:
    """Every run below `root`, the newest first; of a run with arms, its arms."""
    for name in reversed(runs(root)):
        top = root / name
        for folder in own_arms(top) or [top]:
            yield _listed(folder)


def manifest_text(folder: Path) -> str:
    """`run.json` as it stands. ConfigError if there is none, or if it is no manifest."""
    data = _manifest_bytes(folder)
    if data is None:
        raise ConfigError(f"run {Named.of(folder).run}: has no manifest yet")
    _decoded(folder, data)
    return data.decode()


def _listed(folder: Path) -> ListedRun:
    run = Named.of(folder).run
    try:
        check_own(folder)
        manifest = _decoded(folder, _manifest_bytes(folder) or b"{}")
        running = is_running(folder)
        finished = None if running else _finished(folder / "ev")
    except EsperError as error:
        return ListedRun(run, "unreadable", reason=str(error))
    settings = manifest.config.run
    return ListedRun(
        run,
        "running" if running else "died" if finished is None else shown(finished.status),
        _short(manifest.config.task.name),
        _short(settings.controller),
        settings.seed,
        settings.rounds,
        _short(manifest.started),
        None if finished is None else _short(finished.reason),
    )


def _short(text: str | None) -> str | None:
    return shown(text) if text else None


def _manifest_bytes(folder: Path) -> bytes | None:
    path = folder / "run.json"
    with storage_errors(path):
        try:
            data = _read(path, MOST_MANIFEST + 1)
        except FileNotFoundError:
            return None
    if len(data) > MOST_MANIFEST:
        raise ConfigError(f"run {Named.of(folder).run}: its manifest has more than {MOST_MANIFEST} bytes")
    return data


def _decoded(folder: Path, data: bytes) -> _Manifest:
    try:
        return msgspec.json.decode(data, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"run {Named.of(folder).run}: its run.json is no manifest: {shown(error)}") from None


def _finished(ev: Path) -> RunFinishedPayload | None:
    """What the writers of the last attempt said when they ended; the last of them, if there were several."""
    last: tuple[float, RunFinishedPayload] | None = None
    with storage_errors(ev):
        ends = {path.stem.rpartition("-")[0]: path for path in segment_files(ev)}
        last_attempt = max(map(_attempt, ends), default=0)
        tails = [_read_tail(path) for writer, path in ends.items() if _attempt(writer) == last_attempt]
    for line in (line for tail in tails for line in tail.split(b"\n") if b"RUN_FINISHED" in line):
        try:
            envelope, payload = decode_event(line)
        except UnknownEventError:  # half a line, or none of ours: `describe_run` says what is the matter with it
            continue
        if isinstance(payload, RunFinishedPayload) and (last is None or envelope.time_s >= last[0]):
            last = envelope.time_s, payload
    return None if last is None else last[1]


def _attempt(writer: str) -> int:
    return int(writer.partition(".")[2])


def _read_tail(path: Path) -> bytes:
    try:
        return _read(path, _TAIL, from_end=True)
    except FileNotFoundError:  # sealed since it was listed
        return _read(path.with_suffix(".jsonl"), _TAIL, from_end=True)


def _read(path: Path, most: int, *, from_end: bool = False) -> bytes:
    """At most so many bytes of a file."""
    with open_own(path) as file:
        file.seek(max(0, file.seek(0, 2) - most) if from_end else 0)
        return file.read(most)
