"""What the views answer beside the screen: while a run is told, after a question that was refused, and at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.karn.conftest import ByHand, started, step

from esper.karn.memory import open_memory
from esper.karn.sanctum.history import History

STEPS = "select step from live_env_step where run = $run order by step"


@contextmanager
def history_of(folder: Path, tell: Callable[[], None] = lambda: None, live: bool = True) -> Iterator[History]:
    history = History(lambda: open_memory([folder]), tell, live)
    try:
        yield history
    finally:
        assert history.close()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_what_was_asked_for_is_answered_again_when_more_is_told(folder: ByHand) -> None:
    folder.write(folder.line(started()), folder.line(step(0), round=0, step=0), segment="r0.1-000000.open")
    told = threading.Event()

    with history_of(folder.path, told.set) as history:
        bound = {"run": folder.path.name}
        assert history.rows(STEPS, bound) is None, "whoever asks does not wait"
        until(lambda: history.rows(STEPS, bound) == [(0,)])
        told.clear()
        folder.write(folder.line(step(1), round=0, step=1), segment="r0.1-000000.open")
        until(lambda: history.rows(STEPS, bound) == [(0,), (1,)])
        assert told.wait(5)


def test_a_question_that_is_refused_spoils_no_other(folder: ByHand) -> None:
    folder.write(folder.line(started()), folder.line(step(0), round=0, step=0))

    with history_of(folder.path, live=False) as history:
        history.rows("select error('no such thing')", {})
        history.settle(20)
        assert "no such thing" in (history.trouble or "")
        history.rows(STEPS, {"run": folder.path.name})
        history.settle(20)
        assert history.rows(STEPS, {"run": folder.path.name}) == [(0,)]


def test_a_run_that_cannot_be_opened_is_trouble_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    told = threading.Event()

    with history_of(tmp_path / "nothing", told.set) as history:
        assert history.rows(STEPS, {"run": "x"}) is None
        history.settle(20)
        assert "not a run folder" in (history.trouble or "")
        assert told.wait(5)


def test_how_far_a_replay_has_come_makes_no_other_question(folder: ByHand) -> None:
    folder.write(folder.line(started()), *(folder.line(step(n), round=n, step=0) for n in range(3)))
    sql = "select round from live_env_step where round <= $until order by round"

    with history_of(folder.path, live=False) as history:
        history.rows(sql, {"until": 0})
        history.settle(20)
        assert history.rows(sql, {"until": 1}) == [(0,)], "the last answer, until there is a newer one"
