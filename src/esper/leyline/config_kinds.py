"""Kinds of setting: how a value of each type is read, written, parsed and refused. `config.py` is what to call.

One class per kind of type (Scalar, Many, Maybe, Section), each of which can

    read   plain data -> value       (decode)
    plain  value -> plain data       (encode, and the check of a value made in Python)
    parse  text of --set -> plain data
    text   value -> text that `parse` understands
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, Union, cast, final, get_args, get_origin
from typing import get_type_hints as type_hints

from esper.leyline.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MAX_SHOWN = 60  # characters of a user's value that an error repeats
_INT64 = range(-(2**63), 2**63)  # what seeds, counters and columns can hold


@dataclass(frozen=True)
class Limits:
    """What a value (for a tuple: each element) must satisfy; bounds that are None do not bind."""

    low: float | None = None  # value >= low
    above: float | None = None  # value > above
    high: float | None = None  # value <= high
    below: float | None = None  # value < below
    choices: tuple[object, ...] | None = None
    help: str = ""

    @property
    def range_text(self) -> str:
        """`1 or more`, `0 to 1`, `more than 0 and at most 1`; empty without bounds."""
        if self.low is not None and self.high is not None:
            return f"{self.low} to {self.high}"
        bounds = {
            "{} or more": self.low,
            "more than {}": self.above,
            "at most {}": self.high,
            "less than {}": self.below,
        }
        return " and ".join(words.format(bound) for words, bound in bounds.items() if bound is not None)

    def hold(self, number: float) -> bool:
        return (
            (self.low is None or number >= self.low)
            and (self.above is None or number > self.above)
            and (self.high is None or number <= self.high)
            and (self.below is None or number < self.below)
        )


@dataclass(frozen=True)
class Row:
    """One setting as documentation shows it."""

    path: str  # without the root: run.episode_length
    type: str  # int, float or none, add|gate, list of int
    default: str  # as --set takes it; "required" if there is none
    range: str  # empty: anything of that type
    help: str


# ---- kinds of type ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Scalar:
    """bool, int, float or str, within its limits; a Literal is a scalar with choices."""

    cls: type
    limits: Limits

    @property
    def name(self) -> str:
        return "|".join(map(_spelled, self.limits.choices)) if self.limits.choices else self.cls.__name__

    def read(self, value: object, where: str) -> Any:
        """Exactly a bool, int, float or str. A whole number may stand for a float, nothing else for anything."""
        accepted, wanted, exactly = _SCALARS[self.cls]
        fits = isinstance(value, accepted) and isinstance(value, bool) == (self.cls is bool)
        if self.limits.choices is not None:
            fits = fits and value in self.limits.choices
        if not fits:
            raise ConfigError(f"{where}: {shown(value)} is not {self._wanted(wanted, value)}")
        found = exactly(value, where)
        if not self.limits.hold(found):
            raise ConfigError(f"{where}: {shown(value)} is out of range; use {self.limits.range_text}")
        return found

    plain = read

    def _wanted(self, kind: str, value: object) -> str:
        """What would have fitted, in the words of an error."""
        if self.limits.choices is None:
            return kind
        spelled = [_spelled(choice) for choice in self.limits.choices]
        near = did_you_mean(value[:_MAX_SHOWN], spelled) if isinstance(value, str) else ""
        return f"one of {', '.join(spelled)}{near}"

    def parse(self, text: str, _where: str) -> object:
        """Text that does not fit is handed on as text, so that `read` words the refusal."""
        if self.cls is bool:
            return {"true": True, "false": False}.get(text.strip().lower(), text)
        for number in {int: (int, float), float: (float,), str: ()}[self.cls]:
            with contextlib.suppress(ValueError):
                return number(text)
        return text

    def text(self, value: object) -> str:
        return _spelled(value)


@final
@dataclass(frozen=True)
class Maybe:
    """X | None."""

    inner: Scalar | Many | Section

    @property
    def name(self) -> str:
        return f"{self.inner.name} or none"

    def read(self, value: object, where: str) -> Any:
        return None if value is None else self.inner.read(value, where)

    def plain(self, value: object, where: str) -> Any:
        return None if value is None else self.inner.plain(value, where)

    def parse(self, text: str, where: str) -> object:
        return None if text.strip().lower() in ("none", "null") else self.inner.parse(text, where)

    def text(self, value: object) -> str:
        return "none" if value is None else self.inner.text(value)


@final
@dataclass(frozen=True)
class Many:
    """tuple[X, ...]; a list in plain data."""

    each: Kind

    @property
    def name(self) -> str:
        return f"list of {self.each.name}"

    def read(self, value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {shown(value)} is not a list")
        return tuple(self.each.read(item, f"{where}[{i}]") for i, item in enumerate(value))

    def plain(self, value: object, where: str) -> list[Any]:
        if not isinstance(value, tuple):  # a list in a frozen dataclass could still change
            raise ConfigError(f"{where}: {shown(value)} is not a tuple")
        return [self.each.plain(item, f"{where}[{i}]") for i, item in enumerate(value)]

    def parse(self, text: str, where: str) -> object:
        text = text.strip()
        if text.startswith("[") or not isinstance(self.each, Scalar):
            return strict_json(text, where)
        items = text.removesuffix(",").split(",") if text else []
        return [self.each.parse(item.strip(), f"{where}[{i}]") for i, item in enumerate(items)]

    def text(self, value: object) -> str:
        plain = self.plain(value, self.name)
        joined = ",".join(map(_spelled, plain))
        simple = isinstance(self.each, Scalar) and not joined.startswith("[")
        return joined if simple and self.parse(joined, self.name) == plain else json.dumps(plain)


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass."""

    kind: Kind
    default: Any  # MISSING: required
    limits: Limits


@final
@dataclass(frozen=True)
class Section:
    """A dataclass; an object in plain data."""

    cls: type[DataclassInstance]
    settings: dict[str, Setting]
    paths: tuple[str, ...]  # of everything below, sections too: run, run.seed, ...

    @property
    def name(self) -> str:
        return self.cls.__name__

    def read(self, value: object, where: str) -> DataclassInstance:
        data = self._known(value, where)
        values = {
            name: setting.kind.read(data[name], f"{where}.{name}")
            for name, setting in self.settings.items()
            if name in data
        }
        for name, setting in self.settings.items():
            if name not in values and setting.default is MISSING:
                raise ConfigError(f"{where}.{name}: missing; it has no default, give {setting.kind.name}")
        try:
            return self.cls(**values)
        except ConfigError as error:
            raise ConfigError(self._placed(str(error), where)) from error

    def plain(self, value: object, where: str) -> dict[str, Any]:
        if type(value) is not self.cls:  # a subclass may have fields that would be lost
            raise ConfigError(f"{where}: {shown(value)} is not a {self.name}")
        return {
            name: setting.kind.plain(getattr(value, name), f"{where}.{name}") for name, setting in self.settings.items()
        }

    def lay(self, data: Mapping[str, Any], layer: object, where: str) -> dict[str, Any]:
        """`layer`, checked on its own, over plain data; a section is laid over, everything else replaced."""
        laid = dict(data)
        for name, value in self._known(layer, where).items():
            kind, here = self.settings[name].kind, f"{where}.{name}"
            section = _section_in(kind)
            if section is not None and isinstance(value, Mapping):
                # Absent, or an optional section that is none: it begins with its defaults.
                under = laid[name] if name in laid and laid[name] is not None else {}
                laid[name] = section.lay(under, value, here)
            else:
                kind.read(value, here)
                laid[name] = value
        return laid

    def assign(self, layer: dict[str, Any], dotted: str, text: str, root: str) -> None:
        """Enter one assignment into a layer."""
        if dotted not in self.paths:
            self._refuse(dotted, root)
        *above, name = dotted.split(".")
        section: Section = self
        for part in above:
            inner = _section_in(section.settings[part].kind)
            assert inner is not None, f"{dotted} is in paths, so {part} is a section"
            section = inner
            if part not in layer or layer[part] is None:
                layer[part] = {}
            layer = layer[part]
        layer[name] = section.settings[name].kind.parse(text, f"{root}.{dotted}")

    def parse(self, _text: str, where: str) -> NoReturn:
        raise ConfigError(f"{where}: a section cannot be set whole; set one of {', '.join(self.settings)}")

    def text(self, _value: object) -> str:
        return "section"  # its fields have rows of their own

    def rows(self, prefix: str, values: Any) -> Iterable[Row]:
        """`values`: an instance of the dataclass whose fields are the defaults, or MISSING for the class's own."""
        for name, setting in self.settings.items():
            default = setting.default if values is MISSING else getattr(values, name)
            section = _section_in(setting.kind)
            if section is not setting.kind:  # a leaf, or a section that may be none
                kind = setting.kind.name if section is None else "section or none"
                shown = "required" if default is MISSING else setting.kind.text(default)
                yield Row(prefix + name, kind, shown, setting.limits.range_text, setting.limits.help)
            if section is not None:
                yield from section.rows(f"{prefix}{name}.", MISSING if default is None else default)

    def _known(self, value: object, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {shown(value)} is not a section; give an object with {_listed(self)}")
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: {shown(key)} is not the name of a setting; known: {_listed(self)}")
            if key not in self.settings:
                self._refuse(key, where)
        return value

    def _refuse(self, path: str, where: str) -> NoReturn:
        """Name the nearest setting if one is near, else what there is in the section that was meant."""
        asked = path[:_MAX_SHOWN]
        near = self._nearest(asked)
        plain = all(part.isidentifier() for part in asked.split(".")) and asked == path
        name = path if plain else shown(path)
        hint = f"did you mean {near!r}?" if near else f"known: {_listed(self._deepest(asked))}"
        raise ConfigError(f"{where}.{name}: no such setting; {hint}")

    def _nearest(self, asked: str) -> str | None:
        """The path with the most similar last name, whose section need not be right; of several the most similar."""
        above, _, last = asked.rpartition(".")
        if above in self.paths and not any(known.startswith(f"{above}.") for known in self.paths):
            return above  # a setting that has nothing inside
        lasts = dict.fromkeys(known.rpartition(".")[2] for known in self.paths)
        for name in difflib.get_close_matches(last, lasts):
            namesakes = [known for known in self.paths if known.rpartition(".")[2] == name]
            near = namesakes if len(namesakes) == 1 else difflib.get_close_matches(asked, namesakes)
            if near:
                return near[0]
        return None

    def _deepest(self, asked: str) -> Section:
        """The section that is meant by as much of the path as there is."""
        section: Section = self
        for part in asked.split(".")[:-1]:
            inner = _section_in(section.settings[part].kind) if part in section.settings else None
            if inner is None:
                break
            section = inner
        return section

    def _placed(self, message: str, where: str) -> str:
        """A `__post_init__`'s own words with the path in front once, whichever way it named its field."""
        message = one_line(message)
        head, colon, rest = message.partition(": ")
        for own in (f"{where}.", f"{where.rpartition('.')[2]}.", f"{self.name}.", ""):
            if colon and head.startswith(own) and head.removeprefix(own) in self.paths:
                return f"{where}.{head.removeprefix(own)}: {rest}"
        return message if message.startswith(f"{where}: ") else f"{where}: {message}"


Kind: TypeAlias = Scalar | Many | Maybe | Section


# ---- from annotations to kinds ---------------------------------------------------------------------------------------


@functools.cache
def section_of(cls: type[DataclassInstance]) -> Section:
    hints = type_hints(cls)
    settings: dict[str, Setting] = {}
    paths: list[str] = []
    for field in dataclasses.fields(cls):
        assert field.init, f"{cls.__name__}.{field.name}: a setting is an argument of the constructor"
        limits = field.metadata["limits"] if "limits" in field.metadata else Limits()
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kind = _kind(hints[field.name], limits, f"{cls.__name__}.{field.name}")
        settings[field.name] = Setting(kind, default, limits)
        inner = _section_in(kind)
        paths += [field.name, *(f"{field.name}.{path}" for path in (inner.paths if inner is not None else ()))]
    return Section(cls, settings, tuple(paths))


def _kind(hint: Any, limits: Limits, where: str) -> Kind:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and len(args) == 2 and type(None) in args:
        inner = _kind(args[0] if args[1] is type(None) else args[1], limits, where)
        assert not isinstance(inner, Maybe), f"{where}: None is allowed twice"
        return Maybe(inner)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return Many(_kind(args[0], limits, where))
    if origin is Literal:
        classes = {type(choice) for choice in args}
        assert len(classes) == 1, f"{where}: the choices of a Literal must be of one type"
        hint, limits = classes.pop(), dataclasses.replace(limits, choices=args)
    if hint in _SCALARS:
        assert hint in (int, float) or not limits.range_text, f"{where}: only numbers have a range"
        return Scalar(hint, limits)
    assert dataclasses.is_dataclass(hint), f"{where}: {hint} is not a type that settings can have"
    assert limits == Limits(help=limits.help), f"{where}: a section has no range of its own"
    return section_of(cast("type[DataclassInstance]", hint))


def _section_in(kind: Kind) -> Section | None:
    """The section itself, also if it is optional."""
    inner = kind.inner if isinstance(kind, Maybe) else kind
    return inner if isinstance(inner, Section) else None


# ---- values and words ------------------------------------------------------------------------------------------------


def _switch(value: bool, _where: str) -> bool:
    return value


def _whole(value: int | float, where: str) -> int:
    if isinstance(value, float):
        hint = f" but a decimal; write {int(value)}" if value.is_integer() and int(value) in _INT64 else ""
        raise ConfigError(f"{where}: {shown(value)} is not a whole number{hint}")
    if value not in _INT64:
        raise ConfigError(f"{where}: {shown(value)} is out of range; a whole number must fit in 64 bits")
    return int(value)


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ConfigError(f"{where}: {shown(value)} is too large for a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {shown(value)} is not a finite number")
    return number


def _storable(value: str, where: str) -> str:
    # argv and JSON escapes can hold surrogates, which no UTF-8 file can; a NUL can be in no file's name.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{where}: {shown(value)} is not text: it holds a broken character") from None
    if "\0" in value:
        raise ConfigError(f"{where}: {shown(value)} is not text: it holds a NUL")
    return str.__str__(value)


# What is looked at, what an error calls it, and what makes it exactly that type.
_SCALARS: dict[type, tuple[Any, str, Callable[[Any, str], Any]]] = {
    bool: (bool, "true or false", _switch),
    int: ((int, float), "a whole number", _whole),
    float: ((int, float), "a number", _finite),
    str: (str, "text", _storable),
}


def strict_json(text: str, where: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in items:
            if key in made:
                raise ConfigError(f"{where}: key {shown(key)} appears twice in one object")
            made[key] = value
        return made

    def whole(digits: str) -> int:
        if len(digits) > 400:  # Python itself refuses at 4300, with an error of its own
            raise ConfigError(f"{where}: a whole number of {len(digits)} digits is out of range")
        return int(digits)

    try:
        return json.loads(
            text,
            object_pairs_hook=pairs,
            parse_int=whole,
            parse_float=lambda digits: _finite_digits(digits, where),
            parse_constant=lambda name: _finite_digits(name, where),
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ConfigError(f"{where}: not JSON: {one_line(error.msg)} ({place})") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a configuration") from None


def _finite_digits(digits: str, where: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {digits[:_MAX_SHOWN]} is not a finite number")
    return number


def shown(value: object) -> str:
    """A user's value in an error: one short line whatever it is."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value) if value.bit_length() <= 128 else f"a whole number of {value.bit_length()} bits"
        case float():
            return float.__repr__(value)
        case str():
            whole = str.__str__(value)
            return repr(whole) if len(whole) <= _MAX_SHOWN else f"{whole[:_MAX_SHOWN]!r}..."
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
    return one_line(f"a value of type {type(value).__name__}")


def _spelled(value: object) -> str:
    """A value as a person writes it after `--set name=`."""
    return value if isinstance(value, str) else "none" if value is None else shown(value)


def _listed(section: Section) -> str:
    return ", ".join(section.settings) or "nothing"


def one_line(text: str) -> str:
    """Newlines, control and bidirectional characters as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
