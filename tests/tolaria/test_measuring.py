"""Validation and contributions, held against passes of a model from which the seed was taken out, summed by numpy."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support import PATIENT, bring, stir
from tests.tolaria.small import ERRORS, engine_on, live, perform, toy, waiting

from esper.kasmina.model import Configuration, GrowingModel, MorphogeneticModel, grow_from
from esper.leyline.reports import Contribution
from esper.leyline.stages import SeedStage
from esper.leyline.task import Metric, Task
from esper.leyline.telemetry import SeedContributionMeasuredPayload
from esper.tolaria.engine import Engine
from esper.tolaria.measuring import AS_IS, exported, measure, questions

TASK = toy(widths=(4, 6, 6))
TARGETS = TASK.splits.val.targets.numpy()


def grown(**stages: SeedStage) -> MorphogeneticModel:
    model = grow_from(TASK.make_host())
    model.configure(PATIENT)
    assert isinstance(model, MorphogeneticModel)
    for slot_id, stage in stages.items():
        bring(model.slots[slot_id], stage)
    return model


def without(model: GrowingModel, *slot_ids: str) -> GrowingModel:
    """A copy whose slots are empty, not merely muted."""
    bare = copy.deepcopy(model)
    for slot_id in slot_ids:
        bare.slots[slot_id].seed = bare.slots[slot_id].gate = bare.slots[slot_id].state = None
    return bare


def per_item(model: GrowingModel) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and accuracy in points of every validation item, in one pass over all of them."""
    model.eval()
    with torch.no_grad():
        logits = model(TASK.splits.val.inputs).numpy().astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_prob = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_prob[np.arange(len(TARGETS)), TARGETS], 100.0 * (logits.argmax(1) == TARGETS)


def by_hand(model: GrowingModel, other: GrowingModel) -> list[float]:
    """Metric and loss gained by `model` over `other`, each with its standard error over items."""
    (loss, right), (other_loss, other_right) = per_item(model), per_item(other)
    gained, saved, root = right - other_right, other_loss - loss, len(TARGETS) ** 0.5
    return [gained.mean(), gained.std(ddof=1) / root, saved.mean(), saved.std(ddof=1) / root]


def told(contribution: Contribution) -> list[float]:
    return [contribution.metric, contribution.metric_sem, contribution.loss, contribution.loss_sem]


def measured(model: GrowingModel, task: Task = TASK, fossils: bool = False) -> dict[tuple[str, str], Contribution]:
    found = measure(model, task, task.splits.val, 7, questions(model, fossils))
    return {(question.slot_id, question.against): answer for question, answer in found.answers}


def test_loss_and_metric_are_means_over_items_also_where_the_last_batch_is_short() -> None:
    model = grown(r0c1=SeedStage.HOLDING)

    found = measure(model, TASK, TASK.splits.val, 1)

    loss, right = per_item(model)
    assert found.loss == pytest.approx(loss.mean(), rel=1e-5)
    assert found.metric == pytest.approx(right.mean())
    assert found.answers == ()


def test_a_contribution_is_the_paired_difference_to_a_network_without_the_seed() -> None:
    model = grown(r0c0=SeedStage.HOLDING, r0c1=SeedStage.BLENDING, r0c2=SeedStage.FOSSILIZED)
    model.slots["r0c1"].step_epoch()  # alpha leaves 0

    answers = measured(model, fossils=True)

    assert set(answers) == {("r0c0", "off"), ("r0c1", "off"), ("r0c2", "off")}
    for (slot_id, _), answer in answers.items():
        assert told(answer) == pytest.approx(by_hand(model, without(model, slot_id)), rel=1e-4, abs=1e-7)
        assert answer.loss_sem > 0
        assert answer.epoch == 7


def test_seeds_that_cannot_be_heard_are_not_asked_about() -> None:
    silent = grown(r0c0=SeedStage.GERMINATED, r0c1=SeedStage.TRAINING, r0c2=SeedStage.EMBARGOED)
    fossil = grown(r0c0=SeedStage.FOSSILIZED)

    assert questions(silent, fossils=True) == []
    assert questions(fossil, fossils=False) == []


def test_the_effect_of_a_level_is_the_difference_to_the_level_before() -> None:
    model = grown(r0c0=SeedStage.HOLDING)
    bring(model.slots["r0c1"], SeedStage.HOLDING, blueprint="conv_ladder")
    before = copy.deepcopy(model)
    assert model.slots["r0c1"].grow_internal().done
    stir(model.slots["r0c1"], seed=8)
    before.slots["r0c1"].seed = copy.deepcopy(model.slots["r0c1"].seed)
    before.slots["r0c1"].seed.set_active((True, False, False, False))

    effect = measured(model)["r0c1", "level"]

    assert told(effect) == pytest.approx(by_hand(model, before), rel=1e-4, abs=1e-7)
    assert effect.loss != 0.0


def test_where_the_level_before_was_zero_one_pass_answers_both_questions() -> None:
    model = grown()
    bring(model.slots["r0c1"], SeedStage.HOLDING, blueprint="conv_ladder")
    assert model.slots["r0c1"].shrink_internal().done
    assert model.slots["r0c1"].grow_internal().done

    found = measure(model, TASK, TASK.splits.val, 1, questions(model, fossils=False))

    assert found.configurations == (AS_IS, Configuration(off=frozenset({"r0c1"})))
    (off, level) = [answer for _, answer in found.answers]
    assert off == level
    assert told(off) == pytest.approx(by_hand(model, without(model, "r0c1")), rel=1e-4, abs=1e-7)


def test_every_configuration_is_computed_once_whoever_asks() -> None:
    model = grown(r0c0=SeedStage.HOLDING, r0c2=SeedStage.BLENDING)
    asked = questions(model, fossils=False)

    found = measure(model, TASK, TASK.splits.val, 1, [*asked, *asked])

    assert len(found.answers) == 4
    assert len(found.configurations) == len(set(found.configurations)) == 3


def with_a_held_ladder() -> Engine:
    engine = engine_on(TASK)
    bring(engine.environments[0].model.slots["r0c1"], SeedStage.HOLDING, blueprint="conv_ladder")
    engine.environments[0]._structure_changed(())
    return engine


def effects_told(engine: Engine) -> list[str]:
    engine.measure()
    return [event.against for event in engine.events() if isinstance(event, SeedContributionMeasuredPayload)]


def test_the_level_is_asked_about_once_after_an_internal_operation_and_not_again() -> None:
    engine = with_a_held_ladder()

    assert effects_told(engine) == ["off"]
    assert perform(engine, "GROW_INTERNAL", "r0c1").done
    assert effects_told(engine) == ["off", "level"]
    assert effects_told(engine) == ["off"]
    assert perform(engine, "SHRINK_INTERNAL", "r0c1").done
    assert effects_told(engine) == ["off", "level"]
    assert effects_told(engine) == ["off"]


def test_a_level_changed_while_nobody_hears_the_seed_is_asked_about_when_it_can_be_heard() -> None:
    engine = engine_on(TASK)
    slot = bring(engine.environments[0].model.slots["r0c1"], SeedStage.TRAINING, blueprint="conv_ladder")
    engine.environments[0]._structure_changed(())

    assert perform(engine, "GROW_INTERNAL", "r0c1").done
    assert effects_told(engine) == []
    slot.settings = replace(slot.settings, auto_advance=("G2",))
    live(engine, waiting, 3)
    assert slot.stage is SeedStage.BLENDING
    assert slot.report().level_effect is not None
    assert effects_told(engine) == ["off"]


def test_the_weight_of_a_gate_is_that_of_the_plain_pass_over_all_items() -> None:
    model = grown(r0c0=SeedStage.HOLDING)
    bring(model.slots["r0c1"], SeedStage.BLENDING, blend="GATE")
    bring(model.slots["r0c2"], SeedStage.BLENDING)
    for _ in range(2):
        model.slots["r0c1"].step_epoch()

    measure(model, TASK, TASK.splits.val, 1, questions(model, fossils=False))

    slot = model.slots["r0c1"]
    with torch.no_grad():
        entered = model.forward_to("r0c1", TASK.splits.val.inputs)
        open_by = slot.gate.score(entered.mean((2, 3))).sigmoid().double()
    alpha = 2 / 4  # two epochs of four along a line
    weight = alpha * (open_by + alpha * (1 - open_by))
    assert slot.report().alpha == pytest.approx(float(weight.mean()), rel=1e-5)
    assert slot.report().alpha != pytest.approx(alpha, abs=1e-3)


@pytest.mark.parametrize("metric", [TASK.metric, ERRORS], ids=["accuracy", "errors"])
def test_a_contribution_is_positive_for_a_seed_that_helps_whichever_way_the_metric_points(metric: Metric) -> None:
    model = grown(r0c1=SeedStage.HOLDING)
    plain = measured(model)["r0c1", "off"]

    found = measured(model, replace(TASK, metric=metric))["r0c1", "off"]

    assert found.metric == pytest.approx(plain.metric)
    assert found.loss == plain.loss


def test_the_metric_itself_is_told_as_the_task_counts_it() -> None:
    model = grown()

    accuracy = measure(model, TASK, TASK.splits.val, 1).metric
    errors = measure(model, replace(TASK, metric=ERRORS), TASK.splits.val, 1).metric

    assert accuracy + errors == pytest.approx(100.0)


def test_a_measurement_moves_nothing_but_the_weight_of_gates() -> None:
    model = grown(r0c0=SeedStage.HOLDING, r0c1=SeedStage.BLENDING)
    model.train()
    before = copy.deepcopy(model.state_dict())

    measured(model)

    after = model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        assert torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value
    assert all(not slot.muted for slot in model.slots.values())


@pytest.mark.parametrize("batch", [1, 7, 40, 1000])
def test_the_size_of_evaluation_batches_does_not_matter(batch: int) -> None:
    model = grown(r0c0=SeedStage.HOLDING)
    other = replace(TASK, recipe=replace(TASK.recipe, eval_batch_size=batch))

    assert told(measured(model, other)["r0c0", "off"]) == pytest.approx(
        told(measured(model)["r0c0", "off"]), rel=1e-4, abs=1e-7
    )


def test_a_base_other_than_the_model_as_it_is_is_what_loss_and_metric_are_of() -> None:
    model = grown(r0c0=SeedStage.HOLDING, r0c1=SeedStage.FOSSILIZED)

    found = measure(model, TASK, TASK.splits.val, 1, base=Configuration(off=frozenset({"r0c0"})))

    loss, right = per_item(without(model, "r0c0"))
    assert found.loss == pytest.approx(loss.mean(), rel=1e-5)
    assert found.metric == pytest.approx(right.mean())


@pytest.mark.parametrize("less_is_better", [False, True])
def test_the_exported_network_is_measured_without_seeds_on_probation(less_is_better: bool) -> None:
    model = grown(r0c0=SeedStage.FOSSILIZED, r0c1=SeedStage.HOLDING, r0c2=SeedStage.BLENDING)

    loss = Metric("loss", "nats", not less_is_better, TASK.loss)

    found = measure(model, replace(TASK, metric=loss), TASK.splits.val, 7, bare=exported(model))

    assert found.exported == pytest.approx(per_item(without(model, "r0c1", "r0c2"))[0].mean(), rel=1e-5)
    assert found.metric == pytest.approx(per_item(model)[0].mean(), rel=1e-5)
    assert abs(found.exported - found.metric) > 1e-3


def test_what_is_exported_is_measured_by_a_pass_that_is_needed_anyway_where_there_is_one() -> None:
    alone = grown(r0c0=SeedStage.FOSSILIZED, r0c1=SeedStage.HOLDING, r0c2=SeedStage.TRAINING)
    kept = grown(r0c0=SeedStage.FOSSILIZED, r0c2=SeedStage.TRAINING)

    for model, passes in ((alone, 2), (kept, 1)):
        found = measure(model, TASK, TASK.splits.val, 7, questions(model, False), bare=exported(model))
        assert len(found.configurations) == passes
        assert found.exported == pytest.approx(per_item(without(model, "r0c1", "r0c2"))[1].mean())
