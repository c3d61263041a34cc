"""One screen, printed: for scripts, dumb terminals and mails. No Textual here."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from esper.karn.colours import DARK, LIGHT
from esper.karn.sanctum import board
from esper.karn.sanctum.ink import Line, ascii_of, plain
from esper.karn.sanctum.palette import palette
from esper.karn.sanctum.scene import Gaze
from esper.karn.sanctum.watching import Watch, teams_of

_PATIENCE_S = 60.0
_ROUNDS = 3  # questions that only come up when others are answered


def once(watch: Watch, screen: int, width: int, height: int) -> list[Line]:
    """A screen of a run, with everything that it asks of the views answered. Raises what reading the run raises."""
    watch.look()
    gaze = Gaze(screen=screen)
    scene = watch.scene(gaze)
    teams = teams_of(watch.state)
    gaze.team = teams[0] if teams else None
    gaze.env = next(iter(scene.team.envs), 0)
    for _ in range(_ROUNDS):
        board.whole(scene, width, height)
        watch.settle(_PATIENCE_S)
    return board.whole(scene, width, height)


def printed(lines: list[Line], write: Callable[[str], object], *, ascii_only: bool, colours: bool, light: bool) -> None:
    """The lines as text; with colours as a terminal takes them."""
    shown = [ascii_of(line) for line in lines] if ascii_only else lines
    if not colours:
        write("\n".join(plain(line).rstrip() for line in shown) + "\n")
        return
    styles = palette(LIGHT if light else DARK)
    console = Console(force_terminal=True, color_system="truecolor", width=10_000, highlight=False)
    for line in shown:
        with console.capture() as told:
            console.print(Text.assemble(*((words, styles[name]) for words, name in line)), end="\n", soft_wrap=True)
        write(told.get())
