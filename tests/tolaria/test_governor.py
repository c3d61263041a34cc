"""The governor: ill hosts go back to a snapshot that proved good, healthy ones are left alone."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support import same, small_task
from tests.tolaria.small import (
    QUICK,
    alike,
    at_random,
    by_plan,
    do,
    engine_on,
    live,
    state_of,
    toy,
    waiting,
)

from esper.kasmina.optimiser import assert_bound
from esper.leyline.decisions import Verdict
from esper.leyline.errors import DivergedError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.leyline.telemetry import (
    GovernorRollbackPayload,
    GovernorStepsSkippedPayload,
    GovernorSuspectedPayload,
    SeedPrunedPayload,
)
from esper.runtime.tasks import TASKS, make_task
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.ledger import Category

SEED_IN_TRAINING = (do("GERMINATE", blueprint="conv_light"), do("ADVANCE"))


def watched(task: Task, envs: int = 1, length: int = 12, **settings: Any) -> tuple[Engine, Governor]:
    """An engine and its governor. An epoch of the toy task has four optimiser steps."""
    engine = engine_on(task, envs, length, governor=GovernorConfig(**settings))
    governor = Governor(engine.setup.governor)
    governor.begin(engine)
    return engine, governor


EVERY_EPOCH = {"snapshot_steps": 4, "bless_steps": 4}
"""A snapshot after each epoch, good once the next epoch has been healthy."""


def poison(environment: Environment) -> None:
    """NaN into one weight of the host."""
    with torch.no_grad():
        next(environment.model.parameters()).view(-1)[0] = torch.nan


def blow_up(environment: Environment) -> None:
    """A learning rate at which losses leave every measure, but stay finite."""
    for group in environment.optimiser.param_groups:
        group["lr"] = 30.0


def weights(environment: Environment) -> dict[str, Any]:
    return {name: value for name, value in state_of(environment).items() if name.startswith(("host.", "optimiser"))}


def last_verdict(engine: Engine, governor: Governor, steps: int = 1) -> Verdict:
    return live(engine, waiting, steps, governor)[-1].verdicts[0]


def rollback_in(verdict: Verdict) -> GovernorRollbackPayload:
    (told,) = [event for event in verdict.events if isinstance(event, GovernorRollbackPayload)]
    return told


# --- what is ill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "rmsprop"])
def test_a_host_with_nan_in_a_weight_is_taken_back_in_the_same_epoch(optimiser: str) -> None:
    engine, governor = watched(toy(optimiser=optimiser, lr=0.002))
    live(engine, waiting, 4, governor)
    poison(engine.environments[0])

    (step,) = live(engine, waiting, 1, governor)

    (verdict,) = step.verdicts
    assert not verdict.healthy
    assert not verdict.ended
    assert step.after[0].suspicious
    told = rollback_in(verdict)
    assert (told.detector, told.steps, told.loss) == ("nonfinite", 20, None)
    assert any(isinstance(event, GovernorStepsSkippedPayload) and event.skipped == 4 for event in verdict.events)
    assert all(torch.isfinite(param).all() for param in engine.environments[0].model.parameters())
    assert last_verdict(engine, governor).healthy


def test_a_host_that_only_validation_finds_broken_is_taken_back() -> None:
    task = toy()
    engine, governor = watched(task)
    live(engine, waiting, 4, governor)
    task.splits.val.inputs[3] = torch.inf

    verdict = last_verdict(engine, governor)

    assert rollback_in(verdict).detector == "validation"
    assert verdict.reason == "the validation loss was not finite"


def test_a_host_whose_learning_rate_is_absurd_is_suspected_and_then_taken_back() -> None:
    engine, governor = watched(toy(momentum=0.0, weight_decay=0.0), length=30)
    live(engine, waiting, 12, governor)
    environment = engine.environments[0]
    rate = environment.optimiser.param_groups[0]["lr"]
    blow_up(environment)

    first, second = (last_verdict(engine, governor) for _ in range(2))

    # The first of four steps was still taken by the sound host, so that three are far off, and four are an alarm.
    assert first.healthy
    (suspected,) = first.events
    assert isinstance(suspected, GovernorSuspectedPayload)
    assert suspected.far_off == 3
    told = rollback_in(second)
    assert told.detector == "burst"
    assert told.z_loss is not None
    assert told.limit is not None
    assert told.z_loss > told.limit > 0
    assert environment.optimiser.param_groups[0]["lr"] == rate
    assert last_verdict(engine, governor).healthy


@pytest.mark.filterwarnings("error")
def test_a_host_that_is_ill_from_its_first_step_goes_back_to_its_untrained_self() -> None:
    engine, governor = watched(toy(schedule="cosine"))
    untrained = weights(engine.environments[0])
    poison(engine.environments[0])

    verdict = last_verdict(engine, governor)

    assert verdict.restored_epoch == 0
    assert same(weights(engine.environments[0]), untrained)


def test_operations_on_a_suspicious_host_are_vetoed_and_say_so() -> None:
    engine, governor = watched(toy(), length=30)
    live(engine, waiting, 12, governor)
    blow_up(engine.environments[0])
    live(engine, waiting, 1, governor)
    legal = possible(engine.reports(), engine.space)

    (step,) = live(engine, by_plan(*[None] * 13, do("GERMINATE", blueprint="norm")), 1, governor)

    (receipt,) = step.receipts
    assert not receipt.done
    assert receipt.refused_by == "veto"
    assert receipt.why
    assert legal[0].op_bits & (1 << int(LifecycleOp.GERMINATE))  # masks stay as they are
    assert step.after[0].slots[0].seed_id is None


def test_a_host_that_was_taken_back_is_left_alone_until_it_has_recovered() -> None:
    engine, governor = watched(toy(), length=30, cool_down_steps=8)
    live(engine, waiting, 2, governor)
    poison(engine.environments[0])
    live(engine, waiting, 1, governor)
    ask = do("GERMINATE", blueprint="norm")

    steps = live(engine, by_plan(*[ask] * 30), 3, governor)

    # Two epochs of four steps have to pass.
    assert [step.receipts[0].refused_by for step in steps] == ["veto", "veto", None]
    assert steps[1].receipts[0].why == "the host was taken back and recovers for 4 more steps"
    assert [step.after[0].slots[0].seed_id for step in steps] == [None, None, "r0c0.1"]


# --- where it goes back to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "healthy", "back_to"),
    # A snapshot is taken every so many epochs and counts only once the epoch after it was healthy too.
    [(1, 1, 0), (1, 2, 1), (1, 5, 4), (2, 2, 0), (2, 3, 2), (2, 4, 2), (2, 5, 4), (3, 5, 3), (4, 4, 0)],
)
def test_a_host_goes_back_to_the_last_snapshot_that_healthy_steps_followed_optimiser_included(
    every: int, healthy: int, back_to: int
) -> None:
    task = toy(optimiser="adam", lr=0.002)
    engine, governor = watched(task, snapshot_steps=4 * every, bless_steps=4)
    (environment,) = engine.environments
    known = {0: weights(environment)}
    for epoch in range(1, healthy + 1):
        assert last_verdict(engine, governor).healthy
        known[epoch] = weights(environment)
    poison(environment)

    verdict = last_verdict(engine, governor)

    assert verdict.restored_epoch == back_to
    assert rollback_in(verdict).restored_steps == 4 * back_to
    assert same(weights(environment), known[back_to])
    assert environment.epoch == healthy + 1


def test_what_is_taken_shortly_before_a_suspicion_never_becomes_good() -> None:
    engine, governor = watched(toy(), length=30, snapshot_steps=4, bless_steps=8)
    live(engine, waiting, 12, governor)
    blow_up(engine.environments[0])

    live(engine, waiting, 1, governor)

    (watch,) = governor.watches.values()
    assert watch.ring.candidates == []
    assert [snapshot.epoch for snapshot in watch.ring.good] == [8, 9, 10]


def test_a_rollback_soon_after_another_goes_one_snapshot_further_back() -> None:
    engine, governor = watched(toy(), length=30, **EVERY_EPOCH)
    (environment,) = engine.environments
    live(engine, waiting, 6, governor)
    backs = []
    for _ in range(2):
        poison(environment)
        backs.append(last_verdict(engine, governor).restored_epoch)

    assert backs == [5, 4]


def test_a_snapshot_that_is_not_as_it_was_taken_is_passed_over() -> None:
    engine, governor = watched(toy(), length=30, **EVERY_EPOCH)
    live(engine, waiting, 6, governor)
    (watch,) = governor.watches.values()
    spoilt = watch.ring.good[-1]
    assert spoilt.epoch == 5
    next(value for value in spoilt.model.values() if isinstance(value, torch.Tensor)).view(-1)[0] += 1e-6
    poison(engine.environments[0])

    assert last_verdict(engine, governor).restored_epoch == 4


def test_without_any_snapshot_as_it_was_taken_the_run_ends() -> None:
    engine, governor = watched(toy())
    (watch,) = governor.watches.values()
    next(value for value in watch.ring.good[0].model.values() if isinstance(value, torch.Tensor)).view(-1)[0] = 9.0
    poison(engine.environments[0])

    with pytest.raises(DivergedError, match="memory fails"):
        live(engine, waiting, 1, governor)


def test_after_a_rollback_snapshots_are_taken_again() -> None:
    engine, governor = watched(toy(), length=30, escalation_steps=0, **EVERY_EPOCH)
    (environment,) = engine.environments
    live(engine, waiting, 4, governor)
    poison(environment)
    live(engine, waiting, 4, governor)  # epoch 5 is ill; 6, 7 and 8 are healthy
    poison(environment)

    assert last_verdict(engine, governor).restored_epoch == 7


def test_after_a_rollback_data_and_dropout_are_drawn_anew_and_the_learning_rate_recovers() -> None:
    engine, governor = watched(toy(optimiser="sgd", momentum=0.0), length=30, cool_down_steps=8, cool_down_lr=0.5)
    (environment,) = engine.environments
    first_draws = environment.draws.get_state()
    poison(environment)
    live(engine, waiting, 1, governor)

    assert environment.cooling == 8
    assert not torch.equal(environment.draws.get_state(), first_draws)
    streams = environment.streams
    orders = [torch.randperm(64, generator=streams.of("order", 1, rollbacks)) for rollbacks in (0, 1)]
    assert not torch.equal(*orders)
    rate = environment.optimiser.param_groups[0]["lr"]
    live(engine, waiting, 1, governor)
    assert environment.cooling == 4
    assert environment.optimiser.param_groups[0]["lr"] == rate
    live(engine, waiting, 2, governor)
    assert environment.cooling == 0


# --- what goes with it ------------------------------------------------------------------------------------------


def test_the_seed_that_changed_last_goes_alone_and_the_others_only_if_that_does_not_help() -> None:
    engine, governor = watched(toy(widths=(4, 6, 6)), length=30, **EVERY_EPOCH)
    life = (do("GERMINATE", blueprint="norm", tempo="fast"), *[do("ADVANCE")] * 2, None, None, do("ADVANCE"))
    other = (do("GERMINATE", slot="r0c1", blueprint="norm"), do("ADVANCE", slot="r0c1"))
    late = do("GERMINATE", slot="r0c2", blueprint="norm")
    live(engine, by_plan(*life, do("FOSSILIZE"), *other, None, None, late), 12, governor)
    (environment,) = engine.environments
    stages = [slot.stage for slot in environment.report().slots]
    assert stages == [SeedStage.FOSSILIZED, SeedStage.TRAINING, SeedStage.GERMINATED]
    poison(environment)

    (step,) = live(engine, waiting, 1, governor)

    pruned = [event for event in step.verdicts[0].events if isinstance(event, SeedPrunedPayload)]
    assert [(event.seed_id, event.initiator) for event in pruned] == [("r0c2.1", "governor")]
    assert rollback_in(step.verdicts[0]).culprit == "r0c2"
    stages = [slot.stage for slot in step.settled[0].slots]
    assert stages == [SeedStage.FOSSILIZED, SeedStage.TRAINING, SeedStage.PRUNED]
    assert_bound(environment.model, environment.optimiser)

    poison(environment)
    (step,) = live(engine, waiting, 1, governor)

    pruned = [event for event in step.verdicts[0].events if isinstance(event, SeedPrunedPayload)]
    assert [(event.seed_id, event.initiator) for event in pruned] == [("r0c1.1", "governor")]
    assert rollback_in(step.verdicts[0]).culprit is None
    assert step.settled[0].slots[0].stage is SeedStage.FOSSILIZED
    assert step.settled[0].slots[1].stage is SeedStage.PRUNED
    assert all(event.env_id == 0 for event in step.verdicts[0].events)
    assert_bound(environment.model, environment.optimiser)


def test_the_other_environments_go_on_as_if_nothing_had_happened() -> None:
    task = toy(widths=(4, 6, 6))
    (struck, first), (spared, second) = (watched(task, envs=3, length=20) for _ in range(2))
    guards = [first, second]
    lots = at_random(6), at_random(6)
    for engine, lot, guard in zip((struck, spared), lots, guards, strict=True):
        live(engine, lot, 5, guard)
    poison(struck.environments[1])

    hit = live(struck, lots[0], 6, guards[0])
    live(spared, lots[1], 6, guards[1])

    assert [verdict.healthy for verdict in hit[0].verdicts] == [True, False, True]
    for env in (0, 2):
        assert alike(struck.environments[env], spared.environments[env])
        assert struck.environments[env].ledger.as_dict() == spared.environments[env].ledger.as_dict()
        assert struck.reports()[env] == spared.reports()[env]


def test_what_was_done_since_the_snapshot_is_wasted_and_no_total_shrinks() -> None:
    engine, governor = watched(toy(), snapshot_steps=8, bless_steps=4)
    live(engine, waiting, 2, governor)
    (environment,) = engine.environments
    at_snapshot = environment.ledger.total
    live(engine, by_plan(None, None, *SEED_IN_TRAINING), 2, governor)
    before = dict(environment.ledger.charged)
    poison(environment)

    live(engine, waiting, 1, governor)

    # The ill epoch computes its four steps, though it takes none: a fifth epoch after four.
    assert 4 * environment.ledger.charged[Category.TRAIN_HOST] == 5 * before[Category.TRAIN_HOST]
    assert environment.ledger.charged[Category.VALIDATION] > before[Category.VALIDATION]
    assert environment.ledger.rolled_back == environment.ledger.total - at_snapshot
    assert environment.ledger.wasted == environment.ledger.rolled_back


def test_the_restored_host_has_the_time_that_is_left_and_nothing_measured() -> None:
    engine, governor = watched(toy())
    live(engine, waiting, 4, governor)
    poison(engine.environments[0])

    (step,) = live(engine, waiting, 1, governor)

    assert step.settled[0].epoch == 5
    assert step.settled[0].val_loss is None
    assert step.settled[0].val_metric is None


# --- the end ----------------------------------------------------------------------------------------------------


def test_the_third_rollback_ends_the_row_and_nothing_moves_there_any_more() -> None:
    engine, governor = watched(toy(), envs=2, length=20)
    struck = engine.environments[0]
    ends = []
    for _ in range(3):
        poison(struck)
        ends.append(live(engine, at_random(1), 1, governor)[0].verdicts[0].ended)
    assert ends == [False, False, True]
    frozen, spent = state_of(struck), struck.ledger.total

    steps = live(engine, at_random(2), 3, governor)

    assert same(state_of(struck), frozen)
    assert struck.ledger.total == spent
    for step in steps:
        assert step.settled[0].finished
        assert step.verdicts[0].ended
        assert step.verdicts[0].events == ()
        assert possible(step.settled, engine.space)[0].op_bits == 1  # WAIT alone
    outcome, other = engine.outcomes()
    assert outcome.diverged
    assert outcome.test_metric is None
    assert not other.diverged
    assert other.test_metric is not None


def test_the_number_of_rollbacks_allowed_is_a_setting() -> None:
    engine, governor = watched(toy(), max_rollbacks=1)
    poison(engine.environments[0])

    assert last_verdict(engine, governor).ended


def test_a_round_begins_with_a_clean_record() -> None:
    engine, governor = watched(toy())
    for _ in range(2):
        poison(engine.environments[0])
        live(engine, waiting, 1, governor)
    engine.reset(1)
    governor.begin(engine)
    poison(engine.environments[0])

    verdict = last_verdict(engine, governor)

    assert not verdict.ended
    assert rollback_in(verdict).rollbacks == 1


# --- healthy runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lot", range(2))
def test_a_healthy_run_is_the_same_with_and_without_a_governor(lot: int) -> None:
    task = toy(widths=(4, 6, 6), optimiser="adamw", lr=0.003, schedule="cosine")
    free = engine_on(task, length=16)
    guarded, governor = watched(task, length=16, **EVERY_EPOCH)

    live(free, at_random(lot), 16)
    live(guarded, at_random(lot), 16, governor)

    assert alike(free.environments[0], guarded.environments[0])
    assert free.reports() == guarded.reports()


@pytest.mark.parametrize(
    "name", [name if name in ("digits", "stdlib_lm") else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
)
def test_no_task_grown_at_random_gives_a_false_alarm(name: str) -> None:
    task = make_task(small_task(name, epoch_items=256), 0)
    few = replace(task.splits.val, inputs=task.splits.val.inputs[:64], targets=task.splits.val.targets[:64])
    task = replace(task, splits=replace(task.splits, val=few))
    engine = engine_on(task, length=8, body=QUICK)

    governor = Governor(engine.setup.governor)

    steps = live(engine, at_random(sum(map(ord, name))), 8, governor)

    assert [verdict.reason for step in steps for verdict in step.verdicts] == [""] * 8


# --- put away and taken up --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [3, 9, 11, 13, 15, 18])
def test_a_governor_that_was_put_away_judges_as_one_that_was_not(moment: int) -> None:
    """Before a suspicion (at 13), in it, while the learning rate recovers, and with candidates of every age."""

    def through(engine: Engine, governor: Governor, first: int, last: int) -> list[Verdict]:
        verdicts = []
        for epoch in range(first, last):
            if epoch == 12:
                poison(engine.environments[0])
            if epoch == 17:
                blow_up(engine.environments[0])
            verdicts += live(engine, at_random(epoch), 1, governor)[0].verdicts
        return verdicts

    (whole, first), (resumed, second) = (watched(toy(), length=22, snapshot_steps=4, bless_steps=8) for _ in range(2))
    through(whole, first, 0, moment)
    buffer = io.BytesIO()
    torch.save(LocalHosts(whole, first).state(), buffer)
    buffer.seek(0)
    LocalHosts(resumed, second).load(torch.load(buffer))

    assert through(resumed, second, moment, 22) == through(whole, first, moment, 22)
    assert alike(whole.environments[0], resumed.environments[0])
    assert whole.reports() == resumed.reports()
