"""Runs that `torchrun` starts: which process leads, what the others do, and what signals mean to a rank."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch

from esper.leyline.config import encode
from esper.leyline.errors import ConfigError, EsperError, ExitCode, RanksError
from esper.scripts.config import EsperConfig
from esper.scripts.runner import setup_of
from esper.scripts.sources import pinned
from esper.scripts.teams import Trainers
from esper.tolaria.ranks.fleet import Fleet
from esper.tolaria.ranks.meeting import Meeting, place_in
from esper.tolaria.ranks.watch import ALARM, Watch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE_S = 0.5
"""How long a rank that is told to end waits for word that another has died: the launcher ends all when one does."""
_PATIENCE_S = 3.0
"""In which a second signal is the launcher's, which passes on what a terminal has sent to all already."""


def meet() -> Meeting | None:
    """The ranks that a launcher has started, with the timeout of the default settings; None in a process alone."""
    place = place_in(os.environ)
    return None if place is None else Meeting(place, EsperConfig().run.ranks.timeout_s)


def refuse_ranks(what: str) -> None:
    """Raises ConfigError where a launcher has started several processes of a command that is not made for it."""
    if place_in(os.environ) is not None:
        raise ConfigError(f"{what}: torchrun is for one run, and for going on with one; start this without it")


@contextmanager
def fleet_of(meeting: Meeting | None, config: EsperConfig) -> Iterator[Fleet | None]:
    """On rank 0 the ranks, and None in a process alone. On other ranks the block is never entered.

    They serve rank 0 and end with it, with its exit code. Raises RanksError where they do not come together.
    """
    if meeting is None:
        yield None
        return
    torch.set_num_threads(1)
    leads = meeting.place.rank == 0
    fleet = Fleet(meeting, config.run.ranks, config.engine.device, _heed if leads else _leave_signals_to_rank_0)
    if not leads:
        fleet.serve(lambda: setup_of(pinned(config)), lambda: settings_of(pinned(config)))
    code, text = int(ExitCode.DONE), ""
    try:
        yield fleet
    except EsperError as error:
        code, text = int(error.exit_code), str(error) if isinstance(error, RanksError) else ""
        raise
    except BaseException as error:
        code = _code_of(error)
        raise
    finally:
        fleet.close(code, text)


def trainers_of(fleet: Fleet | None) -> Callable[[EsperConfig], Trainers] | None:
    """Who trains the hosts, for `prepare`; None where this process is alone."""

    def trainers(config: EsperConfig) -> Trainers:
        assert fleet is not None
        run = config.run
        if run.workers not in (None, 1):
            raise ConfigError(f"run.workers: {run.workers} beside ranks, which take their place; leave it out")
        if run.ab_test is not None:
            raise ConfigError("run.ab_test: two teams cannot share ranks; start it without torchrun")
        return partial(fleet.engine_and_governor, partial(setup_of, config), partial(settings_of, config))

    return None if fleet is None else trainers


def settings_of(config: EsperConfig) -> dict[str, str]:
    """What has to be the same on all ranks, by name."""
    return dict(_flat("setting ", encode(config)))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{path}{key}" if path.endswith(" ") else f"{path}.{key}", item)
    else:
        yield path, json.dumps(value)


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _leave_signals_to_rank_0(_watch: Watch) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _heed(watch: Watch) -> None:
    """Rank 0 stops for a signal as any run does, and for what the watch has seen."""
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    told_at: list[float] = []

    def alarmed(_number: int, _frame: FrameType | None) -> None:
        trouble = watch.take_trouble()
        if trouble is not None:
            raise trouble

    def stop(number: int, frame: FrameType | None) -> None:
        trouble = watch.take_trouble(_NOTICE_S)
        if trouble is not None:
            raise trouble
        if watch.trouble is not None:  # this run is ending, and says why
            return
        if told_at and time.monotonic() - told_at[0] < _PATIENCE_S:
            return
        handler = before[signal.Signals(number)] if not told_at else later[signal.Signals(number)]
        told_at.append(time.monotonic())
        assert callable(handler)
        try:
            handler(number, frame)
        finally:
            for each in _SIGNALS:
                later[each] = signal.getsignal(each)
                signal.signal(each, stop)

    later: dict[signal.Signals, Any] = {}
    signal.signal(ALARM, alarmed)
    for each in _SIGNALS:
        signal.signal(each, stop)
