"""Every figure against plain Python over the raw lines of real recorded runs, and what holds for all of them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import duckdb
import plotly.graph_objects as go
import pytest
from tests.karn.made import Made
from tests.karn.recorded import Recorded, near

from esper.karn.colours import STAGES
from esper.karn.figures import PANELS, Host, Line, Nothing, Subject, Table, draw, panel
from esper.karn.figures.canvas import POINTS
from esper.karn.gates import gates
from esper.karn.memory import open_memory
from esper.karn.store import Store
from esper.karn.views import create_views
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.telemetry import (
    EnvStepPayload,
    EpisodeFinishedPayload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
)
from esper.nissa.run_folder import RunFolder


def drawn(recorded: Recorded, name: str, host: Host | None = None) -> go.Figure:
    figure = draw(name, recorded.con, [recorded.run], host)
    if isinstance(figure, Nothing):
        pytest.skip(figure.why)
    return figure


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.name is not None}


def points(trace: Any) -> dict[Any, Any]:
    return dict(zip(trace.x, trace.y, strict=True))


def best_host(recorded: Recorded) -> Host:
    """The one of the last round that is worth most, by hand."""
    finished = [(w.round or 0, p) for w, p in recorded.of(EpisodeFinishedPayload)]
    last = max(round_ for round_, _ in finished)

    def worth(told: EpisodeFinishedPayload) -> float:
        return (told.test_metric or 0.0) - recorded.rent * math.log2(told.params / told.host_params)

    best = max((told for round_, told in finished if round_ == last), key=lambda told: (worth(told), -told.env_id))
    return Host(last, best.env_id)


def steps_of(recorded: Recorded, host: Host) -> dict[int, EnvStepPayload]:
    return {
        step: told for (round_, env, step), told in recorded.steps().items() if (round_, env) == (host.round, host.env)
    }


def by_round(recorded: Recorded) -> dict[int, list[EnvStepPayload]]:
    found = defaultdict(list)
    for (round_, _, _), told in recorded.steps().items():
        found[round_].append(told)
    return found


# --- an episode ----------------------------------------------------------------------------------------------------


def test_growth_shows_the_best_host_of_the_last_round_as_it_was_told(recorded: Recorded) -> None:
    host = best_host(recorded)
    steps = steps_of(recorded, host)
    found = traces(drawn(recorded, "growth"))

    assert points(found["validation"]) == {step: told.val_metric for step, told in steps.items()}
    assert points(found["parameters"]) == {step: told.params for step, told in steps.items()}
    active = points(found["of them active"])
    assert active == {step: told.effective_params for step, told in steps.items()}
    (tested,) = [
        told.test_metric
        for where, told in recorded.of(EpisodeFinishedPayload)
        if (where.round, told.env_id) == (host.round, host.env)
    ]
    assert points(found["test, at the end"]) == {max(steps): tested}


def test_growth_shows_how_the_other_environments_of_the_round_did(recorded: Recorded) -> None:
    host = best_host(recorded)
    figure = drawn(recorded, "growth")

    expected: dict[int, list[float]] = defaultdict(list)
    for (round_, _, step), told in recorded.steps().items():
        if round_ == host.round and told.val_metric is not None:
            expected[step].append(told.val_metric)
    low, high = figure.data[:2]
    assert high.name == "all environments of the round"
    assert points(low) == {step: min(values) for step, values in expected.items()}
    assert points(high) == {step: max(values) for step, values in expected.items()}


def test_growth_marks_every_stage_that_was_entered_with_its_letter(recorded: Recorded) -> None:
    host = best_host(recorded)
    found = traces(drawn(recorded, "growth"))

    entered = defaultdict(set)
    for where, told in recorded.of(SeedStageChangedPayload):
        if (where.round, told.env_id) == (host.round, host.env):
            entered[told.to_stage].add(where.step)
    assert entered
    for stage, steps in entered.items():
        if stage in ("DORMANT", "EMBARGOED", "RESETTING"):
            assert stage.lower() not in found
        else:
            assert set(found[stage.lower()].x) == steps
            assert set(found[stage.lower()].text) == {STAGES[stage].letter}


def test_growth_marks_changes_of_level(recorded: Recorded) -> None:
    told_at: dict[tuple[int, int], dict[str, set[int | None]]] = defaultdict(lambda: defaultdict(set))
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        name = "level up" if told.to_level > told.from_level else "level down"
        told_at[where.round or 0, told.env_id][name].add(where.step)

    for place, names in told_at.items():
        found = traces(drawn(recorded, "growth", Host(*place)))
        assert {name: set(found[name].x) for name in names} == names


def test_lanes_are_the_stages_between_two_transitions(recorded: Recorded) -> None:
    host = best_host(recorded)
    figure = drawn(recorded, "lanes")

    length = recorded.manifest["config"]["run"]["episode_length"]
    moved: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for where, told in recorded.of(SeedStageChangedPayload):
        if (where.round, told.env_id) == (host.round, host.env):
            moved[told.slot_id].append((where.step or 0, told.to_stage))
    expected = set()
    for slot, changes in moved.items():
        ends = [step for step, _ in changes[1:]] + [length]
        for (start, stage), end in zip(changes, ends, strict=True):
            if stage != "DORMANT" and end > start:
                expected.add((recorded.slots.index(slot), stage, start, end - start))
    bars = [trace for trace in figure.data if trace.type == "bar"]
    found = {
        (lane, trace.name.split()[1].upper(), start, steps)
        for trace in bars
        for lane, start, steps in zip(trace.y, trace.base, trace.x, strict=True)
    }
    assert found == expected
    assert list(figure.layout.yaxis.ticktext) == recorded.slots
    for trace in bars:
        letter, stage = trace.name.split()
        assert STAGES[stage.upper()].letter == letter
        assert set(trace.text) == {letter}
        assert trace.marker.color == STAGES[stage.upper()].colour


def test_lanes_say_the_level_of_a_ladder_where_it_begins_and_changes(recorded: Recorded) -> None:
    changed = {(w.round or 0, p.env_id) for w, p in recorded.of(SeedInternalLevelChangedPayload)}
    if not changed:
        pytest.skip("no level changed")
    place = min(changed)
    levels = traces(drawn(recorded, "lanes", Host(*place)))["level"]

    said = {
        (math.floor(y + 0.5), int(x - 0.5), int(text))
        for x, y, text in zip(levels.x, levels.y, levels.text, strict=True)
    }
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        if (where.round, told.env_id) == place:
            now = steps_of(recorded, Host(*place))[where.step or 0].level[recorded.slots.index(told.slot_id)]
            assert (recorded.slots.index(told.slot_id), where.step, now) in said


def test_another_episode_can_be_looked_at(recorded: Recorded) -> None:
    found = traces(drawn(recorded, "growth", Host(0, 1)))

    assert points(found["validation"]) == {
        step: told.val_metric for step, told in steps_of(recorded, Host(0, 1)).items()
    }


# --- decisions and rewards -----------------------------------------------------------------------------------------


def test_operations_are_shares_of_all_decisions_of_a_round(recorded: Recorded) -> None:
    found = traces(drawn(recorded, "operations"))

    steps = by_round(recorded)
    assert list(found) == [op.name for op in LifecycleOp if any(s.op == op.name for of in steps.values() for s in of)]
    for op, trace in found.items():
        expected = {round_: 100 * fmean(step.op == op for step in of) for round_, of in steps.items()}
        assert points(trace) == near(expected)


def test_choices_say_how_often_each_was_taken(recorded: Recorded) -> None:
    figure = drawn(recorded, "choices")

    expected: dict[tuple[str, str], float] = {}
    for head in ("slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve"):
        taken = Counter(getattr(step, head) for step in recorded.steps().values() if getattr(step, head) is not None)
        expected |= {(head, choice): 100 * n / taken.total() for choice, n in taken.items()}
    found = {
        (head, text): share
        for trace in figure.data
        for head, text, share in zip(trace.y, trace.text, trace.x, strict=True)
    }
    assert found == near(expected)


def test_rewards_are_the_terms_of_a_mean_episode_and_their_sum(recorded: Recorded) -> None:
    found = traces(drawn(recorded, "rewards"))

    totals: dict[tuple[str, int], float] = defaultdict(float)
    for (round_, _, _), told in recorded.steps().items():
        totals["sum", round_] += told.reward / recorded.envs
        for term, value in told.terms:
            totals[term, round_] += value / recorded.envs
    drawn_values = {(name, at): value for name, trace in found.items() for at, value in points(trace).items() if value}
    expected = {place: value for place, value in totals.items() if abs(value) > 1e-9}
    assert {place: value for place, value in drawn_values.items() if abs(value) > 1e-9} == pytest.approx(
        expected, abs=1e-4
    )


def test_the_reward_of_an_episode_is_drawn_step_by_step(recorded: Recorded) -> None:
    steps = steps_of(recorded, best_host(recorded))
    found = traces(drawn(recorded, "reward"))

    assert points(found["sum"]) == near({step: told.reward for step, told in steps.items()})
    for term in set(found) - {"sum"}:
        expected = {step: dict(told.terms)[term] for step, told in steps.items() if term in dict(told.terms)}
        assert {step: value for step, value in points(found[term]).items() if value} == near(expected)


def test_phases_of_a_round_stand_on_each_other(recorded: Recorded) -> None:
    figure = drawn(recorded, "time")

    for where, told in recorded.of(RoundFinishedPayload):
        for phase, seconds in told.phases:
            assert points(traces(figure)[phase])[where.round] == near(seconds)
        rate = points(figure.data[-1])[where.round]
        assert rate == near(told.episodes * recorded.manifest["config"]["run"]["episode_length"] / told.seconds)


# --- the learner ---------------------------------------------------------------------------------------------------


def test_entropies_and_values_are_those_of_the_updates(recorded: Recorded) -> None:
    entropies, values = traces(drawn(recorded, "entropy")), traces(drawn(recorded, "values"))

    for where, told in recorded.of(PpoUpdatedPayload):
        for head, entropy in told.entropy:
            assert points(entropies[head])[where.round] == near(entropy)
        for op, value in told.op_values:
            assert points(values[op])[where.round] == near(value)
    assert set(values) == {op.name for op in LifecycleOp}


def test_health_shows_every_update_beside_what_was_asked_for(recorded: Recorded) -> None:
    figure = drawn(recorded, "health")

    updates = [told for _, told in recorded.of(PpoUpdatedPayload)]
    kl, clipped, explained, norm, *_ = figure.data
    assert list(kl.y) == near([told.approx_kl for told in updates])
    assert list(clipped.y) == near([told.clip_fraction for told in updates])
    assert list(explained.y) == near([told.explained_variance for told in updates])
    assert list(norm.y) == near([told.grad_norm for told in updates])
    ppo = recorded.manifest["config"]["ppo"]
    assert {shape.y0 for shape in figure.layout.shapes} == {ppo["target_kl"], ppo["max_grad_norm"]}


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_planted_counts_seeds_by_blueprint_and_by_slot(recorded: Recorded) -> None:
    figure = drawn(recorded, "planted")

    kinds = {"planted": SeedGerminatedPayload, "kept": SeedFossilizedPayload, "pruned": SeedPrunedPayload}
    for trace in figure.data:
        told = [payload for _, payload in recorded.of(kinds[trace.name])]
        column = "blueprint_id" if trace.xaxis == "x" else "slot_id"
        counted = Counter(getattr(payload, column) for payload in told)
        assert {name: n for name, n in zip(trace.y, trace.x, strict=True) if n} == counted


def test_seeds_stand_where_their_last_measurement_and_their_rent_put_them(recorded: Recorded) -> None:
    figure = drawn(recorded, "rent")

    last: dict[tuple[Any, int, str], tuple[int, SeedContributionMeasuredPayload]] = {}
    for where, told in recorded.of(SeedContributionMeasuredPayload):
        if told.against == "off":
            last[where.round, told.env_id, told.seed_id] = where.step or 0, told
    host_params = recorded.of(EpisodeFinishedPayload)[0][1].host_params
    gains, rents = defaultdict(list), defaultdict(list)
    for (round_, env, _), (step, told) in last.items():
        at, slot = recorded.steps()[round_, env, step], recorded.slots.index(told.slot_id)
        key = told.blueprint_id, at.level[slot]
        gains[key].append(told.metric)
        rents[key].append(recorded.rent * math.log2(1 + at.slot_params[slot] / host_params))
    found = sorted(
        (trace.name, x, y)
        for trace in figure.data
        if trace.name in {blueprint for blueprint, _ in gains}
        for x, y in zip(trace.x, trace.y, strict=True)
    )
    expected = sorted(
        (blueprint, fmean(rents[blueprint, level]), fmean(gains[blueprint, level])) for blueprint, level in gains
    )
    assert [row[0] for row in found] == [row[0] for row in expected]
    assert [row[1] for row in found] == near([row[1] for row in expected])
    assert [row[2] for row in found] == near([row[2] for row in expected])


def test_churn_counts_changes_of_level_by_decisions_per_episode(recorded: Recorded) -> None:
    found = traces(drawn(recorded, "churn"))

    up, down, net = Counter[int](), Counter[int](), Counter[int]()
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        change = told.to_level - told.from_level
        net[where.round or 0] += change
        if told.cause == "op":
            (up if change > 0 else down)[where.round or 0] += 1
    for round_ in found["levels grown"].x:
        assert points(found["levels grown"])[round_] == near(up[round_] / recorded.envs)
        assert points(found["levels shrunk"])[round_] == near(-down[round_] / recorded.envs)
        assert points(found["net change of level"])[round_] == near(net[round_] / recorded.envs)
    assert up.total() + down.total() > 0


def test_a_change_of_level_is_followed_by_a_change_of_the_metric(recorded: Recorded) -> None:
    found = traces(drawn(recorded, "levels"))

    changes = defaultdict(list)
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        steps = steps_of(recorded, Host(where.round or 0, told.env_id))
        before = steps.get((where.step or 0) - 1)
        if told.cause == "op" and before is not None:
            name = "after growing" if told.to_level > told.from_level else "after shrinking"
            changes[name].append((steps[where.step or 0].val_metric or 0.0) - (before.val_metric or 0.0))
    assert changes
    for name, values in changes.items():
        at = list(found[name].x).index("1 step later")
        assert found[name].y[at] == near(fmean(values))
        assert found[name].customdata[at] == len(values)


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
        folder.write_manifest({"schema_version": 3})
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
