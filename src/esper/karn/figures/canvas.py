"""What every figure is made with: whose rows it draws, axes with units, stacked shares, text that is safe to show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esper.karn.colours import DARK, LIGHT, QUIET, Look, ink_on, look
from esper.leyline.statistics import points_of
from esper.nissa.storage import shown

POINTS = 400  # most points of a line; where there are more, each stands for several
WIDTH = 900  # pixels of a picture
LEGEND_ROW = 29  # pixels
_TITLE, _LEGEND_SIGN, _LETTER = 34, 46, 7.5  # pixels
_INK = {LIGHT: ("#1F2328", "#D9DEE4"), DARK: ("#E6EAEF", "#3A424C")}  # text, grid
_FEW = 12  # ticks that fit beside each other
_SYMBOLS = 60  # most symbols along a line
_LONGEST = 60  # characters of a name


@dataclass(frozen=True)
class Nothing:
    """There is nothing to draw."""

    why: str  # a sentence


@dataclass(frozen=True)
class Table:
    """Rows of text to be read side by side, in the order of the columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Drawn = go.Figure | Table | Nothing


@dataclass(frozen=True)
class Line:
    """What is drawn as one: a run, or one of the two learners of a run with --ab-test."""

    run: str
    g: str | None = None


@dataclass(frozen=True)
class Host:
    """One episode of one environment."""

    round: int
    env: int


OF = "run = $1 and g is not distinct from $2"
"""Rows of a line; SQL in this package binds run and group first."""
OF_HOST = f"{OF} and round = $3 and env = $4"


@dataclass(frozen=True)
class Subject:
    """What a figure shows. Figures of one line draw the first; `host` is the episode that is looked at closely."""

    con: duckdb.DuckDBPyConnection
    lines: tuple[Line, ...]
    host: Host | None  # None as long as nothing has happened

    def rows(self, sql: str, *more: object) -> list[tuple[Any, ...]]:
        """Rows about the first line. `sql` has `OF` in it."""
        return self.rows_of(self.lines[0], sql, *more)

    def rows_of(self, line: Line, sql: str, *more: object) -> list[tuple[Any, ...]]:
        return self.con.execute(sql, [line.run, line.g, *more]).fetchall()

    def rows_of_host(self, sql: str, *more: object) -> list[tuple[Any, ...]]:
        """Rows about the episode. `sql` has `OF_HOST` in it."""
        assert self.host is not None, "there is an episode to look at"
        return self.rows(sql, self.host.round, self.host.env, *more)

    def manifest(self, column: str, line: Line | None = None) -> Any:
        """One column of `manifest` of a line's run."""
        run = (line or self.lines[0]).run
        return self.con.execute(f'select "{column}" from manifest where run = $1', [run]).fetchall()[0][0]

    def setting(self, path: str) -> float | None:
        """A number of the first line's settings, such as `$.ppo.target_kl`; None where they do not say."""
        sql = "select json_extract(config, $2)::DOUBLE from manifest where run = $1"
        ((value,),) = self.con.execute(sql, [self.lines[0].run, path]).fetchall()
        return None if value is None else float(value)

    def bucket(self, column: str) -> int:
        """How many rounds, or steps by `episode_length`, become one point."""
        length = self.manifest(column) or 1  # a folder that holds nothing but arms has neither
        return max(1, -(-length // POINTS))

    def title(self, line: Line) -> str:
        """What a line is called beside the others: its arm where all are arms of one run, its group within one run."""
        runs = {each.run for each in self.lines}
        if runs == {line.run} and line.g is not None:
            return line.g
        name = line.run.rpartition("/")[2] if len({run.rpartition("/")[0] for run in runs}) == 1 else line.run
        return name if line.g is None else f"{name}, {line.g}"

    @property
    def metric(self) -> str:
        """`accuracy (%)`: name and unit of what the hosts are measured by."""
        name, unit = self.manifest("metric"), self.manifest("unit")
        return (name or "metric") + (f" ({unit})" if unit else "")

    @property
    def points(self) -> str:
        """What differences of it, rewards and rent are counted in."""
        return points_of(self.manifest("unit"))

    @property
    def digits(self) -> int:
        """Decimals of means: hundredths of a point, ten-thousandths of any other unit."""
        return 2 if self.points == "points" else 4


def lines_of(con: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> tuple[Line, ...]:
    """The lines of these runs in their order; a run of which nothing is told yet is one line."""
    found: list[Line] = []
    for run in runs:
        rows = con.execute("select distinct g from live_env_step where run = $1 order by g", [run]).fetchall()
        found += [Line(run, g) for (g,) in rows] or [Line(run)]
    return tuple(found)


def subject(con: duckdb.DuckDBPyConnection, lines: Sequence[Line], host: Host | None = None) -> Subject:
    """By default the episode looked at is that of the last finished round whose host was worth most."""
    assert lines, "a figure needs a run"
    for sql in (
        f"select round, env from episodes where {OF} order by round desc, j desc nulls last, env limit 1",
        f"select round, env from live_env_step where {OF} order by round desc, env limit 1",  # none is finished yet
    ):
        host = host or next((Host(*row) for row in con.execute(sql, [lines[0].run, lines[0].g]).fetchall()), None)
    return Subject(con, tuple(lines), host)


# --- text ----------------------------------------------------------------------------------------------------------


def safe(text: object) -> str:
    """Text from a run, for a place that understands markup: one line, not too long, its signs escaped."""
    line = shown(text)
    return html.escape(line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…")


def count(number: float) -> str:
    """`812`, `41.2k`, `1.3M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `1 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes} min {second:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# --- axes ----------------------------------------------------------------------------------------------------------


def template(background: str) -> go.layout.Template:
    """Everything about figures that depends on whether their surrounding is `LIGHT` or `DARK`."""
    ink, grid = _INK[background]
    axis = {"gridcolor": grid, "zerolinecolor": ink, "zerolinewidth": 1, "linecolor": grid, "automargin": True}
    return go.layout.Template(
        layout={
            "paper_bgcolor": background,
            "plot_bgcolor": background,
            "font": {"color": ink, "family": "system-ui, sans-serif", "size": 13},
            "hoverlabel": {"bgcolor": background, "bordercolor": ink, "font": {"color": ink}},
            "xaxis": axis | {"zeroline": False},
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "title": {"x": 0.0, "xref": "paper", "xanchor": "left", "y": 1.0, "yanchor": "top", "pad": {"t": 12}},
            "title_font_size": 17,
        }
    )


def canvas(x: str, *rows: tuple[str, float], height: int = 380) -> go.Figure:
    """An empty figure of one or several plots above each other. x, and each row's (title, share of the height)."""
    heights = [share for _, share in rows]
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05)
    for number, (title, _) in enumerate(rows, start=1):
        figure.update_yaxes(title_text=title, row=number, col=1)
    figure.update_xaxes(title_text=x, row=len(rows), col=1)
    return finished(figure, height)


def finished(figure: go.Figure, height: int, above: int = 0) -> go.Figure:
    """With the look and the legend that all figures have. above: pixels that titles of single plots take."""
    margin = {"l": 60, "r": 24, "t": 20 + above, "b": 50}
    height += above
    legend = {"orientation": "h", "x": 0.0, "y": 1.0 + above / (height - 70 - above)}
    legend |= {"xanchor": "left", "yanchor": "bottom"}
    return figure.update_layout(template=template(LIGHT), height=height, legend=legend, margin=margin)


def titled(figure: go.Figure, title: str) -> go.Figure:
    """With a title, and room for it and for the legend below it. What they take is added to the height."""
    room = _TITLE + LEGEND_ROW * legend_rows(figure) - 20
    taller = {"height": figure.layout.height + room, "margin_t": figure.layout.margin.t + room}
    return figure.update_layout(title_text=title, **taller)


def legend_rows(figure: go.Figure) -> int:
    """Rows of the legend of a figure that is `WIDTH` wide. A lone trace has no legend."""
    names = dict.fromkeys(trace.name for trace in figure.data if trace.showlegend is not False and trace.name)
    if len(names) < 2:
        return 0
    widest = max(_LEGEND_SIGN + _LETTER * len(html.unescape(name)) for name in names)
    return -(-len(names) // max(1, int((WIDTH - 90) / widest)))


def line(name: str, x: Sequence[Any], y: Sequence[Any], like: Look, **more: Any) -> go.Scatter:
    """A line with symbols, on some points only where there are many."""
    style = {"color": like.colour, "dash": like.dash, "width": 2}
    marker = {"symbol": like.symbol, "size": 7, "maxdisplayed": _SYMBOLS if len(x) > _SYMBOLS else 0}
    return go.Scatter(name=name, x=x, y=y, mode="lines+markers", line=style, marker=marker, **more)


def band(x: Sequence[Any], low: Sequence[Any], high: Sequence[Any], like: Look, name: str) -> list[go.Scatter]:
    """The area between two lines, faint, and told as one thing."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": name}
    fill = {"fill": "tonexty", "fillcolor": faint(like.colour), "name": name}
    return [go.Scatter(x=x, y=low, showlegend=False, **edge), go.Scatter(x=x, y=high, **edge, **fill)]


def faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def whole(figure: go.Figure, at: Sequence[int]) -> go.Figure:
    """A tick at each whole number where there are few, since half rounds do not exist."""
    ticks = range(min(at), max(at) + 1)
    return figure.update_xaxes(tickmode="array", tickvals=list(ticks)) if len(ticks) <= _FEW else figure


def limit(figure: go.Figure, y: float, says: str, row: int = 1, col: int = 1) -> None:
    """A dotted line across a plot, with what it means."""
    figure.add_hline(
        y=y, line={"dash": "dot", "width": 1.5, "color": QUIET.colour}, row=row, col=col, layer="below",
        annotation={"text": says, "font": {"size": 11}, "yanchor": "bottom"}, annotation_position="top right",
    )  # fmt: skip


def stacked(
    figure: go.Figure, cells: Sequence[tuple[Any, str, float]], names: Sequence[str], unit: str, row: int = 1
) -> None:
    """Adds bars that stand on each other, positive ones upwards: (place on the x axis, name, value) in any order.

    The names are in the order in which they are stacked, each with a colour and a pattern of its own, whether or not
    those before it occur.
    """
    places = sorted({place for place, _, _ in cells})
    for index, name in enumerate(names):
        values = {place: value for place, each, value in cells if each == name}
        if not values:
            continue
        like = look(index)
        figure.add_bar(
            name=safe(name), x=places, y=[values.get(place, 0.0) for place in places], row=row, col=1,
            marker={"color": like.colour, "line": {"width": 0},
                    "pattern": {"shape": like.pattern, "fillmode": "overlay", "fgcolor": ink_on(like.colour),
                                "fgopacity": 0.55, "size": 7, "solidity": 0.25}},
            hovertemplate=f"%{{x}}: %{{y:.4g}} {unit}",
        )  # fmt: skip
    figure.update_layout(barmode="relative", bargap=0.0 if len(places) > 30 else 0.15, legend_traceorder="normal")
    if len(places) == 1:
        figure.update_traces(width=0.3, selector={"type": "bar"})
    whole(figure, places)
