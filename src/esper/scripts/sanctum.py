"""`esper sanctum [RUN]`: the garden in a terminal, of a run that is going on or has ended; and beside `esper train`.

The screen is a process of its own that reads the run's folder. Whatever becomes of it, training goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, final

from esper.leyline.errors import ConfigError, EsperError, ExitCode
from esper.nissa.run_folder import LATEST, find, resolve

EXAMPLES = """examples:
  esper sanctum                                 the newest run, live or not
  esper sanctum 20261120-1402 --replay 60x      a run that has ended, an hour a minute
  esper sanctum latest --once --screen Churn    print one screen and leave
  esper train ppo --preset digits --sanctum     beside the run that it begins
"""
_SCREENS = ("Garden", "Env", "Policy", "Churn", "Events", "Runs")
_SPEED = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)x?")
_IN_ORDER = "\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1004l\x1b[?2004l\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m"
"""Ends what a screen asks of a terminal: mouse, focus, pasting, keys, the other page, no cursor, colours."""
_WITHOUT = (120, 40)  # columns and lines of a page that is printed where there is no terminal


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser(
        "sanctum",
        help="the garden in a terminal: a run as it goes on, or one that has ended",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="?", default=LATEST, metavar="RUN", help="its id, the beginning of it, or a folder"
    )
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")
    parser.add_argument("--once", action="store_true", help="print one screen and leave")
    parser.add_argument("--screen", choices=_SCREENS, default=_SCREENS[0], metavar="NAME", help=", ".join(_SCREENS))
    parser.add_argument("--replay", metavar="SPEED", help="tell a run again, e.g. 60x as fast as it was")
    parser.add_argument("--ascii", action="store_true", help="no characters but ASCII")
    parser.add_argument("--follow-new", action="store_true", help="go to a newer run when one begins")
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    speed = None if args.replay is None else _speed(args.replay)
    if args.follow_new and (args.once or speed is not None):
        raise ConfigError("--follow-new: is for a screen that stays and follows; leave out --once and --replay")
    if args.once and speed is not None:
        raise ConfigError("--replay: takes time; leave out --once")
    folder = resolve(args.root, args.run)
    return _print_once(folder, args) if args.once else _stay(folder, args, speed)


def _print_once(folder: Path, args: argparse.Namespace) -> int:
    from esper.karn.sanctum.once import once, printed
    from esper.karn.sanctum.watching import Watch

    watch = Watch(folder, args.root)
    width, height = shutil.get_terminal_size(_WITHOUT)
    try:
        lines = once(watch, _SCREENS.index(args.screen), width, height - 1)
    finally:
        watch.close()
    colours = sys.stdout.isatty() and not _plain_terminal() and "NO_COLOR" not in os.environ
    printed(lines, sys.stdout.write, ascii_only=args.ascii or not _unicode(), colours=colours, light=_light())
    return int(ExitCode.DONE)


def _stay(folder: Path, args: argparse.Namespace, speed: float | None) -> int:
    why = why_no_screen()
    if why is not None:
        raise ConfigError(f"sanctum: {why}")
    from esper.karn.sanctum.app import Sanctum
    from esper.karn.sanctum.watching import Watch, one_of

    def open_run(name: str) -> Watch:
        return Watch(resolve(args.root, name), args.root)

    def newer(watched: Path) -> Watch | None:
        try:
            latest = one_of(find(args.root, LATEST).resolve())
            return None if latest == watched else Watch(latest, args.root)
        except EsperError:  # none yet, or not begun: there is time to look again
            return None

    watch = Watch(folder, args.root, speed)
    colours = "NO_COLOR" not in os.environ
    app = Sanctum(
        watch, open_run, newer=newer if args.follow_new else lambda _folder: None,
        ascii_only=args.ascii or not _unicode(), colours=colours, light=_light(),
    )  # fmt: skip
    app.run()
    idle = app.watch_.close()
    if app.failed is not None:
        raise app.failed
    code = app.return_code or int(ExitCode.DONE)
    if not idle:  # a thread that reads a long run would keep us here
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def why_no_screen() -> str | None:
    """Why no screen can be opened in this terminal, and what to do; None where one can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or _plain_terminal():
        return "there is no terminal that it could draw on; `esper sanctum RUN --once` prints one screen"
    for package, extra in (("textual", "tui"), ("duckdb", "mcp")):
        if importlib.util.find_spec(package) is None:
            return f"needs {package}; pip install 'esper[{extra}]'"
    return None


@final
class Beside:
    """The screen in a process of its own, in the terminal of a training process that is silent meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._modes = termios.tcgetattr(sys.stdin)
        program = [sys.executable, "-m", "esper.scripts.main", "sanctum", str(folder), "--root", str(folder.parent)]
        self._process = subprocess.Popen(program)

    def wait(self) -> None:
        """Until the person has closed it. One that was killed leaves a terminal behind that is put in order here."""
        if self._process.wait() < 0:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)
            sys.stdout.write(_IN_ORDER)
            sys.stdout.flush()

    def end(self) -> None:
        """At once."""
        self._process.terminate()
        self.wait()


def open_beside(folder: Path, alone: bool) -> Beside | None:
    """None, and one line that says why, where it cannot be opened. alone: no other ranks would wait for its end."""
    why = why_no_screen() if alone else f"ranks share this terminal; open `esper sanctum {folder}` in another one"
    if why is not None:
        print(f"esper: --sanctum: {why}; training goes on", file=sys.stderr, flush=True)
        return None
    try:
        return Beside(folder)
    except OSError as error:
        print(f"esper: --sanctum: no process for the screen: {error.strerror}; training goes on", file=sys.stderr)
        return None


def _speed(told: str) -> float:
    match = _SPEED.fullmatch(told)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--replay {told!r}: is no speed; write 60x for sixty times as fast")
    return float(match[1])


def _plain_terminal() -> bool:
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _light() -> bool:
    """Whether the terminal says that its background is light, as some do in COLORFGBG."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
