"""The governor: ill hosts go back to a snapshot that proved good, healthy ones are left alone."""

from __future__ import annotations

from collections.abc import Callable
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
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import GovernorRollbackPayload, SeedPrunedPayload
from esper.runtime.tasks import TASKS, make_task
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor
from esper.tolaria.ledger import Category

SEED_IN_TRAINING = (do("GERMINATE", blueprint="conv_light"), do("ADVANCE"))


def governed(engine: Engine, **settings: Any) -> Governor:
    governor = Governor(GovernorConfig(**settings))
    governor.begin(engine)
    return governor


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


# --- what is ill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "rmsprop"])
def test_a_host_with_nan_in_a_weight_is_taken_back(optimiser: str) -> None:
    engine = engine_on(toy(optimiser=optimiser, lr=0.002))
    governor = governed(engine)
    live(engine, waiting, 4, governor)
    poison(engine.environments[0])

    (step,) = live(engine, waiting, 1, governor)

    (verdict,) = step.verdicts
    assert not verdict.healthy
    assert not verdict.ended
    assert verdict.reason == "the training loss was not finite"
    assert not step.after[0].finite
    assert all(torch.isfinite(param).all() for param in engine.environments[0].model.parameters())
    assert last_verdict(engine, governor).healthy


def test_a_batch_of_nan_is_taken_back_and_the_epoch_is_not_trained_on() -> None:
    task = toy()
    engine = engine_on(task)
    governor = governed(engine)
    live(engine, waiting, 4, governor)
    clean = task.splits.train.inputs[5].clone()
    task.splits.train.inputs[5] = torch.nan

    verdict = last_verdict(engine, governor)

    assert verdict.reason == "the training loss was not finite"
    task.splits.train.inputs[5] = clean
    assert last_verdict(engine, governor).healthy


def test_a_host_that_only_validation_finds_broken_is_taken_back() -> None:
    task = toy()
    engine = engine_on(task)
    governor = governed(engine)
    live(engine, waiting, 4, governor)
    task.splits.val.inputs[3] = torch.inf

    assert last_verdict(engine, governor).reason == "the validation loss was not finite"


def test_a_host_whose_learning_rate_is_absurd_is_taken_back_while_its_loss_is_still_a_number() -> None:
    engine = engine_on(toy(momentum=0.0, weight_decay=0.0))
    governor = governed(engine)
    live(engine, waiting, 4, governor)
    rate = engine.environments[0].optimiser.param_groups[0]["lr"]
    blow_up(engine.environments[0])

    verdict = last_verdict(engine, governor)

    assert verdict.reason == "the training loss diverged"
    (told,) = verdict.events
    assert isinstance(told, GovernorRollbackPayload)
    assert told.loss is not None
    assert told.limit is not None
    assert told.loss > told.limit > 0
    assert engine.environments[0].optimiser.param_groups[0]["lr"] == rate
    assert last_verdict(engine, governor).healthy


@pytest.mark.filterwarnings("error")
def test_a_host_that_is_ill_from_its_first_step_goes_back_to_its_untrained_self() -> None:
    engine = engine_on(toy(schedule="cosine"))
    governor = governed(engine)
    untrained = weights(engine.environments[0])
    poison(engine.environments[0])

    verdict = last_verdict(engine, governor)

    assert verdict.restored_epoch == 0
    assert same(weights(engine.environments[0]), untrained)


# --- where it goes back to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "healthy", "back_to"),
    # A snapshot is taken every so many epochs and counts only once the epoch after it was healthy too.
    [(1, 1, 0), (1, 2, 1), (1, 5, 4), (2, 2, 0), (2, 3, 2), (2, 4, 2), (2, 5, 4), (3, 5, 3), (4, 4, 0)],
)
@pytest.mark.parametrize("hurt", [poison, blow_up])
def test_a_host_goes_back_to_the_last_snapshot_that_a_healthy_epoch_followed(
    every: int, healthy: int, back_to: int, hurt: Callable[[Environment], None]
) -> None:
    if hurt is blow_up and healthy < 2:
        pytest.skip("two epochs are the least past that a loss can be compared with")
    engine = engine_on(toy(optimiser="sgd", momentum=0.0, weight_decay=0.0))
    governor = governed(engine, snapshot_epochs=every)
    (environment,) = engine.environments
    known = {0: weights(environment)}
    for epoch in range(1, healthy + 1):
        assert last_verdict(engine, governor).healthy
        known[epoch] = weights(environment)
    hurt(environment)

    verdict = last_verdict(engine, governor)

    assert verdict.restored_epoch == back_to
    assert same(weights(environment), known[back_to])
    assert environment.epoch == healthy + 1


@pytest.mark.parametrize("healthy_between", [0, 1])
def test_a_snapshot_that_an_ill_epoch_followed_never_counts(healthy_between: int) -> None:
    engine = engine_on(toy())
    governor = governed(engine, snapshot_epochs=2)
    (environment,) = engine.environments
    live(engine, waiting, 4, governor)  # the snapshot of epoch 4 waits for a healthy fifth
    poison(environment)
    assert last_verdict(engine, governor).restored_epoch == 2
    live(engine, waiting, healthy_between, governor)
    poison(environment)

    assert last_verdict(engine, governor).restored_epoch == 2


def test_after_a_rollback_snapshots_are_taken_again() -> None:
    engine = engine_on(toy(), length=30)
    governor = governed(engine, snapshot_epochs=2)
    (environment,) = engine.environments
    live(engine, waiting, 4, governor)
    poison(environment)
    live(engine, waiting, 4, governor)  # epoch 5 is ill; 6, 7 and 8 are healthy
    poison(environment)

    assert last_verdict(engine, governor).restored_epoch == 6


# --- what goes with it ------------------------------------------------------------------------------------------


def test_seeds_on_probation_are_pruned_and_fossils_stay() -> None:
    engine = engine_on(toy(widths=(4, 6, 6)), length=30)
    governor = governed(engine)
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
    assert {(event.seed_id, event.initiator) for event in pruned} == {("r0c1.1", "governor"), ("r0c2.1", "governor")}
    stages = [slot.stage for slot in step.settled[0].slots]
    assert stages == [SeedStage.FOSSILIZED, SeedStage.PRUNED, SeedStage.PRUNED]
    assert all(event.env_id == 0 for event in step.verdicts[0].events)
    assert_bound(environment.model, environment.optimiser)


def test_the_other_environments_go_on_as_if_nothing_had_happened() -> None:
    task = toy(widths=(4, 6, 6))
    struck, spared = engine_on(task, envs=3, length=20), engine_on(task, envs=3, length=20)
    guards = [governed(engine) for engine in (struck, spared)]
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
    engine = engine_on(toy())
    governor = governed(engine, snapshot_epochs=2)
    live(engine, waiting, 2, governor)
    (environment,) = engine.environments
    at_snapshot = environment.ledger.total
    live(engine, by_plan(None, None, *SEED_IN_TRAINING), 2, governor)
    before = dict(environment.ledger.charged)
    poison(environment)

    live(engine, waiting, 1, governor)

    # The ill epoch validates, though it trains no batch to its end.
    assert environment.ledger.charged[Category.TRAIN_HOST] == before[Category.TRAIN_HOST]
    assert environment.ledger.charged[Category.VALIDATION] > before[Category.VALIDATION]
    assert environment.ledger.rolled_back == environment.ledger.total - at_snapshot
    assert environment.ledger.wasted == environment.ledger.rolled_back


def test_the_restored_host_has_the_time_that_is_left_and_nothing_measured() -> None:
    engine = engine_on(toy())
    governor = governed(engine)
    live(engine, waiting, 4, governor)
    poison(engine.environments[0])

    (step,) = live(engine, waiting, 1, governor)

    assert step.settled[0].epoch == 5
    assert step.settled[0].val_loss is None
    assert step.settled[0].val_metric is None


# --- the end ----------------------------------------------------------------------------------------------------


def test_the_third_rollback_ends_the_row_and_nothing_moves_there_any_more() -> None:
    engine = engine_on(toy(), envs=2, length=20)
    governor = governed(engine)
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
    engine = engine_on(toy())
    governor = governed(engine, max_rollbacks=1)
    poison(engine.environments[0])

    assert last_verdict(engine, governor).ended


def test_a_round_begins_with_a_clean_record() -> None:
    engine = engine_on(toy())
    governor = governed(engine)
    for _ in range(2):
        poison(engine.environments[0])
        live(engine, waiting, 1, governor)
    engine.reset(1)
    governor.begin(engine)
    poison(engine.environments[0])

    verdict = last_verdict(engine, governor)

    assert not verdict.ended
    assert verdict.events[0].rollbacks == 1


# --- healthy runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lot", range(2))
def test_a_healthy_run_is_the_same_with_and_without_a_governor(lot: int) -> None:
    task = toy(widths=(4, 6, 6), optimiser="adamw", lr=0.003, schedule="cosine")
    free, watched = (engine_on(task, length=16) for _ in range(2))

    live(free, at_random(lot), 16)
    live(watched, at_random(lot), 16, governed(watched, snapshot_epochs=1))

    assert alike(free.environments[0], watched.environments[0])
    assert free.reports() == watched.reports()


@pytest.mark.parametrize("name", TASKS)
def test_no_task_grown_at_random_gives_a_false_alarm(name: str) -> None:
    task = make_task(small_task(name, epoch_items=256), 0)
    few = replace(task.splits.val, inputs=task.splits.val.inputs[:64], targets=task.splits.val.targets[:64])
    task = replace(task, splits=replace(task.splits, val=few))
    engine = engine_on(task, length=8, body=QUICK)

    steps = live(engine, at_random(sum(map(ord, name))), 8, governed(engine))

    assert [verdict.reason for step in steps for verdict in step.verdicts] == [""] * 8
