"""What may go wrong for a user, and the exit code of each: the one table that the command line obeys.

Raise these for what a person, a file or a machine can cause; `assert` for what only a bug in this
repository can cause. Every message says what was asked, what is true and what to do, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


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


class StorageError(EsperError):
    exit_code = ExitCode.STORAGE


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, otherwise an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
