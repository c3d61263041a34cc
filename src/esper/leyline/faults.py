"""Places where something may be made to go wrong, so that tests can find out what that does. Inert by default.

    ESPER_FAULTS="checkpoint.rename=kill"            the process dies there, as by `kill -9`
    ESPER_FAULTS="checkpoint.write=enospc@3+"        the disk is full from the third time on
    ESPER_FAULTS="run.step=sleep:0.5@2, run.step=terminate@4"

Product code says `fault("checkpoint.rename")` right before it does what may fail. To add a place write a row in `SITES`
and say so there: a test kills a run at each and goes on with it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from esper.leyline.errors import ConfigError, did_you_mean

VARIABLE = "ESPER_FAULTS"

SITES: Mapping[str, str] = {
    "run.step": "a step of the main loop is over and told",
    "run.round": "a round is over, and what was learned from it is told",
    "run.hold": "the state between two steps is about to be copied",
    "run.saved": "a checkpoint has just been committed",
    "run.grown": "what was grown is about to be written",
    "run.finished": "the run is told to be done, its last checkpoint not written",
    "ranks.answer": "a rank is about to answer rank 0",
    "ranks.collective": "a rank is about to take part in what all ranks do together",
    "ranks.collected": "what all ranks do together is done on this one",
    "checkpoint.create": "the draft's folder is about to be made",
    "checkpoint.write": "a file is about to be written into the draft",
    "checkpoint.verify": "the draft's files are about to be read back",
    "checkpoint.before_manifest": "the manifest is about to be written",
    "checkpoint.sync": "the draft's folder is about to be synced",
    "checkpoint.rename": "the draft is about to become a checkpoint",
    "checkpoint.sync_parent": "the checkpoint's name is about to be synced",
    "checkpoint.retire": "a checkpoint that is no longer wanted is about to be renamed",
    "checkpoint.remove": "what was renamed is about to be removed",
}
"""Every place, and what is about to happen there."""


def _fail(number: int) -> Callable[[str], None]:
    def fail(_argument: str) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def _send(number: signal.Signals) -> Callable[[str], None]:
    return lambda _argument: os.kill(os.getpid(), number)


SHORT_WRITE = "short_write"
ACTIONS: Mapping[str, Callable[[str], None]] = {
    "kill": _send(signal.SIGKILL),
    "interrupt": _send(signal.SIGINT),
    "terminate": _send(signal.SIGTERM),
    "enospc": _fail(errno.ENOSPC),
    "eio": _fail(errno.EIO),
    "erofs": _fail(errno.EROFS),
    "sleep": lambda seconds: time.sleep(float(seconds)),
    SHORT_WRITE: lambda _argument: None,  # what is written at the place is cut in half: see `written`
}
"""What may be made to happen."""

_FAULT = re.compile(r"(?P<site>[\w.]+)=(?P<action>\w+)(:(?P<argument>[\d.]+))?(@(?P<first>\d+)(?P<on>\+)?)?")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    site: str
    action: str
    argument: str
    first: int  # of the times that the place is passed, counted from 1
    on: bool  # also every time after that

    def strikes(self, count: int) -> bool:
        return count == self.first or (self.on and count > self.first)


@dataclass
class Plan:
    """What is to go wrong in this process, and how often each place has been passed."""

    faults: tuple[Fault, ...]
    passed: Counter[str] = field(default_factory=Counter)

    def strike(self, site: str) -> list[Fault]:
        """The place is passed once more; does what is planned and returns it."""
        self.passed[site] += 1
        struck = [each for each in self.faults if each.site == site and each.strikes(self.passed[site])]
        for each in struck:
            ACTIONS[each.action](each.argument)
        return struck


def fault(site: str) -> None:
    """Something may go wrong here. Nothing does unless the environment asks for it."""
    assert site in SITES, f"{site!r} is no place for faults"
    plan = planned()
    if plan is not None:
        plan.strike(site)


def written(site: str, data: bytes) -> bytes:
    """`fault` at a place where `data` is about to be written; returns what is to be written instead."""
    assert site in SITES, f"{site!r} is no place for faults"
    plan = planned()
    struck = [] if plan is None else plan.strike(site)
    return data[: len(data) // 2] if any(each.action == SHORT_WRITE for each in struck) else data


@cache
def planned() -> Plan | None:
    """What the environment of this process asks for. Raises ConfigError for what does not exist."""
    text = os.environ.get(VARIABLE, "")
    return Plan(tuple(_parsed(part.strip()) for part in text.split(","))) if text.strip() else None


def _parsed(text: str) -> Fault:
    found = _FAULT.fullmatch(text)
    if found is None:
        raise ConfigError(f"{VARIABLE}: {text!r} is no fault; write site=action, site=action:argument or site=action@3")
    site, action = found["site"], found["action"]
    if site not in SITES:
        raise ConfigError(f"{VARIABLE}: {site!r} is no place{did_you_mean(site, SITES)}")
    if action not in ACTIONS:
        raise ConfigError(f"{VARIABLE}: {action!r} cannot be made to happen; use {', '.join(ACTIONS)}")
    return Fault(site, action, found["argument"] or "", int(found["first"] or 1), found["on"] is not None)
