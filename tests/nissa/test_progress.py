"""The progress line: calm on a terminal, sparse in a log, silent on request, and never on stdout."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.leyline.stages import SeedStage
from esper.nissa.progress import STAGE_MARKS, Progress, StepView


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def view(epoch: int = 1, **other: object) -> StepView:
    known: dict[str, object] = {
        "round": 1,
        "rounds": 1,
        "epoch": epoch,
        "epochs": 20,
        "metric": 91.234,
        "metric_name": "accuracy",
        "metric_unit": "%",
        "stages": (SeedStage.DORMANT, SeedStage.TRAINING, SeedStage.FOSSILIZED),
        "params": 41_234,
    }
    return StepView(**{**known, **other})  # type: ignore[arg-type]


def lines_of(step_times: list[float], total: int, description: str = "digits", **other: object) -> list[str]:
    """What a log gets when steps take these many seconds."""
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress.start(total, description)
        for epoch, seconds in enumerate(step_times, start=1):
            clock.now += seconds
            progress.step(view(epoch, **other))
    return stream.getvalue().splitlines()


def test_a_log_gets_one_plain_line_at_each_tenth_of_the_way():
    lines = lines_of([1.0] * 20, total=20)

    assert len(lines) == 10
    assert lines[0] == "digits   10%  epoch  2/20  accuracy 91.23 %  · T F  41.2k params  2s"
    assert lines[1] == "digits   20%  epoch  4/20  accuracy 91.23 %  · T F  41.2k params  4s  ETA 16s ±0s"
    assert lines[9] == "digits  100%  epoch 20/20  accuracy 91.23 %  · T F  41.2k params  20s"


def test_a_run_shorter_than_ten_steps_gets_a_line_per_step():
    assert len(lines_of([1.0] * 3, total=3)) == 3


def test_the_estimate_is_the_median_of_the_last_ten_steps_with_the_spread_of_their_quartiles():
    slow_start = [1000.0] * 10
    lines = lines_of([*slow_start, *([120.0] * 5), *([240.0] * 5)], total=40)

    # median 180 s and quartiles 120 s and 240 s, times the 20 steps that are left
    assert lines[-1].endswith("ETA 1h00m ±20m00s")


def test_rounds_are_shown_where_there_is_more_than_one():
    assert "round   7/100  epoch  1/20" in lines_of([1.0], total=1, round=7, rounds=100)[0]
    assert "round" not in lines_of([1.0], total=1)[0]


def test_a_metric_that_was_not_measured_is_a_dash_and_a_broken_one_says_so():
    assert "accuracy –  " in lines_of([1.0], total=1, metric=None)[0]
    assert "accuracy nan %  " in lines_of([1.0], total=1, metric=float("nan"))[0]


def test_names_cannot_draw_on_the_terminal():
    (line,) = lines_of(
        [1.0], total=1, description="[bold]\x1b[31mred\r\n\u202edne", metric_name="acc\x07", metric_unit="[/]\x9b"
    )

    assert line.startswith("[bold][31mreddne  100%  ")
    assert "acc 91.23 [/]  " in line


def test_a_long_name_is_cut():
    (line,) = lines_of([1.0], total=1, description="x" * 500)

    assert line.startswith("x" * 47 + "…  ")


def test_quiet_means_nothing():
    stream = io.StringIO()
    with Progress(stream=stream, quiet=True) as progress:
        progress.start(2, "digits")
        progress.step(view())
        progress.step(view())

    assert stream.getvalue() == ""


def test_a_log_that_nobody_reads_any_more_does_not_stop_training():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Progress(stream=Gone()) as progress:
        progress.start(2, "digits")
        progress.step(view())
        progress.step(view())


def test_a_run_that_goes_on_begins_where_it_was():
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.start(20, "digits", done=11)
        progress.step(view(12))

    assert stream.getvalue().startswith("digits   60%  epoch 12/20")


def test_every_stage_has_a_mark():
    assert set(STAGE_MARKS) == set(SeedStage)


ON_A_TERMINAL = """
import sys, time
from esper.leyline.stages import SeedStage
from esper.nissa.progress import Progress, StepView
with Progress() as progress:
    progress.start(30, "digits, heuristic")
    for n in range(30):
        time.sleep(0.025)
        progress.step(StepView(1, 3, n + 1, 30, 50.0 + n, "accuracy", "%", (SeedStage.BLENDING,), 41_234))
print("the result")
"""


def on_a_terminal(**environment: str) -> tuple[str, str]:
    """What a person sees, and what stdout has."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdin=slave,
        stderr=slave,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm", **environment},
        text=True,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the last one has closed it
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    return seen.decode(), out


def test_on_a_terminal_one_line_stays_in_place_and_stdout_has_the_result_only():
    seen, out = on_a_terminal()

    assert out == "the result\n"
    assert seen.count("\n") <= 2
    assert "\x1b[2K" in seen
    assert "params" not in seen.partition("\n")[0], "60 columns are too few for everything"
    assert re.search(r"accuracy 79\.00 %  B  41\.2k params  \d+s$", seen.rstrip())


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}])
def test_a_terminal_that_cannot_move_its_cursor_is_treated_as_a_log(environment):
    seen, _ = on_a_terminal(**environment)

    assert seen.count("\n") == 10
    assert "\x1b" not in seen


def test_forced_colours_do_not_animate_a_log(tmp_path: Path):
    log = tmp_path / "log"
    with log.open("w") as stream:
        subprocess.run(
            [sys.executable, "-c", ON_A_TERMINAL],
            stderr=stream,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "FORCE_COLOR": "1"},
            check=True,
            timeout=30,
        )

    assert len(log.read_text().splitlines()) == 10
    assert "\x1b" not in log.read_text()
