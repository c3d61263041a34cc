"""Runs beside each other: what each reached, for how many parameters and how much computing, and the gates."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, log2, log10
from typing import Any

from esper.karn.colours import QUIET, look
from esper.karn.figures.canvas import OF, Drawn, Line, Nothing, Subject, Table, canvas, count, duration, safe
from esper.karn.gates import LATE
from esper.karn.phases import gates
from esper.karn.verdicts import INCOMPLETE, Verdict
from esper.leyline.statistics import Estimate, estimate

_OF_NO_ACCOUNT = ("seed", "root", "workers")  # settings of `run` that make no other experiment
_FOLDERS = ("start_from", "topology_from")  # settings of `run` that name a folder: whether matters, not which
_SEED = re.compile(r"-[sh]\d+$")  # of an arm's name
_NONE = "–"
_VERDICTS = {True: "✓", False: "✗", None: "–"}


@dataclass(frozen=True)
class Reached:
    """What a line, or several of the same settings, came to. Over the last fifth of its rounds so far."""

    name: str
    what: str  # `ppo on digits`
    over: str  # what the intervals are over: `6 episodes`, `5 seeds`
    test: Estimate | None  # in the unit of the metric; None where every host diverged
    j: Estimate | None  # unit of the metric
    doublings: Estimate | None
    params: float
    flops: float  # of the whole run
    seconds: float | None  # of the whole run; None while it runs
    rollbacks: float  # per episode
    seed: int | None  # of a group that of the first; None where the run does not say
    settings: str = field(repr=False)  # the same where nothing but the seed differs


def reached(of: Subject) -> list[Reached]:
    """One row per line of which an episode came to its end."""
    return [row for line in of.lines if (row := _of_line(of, line)) is not None]


def over_seeds(rows: Sequence[Reached]) -> list[Reached]:
    """One row for each group that differs in nothing but the seed. A seed that ran twice counts once."""
    alike: dict[str, dict[int | None, Reached]] = defaultdict(dict)
    for row in rows:
        alike[row.settings][row.seed] = row
    return [_of_seeds(list(group.values())) for group in alike.values() if len(group) > 1]


def _of_line(of: Subject, line: Line) -> Reached | None:
    episodes = of.rows_of(
        line,
        f"select test_metric, j, doublings, params, rollbacks from episodes where {OF} "
        f"and round >= floor($3 * (select max(round) + 1 from episodes where {OF}))",
        LATE,
    )
    if not episodes:
        return None
    test, j, doublings, params, rollbacks = zip(*episodes, strict=True)
    ((flops,),) = of.rows_of(line, f"select sum(flops) from episodes where {OF}")
    ((seconds,),) = of.rows_of(line, f"select sum(seconds) from live_round_finished where {OF}")
    return Reached(
        name=of.title(line),
        what=f"{of.manifest('controller', line)} on {of.manifest('task', line)}",
        over="1 episode" if len(episodes) == 1 else f"{len(episodes)} episodes",
        test=_estimate(test),
        j=_estimate(j),
        doublings=_estimate(doublings),
        params=sum(params) / len(params),
        flops=flops,
        seconds=seconds,
        rollbacks=sum(rollbacks) / len(rollbacks),
        seed=of.manifest("seed", line),
        settings=_settings(of, line),
    )


def _of_seeds(group: Sequence[Reached]) -> Reached:
    seconds = [row.seconds for row in group if row.seconds is not None]
    n = len(group)
    return Reached(
        name=f"{_SEED.sub('', group[0].name) if _SEED.search(group[0].name) else group[0].what}, {n} seeds",
        what=group[0].what,
        over=f"{n} seeds",
        test=_estimate([row.test.mean for row in group if row.test]),
        j=_estimate([row.j.mean for row in group if row.j]),
        doublings=_estimate([row.doublings.mean for row in group if row.doublings]),
        params=sum(row.params for row in group) / n,
        flops=sum(row.flops for row in group) / n,
        seconds=sum(seconds) / len(seconds) if seconds else None,
        rollbacks=sum(row.rollbacks for row in group) / n,
        seed=group[0].seed,
        settings=group[0].settings,
    )


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return estimate(known) if known else None


def _settings(of: Subject, line: Line) -> str:
    text = of.manifest("config", line)
    config: dict[str, Any] = json.loads(text) if text is not None else {"run": {"of": line.run}}
    run = {key: value for key, value in config["run"].items() if key not in _OF_NO_ACCOUNT}
    run |= {key: run[key] is not None for key in _FOLDERS if key in run}
    return json.dumps([config | {"run": run}, line.g], sort_keys=True)


# --- as tables -----------------------------------------------------------------------------------------------------


def comparison(of: Subject) -> Drawn:
    rows = reached(of)
    rows += over_seeds(rows)
    if not rows:
        return Nothing("No episode came to its end yet.")
    columns = ("run", "what", "over", f"test {of.metric}", f"J ({of.points})", "parameters", "doublings", "FLOPs",
               "time", "rollbacks per episode")  # fmt: skip
    return Table(
        columns,
        tuple(
            (
                row.name, row.what, row.over, with_interval(row.test, of.digits), with_interval(row.j, of.digits),
                count(row.params), with_interval(row.doublings), count(row.flops),
                _NONE if row.seconds is None else duration(row.seconds), f"{row.rollbacks:.2g}",
            )
            for row in rows
        ),
    )  # fmt: skip


def with_interval(found: Estimate | None, digits: int = 2) -> str:
    """`71.20 ± 1.31`; without an interval where one value gives none."""
    if found is None:
        return _NONE
    return f"{found.mean:.{digits}f}" + ("" if found.half_width is None else f" ± {found.half_width:.{digits}f}")


def judged(of: Subject) -> Drawn:
    """Every run by itself against the gates: a row per gate, or a row per run where there are several."""
    missing = {run for (run,) in of.con.execute(INCOMPLETE).fetchall()}
    runs = {line.run: of.title(Line(line.run)) for line in of.lines if line.run not in missing}
    if not runs:
        return Nothing("Lines are missing on the disk, so there is no verdict.")
    found = [gates(of.con, [run]) for run in runs]
    if len(runs) == 1:
        columns = ("gate", "verdict", "value", "limit", "n", "what is asked", "note")
        return Table(columns, tuple(_judgement(gate) for gate in found[0]))
    limits = ("limit", *(gate.limit for gate in found[0]))
    rows = (
        (name, *(f"{_VERDICTS[gate.passed]} {_value(gate)}" for gate in row))
        for name, row in zip(runs.values(), found, strict=True)
    )
    return Table(("run", *(gate.name for gate in found[0])), (limits, *rows))


def _judgement(gate: Verdict) -> tuple[str, ...]:
    word = {True: "passed", False: "failed", None: "not judged"}[gate.passed]
    value = _value(gate)
    if gate.low is not None and gate.high is not None:
        value += f" [{gate.low:.3g}, {gate.high:.3g}]"
    return gate.name, f"{_VERDICTS[gate.passed]} {word}", value, gate.limit, str(gate.n), gate.asks, gate.note


def _value(gate: Verdict) -> str:
    return "" if gate.value is None else f"{gate.value:.3g}"


# --- as a figure ---------------------------------------------------------------------------------------------------


def worth(of: Subject) -> Drawn:
    """Groups of seeds, and what is in none, by parameters and test metric."""
    alone = reached(of)
    groups = over_seeds(alone)
    grouped = {row.settings for row in groups}
    rows = [row for row in (*groups, *alone) if row.test and (row in groups or row.settings not in grouped)]
    if len(rows) < 2:
        return Nothing("There are no two runs to compare.")
    figure = canvas("parameters (axis in doublings)", (f"test {safe(of.metric)}", 1.0), height=460)
    sign, rent = of.manifest("sign"), of.manifest("rent")
    if sign is not None and rent is not None:  # a folder without a manifest says neither
        _add_equal_worth(figure, rows, sign * rent, sign)
    for index, row in enumerate(rows):
        assert row.test is not None
        like = look(index)
        figure.add_scatter(
            name=safe(row.name), x=[row.params], y=[row.test.mean], mode="markers",
            marker={"symbol": like.symbol, "size": 12, "color": like.colour},
            error_y={"type": "data", "array": [row.test.half_width], "color": like.colour},
            customdata=[[safe(row.what), with_interval(row.j, of.digits), row.over]],
            hovertemplate="%{customdata[0]}<br>%{y:.2f} with %{x:.4s} parameters<br>J %{customdata[1]} over "
                          "%{customdata[2]}",
        )  # fmt: skip
    sizes = [row.params for row in rows]
    doubled = log10(2) if max(sizes) > 2 * min(sizes) else None  # within a doubling Plotly's own ticks are better
    return figure.update_xaxes(type="log", dtick=doubled, tickformat=".3s")


def _add_equal_worth(figure: Any, rows: Sequence[Reached], rent: float, sign: float) -> None:
    """A line through the best row, along which the metric pays for the rent of further parameters."""
    values = [(row.params, row.test.mean) for row in rows if row.test]
    params, test = max(values, key=lambda value: sign * value[1] - sign * rent * log2(value[0]))
    x = [min(each for each, _ in values) / 1.2, max(each for each, _ in values) * 1.2]
    figure.add_scatter(
        name="as good as the best", x=x, y=[test + rent * log2(at / params) for at in x],
        mode="lines", hoverinfo="skip", line={"dash": "dot", "width": 1.5, "color": QUIET.colour},
    )  # fmt: skip
