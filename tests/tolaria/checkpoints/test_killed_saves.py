"""A process that is killed in the middle of a save, at any call that touches the disk, costs that save and no other."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tolaria.checkpoints.spoiling import RUN, at, state

from esper.tolaria.checkpoints.store import CheckpointStore

CALLS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"})
SAVES = 5


def live_and_die(folder: Path, nth: int, committed: int) -> None:
    """In a forked child: saves what grows, and dies before the nth call in the folder. `committed`: a pipe's end."""
    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CALLS and str(folder) in str(arguments[0] if event != "os.rename" else arguments[1]):
            count()

    fsync = os.fsync
    os.fsync = lambda fd: (count(), fsync(fd))[1]  # which is no audited event
    sys.addaudithook(hook)
    store = CheckpointStore(folder, RUN)
    store.newest()
    for number in range(1, SAVES + 1):
        store.save(state(number, 10 * number), {"number": number}, at(number, float(number == 1)))
        os.write(committed, bytes([number]))


def killed_at(folder: Path, nth: int) -> tuple[bool, int]:
    """Whether the child died, and what it had committed."""
    folder.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live_and_die(folder, nth, writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as committed:
        numbers = committed.read()
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return died, numbers[-1] if numbers else 0


def survived(place: Path, every: int = 1) -> tuple[int, list[str]]:
    """Kills at every (or every so manieth) call; how many there were, and what was lost."""
    lost, nth, died = [], 1, True
    while died:
        folder = place / str(nth)
        died, committed = killed_at(folder, nth)
        found, complaints = newest_of_size(folder)
        if found not in (committed, committed + 1) or complaints:
            lost.append(f"call {nth}: {committed} was committed, {found} found; {complaints}")
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if left:
            lost.append(f"call {nth}: {left} left behind")
        nth += every
    return (nth - every) // every, lost


def newest_of_size(folder: Path) -> tuple[int, tuple[str, ...]]:
    found, complaints = CheckpointStore(folder, RUN).newest()
    if found is None:
        return 0, complaints
    number = found.state["number"]
    assert found.state["weights"].tolist() == [float(number + index) for index in range(10 * number)]
    return number, complaints


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_save_that_is_cut_short_anywhere_loses_nothing_else(tmp_path: Path, every: int) -> None:
    kills, lost = survived(tmp_path, every)

    assert lost == []
    assert kills * every >= 15 * SAVES  # a save opens, makes, syncs and renames so often at least


def test_a_child_that_nobody_kills_commits_everything(tmp_path: Path) -> None:
    assert killed_at(tmp_path / "run", 10**6) == (False, SAVES)
    assert newest_of_size(tmp_path / "run") == (SAVES, ())
