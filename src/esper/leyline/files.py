"""Files that are there whole or not at all. Everything here may raise OSError."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Afterwards the file holds `data`, also after a power cut; if anything goes wrong, what it held before.

    data: all of it, made in memory, so that a full disk is told as what it is and not in a library's words.
    """
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        write_synced(draft, data)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """A file that must not exist yet, on the disk itself when this returns."""
    with path.open("xb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make names that were created or renamed in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
