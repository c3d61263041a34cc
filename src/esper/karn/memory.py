"""Run folders as a database that can be asked: tables, views and gates together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from esper.karn.manifests import Named, State
from esper.karn.own_files import check_own, own_arms
from esper.karn.phases import create_gates
from esper.karn.store import Store
from esper.karn.views import create_views
from esper.leyline.errors import EsperError
from esper.leyline.telemetry import SCHEMA_VERSION
from esper.nissa.run_folder import resolve


def open_memory(folders: Sequence[Path]) -> Store:
    """A store of these runs with all views. Raises what `Store.open` raises."""
    store = Store.open(folders)
    create_views(store.con)
    return store


def load(folders: Sequence[str]) -> Store:
    """The same from plain text, as another process is told it, with the table `gates`: every run judged by itself."""
    store = open_memory([Path(folder) for folder in folders])
    create_gates(store.con)
    return store


def name_of(folder: Path) -> str:
    """What the database calls the run in this folder."""
    return Named.of(folder).run


def folders_of(root: Path, name: str) -> list[Path]:
    """The folders of what a person calls a run: its own, or those of its arms. Raises ConfigError if there is none."""
    top = resolve(root, name)
    return own_arms(top) or [top]


def why_unread(folder: Path) -> str | None:
    """Why this version of esper cannot read a run; None where it can."""
    try:
        check_own(folder)
        version = json.loads((folder / "run.json").read_text())["schema_version"]
        if version == SCHEMA_VERSION:
            State.of(folder)
    except (FileNotFoundError, KeyError):
        return _why_untold(folder)
    except EsperError as error:
        return str(error)
    except (OSError, ValueError, TypeError, RecursionError):
        return "run.json cannot be read"
    return None if version == SCHEMA_VERSION else f"schema {version}: another version of esper wrote it"


def _why_untold(folder: Path) -> str | None:
    """The same of a run whose manifest does not say, so that its events have to."""
    try:
        open_memory([folder]).close()
    except EsperError as error:
        return str(error)
    return None
