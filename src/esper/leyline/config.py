"""Strict codec between frozen dataclasses of settings and plain data: JSON files, `--set a.b=c`, documentation.

A root dataclass holds sections (dataclasses); their fields are bool, int, float, str, Literal, X | None,
tuple[X, ...] and further dataclasses. `decode(cls, encode(config)) == config`. Whatever a user gives that
is not such a configuration is a ConfigError of one line that begins with the path of the setting.

Read `setting` and `check_ranges` to declare settings; `encode`, `decode`, `apply`, `override`, `read_json` and
`describe` are what scripts call. `config_kinds.py` is how each type is handled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from esper.leyline.config_kinds import Limits, Row, one_line, section_of, shown, strict_json
from esper.leyline.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
C = TypeVar("C", bound="DataclassInstance")

_MAX_FILE_BYTES = 4 << 20  # no configuration is larger; a data file given by mistake is refused unread


# ---- declaring settings ----------------------------------------------------------------------------------------------


def setting(
    default: T,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Iterable[object] | None = None,
    help: str = "",
) -> T:
    """A dataclass field with its default, its range and its one line of help.

    `low` and `high` are allowed themselves, `above` and `below` are not. On a tuple they bind each element.
    """
    limits = Limits(low, above, high, below, None if choices is None else tuple(choices), help)
    return dataclasses.field(default=default, metadata={"limits": limits})


def check_ranges(config: DataclassInstance) -> None:
    """Refuse a dataclass made in Python whose fields have the wrong type or leave their range.

    For `__post_init__`; raises ConfigError such as `GovernorConfig.window: 1 is out of range; use 2 or more`.
    """
    section = section_of(type(config))
    section.plain(config, section.cls.__name__)


# ---- what scripts call -----------------------------------------------------------------------------------------------


def encode(config: DataclassInstance) -> dict[str, Any]:
    """The whole configuration as dicts, lists, str, int, float, bool and None; refuses NaN and infinities."""
    return section_of(type(config)).plain(config, "config")


def decode(cls: type[C], data: object, path: str = "config") -> C:
    """Build `cls` from plain data; settings that are absent keep their defaults. `path` begins every error."""
    return cast(C, section_of(cls).read(data, path))


def apply(config: C, *layers: Mapping[str, Any], path: str = "config") -> C:
    """The configuration with partial nested dicts laid over it, later ones on top.

    Names, types and ranges are checked layer by layer; what a `__post_init__` checks between fields is
    checked once, on the result, so a file may set one half of a pair and `--set` the other.
    """
    section = section_of(type(config))
    data = section.plain(config, path)
    for layer in layers:
        data = section.lay(data, layer, path)
    return cast(C, section.read(data, path))


def override(config: C, assignments: Iterable[str], path: str = "config") -> C:
    """The configuration after `--set` strings such as `ppo.clip=0.2`; the last word on a setting wins."""
    return apply(config, parse_assignments(type(config), assignments, path), path=path)


def parse_assignments(cls: type[DataclassInstance], assignments: Iterable[str], path: str = "config") -> dict[str, Any]:
    """`--set` strings as a layer for `apply`, each value read by the type of its field.

    Numbers (also 1e-3), true/false, none, text as it stands, lists as `a,b,c` or JSON.
    """
    assert not isinstance(assignments, str), "give a list of assignments, not one string"
    layer: dict[str, Any] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{shown(assignment)} sets nothing; write section.name=value")
        section_of(cls).assign(layer, dotted.strip(), text, path)
    return layer


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Duplicate keys and numbers that are not finite are errors, as is anything else.

    Errors are one line and begin with the path of the file.
    """
    where = one_line(str(path))
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"{where}: not the name of a file") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{where}: larger than {_MAX_FILE_BYTES >> 20} MiB, so not a configuration")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text (byte {error.start})") from None
    data = strict_json(text, where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: holds {shown(data)}; write an object {{...}}")
    return data


def describe(cls: type[DataclassInstance]) -> list[Row]:
    """Every setting that can be set, in order of declaration, with the default that it has inside this root."""
    return list(section_of(cls).rows("", MISSING))
