"""What a panel is drawn from: the live state, where the person looks, and what the views have answered so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from esper.karn.episodes import Episode
from esper.karn.manifests import Named
from esper.karn.manifests import State as Manifest
from esper.karn.sanctum.ink import Line, safe, text
from esper.karn.state import State, Team
from esper.karn.tables import quoted
from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import Envelope, Payload
from esper.nissa.storage import shown

WINDOWS: tuple[int | None, ...] = (10, 50, None)  # rounds that a screen looks back on; None: all
_PARAMETER = re.compile(r"\$(\w+)")
READING = text("reading the run …", "dim")

Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class About:
    """What `run.json` says of a run; empty where it does not say, or does not yet."""

    run: str
    slots: tuple[str, ...] = ()
    metric: str = "metric"
    unit: str = ""
    heads: tuple[str, ...] = ()

    @staticmethod
    def of(folder: Path) -> About:
        """ConfigError and UnknownEventError as for `State.of` of `manifests.py`."""
        told = msgspec.json.decode(Manifest.of(folder).manifest)
        run = Named.of(folder).run
        try:
            known = msgspec.convert(told, _Manifest)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{shown(folder)}: run.json is no manifest of ours: {shown(error)}") from error
        slots = tuple(slot.id for slot in known.slots)
        return About(run, slots, known.metric.name, known.metric.unit, tuple(known.heads))


class _Slot(msgspec.Struct):
    id: str


class _Metric(msgspec.Struct):
    name: str = "metric"
    unit: str = ""


class _Manifest(msgspec.Struct):
    slots: list[_Slot] = msgspec.field(default_factory=list)
    metric: _Metric = msgspec.field(default_factory=_Metric)
    heads: dict[str, Any] = msgspec.field(default_factory=dict)


@dataclass
class Gaze:
    """Where the person looks. Only keys change it."""

    screen: int = 0
    team: str | None = None
    env: int = 0
    slot: int = 0
    round: int | None = None  # of the episode; None: the newest
    step: int | None = None  # the cursor in it; None: the last
    row: int = 0  # of the list that the screen is about
    overlay: int | None = None  # an environment whose metric is shown beside
    window: int = 0  # index into WINDOWS
    sought: str = ""  # what lists are filtered by
    panel: int = 0  # the one that z, x and y are about
    zoomed: bool = False
    marked: tuple[str, ...] = ()  # runs
    compares: bool = False


@dataclass(frozen=True)
class Listed:
    """The events of the Events screen, newest first, and whether there are more of them."""

    events: Sequence[tuple[Envelope, Payload]]
    more: bool


@dataclass
class Scene:
    """All that panels know. `answer` gives rows that the views have told, or None as long as they have not."""

    about: About
    state: State
    gaze: Gaze
    now_s: float
    answer: Callable[[str, Mapping[str, Any]], Rows | None]
    listed: Callable[[], Listed | None]
    shelf: Callable[[str], Rows | None]
    episode_of: Callable[[str | None, int, int], Episode | None]  # of a round that the state no longer has
    trouble: str | None = None  # why a question was refused
    replaying: bool = False
    paused: bool = False

    @property
    def team(self) -> Team:
        return self.state.team(self.gaze.team)

    @property
    def round(self) -> int | None:
        """Of the episode that is looked at."""
        newest = self.team.newest(self.gaze.env)
        return self.gaze.round if self.gaze.round is not None else None if newest is None else newest.round

    @property
    def episode(self) -> Episode | None:
        """The one that is looked at; None where nothing is known of it, or not yet."""
        at = self.round
        here = self.team.episode(at, self.gaze.env)
        return here if here is not None or at is None else self.episode_of(self.gaze.team, at, self.gaze.env)

    @property
    def step(self) -> int | None:
        """Where the cursor is."""
        if self.gaze.step is not None:
            return self.gaze.step
        return None if self.episode is None else self.episode.last_step

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots, in order; numbers as long as `run.json` does not say them."""
        if self.about.slots:
            return tuple(map(safe, self.about.slots))
        episode = self.team.newest(self.gaze.env)
        last = None if episode is None else episode.last
        return tuple(f"slot{i}" for i in range(0 if last is None else len(last.stage)))

    @property
    def slot(self) -> str | None:
        return self.slots[min(self.gaze.slot, len(self.slots) - 1)] if self.slots else None

    @property
    def first_round(self) -> int:
        """Of the window."""
        window = WINDOWS[self.gaze.window]
        return 0 if window is None else max(0, (self.team.round or 0) - window + 1)

    def bound(self, sql: str) -> dict[str, Any]:
        """Values of the parameters that a statement names."""
        values = {
            "run": self.about.run,
            "g": self.gaze.team,
            "env": self.gaze.env,
            "round": self.round,
            "step": self.step,
            "slot": self.slot,
            "first": self.first_round,
            "until": (self.team.round or 0) if self.replaying else 2**31 - 1,
        }
        return {name: values[name] for name in dict.fromkeys(_PARAMETER.findall(sql))}

    def rows(self, sql: str) -> Rows | None:
        return self.answer(sql, self.bound(sql))

    def copied(self, sql: str) -> str:
        """The statement with its values in it, for another program."""
        values = self.bound(sql)

        def literal(match: re.Match[str]) -> str:
            value = values[match[1]]
            return "null" if value is None else quoted(value) if isinstance(value, str) else str(value)

        return _PARAMETER.sub(literal, sql)


Draw = Callable[[Scene, int, int], list[Line]]


@dataclass(frozen=True)
class Panel:
    """A box on a screen. `sql` asks the views for what it shows; `draw` takes the width and height inside its frame."""

    name: str
    title: Callable[[Scene], Line]
    draw: Draw
    sql: Callable[[Scene], str] | str
    least: int = 4  # lines, with the frame
    wants: Callable[[Scene], int] = lambda _scene: 200
    of_shelf: bool = False  # it is asked of all runs, not of the one that is watched

    def asks(self, scene: Scene) -> str:
        """The statement behind it, with parameters."""
        return self.sql if isinstance(self.sql, str) else self.sql(scene)


OF = "run = $run and g is not distinct from $g"
OF_HOST = f"{OF} and round = $round and env = $env"
UNTIL = f"{OF} and round <= $until"
WINDOW = f"{UNTIL} and round >= $first"
