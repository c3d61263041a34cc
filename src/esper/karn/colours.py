"""Signs and colours of everything that is drawn: no colour ever comes without a letter, a dash, a symbol or a pattern.

`STAGES` are the marks of the stages on every screen, `look(i)` is what the i-th of any other list looks like. Colours
are Okabe and Ito's, which colour-blind eyes tell apart; `readable` darkens or lightens one for a background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.color import Color

from esper.nissa.progress import STAGE_MARKS

LIGHT, DARK = "#FFFFFF", "#14181D"
"""Backgrounds of figures, in a light and a dark surrounding."""
CONTRAST = 3.0  # least of anything drawn against its background (WCAG 2.2, 1.4.11)
TEXT_CONTRAST = 4.5  # least of text (WCAG 2.2, 1.4.3)
_FINE = 50  # steps from a colour to black or white that are tried

GREY = "#808080"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "hexagon", "bowtie")
PATTERNS = ("", "/", "x", ".", "\\", "+", "|", "-")


@dataclass(frozen=True)
class Mark:
    """A sign of one character, and a colour that is read on a light and on a dark background."""

    letter: str
    colour: str


@dataclass(frozen=True)
class Look:
    """How one of several things is drawn, as a line, as points or as an area."""

    colour: str
    dash: str
    symbol: str
    pattern: str


QUIET = Look(GREY, "solid", "diamond-open", "")
"""What is there to compare with: sums, limits, all the others."""


def luminance(colour: str) -> float:
    """Of `#RRGGBB`: 0 is black, 1 is white (WCAG 2.2, relative luminance)."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1, the same, to 21, black on white."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def readable(colour: str, backgrounds: Sequence[str] = (LIGHT, DARK), least: float = CONTRAST) -> str:
    """The nearest shade towards black or white that stands out from all of these backgrounds by this contrast."""
    for step in range(_FINE + 1):
        for end in ("#000000", "#FFFFFF"):
            shade = _mix(colour, end, step / _FINE)
            if min(contrast(shade, background) for background in backgrounds) >= least:
                return shade
    raise AssertionError(f"no shade of {colour} stands out from {', '.join(backgrounds)}")


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on this colour."""
    return max(("#000000", "#FFFFFF"), key=lambda ink: contrast(ink, colour))


def look(index: int) -> Look:
    """The looks of a list's items: eight differ in colour and in pattern, ten in symbol, six in dash."""
    again, place = divmod(index, len(PATTERNS))
    return Look(
        colour=readable((*OKABE_ITO, GREY)[place]),
        dash=DASHES[index % len(DASHES)],
        symbol=SYMBOLS[index % len(SYMBOLS)],
        pattern=PATTERNS[(place + again) % len(PATTERNS)],  # a colour that comes again has another pattern
    )


def _mix(colour: str, end: str, share: float) -> str:
    pairs = [(int(colour[start : start + 2], 16), int(end[start : start + 2], 16)) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in pairs)


STAGES: dict[str, Mark] = {
    stage.name: Mark(letter, readable(Color.parse(colour).get_truecolor().hex.upper()))
    for stage, (letter, colour) in STAGE_MARKS.items()
}
"""The mark of each stage, by its name."""
