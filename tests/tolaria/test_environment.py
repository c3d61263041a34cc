"""One host run: isolation over whole epochs, an optimiser that follows, data order, account, going back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import same
from tests.tolaria.small import (
    QUICK,
    Chainless,
    at_random,
    by_plan,
    cnn_host,
    do,
    dropout_host,
    engine_on,
    flat,
    live,
    perform,
    state_of,
    toy,
    waiting,
)
from torch import nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.groups import host_parameters
from esper.kasmina.model import Configuration
from esper.kasmina.optimiser import assert_bound, state_by_name
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.leyline.task import Recipe
from esper.leyline.telemetry import SeedPrunedPayload, SeedStageChangedPayload
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.flops import count_step
from esper.tolaria.ledger import Category

LR = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005, "rmsprop": 0.0005}
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"optimiser": name, "lr": lr} for name, lr in LR.items()},
    "sgd along a cosine": {"schedule": "cosine"},
    "adamw along a cosine": {"optimiser": "adamw", "lr": 0.005, "schedule": "cosine"},
}
HOSTS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn_host, "dropout": dropout_host, "no chain": Chainless}
SEED_IN_TRAINING = (do("GERMINATE", blueprint="conv_light"), do("ADVANCE"))
LIFE = (
    do("GERMINATE", blueprint="conv_light", tempo="fast"),
    *[do("ADVANCE")] * 2,
    *[None] * 2,
    do("ADVANCE"),
    do("FOSSILIZE"),
)


def only(engine: Engine) -> Environment:
    (environment,) = engine.environments
    return environment


def host_of(environment: Environment) -> dict[str, Any]:
    """The host's weights and all that the optimiser knows of them, copied."""
    names = {name for name, _ in host_parameters(environment.model)}
    known = state_by_name(environment.model, environment.optimiser)
    weights = {name: value.clone() for name, value in environment.model.state_dict().items() if name in names}
    moments = {name: value for name, value in flat(known["state"]) if name.split("/")[1] in names}
    assert set(weights) == names
    return weights | moments | {"group": repr(known["groups"]["host"])}


# --- isolation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True], ids=["sound seed", "seed of NaN"])
@pytest.mark.parametrize(
    ("host", "recipe"), [*(("cnn", recipe) for recipe in RECIPES), ("dropout", "sgd"), ("no chain", "adamw")]
)
def test_a_seed_in_training_leaves_no_trace_in_the_host(host: str, recipe: str, broken: bool) -> None:
    task = toy(make_host=HOSTS[host], **RECIPES[recipe])
    bare, growing = engine_on(task), engine_on(task)
    live(bare, waiting, 2)
    live(growing, by_plan(*SEED_IN_TRAINING), 2)
    seed = only(growing).model.slots["r0c0"].seed
    assert seed is not None
    if broken:
        for param in seed.parameters():
            param.data.fill_(torch.nan)

    live(bare, waiting, 2)
    live(growing, waiting, 2)

    assert only(growing).model.slots["r0c0"].stage is SeedStage.TRAINING
    assert same(host_of(only(bare)), host_of(only(growing)))
    assert only(bare).train_loss == only(growing).train_loss
    assert only(bare).measurement == only(growing).measurement


def test_a_seed_of_nan_is_reported_broken_and_cannot_be_blended() -> None:
    engine = engine_on(toy())
    live(engine, by_plan(*SEED_IN_TRAINING), 3)
    seed = only(engine).model.slots["r0c0"].seed
    assert seed is not None
    for param in seed.parameters():
        param.data.fill_(torch.nan)
    live(engine, waiting, 1)

    receipt = perform(engine, "ADVANCE")

    assert only(engine).report().slots[0].broken
    assert not receipt.done
    assert receipt.refused_by == "G2"
    assert only(engine).skipped == 0


def test_pruning_a_seed_in_training_leaves_the_host_as_it_would_be_without_it() -> None:
    bare, growing = engine_on(toy(make_host=dropout_host)), engine_on(toy(make_host=dropout_host))
    live(bare, waiting, 6)

    live(growing, by_plan(*SEED_IN_TRAINING, None, do("PRUNE", alpha_speed="instant")), 6)

    assert only(growing).model.slots["r0c0"].germinations == 1
    assert same(host_of(only(bare)), host_of(only(growing)))


# --- everything learns ------------------------------------------------------------------------------------------


def moved(engine: Engine, epochs: int = 1) -> dict[str, bool]:
    """Whether each trainable tensor changes within the next epochs."""
    params = {name: param for name, param in only(engine).model.named_parameters() if param.requires_grad}
    before = {name: param.detach().clone() for name, param in params.items()}
    live(engine, waiting, epochs)
    return {name: not torch.equal(param, before[name]) for name, param in params.items()}


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("recipe", LR)
def test_every_trainable_tensor_moves_in_every_stage_gates_included(recipe: str, isolated: bool) -> None:
    engine = engine_on(
        toy(**RECIPES[recipe] | {"weight_decay": 0.0}), length=20, body=replace(QUICK, isolate_blending=isolated)
    )
    slot = only(engine).model.slots["r0c0"]
    assert perform(engine, "GERMINATE", blueprint="conv_light", style="linear_gate", tempo="fast").done
    assert perform(engine, "ADVANCE").done
    seen = {}
    while slot.stage is not SeedStage.FOSSILIZED:
        seen[slot.stage] = moved(engine)
        perform(engine, "FOSSILIZE" if slot.stage is SeedStage.HOLDING else "ADVANCE")
    seen[slot.stage] = moved(engine)

    assert list(seen) == [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED]
    assert all(all(tensors.values()) for tensors in seen.values()), seen
    assert sum("gate" in name for name in seen[SeedStage.BLENDING]) == 4
    assert not any("gate" in name for name in seen[SeedStage.HOLDING])


@pytest.mark.parametrize("blueprint", [name for name, item in BLUEPRINTS.items() if "NCHW" in item.forms])
def test_every_tensor_of_every_blueprint_moves_in_training_and_in_blending(blueprint: str) -> None:
    body = replace(QUICK, blueprints=(blueprint,), ladder_start=2)
    engine = engine_on(toy(weight_decay=0.0), length=20, body=body)
    live(engine, by_plan(do("GERMINATE", blueprint=blueprint, tempo="slow"), do("ADVANCE")), 2)

    training = moved(engine, 2)
    assert perform(engine, "ADVANCE").done
    blending = moved(engine, 2)

    # Of four rungs the first two are on; what is off is no part of the network.
    asleep = {name for name in training if ".rungs.2" in name or ".rungs.3" in name}
    assert {name for name, has_moved in training.items() if not has_moved} == asleep
    assert {name for name, has_moved in blending.items() if not has_moved} == asleep


@pytest.mark.parametrize("fossil_train", [True, False])
def test_fossils_go_on_learning_only_where_the_setting_says_so(fossil_train: bool) -> None:
    engine = engine_on(toy(), length=20, body=replace(QUICK, fossil_train=fossil_train))
    live(engine, by_plan(*LIFE), 7)
    assert only(engine).fossils == 1

    seed = only(engine).model.slots["r0c0"].seed
    assert seed is not None
    before = [param.detach().clone() for param in seed.parameters()]
    live(engine, waiting, 1)

    assert [not torch.equal(old, new) for old, new in zip(before, seed.parameters(), strict=True)] == (
        [fossil_train] * len(before)
    )


# --- the optimiser follows --------------------------------------------------------------------------------------


def held_by(environment: Environment) -> list[list[int]]:
    return [[id(param) for param in group["params"]] for group in environment.optimiser.param_groups]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_optimiser_holds_each_tensor_once_and_none_that_is_gone_after_every_step(recipe: str) -> None:
    body = replace(QUICK, blueprints=("conv_ladder", "norm"), seed_lr_scale=0.5)
    engine = engine_on(toy(items=16, **RECIPES[recipe]), length=25, body=body)
    environment, lot = only(engine), at_random(3)

    def checked(report: HostReport, legal: Any) -> Any:
        assert_bound(environment.model, environment.optimiser)
        held = [param for group in held_by(environment) for param in group]
        assert len(held) == len(set(held))
        assert {id(param) for param in environment.optimiser.state} <= set(held)
        rates = [group["lr"] for group in environment.optimiser.param_groups]
        assert rates[1:] == pytest.approx([0.5 * rates[0]] * (len(rates) - 1))
        return lot(report, legal)

    taken = live(engine, checked, 25)

    done = [receipt.op.name for step in taken for receipt in step.receipts if receipt.done]
    assert {"GERMINATE", "ADVANCE", "PRUNE"} <= set(done)


@settings(max_examples=6, deadline=None)
@given(lot=st.integers(0, 10**6), optimiser=st.sampled_from(sorted(LR)), cosine=st.booleans())
def test_no_sequence_of_legal_actions_unbinds_the_optimiser(lot: int, optimiser: str, cosine: bool) -> None:
    task = toy(items=16, optimiser=optimiser, lr=0.002, schedule="cosine" if cosine else "constant")
    engine = engine_on(task, length=12, body=replace(QUICK, blueprints=("norm", "conv_ladder")))

    for _ in range(12):
        live(engine, at_random(lot + only(engine).epoch), 1)
        assert_bound(only(engine).model, only(engine).optimiser)


def test_a_cosine_ends_at_zero_with_the_episode_for_hosts_and_seeds_alike() -> None:
    engine = engine_on(toy(schedule="cosine"), length=8)

    live(engine, by_plan(None, None, *SEED_IN_TRAINING), 4)
    # lr(t) = lr / 2 * (1 + cos(pi t / T)), half of it at half time.
    assert [group["lr"] for group in only(engine).optimiser.param_groups] == pytest.approx([0.025, 0.025])
    live(engine, waiting, 4)

    assert [group["lr"] for group in only(engine).optimiser.param_groups] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_hosts_moments_survive_the_coming_and_going_of_seeds() -> None:
    engine = engine_on(toy())
    live(engine, waiting, 1)
    before = host_of(only(engine))

    assert perform(engine, "GERMINATE", blueprint="conv_light").done
    assert same(host_of(only(engine)), before)
    live(engine, waiting, 1)
    after = host_of(only(engine))
    assert perform(engine, "PRUNE", alpha_speed="instant").done

    assert same(host_of(only(engine)), after)
    assert len(only(engine).optimiser.param_groups) == 1


# --- data -------------------------------------------------------------------------------------------------------


def order_of(environment: Environment) -> list[int]:
    environment.begin_epoch()
    return environment._order.tolist()


@pytest.mark.parametrize("items", [16, 48, 64, 128, 160])
def test_an_epoch_deals_out_whole_permutations_one_after_the_other(items: int) -> None:
    dealt = order_of(only(engine_on(toy(items=items))))

    assert len(dealt) == items
    for start in range(0, items, 64):
        times = Counter(dealt[start : start + 64])
        assert set(times.values()) == {1}
    assert max(dealt) <= 63


def test_epochs_and_environments_are_dealt_different_orders() -> None:
    first, second = engine_on(toy(), envs=2).environments
    first_epoch = order_of(first)
    first.epoch += 1

    assert len({tuple(first_epoch), tuple(order_of(first)), tuple(order_of(second))}) == 3


def test_an_epoch_is_made_of_full_batches() -> None:
    assert toy(items=63).steps_per_epoch == 3
    assert len(order_of(only(engine_on(toy(items=63))))) == 48


# --- the account ------------------------------------------------------------------------------------------------


def test_an_epoch_is_charged_by_its_steps_and_its_validation() -> None:
    engine = engine_on(toy())
    environment, task = only(engine), toy()
    step = count_step(
        environment.model,
        task.splits.train.inputs[:16],
        lambda out, want: task.loss(out, want).mean(),
        task.splits.train.targets[:16],
    )

    live(engine, waiting, 3)

    charged = environment.ledger.charged
    # 3x3 convolutions 1 -> 4 on 8x8 and 4 -> 6 on 4x4, then 6 -> 4; 40 items to validate.
    forward = 2 * 64 * 9 * 4 + 2 * 16 * 9 * 24 + 2 * 24
    assert charged[Category.TRAIN_HOST] == 3 * 4 * step.total
    assert charged[Category.VALIDATION] == 3 * 40 * forward
    assert environment.ledger.total == charged[Category.TRAIN_HOST] + charged[Category.VALIDATION]
    assert environment.ledger.parameter_epochs == 3 * sum(p.numel() for p in environment.model.parameters())


def test_the_training_of_a_pruned_seed_is_wasted_and_no_total_shrinks() -> None:
    engine = engine_on(toy())
    live(engine, by_plan(*SEED_IN_TRAINING), 3)
    ledger = only(engine).ledger
    total, work = ledger.total, ledger.charged[Category.TRAIN_SEEDS]
    assert work == sum(ledger.seed_work.values()) > 0

    assert perform(engine, "PRUNE", alpha_speed="instant").done

    assert ledger.wasted == work
    assert ledger.total >= total
    assert ledger.seed_work == {}


def test_a_counterfactual_pass_is_charged_beside_the_validation() -> None:
    engine = engine_on(toy(widths=(4, 6, 6)), length=30)
    live(engine, by_plan(do("GERMINATE", slot="r0c1", blueprint="conv_light"), *[do("ADVANCE", slot="r0c1")] * 2), 3)
    before = only(engine).ledger.charged[Category.COUNTERFACTUAL]
    live(engine, waiting, 1)

    # From r0c1 on: one convolution 6 -> 6 on 4x4 and the head, for 40 items.
    assert only(engine).ledger.charged[Category.COUNTERFACTUAL] - before == 40 * (2 * 16 * 9 * 36 + 2 * 24)


def test_the_exported_network_is_measured_after_the_last_epoch_and_charged_as_a_counterfactual() -> None:
    plant = [do("GERMINATE", slot=slot, blueprint="conv_light", tempo="slow") for slot in ("r0c0", "r0c1")]
    onward = [do("ADVANCE", slot=slot) for slot in ("r0c0", "r0c1") for _ in range(2)]
    engine = engine_on(toy(widths=(4, 6, 6)), length=9)
    charged = [0]
    for _ in range(9):
        (step,) = live(engine, by_plan(*plant, *onward), 1)
        (report,) = step.after
        assert (report.exported_metric is None) == (report.epoch < 9)
        charged.append(only(engine).ledger.charged[Category.COUNTERFACTUAL])

    assert [slot.stage for slot in report.slots[:2]] == [SeedStage.BLENDING] * 2
    with torch.no_grad():
        bare = only(engine).model.eval().host(toy().splits.val.inputs)
    right = (bare.argmax(1) == toy().splits.val.targets).double().mean()
    assert report.exported_metric == pytest.approx(100 * float(right))
    # One pass more than an epoch before, from r0c0 on: convolutions 4 -> 6 and 6 -> 6 on 4x4, the head, for 40 items.
    assert charged[9] - charged[8] - (charged[8] - charged[7]) == 40 * (2 * 16 * 9 * (24 + 36) + 2 * 24)


def test_waiting_and_what_is_impossible_cost_nothing_and_a_deed_two_passes_over_the_probe() -> None:
    engine = engine_on(toy(), engine=replace(engine_on(toy()).setup.engine, probe_items=10))
    forward = 2 * 64 * 9 * 4 + 2 * 16 * 9 * 24 + 2 * 24

    assert perform(engine, "FOSSILIZE").refused_by == "illegal"
    engine.apply([engine.space.action("WAIT")])
    assert only(engine).ledger.total == 0
    assert perform(engine, "GERMINATE", blueprint="norm").done

    assert only(engine).ledger.charged[Category.STATISTICS] == 2 * 10 * forward


# --- going back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", LR)
def test_a_restored_host_is_the_host_of_the_snapshot_and_trains_on_as_it_did(recipe: str) -> None:
    engine = engine_on(toy(**RECIPES[recipe]))
    environment = only(engine)
    live(engine, waiting, 2)
    snapshot, before = environment.snapshot(), host_of(environment)
    live(engine, waiting, 1)
    onward = host_of(environment)
    live(engine, by_plan(None, None, None, *SEED_IN_TRAINING), 2)

    environment.restore(snapshot)
    assert same(host_of(environment), before)
    # The order of the data goes by the epoch and the rollbacks, and the learning rate recovers for a while.
    environment.epoch, environment.rollbacks, environment.cooling = 2, 0, 0
    live(engine, waiting, 1)
    again = host_of(environment)
    environment.restore(snapshot)

    assert same(again, onward)
    assert same(host_of(environment), before)
    assert_bound(environment.model, environment.optimiser)


@pytest.mark.parametrize("recipe", RECIPES)
def test_going_back_keeps_fossils_and_removes_seeds_on_probation(recipe: str) -> None:
    engine = engine_on(toy(**RECIPES[recipe]), length=20, body=replace(QUICK, blueprints=("conv_light",)))
    environment = only(engine)
    first = (do("GERMINATE", tempo="fast"), *[do("ADVANCE")] * 2, None, None, do("ADVANCE"), do("FOSSILIZE"))
    second = (do("GERMINATE", slot="r0c1"), do("ADVANCE", slot="r0c1"))
    live(engine, by_plan(*first, *second), 9)
    fossil = {name: value.clone() for name, value in environment.model.named_parameters() if "slots.r0c0" in name}
    snapshot = environment.snapshot()
    live(engine, waiting, 1)

    events = environment.restore(snapshot)

    stages = [slot.stage for slot in environment.report().slots]
    assert stages == [SeedStage.FOSSILIZED, SeedStage.PRUNED]
    now = dict(environment.model.named_parameters())
    assert fossil
    assert all(torch.equal(now[name], value) for name, value in fossil.items())
    (gone,) = [event for event in events if isinstance(event, SeedPrunedPayload)]
    assert (gone.seed_id, gone.initiator, gone.env_id) == ("r0c1.1", "governor", 0)
    assert_bound(environment.model, environment.optimiser)
    live(engine, waiting, 1)


def test_a_seed_planted_after_the_snapshot_is_told_to_be_gone() -> None:
    engine = engine_on(toy())
    environment = only(engine)
    live(engine, waiting, 1)
    snapshot = environment.snapshot()
    live(engine, by_plan(None, *SEED_IN_TRAINING), 2)

    events = environment.restore(snapshot)

    assert [event.seed_id for event in events if isinstance(event, SeedPrunedPayload)] == ["r0c0.1"]
    last = [event.to_stage for event in events if isinstance(event, SeedStageChangedPayload)][-1]
    assert last == environment.report().slots[0].stage.name


@pytest.mark.parametrize("epochs", [2, 8], ids=["a seed in training", "a fossil"])
def test_no_two_germinations_share_a_seed_id_also_where_a_rollback_lies_between(epochs: int) -> None:
    engine = engine_on(toy(), length=20, governor=GovernorConfig(cool_down_steps=16))
    environment = only(engine)
    snapshot = environment.snapshot()
    live(engine, by_plan(*LIFE), epochs)
    environment.restore(snapshot)
    live(engine, waiting, 4)  # the host recovers, and the slot rests, if it has to

    assert perform(engine, "GERMINATE", blueprint="norm").done

    assert environment.report().slots[0].seed_id == "r0c0.2"


def test_a_seed_pruned_since_the_snapshot_stays_gone_and_is_not_told_of_again() -> None:
    engine = engine_on(toy(), length=40, body=replace(QUICK, embargo=0.2))
    environment = only(engine)
    live(engine, by_plan(*SEED_IN_TRAINING), 2)
    snapshot, before = environment.snapshot(), environment.ledger.total
    (work,) = environment.ledger.seed_work.values()
    live(engine, by_plan(None, None, do("PRUNE", alpha_speed="instant")), 4)
    (slot, _), total = environment.report().slots, environment.ledger.total
    assert slot.stage is SeedStage.EMBARGOED

    events = environment.restore(snapshot)

    assert events == ()
    assert environment.report().slots[0] == slot
    assert environment.ledger.wasted == total - before + work
    assert environment.ledger.seed_work == {}


def test_a_seed_fossilised_since_the_snapshot_is_on_probation_again_and_removed() -> None:
    engine = engine_on(toy(), length=20)
    environment = only(engine)
    live(engine, by_plan(*LIFE), 6)
    snapshot = environment.snapshot()
    live(engine, by_plan(*LIFE), 1)
    assert environment.fossils == 1

    events = environment.restore(snapshot)

    assert [event.seed_id for event in events if isinstance(event, SeedPrunedPayload)] == ["r0c0.1"]
    assert environment.report().slots[0].stage is SeedStage.PRUNED
    assert environment.fossils == 0


def test_a_fossil_whose_whole_life_came_after_the_snapshot_is_told_to_be_gone() -> None:
    engine = engine_on(toy(), length=20)
    environment = only(engine)
    snapshot = environment.snapshot()
    live(engine, by_plan(*LIFE), 8)
    assert environment.fossils == 1

    events = environment.restore(snapshot)

    assert [(event.seed_id, event.initiator) for event in events if isinstance(event, SeedPrunedPayload)] == [
        ("r0c0.1", "governor")
    ]
    assert environment.report().slots[0].stage is SeedStage.DORMANT


def test_going_back_does_not_take_the_learning_rates_back() -> None:
    length = 20
    engine = engine_on(toy(schedule="cosine"), length=length, body=replace(QUICK, blueprints=("conv_light",)))
    environment = only(engine)
    live(engine, by_plan(*LIFE), 8)
    snapshot = environment.snapshot()
    live(engine, waiting, 4)
    environment.restore(snapshot)
    lr, scale = environment.task.recipe.lr, environment.setup.body.lr_scale()

    for epoch in range(12, length):
        expected = 0.5 * lr * (1 + math.cos(math.pi * epoch / length))
        host, fossil = (group["lr"] for group in environment.optimiser.param_groups)
        assert host == pytest.approx(expected)
        assert fossil == pytest.approx(scale * expected)
        live(engine, waiting, 1)


def test_work_since_the_snapshot_is_wasted_and_the_total_stays() -> None:
    engine = engine_on(toy())
    environment = only(engine)
    live(engine, waiting, 2)
    snapshot, spent = environment.snapshot(), environment.ledger.total
    live(engine, by_plan(None, None, *SEED_IN_TRAINING), 2)
    total = environment.ledger.total

    environment.restore(snapshot)

    assert environment.ledger.total == total > spent
    assert environment.ledger.wasted == total - spent


def test_a_snapshot_is_a_copy() -> None:
    engine = engine_on(toy(optimiser="adamw"))
    live(engine, by_plan(*SEED_IN_TRAINING), 2)
    snapshot = only(engine).snapshot()
    before = {path: copied(value) for path, value in flat({"model": snapshot.model, "optimiser": snapshot.optimiser})}

    live(engine, waiting, 2)

    assert same(before, dict(flat({"model": snapshot.model, "optimiser": snapshot.optimiser})))


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


# --- what is seen -----------------------------------------------------------------------------------------------


def test_a_report_counts_parameters_of_the_host_of_everything_and_of_active_rungs() -> None:
    engine = engine_on(toy(), body=replace(QUICK, blueprints=("conv_ladder",)))
    host = 1 * 4 * 9 + 2 * 4 + 4 * 6 * 9 + 2 * 6 + 6 * 4 + 4
    rung = 9 * 4 * 4 + 2 * 4

    live(engine, by_plan(do("GERMINATE"), do("ADVANCE"), do("GROW_INTERNAL")), 3)

    report = only(engine).report()
    assert (report.host_params, report.total_params, report.effective_params) == (
        host,
        host + 4 * rung,
        host + 2 * rung,
    )


def test_events_carry_the_number_of_their_environment() -> None:
    engine = engine_on(toy(), envs=3)

    taken = live(engine, at_random(1), 10)

    told = [event for step in taken for event in step.events]
    told += [event for step in taken for receipt in step.receipts for event in receipt.events]
    assert {event.env_id for event in told} == {0, 1, 2}
    for step in taken:
        for env, receipt in enumerate(step.receipts):
            assert {event.env_id for event in receipt.events} <= {env}


def test_the_training_loss_is_the_mean_over_the_epochs_batches() -> None:
    task = toy(lr=1e-12, momentum=0.0, weight_decay=0.0)  # nothing moves, so batches can be gone through again
    engine = engine_on(task)
    live(engine, waiting, 1)
    environment = only(engine)

    with torch.no_grad():
        loss = task.loss(environment.model(task.splits.train.inputs), task.splits.train.targets).mean()

    assert environment.train_loss == pytest.approx(float(loss), rel=1e-5)


def test_muting_every_seed_is_the_bare_host() -> None:
    engine = engine_on(toy(), length=20)
    live(engine, at_random(5), 12)
    model, inputs = only(engine).model.eval(), toy().splits.val.inputs

    with torch.no_grad():
        (muted,) = model.outputs(inputs, [Configuration(off=frozenset(model.slots))])
        bare = model.host(inputs)

    assert torch.equal(muted, bare)


def test_a_recipe_is_a_recipe_for_hosts_that_never_grow_too() -> None:
    recipe = Recipe(optimiser="rmsprop", lr=0.01, momentum=0.5, weight_decay=0.1)
    engine = engine_on(replace(toy(), recipe=replace(recipe, batch_size=16)))

    (group,) = only(engine).optimiser.param_groups

    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.5, 0.1)
    assert state_of(only(engine))
