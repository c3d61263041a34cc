"""What holds for all figures, and those of several runs beside each other."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import duckdb
import plotly.graph_objects as go
import pytest
from tests.karn.drawn import drawn, points, traces
from tests.karn.made import Made
from tests.karn.recorded import Recorded, near

from esper.karn.figures import PANELS, Host, Line, Nothing, Subject, Table, draw, panel
from esper.karn.figures.canvas import POINTS
from esper.karn.memory import open_memory
from esper.karn.phases import gates
from esper.karn.store import Store
from esper.karn.views import create_views
from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EpisodeFinishedPayload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    SeedGerminatedPayload,
    SeedStageChangedPayload,
)
from esper.nissa.run_folder import RunFolder

# --- runs beside each other ----------------------------------------------------------------------------------------


def test_progress_has_means_and_bounds_of_every_round(recorded: Recorded) -> None:
    figure = drawn(recorded, "progress")

    rounds: dict[int, list[EpisodeFinishedPayload]] = defaultdict(list)
    for where, told in recorded.of(EpisodeFinishedPayload):
        rounds[where.round or 0].append(told)
    found = traces(figure)
    low, high = figure.data[:2]
    for round_, told in rounds.items():
        metrics = [each.val_metric for each in told if each.val_metric is not None]
        assert points(found["validation"])[round_] == near(fmean(metrics))
        assert (points(low)[round_], points(high)[round_]) == (min(metrics), max(metrics))
        assert points(found["test"])[round_] == near(fmean(each.test_metric or 0.0 for each in told))
        assert points(found["parameters"])[round_] == near(fmean(each.params for each in told))


def test_comparison_has_the_last_fifth_of_the_rounds_with_an_interval(recorded: Recorded) -> None:
    table = drawn(recorded, "comparison")

    rounds = recorded.manifest["config"]["run"]["rounds"]
    late = [told for w, told in recorded.of(EpisodeFinishedPayload) if (w.round or 0) >= math.floor(0.8 * rounds)]
    tests = [told.test_metric or 0.0 for told in late]
    quantile = {2: 12.7062047, 3: 4.30265273}[len(late)]  # Student's t, 0.975
    half = quantile * stdev(tests) / math.sqrt(len(tests))
    (row,) = table.rows
    cells = dict(zip(table.columns, row, strict=True))
    assert cells["over"] == f"{len(late)} episodes"
    assert cells["test accuracy (%)"] == f"{fmean(tests):.2f} ± {half:.2f}"
    worth = [told.test_metric - recorded.rent * math.log2(told.params / told.host_params) for told in late]  # type: ignore[operator]
    assert cells["J (points)"].startswith(f"{fmean(worth):.2f} ±")


def test_runs_that_differ_in_their_seed_alone_are_compared_over_seeds(tmp_path: Path) -> None:
    alike = [
        Made([["WAIT"] * 3], tests=[60.0 + 10 * seed], seed=seed).write(tmp_path, f"seed-{seed}") for seed in range(3)
    ]
    longer = Made([["WAIT"] * 4], tests=[90.0], params=2000).write(tmp_path, "longer")
    with closing(open_memory([*alike, longer])) as store:
        runs = [folder.name for folder in (*alike, longer)]
        table, worth = (draw(name, store.con, runs) for name in ("comparison", "worth"))

    assert isinstance(table, Table)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["seed-1"]["test accuracy (%)"] == "70.00"  # one episode gives no interval
    together = rows["ppo on digits, 3 seeds"]
    assert together["over"] == "3 seeds"
    assert together["test accuracy (%)"] == "70.00 ± 24.84"  # 4.3027 x 10 / sqrt(3)
    assert isinstance(worth, go.Figure)
    found = traces(worth)
    assert set(found) == {"as good as the best", "ppo on digits, 3 seeds", "longer"}
    assert points(found["ppo on digits, 3 seeds"]) == {1000: 70.0}
    # The longer one is worth 90 - 3 x log2(2) = 87, so with half the parameters 87 would do.
    line = found["as good as the best"]
    slope = (line.y[1] - line.y[0]) / math.log2(line.x[1] / line.x[0])
    assert slope == near(3.0)
    assert line.y[0] == near(87.0 + 3.0 * math.log2(line.x[0] / 1000))


def test_a_seed_that_ran_twice_is_no_repetition(tmp_path: Path) -> None:
    twice = [Made([["WAIT"] * 3], seed=7).write(tmp_path, name) for name in ("once", "again")]
    with closing(open_memory(twice)) as store:
        table = draw("comparison", store.con, ["once", "again"])

    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["once", "again"]


def test_gates_are_told_with_verdict_limit_and_reason(recorded: Recorded) -> None:
    table = drawn(recorded, "gates")

    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    told = gates(recorded.con, [recorded.run])
    assert [(row["gate"], row["limit"], row["note"]) for row in found] == [(g.name, g.limit, g.note) for g in told]
    for row, gate in zip(found, told, strict=True):
        assert row["verdict"] == {True: "✓ passed", False: "✗ failed", None: "– not judged"}[gate.passed]


def test_gates_of_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    thrash = ["GROW_INTERNAL", "SHRINK_INTERNAL"] * 10
    calm = ["GROW_INTERNAL"] + ["WAIT"] * 19
    folders = [Made([ops]).write(tmp_path, name) for name, ops in (("thrash", thrash), ("calm", calm))]
    with closing(open_memory(folders)) as store:
        table = draw("gates", store.con, ["thrash", "calm"])

    assert isinstance(table, Table)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["thrash"]["anti-thrash"] == "✗ 1"
    assert rows["calm"]["anti-thrash"] == "✓ 0.05"
    assert rows["limit"]["usage"] == ">= 10%"


# --- what holds for all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PANELS)
def test_every_figure_asks_its_question_or_says_why_it_has_nothing_to_show(recorded: Recorded, name: str) -> None:
    figure = draw(name, recorded.con, [recorded.run])

    assert PANELS[name].question.endswith("?")
    assert PANELS[name].reading.endswith(".")
    if isinstance(figure, go.Figure):
        assert figure.layout.title.text == PANELS[name].question
        assert any(len(trace.x) for trace in figure.data)
    elif isinstance(figure, Nothing):
        assert figure.why.endswith(".")
    else:
        assert all(len(row) == len(figure.columns) for row in figure.rows)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("growth", "step (host epochs)", ["accuracy (%)", "parameters", None]),
        ("lanes", "step (host epochs)", ["slot"]),
        ("progress", "round", ["accuracy (%)", "parameters"]),
        ("operations", "round", ["share of decisions (%)"]),
        ("reward", "step (host epochs)", ["reward of a step (points)"]),
        ("rewards", "round", ["reward of an episode (points)"]),
        ("rent", "rent (points)", ["gain (points of the metric)"]),
        ("time", "round", ["seconds", "steps / s"]),
        ("values", "round", ["expected return (points)"]),
    ],
)
def test_axes_say_what_they_measure_and_in_which_unit(
    recorded: Recorded, name: str, x: str, y: list[str | None]
) -> None:
    figure = drawn(recorded, name)

    assert [axis.title.text for axis in figure.select_xaxes()][-1] == x
    assert [axis.title.text or None for axis in figure.select_yaxes()] == y


@pytest.mark.parametrize("name", PANELS)
def test_what_differs_in_colour_differs_in_a_letter_a_dash_a_symbol_or_a_pattern(recorded: Recorded, name: str) -> None:
    figure = drawn(recorded, name)
    if isinstance(figure, Table):
        pytest.skip("a table has no colours")

    def sign(trace: Any) -> tuple[str, ...]:
        if trace.type == "bar":
            return (str(trace.text), str(trace.marker.pattern.shape))
        return (str(trace.text), str(trace.mode), str(trace.line.dash), str(trace.marker.symbol), str(trace.fill))

    def colour(trace: Any) -> str:
        return str(trace.marker.color or trace.line.color or trace.fillcolor)

    colours: dict[Any, set[str]] = defaultdict(set)
    for trace in figure.data:
        colours[sign(trace), trace.xaxis, trace.yaxis].add(colour(trace))
    assert {place: found for place, found in colours.items() if len(found) > 1} == {}


def test_every_operation_stage_blueprint_head_term_and_phase_that_occurred_is_in_a_figure(recorded: Recorded) -> None:
    hosts = [Host(round_, env) for round_, env in {(r, e) for r, e, _ in recorded.steps()}]
    figures = [draw(name, recorded.con, [recorded.run]) for name in PANELS]
    figures += [draw("lanes", recorded.con, [recorded.run], host) for host in hosts]
    words = {
        word
        for figure in figures
        if isinstance(figure, go.Figure)
        for text in re.findall(r'"([^"]*)"', json.dumps(figure.to_plotly_json(), default=str))
        for word in (text, *re.split(r"[^A-Za-z0-9_]+", text))
    }

    steps = recorded.steps().values()
    assert {step.op for step in steps} <= words
    assert {payload.to_stage.lower() for _, payload in recorded.of(SeedStageChangedPayload)} - {"dormant"} <= words
    assert {payload.blueprint_id for _, payload in recorded.of(SeedGerminatedPayload)} <= words
    assert {term for step in steps for term, _ in step.terms} <= words
    assert {phase for _, payload in recorded.of(RoundFinishedPayload) for phase, _ in payload.phases} <= words
    assert {head for _, payload in recorded.of(PpoUpdatedPayload) for head, _ in payload.entropy} <= words
    assert set(recorded.slots) <= words


def test_a_run_of_which_nothing_is_told_draws_sentences(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "made", "begun") as folder:
        folder.write_manifest({"schema_version": SCHEMA_VERSION})
    with closing(open_memory([folder.path])) as store:
        found = {name: draw(name, store.con, ["begun"]) for name in PANELS}

    assert {name for name, each in found.items() if not isinstance(each, Nothing)} == {"gates"}
    assert all(each.why.endswith(".") for each in found.values() if isinstance(each, Nothing))


def test_a_long_episode_is_thinned_and_a_spike_of_one_step_survives(tmp_path: Path) -> None:
    metrics = [50.0] * 5000
    metrics[3210] = 99.0
    folder = Made([["WAIT"] * 5000], metrics=[metrics]).write(tmp_path, "long")
    with closing(open_memory([folder])) as store:
        figure = draw("growth", store.con, ["long"])

    assert isinstance(figure, go.Figure)
    assert max(len(trace.x) for trace in figure.data) <= POINTS
    low, high = figure.data[:2]
    assert (min(low.y), max(high.y)) == (50.0, 99.0)
    assert traces(figure)["validation"].x[-1] == 4999


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    folders = [
        Made([["GROW_INTERNAL"] * 3] * 2, blueprint=bad, seed=seed).write(tmp_path, f"r{seed}") for seed in (0, 1)
    ]
    with closing(Store.open(folders, names=[f"{bad}{index}" for index in (0, 1)])) as store:
        create_views(store.con)
        store.con.execute("update manifest set metric = $1, unit = $1", [bad])
        figures = [draw(name, store.con, [f"{bad}0", f"{bad}1"]) for name in PANELS]

    told = [json.dumps(figure.to_plotly_json()) for figure in figures if isinstance(figure, go.Figure)]
    assert len(told) > 5
    assert not [text for text in told if "<img" in text]
    assert [text for text in told if "&lt;img" in text]


def test_the_two_learners_of_one_run_are_two_lines() -> None:
    shaped, simplified = Line("top/arms/a", "shaped"), Line("top/arms/a", "simplified")
    other = Line("top/arms/b")

    def names(*lines: Line) -> list[str]:
        of = Subject(duckdb.connect(), lines, None)
        return [of.title(line) for line in lines]

    assert names(shaped, simplified) == ["shaped", "simplified"]
    assert names(shaped, other) == ["a, shaped", "b"]
    assert names(other, Line("elsewhere")) == ["top/arms/b", "elsewhere"]


def test_an_unknown_figure_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"figure 'lane': there is none; did you mean 'lanes'\?; there are comparison, "
    ):
        panel("lane")
