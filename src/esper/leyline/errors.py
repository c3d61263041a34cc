"""What may go wrong for a user, and the exit code of each: the one table that the command line obeys.

Raise these for what a person, a file or a machine can cause; `assert` for what only a bug in this
repository can cause. Every message says what was asked, what is true and what to do, on one line.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    DONE = 0
    GATE_FAILED = 1  # `esper gates --check`
    BAD_INPUT = 2  # bad input or configuration, also a wrong host or action space
    NO_CHECKPOINT = 3  # no loadable checkpoint
    FOLDER_IN_USE = 4  # another process writes into the run folder
    DIVERGED = 5  # diverged beyond recovery
    RANKS = 6  # ranks disagree, or one or another worker died
    STORAGE = 74  # disk full, read-only or unwritable
    INTERRUPTED = 130  # SIGINT
    TERMINATED = 143  # SIGTERM


class EsperError(Exception):
    """An error whose text is all the user needs; the command line prints it without a traceback."""

    exit_code = ExitCode.BAD_INPUT


class ConfigError(EsperError, ValueError):
    """A name, a value or a combination that the user asked for does not exist or makes no sense."""


class CheckpointError(EsperError):
    """A file does not hold what was asked of it."""

    exit_code = ExitCode.NO_CHECKPOINT


class WrongHostError(EsperError):
    """A saved grown model belongs to another host or another action space."""


class FolderInUseError(EsperError):
    exit_code = ExitCode.FOLDER_IN_USE


class DivergedError(EsperError):
    exit_code = ExitCode.DIVERGED


class WorkerDiedError(EsperError):
    """A process that worked for this one is gone before its time."""

    exit_code = ExitCode.RANKS


class RanksError(EsperError):
    """The processes of a run that torchrun started cannot go on together. `kind` and `ranks` say how and which."""

    exit_code = ExitCode.RANKS

    def __init__(self, kind: str, ranks: Sequence[int], text: str) -> None:
        """kind: `died`, `stuck`, `failed` or `diverged`. ranks: those that it is about."""
        super().__init__(text)
        self.kind, self.ranks = kind, tuple(ranks)

    def __reduce__(self) -> tuple[type[RanksError], tuple[Any, ...]]:
        return RanksError, (self.kind, self.ranks, str(self))


class LifecycleDivergence(RanksError):  # noqa: N818
    """Ranks that train one host are not in the same state; raised on all of them before anything is changed."""

    def __init__(self, step: int, field: str, values: Sequence[str]) -> None:
        """step: optimiser steps taken. field: what differs, and where. values: what each rank has there."""
        usual = Counter(values).most_common(1)[0][0]
        ranks = [rank for rank, value in enumerate(values) if value != usual]
        seen = ", ".join(f"rank {rank} has {value}" for rank, value in enumerate(values))
        names = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        super().__init__("diverged", ranks, f"{names} diverged at step {step} in {field}: {seen}")
        self.step, self.field, self.values = step, field, tuple(values)

    def __reduce__(self) -> tuple[type[LifecycleDivergence], tuple[Any, ...]]:
        return LifecycleDivergence, (self.step, self.field, self.values)


class StorageError(EsperError):
    exit_code = ExitCode.STORAGE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, otherwise an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
