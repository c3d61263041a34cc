"""What a disk can refuse, in one line, and what a forked child must not touch. Used by everything that writes here."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from esper.leyline.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "make room or choose another folder",
    errno.EDQUOT: "make room or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EEXIST: "something is in the way; move it or choose another folder",
    errno.ENOTDIR: "a file is in the way; move it or choose another folder",
    errno.EISDIR: "a folder is in the way; move it or choose another folder",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a StorageError of one line that begins with `path`."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk or choose another folder")
        raise StorageError(f"{shown(path)}: {reason(error)}; {remedy}") from error


def reason(error: OSError) -> str:
    """`no space left on device`."""
    return (error.strerror or type(error).__name__).lower()


def shown(text: object) -> str:
    """Text for an error: one line whatever it holds, and not more than a screen can bear."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text)[:300])
    return line if len(str(text)) <= 300 else f"{line}..."


class OfOneProcess(Protocol):
    """Something that a forked child inherits as a copy and must neither use nor tidy up."""

    def disown(self) -> None:
        """Let go without writing, unlocking or joining anything. Runs in the child, right after the fork."""


_owned: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()


def disown_in_forked_children(thing: OfOneProcess) -> None:
    _owned.add(thing)


def _disown_all() -> None:
    for thing in list(_owned):
        thing.disown()
    _owned.clear()


os.register_at_fork(after_in_child=_disown_all)
