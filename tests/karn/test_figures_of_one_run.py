"""Every figure of a run against plain Python over the raw lines of real recorded runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

import pytest
from tests.karn.drawn import best_host, by_round, drawn, points, steps_of, traces
from tests.karn.recorded import Recorded, near

from esper.karn.colours import STAGES
from esper.karn.figures import Host
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.telemetry import (
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
        spent = dict(told.phases)
        spent["record, save"] = spent.pop("record") + spent.pop("save")  # one bar
        for phase, seconds in spent.items():
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
