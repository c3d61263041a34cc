"""Named things of one kind (blueprints, hosts, tasks, presets): registered once, found by name.

A registry is an ordinary object that belongs to the module of its kind; there is no table of tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, overload

from esper.leyline.errors import ConfigError, did_you_mean

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Registry(Generic[T]):
    """A mapping name -> T in the order of registration; `kind` is the noun that errors use.

    ```python
    BLUEPRINTS: Registry[Blueprint] = Registry("blueprint")

    @BLUEPRINTS.register("conv_heavy")
    def conv_heavy(channels: int) -> nn.Module: ...
    ```
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    @overload
    def register(self, name: str, /) -> Callable[[T], T]: ...
    @overload
    def register(self, name: str, entry: T, /) -> T: ...
    def register(self, name: str, /, *entry: T) -> T | Callable[[T], T]:
        """Add one entry: `register(name, entry)`, or `@register(name)` above its definition.

        Raises ConfigError when the name is taken, or is not 1 to 64 of a-z, 0-9, _ and -.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{self.kind} {name[:80]!r}: a name is 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit"
            )

        def add(thing: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered already; choose another name")
            self._entries[name] = thing
            return thing

        return add(*entry) if entry else add

    def get(self, name: str) -> T:
        """The entry of that name; ConfigError with the nearest name if there is none."""
        if name in self._entries:
            return self._entries[name]
        asked = name[:80]  # a pasted file should not fill the screen
        hint = did_you_mean(asked, self._entries) or ";"
        known = ", ".join(self._entries) or "none"
        raise ConfigError(f"unknown {self.kind} {asked!r}{hint} known: {known}")

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def items(self) -> tuple[tuple[str, T], ...]:
        return tuple(self._entries.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
