"""Runs as one file that needs nothing else: what was grown, when, what it cost, what it brought, and every figure.

    Path("out.html").write_text(html(con, ["20261120-140233-digits-a1b2c3"], "digits"))     # `con` has the views
    image(draw("lanes", con, runs), Path("lanes.svg"))

The page holds plotly.js, the figures' numbers and nothing that is fetched; a content security policy forbids the rest.
Figures are drawn when they come into view, in the colours of the reader's surrounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import duckdb
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from esper.karn.colours import DARK, LIGHT
from esper.karn.figures import PANELS, Line, Nothing, Panel, Subject, Table, lines_of, subject
from esper.karn.figures.canvas import LEGEND_ROW, WIDTH, legend_rows, template
from esper.karn.story import problems, story
from esper.leyline.errors import ConfigError
from esper.nissa.storage import shown, storage_errors

DETAILED = 8  # runs that get figures of their own; the others are in the tables and in what shows all runs
FORMATS = ("png", "svg")
_SHORT = 24  # characters of a cell that are kept on one line
_BUTTONS = 32  # pixels above a figure
_DIGITS = 5  # of every number, which is more than a screen can show


def html(con: duckdb.DuckDBPyConnection, runs: Sequence[str], title: str) -> str:
    """The page about these runs, in their order. Raises ConfigError where there is none."""
    lines = lines_of(con, runs)
    if not lines:
        raise ConfigError("a report needs a run")
    parts = [
        _problems(con, runs),
        _story(subject(con, lines)) if len(lines) == 1 else "",
        *(_panel(panel, subject(con, lines)) for panel in PANELS.values() if panel.together),
        *(_details(con, line, lines) for line in lines[:DETAILED]),
    ]
    if len(lines) > DETAILED:
        parts.append(
            f"<p>These are the first {DETAILED} of {len(lines)} runs; make reports of their own of the others.</p>"
        )
    return _PAGE.format(
        title=escape(shown(title)),
        body="\n".join(filter(None, parts)),
        policy=escape(_POLICY),
        style=_STYLE,
        themes=_script({"light": _theme(LIGHT), "dark": _theme(DARK)}),
        plotly=get_plotlyjs(),
        draw=_DRAW,
    )


def image(figure: go.Figure, path: Path) -> None:
    """Writes a picture, PNG or SVG by the name's ending. ConfigError where kaleido or a browser is missing."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ConfigError(f"{shown(path)}: a picture's name ends in {' or '.join(f'.{each}' for each in FORMATS)}")
    try:
        import_module("kaleido")
    except ImportError:
        raise ConfigError(f"{shown(path)}: pictures need kaleido; pip install 'esper[web]'") from None
    try:
        data = figure.to_image(format=kind, width=WIDTH, height=figure.layout.height, scale=2)
    except RuntimeError as error:  # what kaleido raises where it finds no browser, or one that does not start
        why = shown(str(error).strip().partition("\n")[0])
        raise ConfigError(
            f"{shown(path)}: pictures need Chrome or Chromium; install it or run `plotly_get_chrome` ({why})"
        ) from error
    with storage_errors(path):
        path.write_bytes(data)


# --- parts of the page ---------------------------------------------------------------------------------------------


def _problems(con: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(shown(each))}</li>" for each in problems(con, runs))
    return f'<section class="problems"><h2>Problems</h2><ul>{items}</ul></section>' if items else ""


def _story(of: Subject) -> str:
    parts = "".join(f"<dt>{escape(head)}</dt><dd>{escape(shown(text))}</dd>" for head, text in story(of))
    return f"<dl>{parts}</dl>"


def _details(con: duckdb.DuckDBPyConnection, line: Line, among: Sequence[Line]) -> str:
    """All about one line; behind a click where there are several."""
    of = subject(con, [line])
    figures = "".join(_panel(panel, of) for panel in PANELS.values() if not panel.together)
    if len(among) == 1:
        return figures
    name = escape(shown(Subject(con, tuple(among), None).title(line)))
    return f"<details{' open' if line == among[0] else ''}><summary>{name}</summary>{_story(of)}{figures}</details>"


def _panel(panel: Panel, of: Subject) -> str:
    drawn = panel.make(of)
    if isinstance(drawn, Nothing):
        return f'<p class="nothing"><b>{escape(panel.question)}</b> {escape(drawn.why)}</p>'
    inside = _table(drawn) if isinstance(drawn, Table) else _figure(drawn, panel)
    return f"<section><h3>{escape(panel.question)}</h3><p>{escape(panel.reading)}</p>{inside}</section>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = ("".join(f"<td{_unbroken(cell)}>{escape(shown(cell))}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _unbroken(cell: str) -> str:
    return ' class="short"' if len(cell) <= _SHORT else ""


def _figure(figure: go.Figure, panel: Panel) -> str:
    """The figure without its surrounding's colours, with room for Plotly's buttons and below them for a long legend."""
    drawn = figure.to_plotly_json()
    layout = {key: value for key, value in drawn["layout"].items() if key != "template"}
    room = _BUTTONS + LEGEND_ROW * max(0, legend_rows(figure) - 1)
    layout["margin"] |= {"t": layout["margin"]["t"] + room}
    layout["height"] += room
    return (
        f'<figure aria-label="{escape(panel.question)}">'
        f'<script type="application/json">{_script({"data": drawn["data"], "layout": layout})}</script>'
        f'<div class="plot" style="min-height:{layout["height"]}px"></div></figure>'
    )


def _theme(background: str) -> Any:
    return template(background).to_plotly_json()


def _script(value: Any) -> str:
    """JSON that no markup can end early."""
    return json.dumps(_rounded(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


# --- the page itself -----------------------------------------------------------------------------------------------

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing may be fetched. Styles are inline because Plotly sets them so; pictures are what its camera button makes."""

_STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1F2328; --paper: {LIGHT}; --faint: #59636E; --edge: #D9DEE4; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #E6EAEF; --paper: {DARK}; --faint: #A4ADB8; --edge: #3A424C; }}
}}
body {{ margin: 0 auto; max-width: 1080px; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin-top: 2rem; overflow-wrap: anywhere; }}
h3 {{ font-size: 1.1rem; margin: 2.2rem 0 0; }}
h3 + p, .nothing {{ color: var(--faint); margin: 0.2rem 0 0.6rem; }}
.nothing {{ margin: 1.4rem 0; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1rem; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; }}
figure {{ margin: 0; }}
figure, .plot {{ width: 100%; }}
.problems {{ border-left: 4px solid #D55E00; padding: 0.1rem 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.3rem 0.9rem 0.3rem 0;
  border-bottom: 1px solid var(--edge); }}
td {{ min-width: 11rem; }}
td.short {{ min-width: 0; white-space: nowrap; }}
summary {{ cursor: pointer; font-size: 1.25rem; font-weight: 600; margin-top: 2rem; overflow-wrap: anywhere; }}
@media (max-width: 700px) {{ dl {{ display: block; }} dd {{ margin-bottom: 0.6rem; }} }}
"""

_DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const read = (element) => JSON.parse(element.textContent);
function draw(figure, name) {
  const {data, layout} = read(figure.querySelector("script"));
  layout.template = read(document.getElementById("themes"))[name ?? (dark.matches ? "dark" : "light")];
  figure.dataset.drawn = "";
  Plotly.react(figure.querySelector(".plot"), data, layout, {
    displayModeBar: innerWidth > 700 ? "hover" : false, displaylogo: false, responsive: true,
    showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
}
const figures = document.querySelectorAll("figure");
const nearby = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) { nearby.unobserve(target); draw(target); }
  }
}, {rootMargin: "400px"});
figures.forEach((figure) => nearby.observe(figure));
const redraw = () => document.querySelectorAll("figure[data-drawn]").forEach((figure) => draw(figure));
dark.addEventListener("change", redraw);
addEventListener("beforeprint", () => figures.forEach((figure) => draw(figure, "light")));
addEventListener("afterprint", redraw);
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<noscript><p>The figures of this page are drawn by a script in it; scripts are switched off here.</p></noscript>
{body}
<script type="application/json" id="themes">{themes}</script>
<script>{plotly}</script>
<script>{draw}</script>
</body>
</html>
"""
