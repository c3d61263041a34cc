"""Every view against plain Python over the raw lines of real recorded runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from tests.karn.recorded import Recorded, near

from esper.karn.views import views
from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp
from esper.leyline.stages import LIVE, SeedStage
from esper.leyline.telemetry import (
    EpisodeFinishedPayload,
    ObservationsPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
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


def holders(recorded: Recorded) -> dict[tuple[int, int, int, str], SeedGerminatedPayload]:
    """Of every step and slot with a seed in it, the event by which that seed was planted."""
    planted = sorted(
        ((w.round or 0, p.env_id, p.slot_id, w.step or 0, w.counter, p) for w, p in recorded.of(SeedGerminatedPayload)),
        key=lambda row: row[:5],
    )
    found = {}
    for (round_, env, step), told in recorded.steps().items():
        for index, slot in enumerate(recorded.slots):
            stage = SeedStage(told.stage[index])
            if stage in LIVE or stage is SeedStage.FOSSILIZED:
                last = [row for row in planted if row[:3] == (round_, env, slot) and row[3] <= step][-1]
                found[round_, env, step, slot] = last[5]
    return found


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

    found = recorded.rows(f"from series('{recorded.run}', 'val_metric', 0, 5)")

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


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_lifecycle_lists_every_event_of_a_seed_in_order(recorded: Recorded) -> None:
    kinds: dict[type[Payload], str] = {
        SeedGerminatedPayload: "germinated",
        SeedStageChangedPayload: "stage",
        SeedGateEvaluatedPayload: "gate",
        SeedInternalLevelChangedPayload: "level",
        SeedContributionMeasuredPayload: "contribution",
        SeedPrunedPayload: "pruned",
        SeedFossilizedPayload: "fossilized",
    }
    expected = [
        (
            w.round,
            (w.round or 0) * recorded.envs + p.env_id,
            p.env_id,
            w.step,
            w.counter,
            p.slot_id,
            p.seed_id,
            kinds[type(p)],
        )
        for w, p in recorded.told
        if type(p) in kinds
    ]

    found = recorded.rows("select round, episode, env, step, n, slot, seed_id, event from lifecycle")

    assert found == sorted(expected, key=lambda row: (row[0], row[2], row[3], row[4]))


def spans(recorded: Recorded) -> list[tuple[int, int, str, str, int, int, str]]:
    """(round, environment, slot, stage, first step, last step, blueprint) of every stage that a seed was in."""
    length = recorded.manifest["config"]["run"]["episode_length"]
    moves = defaultdict(list)
    for where, told in recorded.of(SeedStageChangedPayload):
        moves[where.round, told.env_id, told.slot_id].append((where.step, where.counter, told))
    found = []
    for (round_, env, slot), own in moves.items():
        own.sort(key=lambda move: move[:2])
        ends = [step for step, _, _ in own[1:]] + [length]
        for (step, _, told), end in zip(own, ends, strict=True):
            if told.to_stage != "DORMANT":
                found.append((round_, env, slot, told.to_stage, step, end - 1, told.blueprint_id))
    return found


def test_lifecycle_spans_reach_from_one_change_of_stage_to_the_next(recorded: Recorded) -> None:
    found = recorded.rows("select round, env, slot, stage, from_step, to_step, blueprint_id from lifecycle_spans")

    assert sorted(found) == sorted(spans(recorded))
    assert found


def test_lifecycle_spans_and_slot_steps_tell_the_same(recorded: Recorded) -> None:
    lanes = {
        (round_, env, slot, step): stage
        for round_, env, slot, step, stage in recorded.rows("select round, env, slot, step, stage from slot_steps")
    }
    for round_, env, slot, stage, first, last in recorded.rows(
        "select round, env, slot, stage, from_step, to_step from lifecycle_spans where steps > 1 and stage <> 'PRUNED'"
    ):
        # Time moves a seed on at the end of a step, so that its last step may already show the next stage.
        for step in range(first, last):
            assert lanes[round_, env, slot, step] == stage


def test_stage_durations_are_the_means_of_the_spans(recorded: Recorded) -> None:
    lengths = defaultdict(list)
    for *_, stage, first, last, blueprint in spans(recorded):
        lengths[blueprint, stage].append(last - first + 1)

    found = {
        (blueprint, stage): (count, mean, longest)
        for blueprint, stage, count, mean, longest in recorded.rows(
            "select blueprint_id, stage, spans, mean_steps, longest from stage_durations"
        )
    }

    assert found == {key: (len(own), near(fmean(own)), max(own)) for key, own in lengths.items()}


def test_blueprint_stats_count_what_was_planted_kept_and_pruned(recorded: Recorded) -> None:
    planted, kept, lost = (
        Counter(p.blueprint_id for _, p in recorded.of(kind))
        for kind in (SeedGerminatedPayload, SeedFossilizedPayload, SeedPrunedPayload)
    )
    measured = defaultdict(list)
    for _, told in recorded.of(SeedContributionMeasuredPayload):
        if told.against == "off":
            measured[told.blueprint_id].append(told.metric)

    found = recorded.rows(
        "select blueprint_id, germinated, share, fossilized, pruned, prune_per_fossil, contribution "
        "from blueprint_stats"
    )

    assert {row[0] for row in found} == set(planted)
    for name, germinated, share, fossilized, pruned, ratio, contribution in found:
        assert (germinated, fossilized, pruned) == (planted[name], kept[name], lost[name])
        assert share == near(planted[name] / planted.total())
        assert ratio == near(lost[name] / kept[name] if kept[name] else None)
        assert contribution == near(fmean(measured[name]) if measured[name] else None)


def test_slot_usage_has_every_slot_and_its_concentration(recorded: Recorded) -> None:
    planted = Counter(p.slot_id for _, p in recorded.of(SeedGerminatedPayload))
    kept = Counter(p.slot_id for _, p in recorded.of(SeedFossilizedPayload))
    index = sum((count / planted.total()) ** 2 for count in planted.values())

    found = recorded.rows(
        "select slot, germinated, fossilized, share, concentration from slot_usage order by slot_index"
    )

    assert found == [
        (slot, planted[slot], kept[slot], near(planted[slot] / planted.total()), near(index)) for slot in recorded.slots
    ]


def test_surface_usage_adds_slots_up(recorded: Recorded) -> None:
    surfaces = {slot["id"]: slot["surface"] for slot in recorded.manifest["slots"]}
    planted = Counter(surfaces[p.slot_id] for _, p in recorded.of(SeedGerminatedPayload))

    found = {
        surface: (slots, count)
        for surface, slots, count in recorded.rows("select surface, slots, germinated from surface_usage")
    }

    counts = Counter(surfaces.values())
    assert found == {surface: (counts[surface], planted[surface]) for surface in counts}


def test_rent_roi_sets_what_seeds_brought_against_their_rent(recorded: Recorded) -> None:
    hosts = {(w.round, p.env_id): p.host_params for w, p in recorded.of(EpisodeFinishedPayload)}
    steps, last = recorded.steps(), {}
    for where, told in recorded.of(SeedContributionMeasuredPayload):
        if told.against == "off":
            last[where.round, told.env_id, told.seed_id] = (where.step, told)
    groups = defaultdict(list)
    for (round_, env, seed_id), (step, told) in last.items():
        holder = {key[3]: seed for key, seed in holders(recorded).items() if key[:3] == (round_, env, step)}
        if holder.get(told.slot_id) is None or holder[told.slot_id].seed_id != seed_id:
            continue  # it had gone when the step was over
        at = steps[round_, env, step]
        index = recorded.slots.index(told.slot_id)
        host, params = hosts[round_, env], at.slot_params[index]
        groups[told.blueprint_id, at.level[index]].append(
            (told.metric, recorded.rent * math.log2((host + params) / host))
        )

    found = recorded.rows("select blueprint_id, level, seeds, gain, rent, roi, on_frontier from rent_roi")

    means = {key: (fmean(g for g, _ in own), fmean(r for _, r in own), len(own)) for key, own in groups.items()}
    assert {row[:2] for row in found} == set(means)
    for blueprint, level, seeds, gain, rent, roi, frontier in found:
        own_gain, own_rent, count = means[blueprint, level]
        assert (seeds, gain, rent, roi) == (count, near(own_gain), near(own_rent), near(own_gain - own_rent))
        beaten = [1 for g, r, _ in means.values() if g >= own_gain and r <= own_rent and (g, r) != (own_gain, own_rent)]
        assert frontier == (not beaten)


# --- levels --------------------------------------------------------------------------------------------------------


def test_level_changes_tell_what_came_before_and_after(recorded: Recorded) -> None:
    steps = recorded.steps()

    def metric(round_: int, env: int, step: int) -> float | None:
        told = steps.get((round_, env, step))
        return None if told is None else told.val_metric

    found = recorded.rows(
        "select round, env, step, seed_id, from_level, to_level, params_added, cause, metric_before, metric_1, "
        "metric_5, metric_20, gain_20, gain_20_per_1k from level_changes order by n"
    )

    expected = []
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        at = (where.round or 0, told.env_id, where.step or 0)
        before, one, five, twenty = (metric(*at[:2], at[2] + after) for after in (-1, 0, 4, 19))
        added = told.internal_effective_params - told.params_before
        gain = None if before is None or twenty is None else twenty - before
        rate = None if gain is None or added == 0 else 1000 * gain / added
        expected.append(
            (
                *(*at, told.seed_id, told.from_level, told.to_level, added, told.cause),
                *(before, one, five, twenty, near(gain), near(rate)),
            )
        )
    assert found == expected
    assert found


def test_contributions_around_a_change_of_level_are_the_nearest_measured(recorded: Recorded) -> None:
    measured = recorded.of(SeedContributionMeasuredPayload)

    found = recorded.rows(
        "select round, env, step, seed_id, contribution_before, contribution_after, level_effect from level_changes"
    )

    for round_, env, step, seed_id, before, after, effect in found:
        own = [(w.step or 0, p) for w, p in measured if (w.round, p.env_id, p.seed_id) == (round_, env, seed_id)]
        off = [(at, p.metric) for at, p in own if p.against == "off"]
        level = [(at, p.metric) for at, p in own if p.against == "level" and at >= step]
        assert before == (max((pair for pair in off if pair[0] < step), default=(0, None))[1])
        assert after == (min((pair for pair in off if pair[0] >= step), default=(0, None))[1])
        assert effect == (min(level, default=(0, None))[1])


def test_churn_counts_changes_by_decisions_and_how_far_they_led(recorded: Recorded) -> None:
    steps, ladders, moves = recorded.steps(), Counter(), defaultdict(list)
    for (round_, env, step, slot), seed in holders(recorded).items():
        stage = SeedStage(steps[round_, env, step].stage[recorded.slots.index(slot)])
        ladders[round_, env, slot] += stage in LIVE and seed.internal_max_level > 1
    for where, told in recorded.of(SeedInternalLevelChangedPayload):
        moves[where.round, told.env_id, told.slot_id].append(
            (told.seed_id, told.cause, told.to_level - told.from_level)
        )

    found = {
        (round_, env, slot): rest
        for round_, env, slot, *rest in recorded.rows(
            "select round, env, slot, ladder_steps, changes, grown, shrunk, net_level_change, reversals, "
            "level_change_rate from churn"
        )
    }

    assert set(found) == {key for key, count in ladders.items() if count} | set(moves)
    for key, (ladder_steps, changes, grown, shrunk, net, reversals, rate) in found.items():
        own = [change for _, cause, change in moves[key] if cause == "op"]
        turned = sum(
            first[0] == second[0] and first[2] * second[2] < 0
            for first, second in pairwise([move for move in moves[key] if move[1] == "op"])
        )
        assert ladder_steps == ladders[key]
        assert (changes, grown, shrunk) == (len(own), sum(c > 0 for c in own), sum(c < 0 for c in own))
        assert net == sum(change for _, _, change in moves[key])
        assert reversals == turned
        assert rate == near(len(own) / ladders[key] if ladders[key] else None)


def test_internal_usage_looks_at_decisions_that_a_live_ladder_preceded(recorded: Recorded) -> None:
    steps, by_round = recorded.steps(), defaultdict(list)
    seeds = holders(recorded)
    for (round_, env, step), told in steps.items():
        before = [
            slot
            for slot in recorded.slots
            if (seed := seeds.get((round_, env, step - 1, slot))) is not None
            and seed.internal_max_level > 1
            and SeedStage(steps[round_, env, step - 1].stage[recorded.slots.index(slot)]) in LIVE
        ]
        if before:
            by_round[round_].append(told)

    found = recorded.rows(
        "select round, steps, acting, internal, share, uniform_share from internal_usage order by round"
    )

    internal = (LifecycleOp.GROW_INTERNAL, LifecycleOp.SHRINK_INTERNAL)
    expected = []
    for round_, own in sorted(by_round.items()):
        acting = sum(step.op != "WAIT" for step in own)
        used = sum(step.op in [op.name for op in internal] for step in own)
        even = []
        for step in own:
            legal = [op for op in LifecycleOp if step.op_mask >> op & 1 and op is not LifecycleOp.WAIT]
            if legal:
                even.append(sum(op in internal for op in legal) / len(legal))
        share = near(used / acting if acting else None)
        expected.append((round_, len(own), acting, used, share, near(fmean(even) if even else None)))
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
        "select update, explained_variance, approx_kl, ratio_error from ppo_updates order by update"
    ) == [(told.update, told.explained_variance, told.approx_kl, told.ratio_error) for told in updates]
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


def test_every_event_type_op_stage_head_and_term_has_a_place(recorded: Recorded) -> None:
    tables = {name for (name,) in recorded.rows("select table_name from event_types")}

    def every(sql: str) -> set[Any]:
        return {value for (value,) in recorded.rows(sql)}

    assert {event.value.replace(".", "_") for event in TelemetryEventType} == tables
    assert every("select op from ops") == {op.name for op in OPS}
    assert every("select stage from stages") == {stage.name for stage in SeedStage}
    assert every("select head from heads") == set(HEADS)
    assert every("select distinct term from reward_long") == {
        name for step in recorded.steps().values() for name, _ in step.terms
    }
    offered = recorded.manifest["heads"]["blueprint"]
    assert every("select choice from choices where head = 'blueprint'") == set(offered)
