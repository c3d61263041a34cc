"""`esper sanctum` as a person starts it: in a terminal of its own, without one, and with runs in any state."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.karn.conftest import ByHand, started, step
from tests.karn.sanctum.conftest import tell_everything
from tests.scripts.zygote import Zygote

from esper.leyline.errors import ConfigError
from esper.scripts import sanctum
from esper.scripts.main import main

LEFT_ALTERNATE = b"\x1b[?1049l"
COLOUR = re.compile(rb"\x1b\[[\d;]*[34]8;[25];")


@dataclass
class Terminal:
    """A command on a terminal of its own."""

    process: subprocess.Popen[bytes]
    fd: int
    before: list[object]
    told: bytes = field(default=b"")

    def until(self, holds: Callable[[bytes], bool], seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while not holds(self.told):
            assert time.monotonic() < ends, self.told[-2000:]
            self._read()

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> int:
        """Reads on until the command has ended; its exit code."""
        ends = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < ends, self.told[-2000:]
            self._read()
        self._read()
        return self.process.returncode

    @property
    def is_as_it_was(self) -> bool:
        """Echo, line mode and all that, and the screen that was there before."""
        return termios.tcgetattr(self.fd) == self.before and (
            b"\x1b[?1049h" not in self.told or LEFT_ALTERNATE in self.told
        )

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while select.select([self.fd], [], [], 0.05)[0]:
                part = os.read(self.fd, 65536)
                if not part:
                    return
                self.told += part


@contextlib.contextmanager
def terminal(*argv: str, size: tuple[int, int] = (80, 24), **environment: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    known = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORFGBG", "COLUMNS", "LINES")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "esper.scripts.main", *argv],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=known | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
    )  # fmt: skip
    os.set_blocking(ours, True)
    before = termios.tcgetattr(theirs)
    try:
        yield Terminal(process, ours, before)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
        os.close(theirs)


def test_it_draws_on_a_terminal_answers_keys_and_leaves_it_as_it_was(everything: Path) -> None:
    with terminal("sanctum", str(everything)) as seen:
        seen.until(lambda told: b"GARDEN" in told)
        seen.press(b"2")
        seen.until(lambda told: b"LANES" in told)
        assert COLOUR.search(seen.told)
        seen.press(b"q")
        assert seen.end() == 0
        assert seen.is_as_it_was
        assert b"Traceback" not in seen.told


def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(everything: Path) -> None:
    with terminal("sanctum", str(everything), NO_COLOR="1") as seen:
        seen.until(lambda told: b"GARDEN" in told)
        seen.process.send_signal(signal.SIGTERM)
        assert seen.end() == 0
        assert seen.is_as_it_was
        assert not COLOUR.search(seen.told), "NO_COLOR was set"


def test_a_terminal_of_20_by_5_shows_a_sentence_and_q_leaves(everything: Path) -> None:
    with terminal("sanctum", str(everything), size=(20, 5)) as seen:
        seen.until(lambda told: b"Sanctum" in told)
        seen.press(b"q")
        assert seen.end() == 0
        assert seen.is_as_it_was


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "no_color"])
def test_once_prints_plain_text_where_colours_are_not_wanted(everything: Path, environment: dict[str, str]) -> None:
    with terminal("sanctum", str(everything), "--once", **environment) as seen:
        assert seen.end() == 0
        assert b"GARDEN" in seen.told
        assert b"\x1b" not in seen.told
        assert seen.is_as_it_was


def test_a_name_that_commands_terminals_is_shown_as_text(tmp_path: Path) -> None:
    folder = tell_everything(tmp_path / "\x1b]52;c;aGk=\x07[red]run", "\x1b]52;c;aGk=\x07[red]")

    with terminal("sanctum", str(folder), "--once", "--screen", "Events") as seen:
        assert seen.end() == 0
        assert b"\x1b]" not in seen.told
        assert b"\x07" not in seen.told
        assert b"[red]" in seen.told


# ---- without a terminal ----------------------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path: Path, zygote: Zygote) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: str) -> tuple[int, str, str]:
        ended = zygote.run("sanctum", *argv, cwd=tmp_path)
        assert "Traceback" not in ended.err
        return ended.code, ended.out, ended.err

    return run


def refused(told: tuple[int, str, str]) -> str:
    """The one line of an error."""
    code, out, err = told
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("esper")
    return err


def test_without_a_terminal_one_line_says_so(at, everything: Path) -> None:
    assert "--once" in refused(at(str(everything)))


def test_what_cannot_be_shown_is_one_sentence(at, tmp_path: Path) -> None:
    newer = tell_everything(tmp_path / "runs" / "newer")
    (newer / "run.json").write_text('{"schema_version": 9999}')
    (tmp_path / "runs" / "linked" / "ev").mkdir(parents=True)
    (tmp_path / "runs" / "linked" / "run.json").symlink_to(newer / "run.json")

    assert "no such run" in refused(at("nothing", "--once"))
    assert "there is no run" in refused(at("--once", "--root", "elsewhere"))
    assert "events of schema 9999" in refused(at("newer", "--once"))
    assert "is not followed" in refused(at("linked", "--once"))
    assert "is no speed" in refused(at("newer", "--replay", "fast"))
    assert "leave out --once" in refused(at("newer", "--replay", "60x", "--once"))
    assert "leave out --once" in refused(at("newer", "--follow-new", "--once"))


def test_a_run_in_any_state_is_shown(at, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    ByHand(root / "empty")
    written = ByHand(root / "half")
    begin, line = written.line(started()), written.line(step(0, val_metric=12.25), round=0, step=0)
    written.write(begin, line, line[:40], segment="r0.1-000000.open")
    gap = ByHand(root / "gap")
    gap.write(gap.line(started()), gap.line(step(0), n=7, round=0, step=0), b"no event\n")
    (gap.ev / "INCOMPLETE").write_text("r0.1: the disk is full")

    code, out, _ = at("empty", "--once")
    assert (code, "○ WAITING" in out) == (0, True)
    code, out, _ = at("half", "--once")
    assert (code, "✕ DIED" in out, "12.25" in out, "lost 0" in out) == (0, True, True, True)
    code, out, _ = at("gap", "--once")
    assert (code, "lost 6" in out, "the disk is full" in out, "1 lines are no events" in out) == (0, True, True, True)
    code, out, _ = at("half", "--once", "--ascii", "--screen", "Runs")
    assert (code, out.isascii()) == (0, True)


@pytest.mark.parametrize(("package", "extra"), [("textual", "tui"), ("duckdb", "mcp")])
def test_without_a_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    find = sanctum.importlib.util.find_spec
    monkeypatch.setattr(sanctum.importlib.util, "find_spec", lambda name: None if name == package else find(name))

    why = sanctum.why_no_screen()

    assert why is not None
    assert f"needs {package}; pip install 'esper[{extra}]'" in why


# ---- beside training -------------------------------------------------------------------------------------------------


TRAIN = (
    "train",
    "static",
    "--task",
    "digits",
    "--episode-length",
    "3",
    "--workers",
    "1",
    "--set",
    "task.epoch_items=64",
)


def test_training_without_a_terminal_says_so_in_one_line_and_goes_on(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run(*TRAIN, "--quiet", "--sanctum", cwd=tmp_path)

    assert ended.code == 0
    assert ended.err.count("\n") == 1
    assert "esper: --sanctum: there is no terminal" in ended.err
    assert "training goes on" in ended.err
    assert ended.out.startswith("run: ")


@pytest.mark.slow
def test_the_screen_stands_beside_training_and_its_end_is_not_training_s(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with terminal(*TRAIN, "--rounds", "4", "--sanctum") as seen:
        seen.until(lambda told: b"GARDEN" in told, 60)
        seen.press(b"q")
        seen.until(lambda told: b"digest: sha256:" in told, 120)
        assert seen.end() == 0
        assert seen.told.index(LEFT_ALTERNATE) < seen.told.index(b"digest: sha256:")
        assert seen.is_as_it_was
    assert (tmp_path / "runs" / "latest" / "checkpoints" / "final.pt").is_file()


@pytest.mark.slow
def test_a_screen_that_is_killed_ends_nothing_but_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with terminal(*TRAIN, "--rounds", "4", "--sanctum") as seen:
        seen.until(lambda told: b"GARDEN" in told, 60)
        (child,) = Path(f"/proc/{seen.process.pid}/task/{seen.process.pid}/children").read_text().split()[:1]
        os.kill(int(child), signal.SIGKILL)
        seen.until(lambda told: b"digest: sha256:" in told, 120)
        assert seen.end() == 0
        assert seen.is_as_it_was


def test_the_trainer_does_not_import_what_the_screen_needs() -> None:
    wanted = "{'textual', 'duckdb', 'esper.karn.sanctum'}"
    script = f"import sys, esper.scripts.train; sys.exit(bool({wanted} & sys.modules.keys()))"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_screens_that_can_be_asked_for_are_those_that_there_are() -> None:
    from esper.karn.sanctum import board

    assert [screen.name for screen in board.SCREENS] == list(sanctum._SCREENS)
    assert main(["sanctum", "nothing", "--once", "--root", "/nowhere"]) == ConfigError.exit_code
