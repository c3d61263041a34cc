"""What readers open of a run: files of its own, and nothing that stands there in their place.

A run may come from anywhere. A link in it may lead anywhere, a pipe may never be written to, and a device may never
end; so a run with one of them among what readers open is not read at all. The folder itself may be reached through
links, as `runs/latest` is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import ARMS, arms
from esper.nissa.storage import shown, storage_errors

_OPENED = ("run.json", "run.lock", ARMS)  # besides `ev` and all that is in it


def check_own(folder: Path) -> None:
    """ConfigError for a run with a link, a pipe or a device among what readers open; to be asked at every look."""
    with storage_errors(folder):
        for path in _opened(folder):
            mode = _mode(path)
            if mode is not None and not (S_ISREG(mode) or S_ISDIR(mode)):
                raise _refusal(path)


def open_own(path: Path) -> BufferedReader:
    """A file of a run, to be read. ConfigError for what `check_own` refuses, should it have come since; no waiting."""
    try:
        file = open(path, "rb", opener=_without_following)  # noqa: SIM115  the caller closes it
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refusal(path) from None
        raise
    if not S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _refusal(path)
    return file


def own_arms(top: Path) -> list[Path]:
    """The runs below `top/arms/`, in order."""
    return [top / ARMS / arm for arm in arms(top)]


def _opened(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in _OPENED)
    ev = folder / "ev"
    yield ev
    mode = _mode(ev)
    if mode is not None and S_ISDIR(mode):
        yield from ev.iterdir()


def _mode(path: Path) -> int | None:
    """None for what is not there, or has been sealed or tidied away since it was listed."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _refusal(path: Path) -> ConfigError:
    return ConfigError(f"{shown(path)}: a link, pipe or device in a run folder is not followed; remove it")
