"""One episode of one environment, step by step: how good and how big the host became, and what lived in its slots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from esper.karn.colours import QUIET, STAGES, ink_on, look
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
)

STEP = "step (host epochs)"
ROLLED_BACK = "rolled back"
_UP, _DOWN = "level up", "level down"
_METRIC, _PARAMETERS, _RAIL_ROW = 240, 110, 22  # pixels of height
_LETTER = 0.0085  # of an episode's width that a letter of a label takes
_NO_STEP = Nothing("No step has been told yet.")


def growth(of: Subject) -> Drawn:
    if of.host is None:
        return _NO_STEP
    steps = of.rows_of_host(
        "select max(step), min(val_metric) filter (measured), avg(val_metric) filter (measured), "
        "max(val_metric) filter (measured), arg_max(params, step), arg_max(effective_params, step) "
        f"from (select *, isfinite(val_metric) as measured from live_env_step where {OF_HOST}) "
        "group by step // $5 order by 1",
        of.bucket("episode_length"),
    )
    at, low, mean, high, params, effective = map(list, zip(*steps, strict=True))
    events = _events(of)
    kinds = [kind for kind in (*STAGES, _UP, _DOWN, ROLLED_BACK) if any(kind == each for each, _, _ in events)]
    rows = [(safe(of.metric), _METRIC), ("parameters", _PARAMETERS)]
    rows += [("", _RAIL_ROW * len(kinds) + 10)] if kinds else []
    figure = canvas(STEP, *rows, height=sum(height for _, height in rows) + 110)
    others = _others(of)
    if others:
        x, least, most = map(list, zip(*others, strict=True))
        figure.add_traces(band(x, least, most, QUIET, "all environments of the round"), 1, 1)
    elif low != high:
        figure.add_traces(band(at, low, high, look(0), "lowest and highest"), 1, 1)
    figure.add_trace(line("validation", at, mean, look(0)), 1, 1)
    tested = of.rows_of_host(
        f"select test_metric from live_episode_finished where {OF_HOST} and test_metric is not null"
    )
    for (test,) in tested:
        figure.add_scatter(
            name="test, at the end", x=at[-1:], y=[test], mode="markers", row=1, col=1,
            marker={"symbol": "star", "size": 14, "color": look(1).colour},
        )  # fmt: skip
    figure.add_trace(line("parameters", at, params, look(2), line_shape="hv"), 2, 1)
    figure.add_trace(line("of them active", at, effective, look(3), line_shape="hv"), 2, 1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    if kinds:
        _add_rail(figure, kinds, events)
    return figure.update_xaxes(range=[-0.5, at[-1] + 0.7])


def _others(of: Subject) -> list[tuple[Any, ...]]:
    """Step, lowest and highest metric of the round's environments; nothing where there is one alone."""
    assert of.host is not None
    return of.rows(
        "select max(step), min(val_metric), max(val_metric) from live_env_step "
        f"where {OF} and round = $3 and isfinite(val_metric) group by step // $4 "
        "having (select count(distinct env) from live_env_step where run = $1 and g is not distinct from $2 "
        "and round = $3) > 1 order by 1",
        of.host.round,
        of.bucket("episode_length"),
    )


def _events(of: Subject) -> list[tuple[str, int, str]]:
    """(kind, step, what): stages that were entered, changes of level and rollbacks."""
    return [
        *of.rows_of_host(
            "select to_stage, step, slot_id || ': ' || blueprint_id from live_seed_stage "
            f"where {OF_HOST} and to_stage not in ('DORMANT', 'EMBARGOED', 'RESETTING') order by step, n"
        ),
        *of.rows_of_host(
            f"select if(to_level > from_level, '{_UP}', '{_DOWN}'), step, "
            "format('{}: {} -> {} of {} by {}', slot_id, from_level, to_level, internal_max_level, cause) "
            f"from live_seed_level where {OF_HOST} order by step, n"
        ),
        *of.rows_of_host(f"select '{ROLLED_BACK}', step, reason from live_gov_rollback where {OF_HOST} order by step"),
    ]  # fmt: skip


def _add_rail(figure: go.Figure, kinds: Sequence[str], events: Sequence[tuple[str, int, str]]) -> None:
    """One row per kind of event, each with its letter."""
    for row, kind in enumerate(kinds):
        told: dict[int, list[str]] = defaultdict(list)
        for each, step, what in events:
            if each == kind:
                told[step].append(safe(what))
        letter, colour = _sign(kind)
        figure.add_scatter(
            name=kind.lower(), x=list(told), y=[row] * len(told), mode="markers+text", text=[letter] * len(told),
            row=3, col=1, showlegend=False, textfont={"size": 11, "color": ink_on(colour)},
            marker={"size": 16, "color": colour, "symbol": "square"},
            customdata=["<br>".join(each) for each in told.values()], hovertemplate="step %{x}<br>%{customdata}",
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[kind.lower() for kind in kinds], autorange="reversed",
        showgrid=False, zeroline=False, row=3, col=1,
    )  # fmt: skip


def _sign(kind: str) -> tuple[str, str]:
    """Letter and colour of a kind of event."""
    if kind in STAGES:
        return STAGES[kind].letter, STAGES[kind].colour
    return {_UP: ("+", look(6).colour), _DOWN: ("−", QUIET.colour), ROLLED_BACK: ("R", look(1).colour)}[kind]


# --- slots over time -----------------------------------------------------------------------------------------------


def lanes(of: Subject) -> Drawn:
    if of.host is None:
        return _NO_STEP
    slots = [slot for (slot,) in of.con.execute(
        'select slot from slots where run = $1 order by "order"', [of.lines[0].run]
    ).fetchall()]  # fmt: skip
    spans = of.rows_of_host(
        "select slot, stage, from_step, steps, seed_id, blueprint_id, driver from lifecycle_spans "
        f"where {OF_HOST} and steps > 0 order by from_step"
    )
    if not spans:
        return Nothing("Nothing was planted in this episode.")
    slots += sorted({span[0] for span in spans} - {*slots})  # of a run whose manifest does not say what slots it has
    lane = {slot: index for index, slot in enumerate(slots)}
    length = of.manifest("episode_length")
    figure = finished(go.Figure(), 190 + 52 * len(slots))
    for stage, mark in STAGES.items():
        ours = [span for span in spans if span[1] == stage]
        if not ours:
            continue
        figure.add_bar(
            name=f"{mark.letter} {stage.lower()}", orientation="h", width=0.5,
            base=[span[2] for span in ours], x=[span[3] for span in ours], y=[lane[span[0]] for span in ours],
            text=[mark.letter] * len(ours), textposition="inside", insidetextanchor="middle", textangle=0,
            textfont={"color": ink_on(mark.colour), "size": 12},
            marker={"color": mark.colour, "line": {"width": 0.5, "color": ink_on(mark.colour)}},
            customdata=[_about(span) for span in ours], hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    _add_names(figure, spans, lane, length)
    _add_levels(figure, of, lane)
    for (step,) in of.rows_of_host(f"select distinct step from live_gov_rollback where {OF_HOST}"):
        back = {"dash": "dash", "width": 1.5, "color": look(1).colour}
        figure.add_vline(x=step, line=back, annotation={"text": "R", "font": {"size": 11}})
    figure.update_yaxes(
        title_text="slot", tickvals=list(lane.values()), ticktext=[safe(slot) for slot in slots],
        range=[len(slots) - 0.4, -0.7], showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_xaxes(title_text=STEP, range=[-0.5, length + 0.2])
    return figure.update_layout(barmode="overlay", uniformtext={"minsize": 9, "mode": "hide"})


def _about(span: tuple[Any, ...]) -> str:
    slot, stage, start, steps, seed, blueprint, driver = span
    parts = (
        f"{slot}: {stage.lower()}",
        f"steps {start} to {start + steps - 1}",
        f"{seed}, {blueprint}",
        f"by {driver}",
    )
    return "<br>".join(map(safe, parts))


def _add_names(figure: go.Figure, spans: list[tuple[Any, ...]], lane: dict[str, int], length: int) -> None:
    """The blueprint above the beginning of each seed, where the seed before it leaves room."""
    planted = {(span[0], span[4]): span for span in reversed(spans)}
    x, y, names, free = [], [], [], dict.fromkeys(lane, 0.0)
    for slot, _, start, _, _, blueprint, _ in sorted(planted.values(), key=lambda span: span[2]):
        width = (len(blueprint) + 1) * _LETTER * length
        at = min(float(start), length - width)
        if at >= free[slot]:
            free[slot] = at + width
            x.append(at)
            y.append(lane[slot] - 0.4)
            names.append(safe(blueprint))
    figure.add_scatter(name="blueprints", x=x, y=y, text=names, mode="text", textposition="middle right",
                       textfont={"size": 11}, showlegend=False, hoverinfo="skip", cliponaxis=False)  # fmt: skip


def _add_levels(figure: go.Figure, of: Subject, lane: dict[str, int]) -> None:
    """Below a ladder its level, where it begins and wherever it changes."""
    levels = of.rows_of_host(
        "select slot, step, level from (select slot, seed_id, step, level, "
        "lag(level) over (partition by slot, seed_id order by step) as before from slot_steps "
        f"where {OF_HOST} and is_live_ladder) where before is distinct from level order by step, slot"
    )
    if levels:
        figure.add_scatter(
            name="level", showlegend=False, x=[step + 0.5 for _, step, _ in levels],
            y=[lane[slot] + 0.38 for slot, _, _ in levels], text=[str(level) for _, _, level in levels],
            mode="text", textfont={"size": 11}, hovertemplate="level %{text} from step %{x:.0f}<extra></extra>",
        )  # fmt: skip
