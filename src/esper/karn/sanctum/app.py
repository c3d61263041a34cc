"""The program around the panels: a Textual application that draws lines, follows a run, and reads keys.

Everything that a terminal needs is here; what is drawn is in `board.py`, what keys do in `keys.py`. The boxes are made
once and moved about, so that going to another screen builds nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.strip import Strip
from textual.theme import Theme
from textual.widget import Widget
from textual.widgets import Input, Static

from esper.karn.colours import DARK, LIGHT
from esper.karn.sanctum import board, keys
from esper.karn.sanctum.events import chosen, cursor_of
from esper.karn.sanctum.exporting import export
from esper.karn.sanctum.ink import Line, ascii_of
from esper.karn.sanctum.palette import INKS, palette
from esper.karn.sanctum.scene import Gaze, Scene
from esper.karn.sanctum.watching import Watch, teams_of
from esper.leyline.errors import EsperError

TICK_S = 0.25
_NOTICE_S = 4.0
_THEMES = {
    name: Theme(name, primary=INKS[background], background=background, surface=background, foreground=INKS[background],
                dark=background == DARK)
    for name, background in (("sanctum-dark", DARK), ("sanctum-light", LIGHT))
}  # fmt: skip

Open = Callable[[str], Watch]
"""Opens another run by its name. Raises what opening a run raises."""


class Box(Widget):
    """A rectangle of lines that somebody else has made."""

    DEFAULT_CSS = "Box { position: absolute; }"

    def __init__(self) -> None:
        super().__init__()
        self._lines: Sequence[Line] = ()
        self._strips: list[Strip] = []
        self._region = (-1, -1, -1, -1)
        self._styles: object = None

    def show(self, x: int, y: int, width: int, height: int, lines: Sequence[Line], styles: Mapping[str, Style]) -> None:
        """lines: exactly as many and as wide as the rectangle. styles: by name."""
        if self._region != (x, y, width, height):
            self._region = (x, y, width, height)
            self.styles.offset, self.styles.width, self.styles.height = (x, y), width, height
            self.display = True
        if lines != self._lines or styles is not self._styles:
            self._lines, self._styles = lines, styles
            self._strips = [_strip(line, styles, width) for line in lines]
            self.refresh()

    def hide(self) -> None:
        self.display = False
        self._region = (-1, -1, -1, -1)

    def render_line(self, y: int) -> Strip:
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)


def _strip(line: Line, styles: Mapping[str, Style], width: int) -> Strip:
    return Strip([Segment(words, styles[name]) for words, name in line], width).simplify()


class Help(ModalScreen[None]):
    """All keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", "Close")]
    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll { width: 90%; max-width: 84; height: auto; max-height: 90%; border: solid $foreground;
        background: $background; color: $foreground; padding: 0 1; }
    Help Static { width: 100%; height: auto; }
    """

    def compose(self) -> ComposeResult:
        widest = max(len(key.written) for key in keys.KEYS)
        told = "\n".join(f"{key.written:<{widest}}  {key.does}" for key in keys.KEYS)
        with VerticalScroll():
            yield Static(told, markup=False)


@final
class Sanctum(App[None]):
    """One run in a terminal. It holds no reference to the trainer and writes nothing into the run's folder."""

    ENABLE_COMMAND_PALETTE = True
    TITLE = "Sanctum"
    CSS = """
    Screen { background: $background; color: $foreground; layout: vertical; overflow: hidden; }
    #sought { position: absolute; display: none; border: none; height: 1; padding: 0 1;
        background: $foreground; color: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(name, f"screen({int(name) - 1})" if key.action == "screen" else key.action, key.does, show=False)
        for key in keys.KEYS
        for name in key.names
        if key.action not in ("command_palette",)
    ]

    def __init__(
        self,
        watch: Watch,
        open_run: Open,
        *,
        newer: Callable[[Path], Watch | None] = lambda _folder: None,
        ascii_only: bool = False,
        colours: bool = True,
        light: bool = False,
        exports: Path = Path(),
    ) -> None:
        """newer: a run that has begun since, if newer ones are to be followed. exports: where CSV files go."""
        super().__init__(ansi_color=None if colours else True)
        self.watch_, self._open, self._newer = watch, open_run, newer
        watch.tell = self._answered
        self.gaze = Gaze()
        self._ascii, self._colours, self._exports = ascii_only, colours, exports
        self._palettes = {name: palette(theme.background or DARK, colours) for name, theme in _THEMES.items()}
        self._notice, self._notice_timer = "", None  # type: str, Any
        self._read = self._reading = False
        self._ticks = 0
        self.failed: EsperError | None = None
        """Why the program ended, if a run that had been opened could not be read on."""
        for theme in _THEMES.values():
            self.register_theme(theme)
        self.theme = "sanctum-light" if light else "sanctum-dark"

    @property
    def scene(self) -> Scene:
        return self.watch_.scene(self.gaze)

    # ---- drawing

    def compose(self) -> ComposeResult:
        most = max(len(screen.panels) for screen in board.SCREENS)
        self._boxes = [Box() for _ in range(most + 2)]  # panels, and the lines above and below
        yield from self._boxes
        yield Input(id="sought", placeholder="type:gov env:5 round:3 words", disabled=True)

    def on_mount(self) -> None:
        with_loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            with_loop.add_signal_handler(number, self.exit)
        self.set_interval(TICK_S, self._tick)
        self._tick()
        self._draw()

    def on_resize(self, _event: events.Resize) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        """Fills the boxes. Nothing here reads a file or waits."""
        width, height = self.size
        styles, scene = self._palettes[self.theme if self.theme in _THEMES else "sanctum-dark"], self.scene
        regions = board.place(scene, width, height)
        if not regions:
            drawn = [(0, 0, width, height, board.too_small(width, height))]
        else:
            drawn = [(0, 0, width, 2, board.above(scene, width))]
            drawn += [(at.x, at.y, at.width, at.height, board.lines_of(scene, at)) for at in regions]
            drawn += [(0, height - 1, width, 1, [board.below(scene, width, self._notice)])]
        for box, (x, y, across, down, lines) in zip(self._boxes, drawn, strict=False):
            box.show(x, y, across, down, [ascii_of(line) for line in lines] if self._ascii else lines, styles)
        for box in self._boxes[len(drawn) :]:
            box.hide()

    def _answered(self) -> None:
        """From the thread that asks the views."""
        if self.is_running:
            self.call_from_thread(self._draw)

    def say(self, notice: str) -> None:
        """A line in the place of the keys, for a few seconds."""
        self._notice = notice
        if self._notice_timer is not None:
            self._notice_timer.stop()
        self._notice_timer = self.set_timer(_NOTICE_S, self._unsay)
        self._draw()

    def _unsay(self) -> None:
        self._notice = ""
        self._draw()

    # ---- following

    def _tick(self) -> None:
        if self._reading:
            return
        if not self._read:  # a long run is read beside the screen, which is there meanwhile
            self._reading = True
            self.run_worker(self._first_look, thread=True, exit_on_error=False)
            return
        self._look()

    def _first_look(self) -> None:
        failed = self._try(self.watch_.look)
        self._reading, self._read = False, failed is None
        self.call_from_thread(self._ended, failed)

    def _look(self) -> None:
        self._ended(self._try(self.watch_.look))

    @staticmethod
    def _try(look: Callable[[], bool]) -> EsperError | None:
        try:
            look()
        except EsperError as error:
            return error
        return None

    def _ended(self, failed: EsperError | None) -> None:
        if failed is not None:
            self.failed = failed
            self.exit()
            return
        self._ticks += 1
        if self._ticks % 8 == 0:
            newer = self._newer(self.watch_.folder)
            if newer is not None:
                self._show(newer)
        self._steady()
        self._draw()

    def _steady(self) -> None:
        """The gaze on something that there is."""
        teams, gaze = teams_of(self.watch_.state), self.gaze
        if teams and gaze.team not in teams:
            gaze.team = teams[0]
        envs = self.scene.team.envs
        if envs and gaze.env not in envs:
            gaze.env = envs[0]

    def _show(self, watch: Watch) -> None:
        """Another run."""
        self.watch_.close()
        self.watch_, self._read, self.gaze = watch, False, Gaze()
        watch.tell = self._answered
        self.say(f"run {watch.about.run}")

    # ---- keys

    def action_screen(self, at: int) -> None:
        keys.go(self.scene, at)
        self._draw()

    def action_move(self, how: str) -> None:
        keys.move(self.scene, how)
        self._draw()

    def action_enter(self) -> None:
        name = keys.enter(self.scene)
        if name is not None:
            try:
                self._show(self._open(name))
            except EsperError as error:
                self.say(str(error))
        self._draw()

    def action_leave(self) -> None:
        keys.leave(self.scene)
        self._draw()

    def action_space(self) -> None:
        if self.gaze.screen == keys.RUNS:
            keys.mark(self.scene)
        else:
            self.watch_.paused = not self.watch_.paused
        self._draw()

    def action_c(self) -> None:
        event = chosen(self.scene) if self.gaze.screen == keys.EVENTS else None
        if event is not None:
            self.copy_to_clipboard(cursor_of(event))
            self.say(f"copied {cursor_of(event)}")
        elif self.gaze.screen == keys.RUNS:
            self.gaze.compares = len(self.gaze.marked) == 2
        self._draw()

    def action_copy_sql(self) -> None:
        scene = self.scene
        sql = scene.copied(board.focused(scene).asks(scene))
        self.copy_to_clipboard(sql)
        self.say(f"copied the SQL of {board.focused(scene).name}: {sql}")

    def action_export(self) -> None:
        scene = self.scene
        panel = board.focused(scene)
        history = self.watch_.shelf if panel.of_shelf else self.watch_.history
        sql = panel.asks(scene)
        export(history, sql, scene.bound(sql), self._exports, f"{scene.about.run}-{panel.name}", self._said)
        self.say(f"writing the rows of {panel.name} …")

    def _said(self, words: str) -> None:
        """From the thread that writes a file."""
        if self.is_running:
            self.call_from_thread(self.say, words)

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_filter(self) -> None:
        keys.go(self.scene, keys.EVENTS)
        sought = self.query_one("#sought", Input)
        sought.styles.offset, sought.styles.width = (0, max(0, self.size.height - 1)), self.size.width
        sought.value, sought.disabled, sought.display = self.gaze.sought, False, True
        sought.focus()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.gaze.sought, self.gaze.row = event.value.strip(), 0
        self._close_filter()

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape" and self.query_one("#sought", Input).display:
            event.stop()
            event.prevent_default()
            self._close_filter()

    def _close_filter(self) -> None:
        sought = self.query_one("#sought", Input)
        sought.display, sought.disabled = False, True
        self.set_focus(None)
        self._draw()

    async def action_quit(self) -> None:
        self.exit()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002
        for at, each in enumerate(board.SCREENS):
            yield SystemCommand(each.name, each.question, partial(self.action_screen, at))
        yield SystemCommand("Dark", "for a dark terminal", lambda: self._paint("sanctum-dark"))
        yield SystemCommand("Light", "for a light terminal", lambda: self._paint("sanctum-light"))
        yield SystemCommand("Keys", "what every key does", self.action_help)
        yield SystemCommand("Quit", "training is not touched", self.exit)

    def _paint(self, theme: str) -> None:
        self.theme = theme
        self._draw()
