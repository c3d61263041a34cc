"""Where a run lives: `runs/<id>/` with its manifest, events and checkpoints, held by one process at a time.

    with RunFolder.create(Path("runs"), "digits") as folder:   # runs/20261120-140233-digits-a1b2c3
        folder.write_manifest({...})                           # run.json, once
        EventWriter(folder.ev, folder.next_writer())           # writer.py

Nothing in a folder is ever written over. `resolve` finds a run by what a person types, `find` by what a stranger
may send. Readers need no lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

from esper.leyline.errors import ConfigError, FolderInUseError, StorageError, did_you_mean
from esper.leyline.files import sync_folder, write_whole
from esper.nissa.segments import used_writers
from esper.nissa.storage import disown_in_forked_children, shown, storage_errors

LATEST = "latest"
ARMS = "arms"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_HOLDER = re.compile(rb"process \d{1,10} on [\w.-]{1,64}")


@final
class RunFolder:
    """A run folder that this process holds until `close` or until the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Takes a folder that exists; use `create`, `create_in` or `open_existing`."""
        self.path = path
        with storage_errors(path):
            self._lock: int | None = _take_lock(path / "run.lock")
            disown_in_forked_children(self)
            try:
                self.ev.mkdir(exist_ok=True)
                self.checkpoints.mkdir(exist_ok=True)
                sync_folder(path)
            except OSError:
                self.close()
                raise

    @staticmethod
    def create(root: Path, label: str, run_id: str | None = None) -> RunFolder:
        """Make a top-level folder below `root` (made too if need be) and point `root/latest` to it.

        Its id is `<yyyymmdd-hhmmss>-<label>-<6 hex digits>` in local time. A `run_id` that is given is used as it
        stands, and is an error if it exists.
        """
        check_id(label, "label")
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        if run_id is not None:
            folder = RunFolder.create_in(root / check_id(run_id))
        else:
            folder = RunFolder(_make_fresh(root, label))
        try:
            _point_latest(root, folder.id)
        except StorageError:
            folder.close()
            raise
        return folder

    @staticmethod
    def create_in(path: Path) -> RunFolder:
        """Make exactly this folder, such as `top.path / "arms" / "ppo"`; `latest` stays where it is."""
        check_id(path.name)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                raise ConfigError(f"{shown(path)}: exists already; choose another name or resume it") from None
            sync_folder(path.parent)
        return RunFolder(path)

    @staticmethod
    def take(path: Path) -> RunFolder:
        """This folder, made now or by a process that may have died: look at `manifest` to see whether a run began."""
        if not path.is_dir():
            return RunFolder.create_in(path)
        check_id(path.resolve().name)
        return RunFolder(path)

    @staticmethod
    def open_existing(path: Path) -> RunFolder:
        """Hold a run that was started before, to go on with it. FolderInUseError if it is still running."""
        if not (path / "run.json").is_file():
            raise ConfigError(f"{shown(path)}: not a run that can go on: it has no run.json")
        return RunFolder(path.resolve() if path.is_symlink() else path)  # `runs/latest` has an id of its own

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def ev(self) -> Path:
        return self.path / "ev"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def manifest(self) -> Path:
        """`run.json`, which is there once a run has begun."""
        return self.path / "run.json"

    def write_manifest(self, manifest: Mapping[str, Any]) -> Path:
        """Write `run.json`, which is complete or absent, and never edited afterwards."""
        target = self.manifest
        data = json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n"
        if target.exists():
            raise StorageError(f"{shown(target)}: written already; a manifest is never edited")
        with storage_errors(target):
            write_whole(target, data)
        return target

    def next_writer(self, rank: int = 0) -> str:
        """Name of a writer that this folder has not seen: `r0.1`, in a resumed run `r0.2`, and so on."""
        with storage_errors(self.ev):
            attempts = [attempt for other, attempt in used_writers(self.ev) if other == rank]
        return f"r{rank}.{max(attempts, default=0) + 1}"

    def close(self) -> None:
        """Let others have the folder. Doing it twice is no harm."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    def disown(self) -> None:
        self.close()  # only the child's copy of the descriptor: the parent goes on holding the lock

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- finding ---------------------------------------------------------------------------------------------------------


def check_id(name: str, what: str = "run id") -> str:
    """`name` itself if it can be the name of a run; no path, dot, space, capital or sign can be in it."""
    if _ID.fullmatch(name) is None or name == LATEST:
        raise ConfigError(
            f"{what}: {shown(repr(name))} cannot be used; write 1 to 128 of a-z 0-9 _ -, the first a letter or digit"
        )
    return name


def runs(root: Path) -> list[str]:
    """Ids of the runs in `root`, oldest first if they have made-up names; links are not followed."""
    if not root.is_dir():
        return []
    with storage_errors(root):
        return sorted(path.name for path in root.iterdir() if _ID.fullmatch(path.name) and _is_own_run(path))


def find(root: Path, name: str) -> Path:
    """The folder with this id, the only one whose id begins so, or the one that `latest` points to.

    Never leaves `root`, whatever `name` is; raises ConfigError.
    """
    if name == LATEST:
        return root / _latest(root)
    check_id(name)
    known = runs(root)
    fits = [name] if name in known else [run for run in known if run.startswith(name)]
    if len(fits) == 1:
        return root / fits[0]
    if fits:
        some = ", ".join(fits[:4]) + (", ..." if len(fits) > 4 else "")
        raise ConfigError(f"run {name!r}: {len(fits)} runs begin so: {some}; write more of the name")
    hint = did_you_mean(name, known) or (f"; the newest is {known[-1]!r}" if known else "; there is none yet")
    raise ConfigError(f"run {name!r}: no such run in {shown(root)}{hint}")


def resolve(root: Path, name: str) -> Path:
    """What a person may type for a run: all that `find` takes, also with `/arms/NAME` behind it, or a folder's path."""
    if name == LATEST or (_ID.fullmatch(name) and _is_own_run(root / name)):
        return find(root, name)
    if _is_run(Path(name)):
        return Path(name)
    if _ID.fullmatch(name):
        return find(root, name)
    top, is_arm, arm = name.partition(f"/{ARMS}/")
    if is_arm and (top == LATEST or _ID.fullmatch(top)):
        return _arm(find(root, top), arm)
    raise ConfigError(f"run {shown(repr(name))}: not a run folder; give its path, its id in {shown(root)} or 'latest'")


def arms(top: Path) -> list[str]:
    """Names of the runs below `top/arms/`, in order; none for a folder of one run, or where `arms` is a link."""
    return [] if (top / ARMS).is_symlink() else runs(top / ARMS)


def _arm(top: Path, name: str) -> Path:
    known = arms(top)
    if name not in known:
        raise ConfigError(f"run {top.name!r}: has no arm {shown(repr(name))}; it has {', '.join(known) or 'none'}")
    return top / ARMS / name


def _is_run(path: Path) -> bool:
    try:
        return (path / "ev").is_dir()
    except OSError:  # a name longer than any file's, or a folder that is closed to us
        return False


def _is_own_run(path: Path) -> bool:
    return _is_run(path) and not path.is_symlink()  # a link may lead anywhere


def _latest(root: Path) -> str:
    link = root / LATEST
    try:
        name = os.readlink(link)
    except OSError:
        raise ConfigError(f"run 'latest': there is no run in {shown(root)} yet") from None
    if _ID.fullmatch(name) is None or not _is_own_run(root / name):
        raise ConfigError(f"run 'latest': {shown(link)} points to {shown(repr(name))}, which is no run; give an id")
    return name


# ---- making ----------------------------------------------------------------------------------------------------------


def _make_fresh(root: Path, label: str) -> Path:
    with storage_errors(root):
        for path in _fresh_paths(root, label):
            try:
                path.mkdir()
            except FileExistsError:
                continue
            sync_folder(root)
            return path
    raise AssertionError("there is always another id")


def _fresh_paths(root: Path, label: str) -> Iterator[Path]:
    while True:
        yield root / check_id(f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(3)}", "label")


def _point_latest(root: Path, run_id: str) -> None:
    """A relative link, so that `root` can be moved; put in place by a rename, so that it is never absent."""
    link, draft = root / LATEST, root / f".{LATEST}-{os.getpid()}-{secrets.token_hex(3)}"
    if link.exists() and not link.is_symlink():
        raise StorageError(f"{shown(link)}: not a link but something else; move it away")
    with storage_errors(link):
        draft.symlink_to(run_id)
        try:
            draft.rename(link)
        finally:
            draft.unlink(missing_ok=True)


def _take_lock(path: Path) -> int:
    """A lock of the kernel: it ends with the process, so a crash leaves nothing to clean up.

    Processes started from here do not inherit the descriptor; the text in the file is for the message only.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BlockingIOError:
        holder = _HOLDER.match(os.pread(fd, 200, 0))
        by = holder[0].decode(errors="replace") if holder else "another process"
        os.close(fd)
        raise FolderInUseError(f"{shown(path.parent)}: in use by {by}; wait until it ends or use another run") from None
    except OSError:
        os.close(fd)
        raise
    return fd
