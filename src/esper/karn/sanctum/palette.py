"""What the names of styles mean on a dark and on a light terminal, and without any colour."""

from __future__ import annotations

from collections.abc import Mapping

from rich.color import Color
from rich.style import Style

from esper.karn.colours import DARK, LIGHT, OKABE_ITO, TEXT_CONTRAST, readable
from esper.karn.sanctum import ink
from esper.leyline.stages import SeedStage
from esper.nissa.progress import STAGE_MARKS

INKS = {DARK: "#D8DEE6", LIGHT: "#1F2328"}
_GREY, _BAR, _RED, _GREEN = "#7C8794", "#93A1B0", OKABE_ITO[1], OKABE_ITO[2]


def stage_colour(stage: SeedStage, background: str) -> str:
    """Okabe and Ito's, in the nearest shade that is read as text on this background."""
    colour = Color.parse(STAGE_MARKS[stage][1]).get_truecolor().hex
    return readable(colour.upper(), [background], TEXT_CONTRAST)


def palette(background: str, colours: bool = True) -> Mapping[str, Style]:
    """A style per name. Without colours there is bold and reverse alone, and no background."""
    if not colours:
        bold = dict.fromkeys((ink.STRONG, ink.TITLE, ink.ALERT), Style(bold=True))
        plain = dict.fromkeys(("", ink.DIM, ink.GOOD, ink.BAR, *(stage.name for stage in SeedStage)), Style())
        return {**plain, **bold, ink.SELECTED: Style(reverse=True)}

    def inked(colour: str, bold: bool | None = None) -> Style:
        return Style(color=readable(colour, [background], TEXT_CONTRAST), bgcolor=background, bold=bold)

    return {
        "": inked(INKS[background]),
        ink.DIM: inked(_GREY),
        ink.STRONG: inked(INKS[background], bold=True),
        ink.TITLE: inked(INKS[background], bold=True),
        ink.ALERT: inked(_RED, bold=True),
        ink.GOOD: inked(_GREEN),
        ink.BAR: inked(_BAR),
        ink.SELECTED: Style(color=background, bgcolor=INKS[background], bold=True),
        **{stage.name: inked(stage_colour(stage, background)) for stage in SeedStage},
    }
