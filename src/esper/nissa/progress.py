"""The one line on the terminal while a run trains, on stderr, so that stdout has the results only.

    with Progress() as progress:
        progress.start(total_steps=cfg.rounds * cfg.episode_length, description="digits, heuristic")
        ...
        progress.step(StepView(...))        # after every step of the main loop

On a terminal the line stays in place and is drawn by a thread of its own, twice a second. Anywhere else one plain
line appears at each tenth of the way. With `quiet=True` there is nothing at all.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO, final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from esper.leyline.stages import SeedStage

STAGE_MARKS: dict[SeedStage, tuple[str, str]] = {
    SeedStage.DORMANT: ("·", "grey50"),
    SeedStage.GERMINATED: ("G", "#56B4E9"),
    SeedStage.TRAINING: ("T", "#E69F00"),
    SeedStage.BLENDING: ("B", "#CC79A7"),
    SeedStage.HOLDING: ("H", "#0072B2"),
    SeedStage.FOSSILIZED: ("F", "#009E73"),
    SeedStage.PRUNED: ("X", "#D55E00"),
    SeedStage.EMBARGOED: ("·", "grey50"),
    SeedStage.RESETTING: ("·", "grey50"),
}
"""Letter and colour of each stage on every screen (Okabe-Ito, told apart by colour-blind eyes)."""

_REMEMBERED = 10  # step times that the estimate rests on
_ENOUGH = 3  # step times below which there is no estimate
_NOT_MEASURED = "–"


@dataclass(frozen=True)
class StepView:
    """What the line shows of one step. Counts run from 1."""

    round: int
    rounds: int
    epoch: int  # of the episode
    epochs: int
    metric: float | None  # on validation items, mean over environments; None: not measured
    metric_name: str
    metric_unit: str
    stages: tuple[SeedStage, ...]  # of the slots of environment 0, in order
    params: int  # of environment 0, host and seeds


@final
class Progress:
    """`start`, `step` after every step, `stop`. Nothing here can stop training, not even a terminal that is gone."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._live: Live | None = None

    def start(self, total_steps: int, description: str, done: int = 0) -> None:
        """`done`: steps of an earlier process, for a run that goes on."""
        self._description = _plain(description, 48)
        self._total, self._done = max(total_steps, 1), done
        self._began = self._last_step = self._clock()
        self._step_times: tuple[float, ...] = ()  # replaced, never changed: the drawing thread reads it
        self._view: StepView | None = None
        if not self._quiet and _is_terminal(self._stream):
            console = Console(file=self._stream)
            # stdout is left alone: what others print there is a result.
            self._live = Live(
                console=console,
                get_renderable=lambda: self._line(console.width),
                refresh_per_second=2,
                redirect_stdout=False,
                transient=True,
            )
            with suppress(OSError):
                self._live.start()

    def step(self, view: StepView) -> None:
        now = self._clock()
        self._step_times = (*self._step_times, now - self._last_step)[-_REMEMBERED:]
        self._last_step, self._view = now, view
        tenths = self._done * 10 // self._total
        self._done += 1
        if self._live is None and not self._quiet and self._done * 10 // self._total > tenths:
            self._print()

    def stop(self) -> None:
        """Leave the last line behind. Doing it twice is no harm."""
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):
                live.stop()
            if self._view is not None:
                self._print()

    def _print(self) -> None:
        try:
            print(self._line().plain, file=self._stream, flush=True)
        except OSError:  # nobody is listening any more
            self._quiet = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- the line

    def _line(self, width: int | None = None) -> Text:
        """All parts, or those that matter most where `width` is too narrow for all."""
        parts = self._parts()
        line = _joined(parts)
        for name in ("params", "round", "description"):
            if width is None or line.cell_len <= width:
                break
            parts.pop(name, None)
            line = _joined(parts)
        return line

    def _parts(self) -> dict[str, Text]:
        parts = {"description": Text(self._description, style="bold")}
        elapsed = Text(duration(self._clock() - self._began), style="dim")
        view = self._view
        if view is None:
            return parts | {"metric": Text("preparing"), "elapsed": elapsed}
        parts["done"] = Text(f"{100 * self._done // self._total:3}%")
        if view.rounds > 1:
            parts["round"] = Text(f"round {_of(view.round, view.rounds)}")
        parts["epoch"] = Text(f"epoch {_of(view.epoch, view.epochs)}")
        parts["metric"] = Text(f"{_plain(view.metric_name, 24)} {_metric(view.metric, view.metric_unit)}", style="bold")
        parts["seeds"] = Text(" ").join(Text(*STAGE_MARKS[stage]) for stage in view.stages)
        parts["params"] = Text(f"{count(view.params)} params")
        parts["elapsed"] = elapsed
        left = self._time_left()
        return parts if left is None else parts | {"left": Text(left)}

    def _time_left(self) -> str | None:
        """`ETA 1h12m ±9m`: steps left times the median of the last steps, with the spread of their quartiles."""
        left = self._total - self._done
        if len(self._step_times) < _ENOUGH or left <= 0:
            return None
        low, middle, high = statistics.quantiles(self._step_times, n=4, method="inclusive")
        return f"ETA {duration(left * middle)} ±{duration(left * (high - low) / 2)}"


def _joined(parts: dict[str, Text]) -> Text:
    return Text("  ", no_wrap=True, overflow="ellipsis").join(parts.values())


def _is_terminal(stream: TextIO) -> bool:
    # isatty, not Rich's own guess: FORCE_COLOR must not animate a log file. A dumb terminal cannot move its cursor.
    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def _plain(text: str, longest: int) -> str:
    """Text from a name: no control or bidirectional characters, on one line, not too long."""
    line = "".join(char for char in text if char.isprintable())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _of(part: int, whole: int) -> str:
    return f"{part:>{len(str(whole))}}/{whole}"  # as wide at the start as at the end, so that nothing jumps


def _metric(value: float | None, unit: str) -> str:
    if value is None:
        return _NOT_MEASURED
    return f"{value:.2f} {_plain(unit, 12)}".rstrip()


def count(number: int) -> str:
    """`812`, `41.2k`, `1.3M`."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def duration(seconds: float) -> str:
    """`8s`, `4m05s`, `1h12m`, `2d03h`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"
