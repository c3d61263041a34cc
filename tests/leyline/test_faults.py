"""Places for faults do nothing unless the environment asks, and then just what it asks for."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import esper
from esper.leyline import faults
from esper.leyline.errors import ConfigError

SOURCE = Path(esper.__file__).parent


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def planned(text: str) -> None:
        monkeypatch.setenv(faults.VARIABLE, text)
        faults.planned.cache_clear()

    yield planned
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.planned.cache_clear()


def test_every_place_stands_in_the_program_once() -> None:
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "faults.py")
    found = re.findall(r"\b(?:fault|written)\(\"([\w.]+)\"", text)

    assert sorted(found) == sorted(faults.SITES)


def test_nothing_happens_unless_it_is_asked_for(plan: Callable[[str], None]) -> None:
    plan("")

    for site in faults.SITES:
        faults.fault(site)
    assert faults.written("checkpoint.write", b"abcd") == b"abcd"


def test_a_fault_strikes_the_time_it_is_meant_for(plan: Callable[[str], None]) -> None:
    plan("run.step=enospc@3")

    struck = []
    for time in range(1, 6):
        try:
            faults.fault("run.step")
        except OSError as error:
            struck.append((time, error.errno))
    assert struck == [(3, errno.ENOSPC)]


def test_a_fault_may_stay(plan: Callable[[str], None]) -> None:
    plan("run.hold=sleep:0, run.step=eio@2+")

    faults.fault("run.step")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            faults.fault("run.step")


def test_a_short_write_leaves_half(plan: Callable[[str], None]) -> None:
    plan("checkpoint.write=short_write@2")

    assert [faults.written("checkpoint.write", b"abcd") for _ in range(3)] == [b"abcd", b"ab", b"abcd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run.step", "is no fault; write site=action"),
        ("run.stp=kill", "'run.stp' is no place; did you mean 'run.step'"),
        ("run.step=explode", "'explode' cannot be made to happen; use kill"),
    ],
)
def test_what_does_not_exist_is_refused(plan: Callable[[str], None], text: str, words: str) -> None:
    plan(text)

    with pytest.raises(ConfigError, match=re.escape(words)):
        faults.fault("run.step")
