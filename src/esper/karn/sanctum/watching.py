"""A run that is watched: its folder followed into a state, and the views asked beside it. No terminal here.

watch = Watch(folder, root)
watch.look()                       # takes in what was told since; False where nothing was
scene = watch.scene(gaze)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

from esper.karn.episodes import Episode
from esper.karn.feed import Event, Feed, Replay
from esper.karn.manifests import is_running
from esper.karn.memory import folders_of, open_memory, why_unread
from esper.karn.own_files import own_arms
from esper.karn.sanctum.events import LISTED
from esper.karn.sanctum.history import History
from esper.karn.sanctum.scene import About, Gaze, Listed, Scene
from esper.karn.state import State
from esper.karn.store import Store
from esper.karn.told_again import Sought, episode, listed
from esper.leyline.errors import EsperError
from esper.nissa.run_folder import runs as run_ids

_SHELF = 30  # runs of the list


@final
class Watch:
    """One run. `look` and everything that a scene asks for belong to one thread."""

    def __init__(self, folder: Path, root: Path, speed: float | None = None) -> None:
        """speed: of a replay. Raises what opening a run raises: ConfigError, UnknownEventError, StorageError."""
        self.folder = folder = one_of(folder.resolve())
        self.about = About.of(folder)
        self.state = State()
        self.paused = False
        self._feed = Feed(folder)
        self._replay = None if speed is None else Replay(folder, speed)
        self._began = time.monotonic()
        live = speed is None
        self.tell: Callable[[], None] = lambda: None
        """Is called, in another thread, when the views have answered."""
        self.history = History(lambda: open_memory([folder]), lambda: self.tell(), live=live)
        self.shelf = History(lambda: open_shelf(root, folder), lambda: self.tell(), live=False)

    def look(self) -> bool:
        """Whether anything is different now. Raises UnknownEventError and ConfigError for a run that has become
        unreadable."""
        if self.paused:
            return False
        before = self.state.version
        if self._replay is None:
            for where, payload in self._feed.news():
                self.state.take(where, payload)
            self.state.hear(self._feed.condition())
            if not self.about.slots:
                self.about = About.of(self.folder)
        else:
            for where, payload in self._replay.until(time.monotonic() - self._began):
                self.state.take(where, payload)
            self.state.hear(self._replay.condition())
            if self.state.version != before:
                self.history.again()
        return self.state.version != before

    def scene(self, gaze: Gaze) -> Scene:
        def answered() -> Listed | None:
            sought, until = Sought.of(gaze.sought), self._until()
            found: list[Event] | None = self.history.ask(
                ("events", sought), lambda con: listed(con, self.about.run, sought, LISTED + 1, until)
            )
            return None if found is None else Listed(found[:LISTED], len(found) > LISTED)

        def of(team: str | None, round_: int, env: int) -> Episode | None:
            found: Episode | None = self.history.ask(
                ("episode", team, round_, env), lambda con: episode(con, self.about.run, team, round_, env)
            )
            return found

        return Scene(
            about=self.about,
            state=self.state,
            gaze=gaze,
            now_s=self.now_s,
            answer=self.history.rows,
            listed=answered,
            shelf=lambda sql: self.shelf.rows(sql, {}),
            episode_of=of,
            trouble=self.history.trouble or self.shelf.trouble,
            replaying=self._replay is not None,
            paused=self.paused,
        )

    @property
    def now_s(self) -> float:
        """By the clock of the run: a replay has its own."""
        return time.time() if self._replay is None else self._replay.clock(time.monotonic() - self._began)

    def settle(self, timeout_s: float) -> None:
        self.history.settle(timeout_s)
        self.shelf.settle(timeout_s)

    def close(self) -> bool:
        """False if a thread is at work still; it ends with this process."""
        return all([self.history.close(), self.shelf.close()])

    def _until(self) -> int | None:
        rounds = [team.round for team in self.state.teams.values() if team.round is not None]
        return None if self._replay is None else max(rounds, default=0)


def one_of(folder: Path) -> Path:
    """The run itself; of a run with arms the arm that is going on, or the one that was heard of last."""
    arms = own_arms(folder)
    return max(arms, key=lambda arm: (is_running(arm), (arm / "ev").stat().st_mtime)) if arms else folder


def open_shelf(root: Path, watched: Path) -> Store:
    """The newest runs below `root`, arms among them, and the one that is watched; with `gates` and the table `unread`
    of those that this version cannot read."""
    folders: list[Path] = [watched]
    for run in reversed(run_ids(root)):
        with suppress(EsperError):  # gone since it was listed
            folders += folders_of(root, run)
        if len(folders) > _SHELF:
            break
    unread = {folder: why for folder in folders[:_SHELF] if (why := why_unread(folder)) is not None}
    store = open_memory([folder for folder in folders[:_SHELF] if folder not in unread])
    store.con.execute("create table unread (run VARCHAR, why VARCHAR)")
    for folder, why in unread.items():
        store.con.execute("insert into unread values (?, ?)", [folder.name, why])
    return store


def teams_of(state: State) -> Sequence[str | None]:
    """Names of the learners, in order."""
    return sorted(state.teams, key=lambda name: name or "")
