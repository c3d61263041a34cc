"""What became of seeds: whether they earn their rent, whether levels go back and forth, what was planted and kept."""

from __future__ import annotations

from plotly.subplots import make_subplots

from esper.karn.colours import QUIET, look
from esper.karn.figures.canvas import OF, Drawn, Nothing, Subject, canvas, finished, limit, line, safe, whole
from esper.karn.figures.rounds import ROUND
from esper.karn.gates import RATE
from esper.leyline.statistics import estimate

_AFTER = (("metric_1", "1 step later"), ("metric_5", "5 steps later"), ("metric_20", "20 steps later"))


def rent(of: Subject) -> Drawn:
    rows = of.rows(
        "with ladders as (select distinct blueprint_id from live_seed_germinated "
        f"where {OF} and internal_max_level > 1) "
        "select blueprint_id, if(blueprint_id in (from ladders), format(' L{}', level), ''), "
        f"seeds, gain, rent, params, on_frontier from rent_roi where {OF} and isfinite(roi) "
        "order by blueprint_id, level"
    )
    if not rows:
        return Nothing("The contribution of no seed was measured, or the run does not say what rent it takes.")
    figure = canvas(f"rent ({safe(of.points)})", (f"gain ({safe(of.points)} of the metric)", 1.0), height=460)
    highest = max(row[4] for row in rows)
    figure.add_scatter(
        name="gain = rent", x=[0.0, highest * 1.1], y=[0.0, highest * 1.1], mode="lines", hoverinfo="skip",
        line={"dash": "dot", "color": QUIET.colour, "width": 1.5},
    )  # fmt: skip
    front = sorted((row[4], row[3]) for row in rows if row[6])
    figure.add_scatter(
        name="frontier: none brings more for less", x=[x for x, _ in front], y=[y for _, y in front],
        mode="lines+markers", hoverinfo="skip", line={"color": QUIET.colour, "width": 1, "shape": "hv"},
        marker={"symbol": "circle-open", "size": 20, "color": QUIET.colour},
    )  # fmt: skip
    for index, blueprint in enumerate(dict.fromkeys(row[0] for row in rows)):
        ours, like = [row for row in rows if row[0] == blueprint], look(index)
        figure.add_scatter(
            name=safe(blueprint), x=[row[4] for row in ours], y=[row[3] for row in ours], mode="markers+text",
            text=[row[1] for row in ours], textposition="middle right", textfont={"size": 11}, cliponaxis=False,
            marker={"symbol": like.symbol, "size": 11, "color": like.colour},
            customdata=[[row[2], round(row[5])] for row in ours],
            hovertemplate="%{fullData.name} %{text}: gain %{y:.2f}, rent %{x:.2f}<br>%{customdata[0]} seeds, "
                          "%{customdata[1]} parameters each<extra></extra>",
        )  # fmt: skip
    return figure.update_xaxes(rangemode="tozero")


# --- levels --------------------------------------------------------------------------------------------------------


def churn(of: Subject) -> Drawn:
    rows = of.rows(
        f"with hosts as (select round // $3 as place, count(distinct (round, env)) as n from live_env_step where {OF} "
        "group by place) select max(round), sum(grown), -sum(shrunk), sum(net_level_change), sum(reversals), "
        "sum(changes) / sum(ladder_steps), any_value(n) from churn join hosts on place = round // $3 "
        f"where {OF} group by place order by place",
        of.bucket("rounds"),
    )
    if not rows:
        return Nothing("No seed with levels ever lived.")
    at, episodes = [row[0] for row in rows], [row[6] for row in rows]
    grown, shrunk, net, reversals = (
        [row[column] / n for row, n in zip(rows, episodes, strict=True)] for column in (1, 2, 3, 4)
    )
    figure = canvas(ROUND, ("per episode", 0.65), ("changes per step", 0.35), height=480)
    for name, values, index in (("levels grown", grown, 2), ("levels shrunk", shrunk, 1)):
        like = look(index)
        bars = {"color": like.colour, "pattern": {"shape": like.pattern, "fillmode": "overlay", "fgcolor": "white"}}
        width = 0.3 if len(at) == 1 else None
        figure.add_bar(name=name, x=at, y=values, marker=bars, width=width, row=1, col=1)
    figure.add_trace(line("net change of level", at, net, look(0)), 1, 1)
    crosses = {"symbol": "x", "size": 10, "color": look(3).colour}
    back = [(place, number) for place, number in zip(at, reversals, strict=True) if number]
    x, y = [place for place, _ in back], [number for _, number in back]
    figure.add_scatter(name="reversals", x=x, y=y, mode="markers", marker=crosses, row=1, col=1)
    figure.add_trace(
        line("changes per step of a live ladder", at, [row[5] for row in rows], look(4), showlegend=False), 2, 1
    )
    limit(figure, RATE, f"gate: at most {RATE:g}", row=2)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    return whole(figure, at).update_layout(barmode="relative")


def level_effects(of: Subject) -> Drawn:
    """Mean change of the metric after decisions to grow or shrink, with an interval where there are two or more."""
    rows = of.rows(
        "select to_level > from_level, sign * (metric_1 - metric_before), sign * (metric_5 - metric_before), "
        "sign * (metric_20 - metric_before), level_effect from level_changes join manifest using (run) "
        f"where {OF} and cause = 'op'"
    )
    if not rows:
        return Nothing("No decision changed a level.")
    figure = canvas("", (f"better by ({safe(of.points)} of the metric)", 1.0), height=400)
    places = (*(title for _, title in _AFTER), "with the change<br>against without it")
    for index, (name, grew) in enumerate((("after growing", True), ("after shrinking", False))):
        columns = [[row[k] for row in rows if row[0] is grew and row[k] is not None] for k in range(1, 5)]
        found = [(place, estimate(values)) for place, values in zip(places, columns, strict=True) if values]
        if found:
            like = look(index)
            figure.add_scatter(
                name=name, x=[place for place, _ in found], y=[each.mean for _, each in found], mode="markers",
                marker={"symbol": like.symbol, "size": 11, "color": like.colour}, xaxis="x", offsetgroup=name,
                error_y={"type": "data", "array": [each.half_width for _, each in found], "color": like.colour},
                customdata=[each.n for _, each in found],
                hovertemplate="%{x}: %{y:+.2f}, n = %{customdata}",
            )  # fmt: skip
    figure.update_layout(scattermode="group")
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=places, range=[-0.5, 3.5])


# --- what was planted ----------------------------------------------------------------------------------------------


def planted(of: Subject) -> Drawn:
    blueprints = of.rows(
        f"select blueprint_id, germinated, fossilized, pruned from blueprint_stats where {OF} order by germinated, 1"
    )
    if not blueprints:
        return Nothing("Nothing was planted.")
    slots = of.rows(f"select slot, germinated, fossilized from slot_usage where {OF} order by slot_index desc")
    figure = make_subplots(rows=1, cols=2, subplot_titles=["by blueprint", "by slot"], horizontal_spacing=0.16)
    names = [safe(row[0]) for row in blueprints], [safe(row[0]) for row in slots]
    for index, (name, column) in enumerate((("pruned", 3), ("kept", 2), ("planted", 1))):
        like = (look(1), look(2), QUIET)[index]
        bars = {"color": like.colour, "pattern": {"shape": like.pattern, "fillmode": "overlay", "fgcolor": "white"}}
        parts = [(names[0], blueprints, 1)] + ([(names[1], slots, 2)] if column != 3 else [])
        for label, rows, col in parts:
            figure.add_bar(
                name=name, orientation="h", y=label, x=[row[column] for row in rows], marker=bars, legendgroup=name,
                showlegend=col == 1, row=1, col=col, legendrank=10 - index,
            )  # fmt: skip
    most = max(row[1] for row in (*blueprints, *slots))
    figure.update_xaxes(title_text="seeds", rangemode="tozero", dtick=1 if most <= 10 else None)
    figure.update_yaxes(type="category")
    figure.update_annotations(font_size=13)
    return finished(figure, 100 + 42 * max(len(blueprints), len(slots)), above=24)
