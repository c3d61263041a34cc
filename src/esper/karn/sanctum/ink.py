"""Lines of a screen as plain values: spans of text with the name of a style. No file here knows a terminal.

A line is a tuple of spans; every character of it is one cell wide, so that `len` measures it. Text that comes from a
run goes through `safe` first. `ascii_of` is the same line for terminals that have nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from rich.cells import get_character_cell_size

from esper.karn.telling import NOT_MEASURED
from esper.leyline.stages import SeedStage
from esper.nissa.lanes import bars
from esper.nissa.progress import STAGE_MARKS, count

Span = tuple[str, str]
"""Text and the name of its style (`palette.py`); a stage is a style too, by its name."""
Line = tuple[Span, ...]
Cell = str | Line

DIM, STRONG, TITLE, ALERT, SELECTED, GOOD, BAR = "dim", "strong", "title", "alert", "selected", "good", "bar"
_SHADES = " ░▒▓█"
_EIGHTHS = "▏▎▍▌▋▊▉█"
_ALPHA = "▁▂▃▄▅▆▇█"
_ASCII = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.,-=+*#", strict=True)),
    **dict(zip("░▒▓", ".:%", strict=True)),
    **dict(zip("▏▎▍▌▋▊▉", "|||++##", strict=True)),
    **dict(zip("┌┐└┘─│", "++++-|", strict=True)),
    **{"·": ".", "–": "-", "±": "~", "→": ">", "↕": "%", "▸": ">", "◂": "<", "●": "*", "■": "#", "✕": "x"},
    **{"▲": "^", "▼": "v", "‖": "=", "…": ".", "Δ": "d", "Σ": "S", "≥": ">", "×": "x", "○": "o", "█": "#", "π": "p"},
}
_TO_ASCII = {ord(char): plain for char, plain in _ASCII.items()}


def text(words: str, style: str = "") -> Line:
    return ((words, style),)


def joined(*parts: Line | str) -> Line:
    """Lines and plain words behind each other."""
    return tuple(span for part in parts for span in (((part, ""),) if isinstance(part, str) else part))


def length(line: Line) -> int:
    return sum(len(words) for words, _ in line)


def plain(line: Line) -> str:
    return "".join(words for words, _ in line)


def fitted(line: Line, width: int) -> Line:
    """Exactly so wide: cut with an ellipsis, or filled up with spaces."""
    room, spans = max(width, 0), []
    if length(line) > room:
        for words, style in line:
            if len(words) >= room:
                spans.append((words[: room - 1] + "…" if room else "", style))
                break
            spans.append((words, style))
            room -= len(words)
        return tuple(spans)
    missing = room - length(line)
    return (*line, (" " * missing, "")) if missing else line


def wrapped(words: str, width: int, style: str = "") -> list[Line]:
    """A sentence on as many lines as it takes; words that are too long are cut apart."""
    lines, line = [], ""
    for whole in words.split():
        pieces = [whole[at : at + width] for at in range(0, len(whole), max(width, 1))]
        for word in pieces:
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
    return [text(each, style) for each in ([*lines, line] if line else lines)]


def framed(title: Line, lines: Sequence[Line], width: int, height: int, focused: bool = False) -> list[Line]:
    """A box with the title in its upper edge, exactly so large. What does not fit below is told in its lower edge."""
    edge = STRONG if focused else DIM
    inner, room = width - 2, height - 2
    head = fitted(title, min(length(title), inner - 2)) if title else ()
    top = joined(text("┌", edge), text(" ", edge), head, text(" ", edge)) if head else text("┌", edge)
    top = joined(top, text("─" * (width - 1 - length(top)) + "┐", edge))
    shown = [joined(text("│", edge), fitted(line, inner), text("│", edge)) for line in lines[:room]]
    empty = joined(text("│", edge), " " * inner, text("│", edge))
    shown += [empty] * (room - len(shown))
    more = f" {len(lines) - room} more " if len(lines) > room else ""
    more = more if len(more) <= inner else ""
    bottom = text("└" + "─" * (inner - len(more)) + more + "┘", edge)
    return [top, *shown, bottom]


@lru_cache(maxsize=4096)
def safe(words: str) -> str:
    """Text from a run: nothing that commands a terminal, and what is not one cell wide is a question mark."""
    return "".join("?" if get_character_cell_size(char) != 1 else char for char in words if char.isprintable())


def ascii_of(line: Line) -> Line:
    return tuple((words.translate(_TO_ASCII).encode("ascii", "replace").decode(), style) for words, style in line)


# ---- numbers -------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """A dash for what was not measured, and `nan` or `inf` for what is no number."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return f"{value}"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """Of 1, as a percentage."""
    return NOT_MEASURED if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def size(value: float | None, signed: bool = False) -> str:
    """`812`, `41.2k`, `+8.1k`."""
    if value is None:
        return NOT_MEASURED
    sign = "-" if value < 0 else "+" if signed else ""
    return sign + count(round(abs(value)))


# ---- drawn in characters -------------------------------------------------------------------------------------------


def thinned(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: means of as many parts of equal length; or each value several times, as often as fits."""
    n = len(values)
    if n <= width or width <= 0:
        return [value for value in values[: max(width, 0)] for _ in range(max(1, width // n))]
    parts = (values[at * n // width : (at + 1) * n // width] for at in range(width))
    return [_mean(part) for part in parts]


def trend(values: Sequence[float | None], width: int) -> Line:
    """A bar per value, or per part of them, from the least to the greatest; exactly so wide. What stays the same is a
    line: at the bottom for 0, in the middle for anything else."""
    known = thinned([value if value is None or math.isfinite(value) else None for value in values], width)
    told = {value for value in known if value is not None}
    if len(told) == 1:
        flat = _ALPHA[0] if told == {0.0} else _ALPHA[3]
        return text("".join(" " if value is None else flat for value in known).ljust(width), BAR)
    return text(bars(known).ljust(width), BAR)


def shades(values: Sequence[float | None], width: int) -> Line:
    """The same for shares of 1: the fuller the darker, from empty for 0."""
    cells = thinned(values, width)
    drawn = "".join(" " if value is None else _SHADES[_level(value, len(_SHADES) - 1)] for value in cells)
    return text(drawn.ljust(width), BAR)


def bar(value: float | None, width: int) -> Line:
    """A share of 1 as a bar in eighths of a cell; exactly so wide."""
    eighths = 0 if value is None or not math.isfinite(value) else round(min(max(value, 0.0), 1.0) * 8 * width)
    whole, rest = divmod(eighths, 8)
    return text(("█" * whole + (_EIGHTHS[rest - 1] if rest else "")).ljust(width), BAR)


def alpha_bar(alpha: float, width: int = 3) -> str:
    return _ALPHA[_level(alpha, len(_ALPHA) - 1)] * width


def letter(stage: SeedStage) -> str:
    return STAGE_MARKS[stage][0]


def mark(stage: SeedStage) -> Span:
    return letter(stage), stage.name


def marks(stages: Iterable[SeedStage]) -> Line:
    """A letter per stage, neighbours of the same stage in one span."""
    spans: list[tuple[str, str]] = []
    for stage in stages:
        if spans and spans[-1][1] == stage.name:
            spans[-1] = (spans[-1][0] + letter(stage), stage.name)
        else:
            spans.append(mark(stage))
    return tuple(spans)


def row(cells: Sequence[Cell], widths: Sequence[int]) -> Line:
    """Cells in columns, a space between them; a negative width sets its cell flush right."""
    spans: list[Span] = []
    for cell, width in zip(cells, widths, strict=True):
        line = text(cell) if isinstance(cell, str) else cell
        missing = abs(width) - length(line)
        if width < 0 and missing > 0:
            line = joined(" " * missing, line)
        spans += [(" ", ""), *fitted(line, abs(width))]
    return tuple(spans[1:])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _level(value: float, top: int) -> int:
    """At 0 nothing, above it at least 1."""
    if not math.isfinite(value) or value <= 0:
        return 0
    return min(top, max(1, round(value * top)))
