"""What runs are called, whether they run, and their `run.json` as tables: `manifest`, `slots` and `choices`."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from esper.karn.collector import check_schema
from esper.karn.own_files import check_own, open_own
from esper.leyline.errors import ConfigError
from esper.nissa.reader import why_incomplete
from esper.nissa.run_folder import ARMS
from esper.nissa.storage import reason, shown

_PATHS: dict[str, tuple[str, str]] = {
    "task": ("VARCHAR", "$.config.task.name"),
    "controller": ("VARCHAR", "$.config.run.controller"),
    "seed": ("BIGINT", "$.config.run.seed"),
    "envs": ("INTEGER", "$.config.run.envs"),
    "rounds": ("INTEGER", "$.config.run.rounds"),
    "episode_length": ("INTEGER", "$.config.run.episode_length"),
    "rent": ("DOUBLE", "$.config.reward.rent"),
    "metric": ("VARCHAR", "$.metric.name"),
    "unit": ("VARCHAR", "$.metric.unit"),
    "sign": ("DOUBLE", "$.metric.higher_is_better"),
    "host_git": ("VARCHAR", "$.git"),
    "host": ("VARCHAR", "$.host"),
    "pid": ("BIGINT", "$.pid"),
    "started": ("VARCHAR", "$.started"),
    "config": ("JSON", "$.config"),
    "schema_version": ("INTEGER", "$.schema_version"),
}
"""Columns of `manifest` and where they are in `run.json`; NULL where it does not say."""
_STARTED = ("task", "controller", "envs", "rounds", "episode_length")  # also told by the first event

_TABLES = {
    "manifest": f"""run VARCHAR, path VARCHAR, {", ".join(f"{name} {kind}" for name, (kind, _) in _PATHS.items())},
        running BOOLEAN, incomplete VARCHAR, group_of VARCHAR""",
    "slots": 'run VARCHAR, slot_index INTEGER, slot VARCHAR, "order" INTEGER, surface VARCHAR, channels INTEGER',
    "choices": "run VARCHAR, head VARCHAR, choice_index INTEGER, choice VARCHAR",
}
_HOLDER = re.compile(rb"process (\d{1,9}) on ([\w.-]{1,64})")


@dataclass(frozen=True)
class Named:
    """A run folder and what it is called."""

    path: Path
    run: str
    group_of: str | None  # the run whose arm it is

    @staticmethod
    def of(folder: Path, name: str | None = None) -> Named:
        """The folder's own name, behind that of the run whose arm it is: `20261120-compare/arms/ppo`."""
        path = folder.resolve()  # `latest` is a link
        if path.parent.name != ARMS:
            return Named(path, name or path.name, None)
        top = Named.of(path.parent.parent).run
        return Named(path, name or f"{top}/{ARMS}/{path.name}", top)


def named(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Named]:
    """Each folder once. ConfigError where two would have the same name."""
    ours: Sequence[str | None] = [None] * len(folders) if names is None else names
    found: dict[Path, Named] = {}
    for folder, name in zip(folders, ours, strict=True):
        one = Named.of(folder, name)
        found.setdefault(one.path, one)
    runs = [one.run for one in found.values()]
    for run in runs:
        if runs.count(run) > 1:
            raise ConfigError(f"run {shown(repr(run))}: two folders are called so; open them one at a time")
    return list(found.values())


@dataclass(frozen=True)
class State:
    """What can change about a run besides its events."""

    manifest: str  # text of run.json; `{}` as long as there is none
    running: bool
    incomplete: str | None

    @staticmethod
    def of(folder: Path) -> State:
        """ConfigError for a `run.json` that is no manifest and by `check_own`, UnknownEventError for another schema."""
        check_own(folder)
        return State(_manifest_text(folder / "run.json"), is_running(folder), why_incomplete(folder))


def create_tables(con: duckdb.DuckDBPyConnection) -> None:
    for name, columns in _TABLES.items():
        con.execute(f"CREATE TABLE {name} ({columns})")


def tell(con: duckdb.DuckDBPyConnection, named: Named, state: State) -> None:
    """Puts the run into the tables, in the place of what stood there of it. The events of its start come before."""
    for table in _TABLES:
        con.execute(f"DELETE FROM {table} WHERE run = $run", {"run": named.run})
    values = ", ".join(_value(name, kind, path) for name, (kind, path) in _PATHS.items())
    con.execute(
        f"""INSERT INTO manifest SELECT $run, $path, {values}, $running, $incomplete, $group_of
        FROM (SELECT $text::JSON AS m) LEFT JOIN (FROM run_started WHERE run = $run LIMIT 1) ON true""",
        {
            "run": named.run,
            "path": str(named.path),
            "running": state.running,
            "incomplete": state.incomplete,
            "group_of": named.group_of,
            "text": state.manifest,
        },
    )
    told = {"run": named.run, "text": state.manifest}
    con.execute(
        """INSERT INTO slots SELECT $run, try_cast(key AS INTEGER), value ->> 'id',
            try_cast(value ->> 'order' AS INTEGER), value ->> 'surface', try_cast(value ->> 'channels' AS INTEGER)
        FROM json_each($text, '$.slots') WHERE json_type($text, '$.slots') = 'ARRAY'""",
        told,
    )
    con.execute(
        """INSERT INTO choices SELECT $run, head, i - 1, choices[i]
        FROM (SELECT key AS head, json_transform(value, '["VARCHAR"]') AS choices FROM json_each($text, '$.heads')),
            unnest(range(1, len(choices) + 1)) AS indices(i)""",
        told,
    )


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with open_own(folder / "run.lock") as file:
            holder = _HOLDER.match(file.read(200))
            if holder is None or (holder[2].decode() == socket.gethostname() and not _lives(int(holder[1]))):
                return False  # without trying the lock: whoever is about to take it must not find it taken
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _value(name: str, kind: str, path: str) -> str:
    told = f"json_extract_string(m, '{path}')"
    if name == "sign":
        return f"CASE {told} WHEN 'true' THEN 1.0 WHEN 'false' THEN -1.0 END"
    if name == "config":  # settings are read as tables; anything else in their place is as good as none
        return f"CASE WHEN json_type(m, '{path}.run') = 'OBJECT' THEN json_extract(m, '{path}') END"
    told = f"try_cast({told} AS {kind})"
    return f"coalesce({told}, {name})" if name in _STARTED else told


def _manifest_text(path: Path) -> str:
    try:
        with open_own(path) as file:
            text = file.read()
        manifest = msgspec.json.decode(text, type=dict[str, Any])
    except FileNotFoundError:
        return "{}"
    except OSError as error:
        raise ConfigError(f"{shown(path)}: {reason(error)}; make it readable") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{shown(path)}: not the manifest of a run: {shown(error)}") from error
    if "schema_version" in manifest:
        check_schema(manifest["schema_version"], shown(path))
    return text.decode()
