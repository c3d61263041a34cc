"""The views of seeds and of their levels against plain Python over the raw lines of real recorded runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from tests.karn.recorded import Recorded, holders, near

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.stages import LIVE, SeedStage
from esper.leyline.telemetry import (
    EpisodeFinishedPayload,
    Payload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
)

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


def test_lifecycle_says_where_a_seed_went_and_which_checks_refused_it(recorded: Recorded) -> None:
    expected: dict[int, str] = {}
    for where, told in recorded.told:
        if isinstance(told, SeedStageChangedPayload):
            expected[where.counter] = f"{told.from_stage} -> {told.to_stage} by {told.driver}"
        elif isinstance(told, SeedGateEvaluatedPayload):
            refused_by = ", ".join(name for name, _, _, passed in told.checks if not passed)
            expected[where.counter] = f"{told.gate} passed" if told.passed else f"{told.gate} refused: {refused_by}"

    assert dict(recorded.rows("select n, what from lifecycle where event in ('stage', 'gate')")) == expected


def moves(recorded: Recorded) -> dict[tuple[Any, int, str], list[tuple[Any, int, SeedStageChangedPayload]]]:
    """By round, environment and slot the (step, counter, event) of every change of stage, in order."""
    found = defaultdict(list)
    for where, told in recorded.of(SeedStageChangedPayload):
        found[where.round, told.env_id, told.slot_id].append((where.step, where.counter, told))
    return {place: sorted(own, key=lambda move: move[:2]) for place, own in found.items()}


def spans(recorded: Recorded) -> list[tuple[int, int, str, str, int, int, str]]:
    """(round, environment, slot, stage, first step, last step, blueprint) of every stage that a seed was in."""
    length = recorded.manifest["config"]["run"]["episode_length"]
    found = []
    for (round_, env, slot), own in moves(recorded).items():
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
    lengths, after = defaultdict(list), defaultdict(Counter)
    for *_, stage, first, last, blueprint in spans(recorded):
        lengths[blueprint, stage].append(last - first + 1)
    for own in moves(recorded).values():
        for (_, _, told), (_, _, later) in pairwise(own):
            after[told.blueprint_id, told.to_stage][later.to_stage] += 1

    found = {
        (blueprint, stage): rest
        for blueprint, stage, *rest in recorded.rows(
            "select blueprint_id, stage, spans, mean_steps, median_steps, longest, pruned, fossilized "
            "from stage_durations"
        )
    }

    assert found == {
        key: [
            *(len(own), near(fmean(own)), near(median(own)), max(own)),
            *(after[key]["PRUNED"], after[key]["FOSSILIZED"]),
        ]
        for key, own in lengths.items()
    }


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
