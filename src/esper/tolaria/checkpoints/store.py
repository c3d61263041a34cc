"""The checkpoints of one run: `checkpoints/ckpt-000007/` with a manifest, a state of tensors, and a page for people.

    store = CheckpointStore(folder.checkpoints, run="3f2a...")
    store.save(state, page, at)                 # committed by a rename, or not there
    checkpoint, complaints = store.newest()     # the newest that is as it was written

Nothing in a checkpoint is ever changed. `latest` is the highest number that verifies; there is no link to keep right.
Everything that writes may raise OSError, and then what was there before is still there. Whoever makes a store holds the
run folder's lock.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch

from esper.leyline.errors import CheckpointError
from esper.leyline.faults import fault, written
from esper.leyline.files import sync_folder, write_synced
from esper.tolaria.checkpoints.config import CheckpointConfig
from esper.tolaria.checkpoints.manifest import LARGEST, NAME, File, Manifest, opened, sealed
from esper.tolaria.checkpoints.plain import read_plain

STATE, PAGE = "state.pt", "meta.json"
_FOLDER = re.compile(r"ckpt-(\d{6,})")
_DRAFT, _RETIRED = ".tmp-", ".del-"


@dataclass(frozen=True)
class At:
    """Which moment of the run a checkpoint is of."""

    round: int
    step: int
    value: float | None  # what the round that has just ended was worth; None in the middle of one
    blessed: bool
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """One that was found to be as it was written."""

    path: Path
    manifest: Manifest
    state: Any  # tensors and primitives


class CheckpointStore:
    """Saves, finds and retires the checkpoints of one run."""

    def __init__(self, folder: Path, run: str, keep: int = CheckpointConfig.keep) -> None:
        """Removes what a process that was killed has left half done."""
        self.folder, self._run, self._keep = folder, run, keep
        self._verified: list[int] = []  # those that this process wrote or read, oldest first
        for path in folder.iterdir():
            if path.name.startswith((_DRAFT, _RETIRED)):
                shutil.rmtree(path)
        self._best = max((each for each in map(self._valued, self.numbers()) if each is not None), default=None)

    def numbers(self) -> list[int]:
        """Of all checkpoints in the folder, good or not, oldest first."""
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _FOLDER.fullmatch(path.name)))

    def path(self, seq: int) -> Path:
        return self.folder / f"ckpt-{seq:06d}"

    @property
    def best_value(self) -> float | None:
        """Of the best round that was saved."""
        return None if self._best is None else self._best[0]

    # --- saving -------------------------------------------------------------------------------------------------

    def save(self, state: Any, page: Mapping[str, Any], at: At) -> Path:
        """Commits a checkpoint, then retires those that are not wanted any more.

        state: tensors and primitives. Raises OSError, also where what was written reads back differently.
        """
        seq = max(self.numbers(), default=0) + 1
        files = {STATE: _packed(state), PAGE: json.dumps(page, indent=2, allow_nan=False).encode() + b"\n"}
        manifest = Manifest(
            run=self._run,
            seq=seq,
            round=at.round,
            step=at.step,
            value=at.value,
            blessed=at.blessed,
            environment=dict(at.environment),
            files={name: File.of(data) for name, data in files.items()},
        )
        draft = self.folder / f"{_DRAFT}{seq:06d}-{os.getpid()}"
        try:
            self._write(draft, manifest, files)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        fault("checkpoint.sync_parent")
        sync_folder(self.folder)
        self._verified.append(seq)
        if at.value is not None and at.blessed and (self._best is None or at.value >= self._best[0]):
            self._best = at.value, seq
        self._retire()
        return self.path(seq)

    def _write(self, draft: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        fault("checkpoint.create")
        draft.mkdir()
        for name, data in files.items():
            write_synced(draft / name, written("checkpoint.write", data))
        fault("checkpoint.verify")
        try:
            _check_files(draft, manifest)
            read_plain(draft / STATE)
        except CheckpointError as error:
            raise OSError(errno.EIO, f"what was written reads back differently: {error}") from error
        fault("checkpoint.before_manifest")
        write_synced(draft / NAME, sealed(manifest))
        fault("checkpoint.sync")
        sync_folder(draft)
        fault("checkpoint.rename")
        draft.rename(self.path(manifest.seq))

    def _retire(self) -> None:
        """Removes all but the newest, the best and what was resumed from, once there are enough that are good."""
        there = self.numbers()  # somebody may have removed some, and the number of the newest is then used again
        self._verified = [seq for seq in dict.fromkeys(self._verified) if seq in there]
        if len(self._verified) < self._keep:
            return
        wanted = {*self._verified[-self._keep :], *(() if self._best is None else (self._best[1],))}
        for seq in there:
            if seq not in wanted:
                retired = self.folder / f"{_RETIRED}{seq:06d}"
                fault("checkpoint.retire")
                self.path(seq).rename(retired)
                fault("checkpoint.remove")
                shutil.rmtree(retired)
        self._verified = [seq for seq in self._verified if seq in wanted]

    # --- finding ------------------------------------------------------------------------------------------------

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest that is as it was written, None where none was ever made; and a line for each that is not.

        Raises CheckpointError where there are checkpoints and none can be used.
        """
        complaints: list[str] = []
        for seq in reversed(self.numbers()):
            try:
                found = self._read(seq)
            except CheckpointError as error:
                complaints.append(str(error))
                continue
            self._verified.append(seq)
            return found, tuple(complaints)
        if complaints:
            raise CheckpointError(f"{self.folder}: no checkpoint can be loaded; the newest: {complaints[0]}")
        return None, ()

    def _read(self, seq: int) -> Checkpoint:
        path = self.path(seq)
        try:
            manifest = self._manifest(seq)
            _check_files(path, manifest)
            if {each.name for each in path.iterdir()} != {NAME, STATE, PAGE}:
                raise CheckpointError(f"{path}: holds other files than its manifest names")
            return Checkpoint(path, manifest, read_plain(path / STATE))
        except OSError as error:
            raise CheckpointError(f"{path}: {(error.strerror or type(error).__name__).lower()}") from error

    def _manifest(self, seq: int) -> Manifest:
        path = self.path(seq) / NAME
        _check_regular(path, LARGEST)
        manifest = opened(path.read_bytes(), str(path))
        if manifest.run != self._run:
            raise CheckpointError(f"{path}: is of another run, {manifest.run[:40]!r}")
        if manifest.seq != seq or set(manifest.files) != {STATE, PAGE}:
            raise CheckpointError(f"{path}: is the manifest of another checkpoint")
        return manifest

    def _valued(self, seq: int) -> tuple[float, int] | None:
        try:
            manifest = self._manifest(seq)
        except (CheckpointError, OSError):
            return None  # `newest` complains of it, if it is wanted
        return (manifest.value, seq) if manifest.value is not None and manifest.blessed else None


def last_environment(folder: Path) -> dict[str, str] | None:
    """The `fingerprint` in which the newest checkpoint below was written; None where none can be read."""
    for path in sorted(folder.glob(f"ckpt-*/{NAME}"), reverse=True):
        try:
            return opened(path.read_bytes(), str(path)).environment
        except (CheckpointError, OSError):
            continue  # who goes on with the run says so
    return None


def _packed(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = folder / name
        size = _check_regular(path, entry.size)
        if size != entry.size:
            raise CheckpointError(f"{path}: has {size} bytes, want {entry.size}")
        if File.of(path.read_bytes()).sha256 != entry.sha256:
            raise CheckpointError(f"{path}: does not match its hash; it was damaged")


def _check_regular(path: Path, largest: int) -> int:
    """The size of a file that is no link, pipe or device, and no larger than it may be."""
    found = path.lstat()
    if not S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: not a file")
    if found.st_size > largest:
        raise CheckpointError(f"{path}: has {found.st_size} bytes, want at most {largest}")
    return found.st_size
