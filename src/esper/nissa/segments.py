"""The files that one writer fills: `ev/r0.1-000000.open` while it grows, `.jsonl` once it is sealed.

Everything here may raise OSError; `writer.py` decides what that means for the run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import final

from esper.leyline.files import sync_folder

WRITER = re.compile(r"r(\d{1,6})\.(\d{1,6})")  # rank and attempt
_FILE = re.compile(rf"({WRITER.pattern})-(\d{{6}})\.(?:open|jsonl)")


@final
class Segments:
    """Append-only files of whole lines. One thread uses it."""

    def __init__(self, ev: Path, writer: str) -> None:
        self._ev, self._writer = ev, writer
        self._number = 0
        self._torn = False  # half a line stands at the end and cannot be cut off
        self.size = 0
        """Bytes of whole lines in the file that is open."""
        self._fd = self._open()

    def append(self, lines: bytes | bytearray) -> tuple[int, OSError | None]:
        """Write whole lines; returns how many of their bytes stand, again whole lines, and why not all of them."""
        done = 0
        try:
            if self._torn:
                self.roll()
            with memoryview(lines) as view:
                while done < len(lines):
                    done += os.write(self._fd, view[done:])
        except OSError as error:
            whole = lines.rfind(b"\n", 0, done) + 1
            self.size += whole
            if whole < done:
                self._cut_off_torn_line()
            return whole, error
        self.size += done
        return done, None

    def roll(self) -> None:
        """Go on in another file and seal this one."""
        full, path = self._fd, self._path("open")
        self._number += 1
        try:
            self._fd = self._open()
        except OSError:
            self._number -= 1
            raise
        self._torn, self.size = False, 0
        self._seal(full, path)

    def sync(self) -> None:
        """Wait until the disk itself has everything."""
        os.fsync(self._fd)

    def close(self) -> None:
        last, self._fd = self._fd, -1
        self._seal(last, self._path("open"))

    def abandon(self) -> None:
        """Let go of the descriptor and touch nothing: the file belongs to another process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        # O_EXCL: what a process before us wrote under this name is never touched.
        fd = os.open(self._path("open"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        sync_folder(self._ev)
        return fd

    def _seal(self, fd: int, path: Path) -> None:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        path.rename(path.with_suffix(".jsonl"))
        sync_folder(self._ev)

    def _cut_off_torn_line(self) -> None:
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            self._torn = True

    def _path(self, kind: str) -> Path:
        return self._ev / f"{self._writer}-{self._number:06d}.{kind}"


def segment_files(ev: Path) -> list[Path]:
    """All event files of a run: by rank, attempt and number."""
    found: dict[tuple[int, int, int], Path] = {}
    for path in sorted(ev.iterdir()):  # `.jsonl` before `.open`, should the listing have seen both sides of a rename
        if match := _FILE.fullmatch(path.name):
            found.setdefault((int(match[2]), int(match[3]), int(match[4])), path)
    return [found[key] for key in sorted(found)]


def used_writers(ev: Path) -> set[tuple[int, int]]:
    """(rank, attempt) of every writer that has a file here."""
    return {(int(match[2]), int(match[3])) for path in ev.iterdir() if (match := _FILE.fullmatch(path.name))}
