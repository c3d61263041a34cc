"""Every view against plain Python over the raw lines of real recorded runs; those of seeds in a file of their own."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

import pytest
from tests.karn.recorded import Recorded, holders, near

from esper.karn.views import views
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import LIVE, SeedStage
from esper.leyline.telemetry import (
    EpisodeFinishedPayload,
    ObservationsPayload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    TelemetryEventType,
)

# --- runs, rounds, episodes ----------------------------------------------------------------------------------------


def test_runs_says_how_it_ended_and_that_nothing_is_missing(recorded: Recorded) -> None:
    found = recorded.rows("select run, status, rounds_done, rounds, episodes, test_metric, events, complete from runs")

    finished = [p for _, p in recorded.of(EpisodeFinishedPayload)]
    rounds = {w.round for w, _ in recorded.of(RoundFinishedPayload)}
    tests = [p.test_metric for p in finished if p.test_metric is not None]
    asked = recorded.manifest["config"]["run"]["rounds"]
    expected = (recorded.run, "done", len(rounds), asked, len(finished), near(fmean(tests)), len(recorded.told), True)
    assert found == [expected]


def test_rounds_have_the_means_of_their_episodes(recorded: Recorded) -> None:
    by_round = defaultdict(list)
    for where, payload in recorded.of(EpisodeFinishedPayload):
        by_round[where.round].append(payload)

    found = recorded.rows(
        "select round, episodes, val_metric, val_min, val_max, test_metric, reward_mean, params, doublings, "
        "fossilized, seconds from rounds order by round"
    )

    assert len(found) == len(recorded.of(RoundFinishedPayload)) == len(by_round)
    for row, (where, told) in zip(found, recorded.of(RoundFinishedPayload), strict=True):
        of = by_round[where.round]
        metrics = [p.val_metric for p in of if p.val_metric is not None]
        assert row == (
            where.round,
            told.episodes,
            near(fmean(metrics)),
            min(metrics),
            max(metrics),
            near(fmean(p.test_metric for p in of if p.test_metric is not None)),
            near(told.reward_mean),
            near(fmean(p.params for p in of)),
            near(fmean(math.log2(p.params / p.host_params) for p in of)),
            near(fmean(p.fossilized for p in of)),
            near(told.seconds),
        )


def test_episodes_are_worth_their_test_metric_less_rent(recorded: Recorded) -> None:
    steps = recorded.steps()
    found = recorded.rows(
        "select round, env, steps, operations, refused, germinated, fossilized, doublings, j, reward from episodes "
        "order by round, env"
    )

    expected = []
    for where, told in recorded.of(EpisodeFinishedPayload):
        own = [step for (round_, env, _), step in steps.items() if (round_, env) == (where.round, told.env_id)]
        assert told.test_metric is not None
        doublings = math.log2(told.params / told.host_params)
        expected.append(
            (
                where.round,
                told.env_id,
                len(own),
                sum(step.op != "WAIT" for step in own),
                sum(not step.done for step in own),
                sum(step.op == "GERMINATE" and step.done for step in own),
                told.fossilized,
                near(doublings),
                near(told.test_metric - recorded.rent * doublings),
                near(told.reward),
            )
        )
    assert found == sorted(expected, key=lambda row: row[:2])


# --- steps ---------------------------------------------------------------------------------------------------------


def test_slot_steps_spread_the_lists_of_a_step_over_its_slots(recorded: Recorded) -> None:
    found = {
        (round_, env, step, slot): rest
        for round_, env, step, slot, *rest in recorded.rows(
            "select round, env, step, slot, stage, alpha, level, slot_params, grad_ratio, is_live from slot_steps"
        )
    }

    steps = recorded.steps()
    assert len(found) == len(steps) * len(recorded.slots)
    for place, step in steps.items():
        for index, slot in enumerate(recorded.slots):
            stage = SeedStage(step.stage[index])
            own = [stage.name, step.alpha[index], step.level[index], step.slot_params[index], step.grad_ratio[index]]
            assert found[(*place, slot)] == [*map(near_or_same, own), stage in LIVE]


def near_or_same(value: Any) -> Any:
    return near(value) if isinstance(value, float) else value


def test_slot_steps_name_the_seed_in_the_slot_and_say_whether_it_is_a_live_ladder(recorded: Recorded) -> None:
    found = {
        (round_, env, step, slot): (seed, blueprint, ladder)
        for round_, env, step, slot, seed, blueprint, ladder in recorded.rows(
            "select round, env, step, slot, seed_id, blueprint_id, is_live_ladder from slot_steps where holds_seed"
        )
    }

    steps, expected = recorded.steps(), {}
    for (round_, env, step, slot), seed in holders(recorded).items():
        stage = SeedStage(steps[round_, env, step].stage[recorded.slots.index(slot)])
        ladder = stage in LIVE and seed.internal_max_level > 1
        expected[round_, env, step, slot] = (seed.seed_id, seed.blueprint_id, ladder)
    assert found == expected
    assert found


def test_decisions_tell_what_was_possible_and_what_became_of_it(recorded: Recorded) -> None:
    found = recorded.rows(
        "select round, env, step, decision, possible_ops, forced, log_prob, done, refused_by from decisions"
    )

    expected = []
    for place, step in recorded.steps().items():
        chosen = [value for head in HEADS if (value := getattr(step, head)) is not None]
        legal = [op.name for op in LifecycleOp if step.op_mask >> op & 1]
        expected.append((*place, " ".join(chosen), legal, legal == ["WAIT"], step.log_prob, step.done, step.refused_by))
    assert sorted(found, key=lambda row: row[:3]) == sorted(expected, key=lambda row: row[:3])


def test_env_steps_say_which_operations_are_internal(recorded: Recorded) -> None:
    found = dict(recorded.rows("select distinct op, is_internal from env_steps"))

    assert found == {step.op: step.op in ("GROW_INTERNAL", "SHRINK_INTERNAL") for step in recorded.steps().values()}


def test_reward_long_has_a_row_per_term_that_was_not_0(recorded: Recorded) -> None:
    found = recorded.rows("select round, env, step, term, value from reward_long")

    expected = [(*place, name, value) for place, step in recorded.steps().items() for name, value in step.terms]
    assert sorted(found) == sorted(expected)


def test_a_series_has_the_extremes_and_means_of_its_buckets(recorded: Recorded) -> None:
    length = recorded.manifest["config"]["run"]["episode_length"]
    points = sorted((r * length + s, p.val_metric) for (r, env, s), p in recorded.steps().items() if env == 0)

    found = recorded.rows(f"from series('{recorded.run}', 'val_metric', 0, null, null, 5)")

    width = points[-1][0] - points[0][0] + 1
    buckets = defaultdict(list)
    for x, y in points:
        buckets[(x - points[0][0]) * 5 // width].append((x, y))
    expected = [
        (
            min(x for x, _ in own),
            min(y for _, y in own),
            near(fmean(y for _, y in own)),
            max(y for _, y in own),
            len(own),
        )
        for own in buckets.values()
    ]
    assert found == expected


# --- what was chosen -----------------------------------------------------------------------------------------------


def test_action_mix_has_the_share_of_every_choice(recorded: Recorded) -> None:
    taken, done, steps_of = Counter(), Counter(), defaultdict(list)
    for (round_, _, _), step in recorded.steps().items():
        steps_of[round_].append(step)
        for head in HEADS:
            choice = getattr(step, head)
            if choice is not None:
                taken[round_, head, choice] += 1
                done[round_, head, choice] += step.done

    found = recorded.rows(
        "select round, head, choice, n, share, share_of_acting, possible_share, done_share from action_mix"
    )

    assert {row[:3] for row in found} == set(taken)
    for round_, head, choice, n, share, of_acting, possible, done_share in found:
        total = sum(count for key, count in taken.items() if key[:2] == (round_, head))
        own = steps_of[round_]
        acting = sum(step.op != "WAIT" for step in own)
        is_act = head == "op" and choice != "WAIT"
        assert n == taken[round_, head, choice]
        assert share == near(n / total)
        assert of_acting == near(n / acting if is_act else None)
        assert done_share == near(done[round_, head, choice] / n)
        if head == "op":
            assert possible == near(fmean(step.op_mask >> LifecycleOp[choice] & 1 for step in own))
        elif head == "slot":
            masks = [step.slot_mask for step in own if step.slot is not None]
            assert possible == near(fmean(mask >> recorded.slots.index(choice) & 1 for mask in masks))
        else:
            assert possible is None


# --- learning ------------------------------------------------------------------------------------------------------


def test_head_health_and_entropy_collapse_follow_the_updates(recorded: Recorded) -> None:
    updates = recorded.of(PpoUpdatedPayload)
    found = recorded.rows("select update, head, entropy, kl, clip_fraction, decisions, grad_norm from head_health")

    expected = []
    for _, told in updates:
        kl, clipped, relevant, norms = (
            dict(pairs) for pairs in (told.kl, told.clipped, told.relevant, told.head_grad_norm)
        )
        for head, value in told.entropy:
            expected.append(
                (told.update, head, value, kl.get(head), clipped.get(head), relevant.get(head), norms.get(head))
            )
    assert sorted(found, key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])

    stretches = recorded.rows("select head, in_a_row from entropy_collapse order by head, update")
    counted = []
    for head in sorted({head for _, told in updates for head, _ in told.entropy}):
        length = 0
        for _, told in updates:
            value = dict(told.entropy).get(head)
            if value is not None:
                length = length + 1 if value < 0.10 else 0
                counted.append((head, length))
    assert stretches == counted


def test_updates_and_q_values_are_those_told(recorded: Recorded) -> None:
    updates = [told for _, told in recorded.of(PpoUpdatedPayload)]

    assert recorded.rows(
        "select update, explained_variance, approx_kl, ratio_error, imitated from ppo_updates order by update"
    ) == [(told.update, told.explained_variance, told.approx_kl, told.ratio_error, told.imitated) for told in updates]
    assert recorded.rows("select update, op, value from op_values order by update, op") == sorted(
        (told.update, op, value) for told in updates for op, value in told.op_values
    )
    if updates:
        assert {op for (op,) in recorded.rows("select distinct op from op_values")} == {op.name for op in LifecycleOp}


def test_observations_are_told_by_sensor(recorded: Recorded) -> None:
    found = recorded.rows("select round, sensor, mean, deviation, outside_share, saturated_share from observations")

    expected = [(w.round, *row) for w, told in recorded.of(ObservationsPayload) for row in told.sensors]
    assert sorted(found) == sorted(expected)


def test_throughput_splits_a_round_into_its_phases(recorded: Recorded) -> None:
    length = recorded.manifest["config"]["run"]["episode_length"]
    found = recorded.rows("select round, phase, phase_seconds, share, steps_per_second from throughput")

    expected = [
        (w.round, phase, near(spent), near(spent / told.seconds), near(told.episodes * length / told.seconds))
        for w, told in recorded.of(RoundFinishedPayload)
        for phase, spent in told.phases
    ]
    assert sorted(found, key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])


def test_calibration_is_the_correlation_of_returns_with_worth(recorded: Recorded) -> None:
    episodes = recorded.rows("select reward, j, test_metric from episodes")
    ((n, with_j, with_metric, mean_return),) = recorded.rows(
        "select episodes, return_and_j, return_and_metric, mean_return from calibration"
    )

    def correlation(pairs: list[tuple[float, float]]) -> float | None:
        xs, ys = zip(*pairs, strict=True)
        mx, my = fmean(xs), fmean(ys)
        spread = math.sqrt(sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys))
        return sum((x - mx) * (y - my) for x, y in pairs) / spread if spread else None

    assert n == len(episodes)
    assert mean_return == near(fmean(reward for reward, _, _ in episodes))
    if len(episodes) > 2:
        assert with_j == pytest.approx(correlation([(reward, j) for reward, j, _ in episodes]))
        assert with_metric == pytest.approx(correlation([(reward, metric) for reward, _, metric in episodes]))


def test_a_run_without_rollbacks_has_none_in_the_governors_view(recorded: Recorded) -> None:
    told = [p for _, p in recorded.told if p.type is TelemetryEventType.GOVERNOR_ROLLBACK]

    assert recorded.rows("select count(*) from governor") == [(len(told),)]


# --- all of them ---------------------------------------------------------------------------------------------------


def test_every_view_says_what_it_answers_and_what_a_row_is() -> None:
    found = views()

    assert len({view.name for view in found}) == len(found) >= 25
    for view in found:
        assert view.summary.endswith(".")
        assert (view.grain == "") == (view.kind == "macro")


def test_every_view_can_be_read_of_every_run(recorded: Recorded) -> None:
    for view in views():
        if view.kind == "view":
            recorded.con.execute(f"from {view.name}").fetchall()
