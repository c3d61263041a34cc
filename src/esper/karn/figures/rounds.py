"""From round to round: whether it gets better, what was decided, what the reward was made of, where the time went."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from esper.karn.colours import QUIET, ink_on, look
from esper.karn.figures.canvas import (
    OF,
    OF_HOST,
    Drawn,
    Nothing,
    Subject,
    band,
    canvas,
    finished,
    line,
    safe,
    stacked,
    whole,
)
from esper.karn.figures.hosts import STEP

ROUND = "round"
_BANDS = 3  # most lines that have a band


def progress(of: Subject) -> Drawn:
    figure = canvas(ROUND, (safe(of.metric), 0.7), ("parameters", 0.3), height=520)
    drawn = 0
    for index, each in enumerate(of.lines):
        rows = of.rows_of(
            each,
            "select max(round), avg(val_metric), min(val_min), max(val_max), avg(test_metric), avg(params) "
            f"from rounds where {OF} and val_metric is not null group by round // $3 order by 1",
            of.bucket("rounds"),
        )
        if len(rows) < 2:
            continue
        drawn += 1
        at, mean, low, high, test, params = map(list, zip(*rows, strict=True))
        like, name = look(index), "" if len(of.lines) == 1 else f"{safe(of.title(each))}: "
        if len(of.lines) <= _BANDS:
            figure.add_traces(band(at, low, high, like, f"{name}lowest and highest validation"), 1, 1)
        figure.add_trace(line(f"{name}validation", at, mean, like), 1, 1)
        hollow = {"symbol": f"{like.symbol}-open", "size": 8, "color": like.colour}
        figure.add_scatter(name=f"{name}test", x=at, y=test, mode="markers", marker=hollow, row=1, col=1)
        figure.add_trace(line(f"{name}parameters", at, params, like, showlegend=False), 2, 1)
        whole(figure, at)
    if not drawn:
        return Nothing("There are no two finished rounds; rounds are compared where a policy learns.")
    return figure.update_yaxes(rangemode="tozero", row=2, col=1)


# --- decisions -----------------------------------------------------------------------------------------------------


def operations(of: Subject) -> Drawn:
    cells = of.rows(
        "select max(a.round), a.choice, sum(a.n) from action_mix a "
        f"where {OF} and a.head = 'op' group by a.choice, a.round // $3 order by 1",
        of.bucket("rounds"),
    )
    if not cells:
        return Nothing("No decision has been told yet.")
    names = [op for (op,) in of.con.execute("select op from ops order by op_index").fetchall()]
    figure = canvas(ROUND, ("share of decisions (%)", 1.0))
    stacked(figure, _in_percent(cells), names, "% of decisions")
    return figure.update_yaxes(range=[0, 100])


def _in_percent(cells: list[tuple[Any, ...]]) -> list[tuple[Any, str, float]]:
    totals: dict[Any, float] = {}
    for place, _, value in cells:
        totals[place] = totals.get(place, 0.0) + value
    return [(place, name, 100 * value / totals[place]) for place, name, value in cells]


def choices(of: Subject) -> Drawn:
    """All heads but the operation's, over the whole run: one lane each, every choice with its name."""
    rows = of.rows(
        "select a.head, c.choice_index, a.choice, sum(a.n), sum(a.n * a.done_share) / sum(a.n) from action_mix a "
        "join choices c using (run, head, choice) join heads h using (head) "
        f"where {OF} and a.head <> 'op' group by all order by any_value(h.head_index), c.choice_index"
    )
    if not rows:
        return Nothing("Every decision was to wait, so nothing else was chosen.")
    totals: dict[str, int] = {}
    for head, _, _, n, _ in rows:
        totals[head] = totals.get(head, 0) + n
    figure = finished(go.Figure(), 130 + 46 * len(totals))
    for index in sorted({row[1] for row in rows}):
        ours, like = [row for row in rows if row[1] == index], look(index)
        figure.add_bar(
            name=f"choice {index}", orientation="h", showlegend=False, y=[row[0] for row in ours],
            x=[100 * row[3] / totals[row[0]] for row in ours], text=[safe(row[2]) for row in ours],
            textposition="inside", insidetextanchor="middle", textangle=0,
            textfont={"color": ink_on(like.colour), "size": 12},
            marker={"color": like.colour, "line": {"width": 1, "color": "white"}},
            customdata=[[row[3], round(100 * row[4])] for row in ours],
            hovertemplate="%{text}: %{x:.1f} % of %{y}<br>%{customdata[0]} times, %{customdata[1]} % of them done"
                          "<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="share of the decisions that the head mattered to (%)", range=[0, 100])
    figure.update_yaxes(title_text="head", title_standoff=12, type="category", autorange="reversed")
    return figure.update_layout(barmode="stack", uniformtext={"minsize": 11, "mode": "hide"})


# --- reward and time -----------------------------------------------------------------------------------------------


_TERMS_BY_ROUND = f"""
with hosts as (
    select round // $3 as place, count(distinct (round, env)) as n from live_env_step where {OF} group by place
), terms as (
    select round // $3 as place, max(round) as round, term, sum(value) as value from reward_long where {OF}
    group by place, term
)
select max(round) over (partition by place), term, value / n from terms join hosts using (place) order by 1"""
_SUM_BY_ROUND = f"""
select max(round), sum(reward) / count(distinct (round, env)) from live_env_step where {OF}
group by round // $3 order by 1"""
_TERMS_BY_STEP = f"""
select max(max(step)) over (partition by step // $5), term, sum(value) from reward_long where {OF_HOST}
group by term, step // $5 order by 1"""
_SUM_BY_STEP = f"select max(step), sum(reward) from live_env_step where {OF_HOST} group by step // $5 order by 1"


def rewards(of: Subject) -> Drawn:
    """Of a mean episode of each round: its terms on each other, and their sum."""
    width = of.bucket("rounds")
    cells, total = of.rows(_TERMS_BY_ROUND, width), of.rows(_SUM_BY_ROUND, width)
    if len(total) < 2:
        return Nothing("There are no two rounds.")
    return _rewards(ROUND, "reward of an episode", safe(of.points), cells, total)


def reward(of: Subject) -> Drawn:
    """Of every step of the episode."""
    if of.host is None:
        return Nothing("No step has been told yet.")
    width = of.bucket("episode_length")
    cells, total = of.rows_of_host(_TERMS_BY_STEP, width), of.rows_of_host(_SUM_BY_STEP, width)
    return _rewards(STEP, "reward of a step", safe(of.points), cells, total)


def _rewards(x: str, y: str, unit: str, cells: list[tuple[Any, ...]], total: list[tuple[Any, ...]]) -> Drawn:
    if not cells:
        return Nothing("Every reward was 0.")
    figure = canvas(x, (f"{y} ({unit})", 1.0), height=400)
    stacked(figure, cells, _largest_first(cells), unit)
    at, worth = map(list, zip(*total, strict=True))
    return figure.add_trace(line("sum", at, worth, QUIET))


def _largest_first(cells: list[tuple[Any, ...]]) -> list[str]:
    """Names in the order of what they amount to, whichever way."""
    size: dict[str, float] = {}
    for _, name, value in cells:
        size[name] = size.get(name, 0.0) + abs(value)
    return sorted(size, key=lambda name: -size[name])


def time(of: Subject) -> Drawn:
    width = of.bucket("rounds")
    cells = of.rows(
        # As one: no more than eight parts of a bar differ in colour and in pattern.
        "with parts as (select round, if(phase in ('record', 'save'), 'record, save', phase) as phase, "
        f"sum(phase_seconds) as seconds from throughput where {OF} group by all) "
        "select max(max(round)) over (partition by round // $3), phase, avg(seconds) from parts "
        "group by phase, round // $3 order by 1",
        width,
    )
    if not cells:
        return Nothing("No round has been finished yet.")
    rates = of.rows(
        f"select max(round), avg(steps_per_second) from throughput where {OF} group by round // $3 order by 1", width
    )
    figure = canvas(ROUND, ("seconds", 0.65), ("steps / s", 0.35), height=460)
    stacked(figure, cells, _largest_first(cells), "s")
    at, rate = map(list, zip(*rates, strict=True))
    figure.add_trace(line("steps of all environments per second", at, rate, look(0), showlegend=False), 2, 1)
    return figure.update_yaxes(rangemode="tozero", row=2, col=1)
