"""Commands of many runs that can go on: what was asked stands in `run.json`, what is finished is not done again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from esper.leyline.config import decode, encode, read_json
from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import SCHEMA_VERSION
from esper.nissa.run_folder import RunFolder
from esper.scripts.config import EsperConfig
from esper.scripts.manifest import commit
from esper.scripts.ranks import refuse_ranks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P", bound="DataclassInstance")


def fresh_folder(config: EsperConfig, label: str, kind: str, plan: Any) -> RunFolder:
    """A new top folder. `kind`: the command's name, under which its plan (a dataclass) stands in `run.json`."""
    refuse_ranks(kind)
    folder = RunFolder.create(Path(config.run.root), label.replace("_", "-"))
    asked = {kind: asdict(plan), "config": encode(config), "git": commit()}
    folder.write_manifest({"schema_version": SCHEMA_VERSION, **asked})
    return folder


def asked_before(path: Path, kind: str, plan: type[P]) -> tuple[P, EsperConfig]:
    """What the folder was begun with. Raises ConfigError for a folder of another command."""
    refuse_ranks(kind)
    manifest = read_json(path / "run.json")
    if kind not in manifest:
        raise ConfigError(f"--resume: {path} is no {kind}; give the folder of one, or use esper resume")
    return decode(plan, manifest[kind], kind), settings_in(path / "run.json")


def settings_in(manifest: Path) -> EsperConfig:
    """What a run was begun with. Raises ConfigError for a file that does not say it."""
    data = read_json(manifest)
    if "config" not in data:
        raise ConfigError(f"{manifest}: holds no settings of a run")
    return decode(EsperConfig, data["config"], str(manifest))


def refuse_settings(args: argparse.Namespace, what: str, settings: Sequence[str], others: str, but: str = "") -> None:
    """Raises ConfigError where any of the flags is given that make a plan, which stands.

    settings: their names. others: flags that may be given, for the message. but: the one of `settings` among them.
    """
    given = {name: value for name, value in vars(args).items() if value not in (None, [], False)}
    if any(name in given for name in settings if name != but):
        raise ConfigError(f"--resume: goes on with the {what}'s own settings; give no others but {others}")
