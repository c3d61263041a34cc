"""Costs put together from parts: held against a count of the whole model, and against sums made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.support import PATIENT, bring
from tests.tolaria.small import Chainless, images, toy

from esper.kasmina.config import SlotSettings
from esper.kasmina.model import Configuration, GrowingModel, MorphogeneticModel, SlottedModel, grow_from
from esper.leyline.stages import SeedStage
from esper.tolaria.costs import Costs
from esper.tolaria.flops import count_eval, count_step

TASK = toy(widths=(4, 6, 6))
BATCH = TASK.recipe.batch_size
PROBE = images(10, 9).inputs
AS_IS = Configuration()
NOT_ISOLATED = replace(PATIENT, isolate_blending=False)
# Convolutions of 3x3 on 8x8, pooled to 4x4 before r0c0; 2 FLOPs per multiplication, per image.
BLOCK_0, BLOCK_1, BLOCK_2 = 2 * 64 * 9 * 1 * 4, 2 * 16 * 9 * 4 * 6, 2 * 16 * 9 * 6 * 6
HEAD = 2 * 6 * 4
LIGHT_ON_4, LIGHT_ON_6 = 2 * 16 * 9 * 4 * 4, 2 * 16 * 9 * 6 * 6


def grown(settings: SlotSettings = PATIENT) -> MorphogeneticModel:
    model = grow_from(TASK.make_host())
    model.configure(settings)
    assert isinstance(model, MorphogeneticModel)
    return model


def whole_step(model: GrowingModel) -> int:
    """One training step, counted on the whole model at once."""
    train = TASK.splits.train
    return count_step(
        model, train.inputs[:BATCH], lambda out, want: TASK.loss(out, want).mean(), train.targets[:BATCH]
    ).total


def summed_step(costs: Costs, model: GrowingModel) -> int:
    host, seeds = costs.step(model)
    return host + sum(seeds.values())


def agrees(costs: Costs, model: GrowingModel) -> bool:
    """Whether the sums from parts are what a count of the whole model says, in training and in evaluation."""
    trains = summed_step(costs, model) == whole_step(model)
    return trains and costs.evaluation(model, PROBE, [AS_IS]) == count_eval(model, PROBE).total


@pytest.fixture(scope="module")
def shared() -> Costs:
    """Counts that outlive a model, as those of a run do: a wrong key shows as another model's cost."""
    return Costs(TASK)


@pytest.mark.parametrize("settings", [PATIENT, NOT_ISOLATED], ids=["isolated", "not isolated"])
@pytest.mark.parametrize("stage", SeedStage, ids=lambda stage: stage.name)
def test_the_parts_add_up_to_the_whole_in_every_stage(shared: Costs, stage: SeedStage, settings: SlotSettings) -> None:
    model = grown(settings)
    bring(model.slots["r0c1"], stage)

    assert agrees(shared, model)


@pytest.mark.parametrize("level", range(5))
def test_the_parts_add_up_to_the_whole_at_every_level_of_a_ladder(shared: Costs, level: int) -> None:
    model = grown()
    bring(model.slots["r0c0"], SeedStage.TRAINING, blueprint="conv_ladder")
    while model.slots["r0c0"].report().internal_level < level:
        assert model.slots["r0c0"].grow_internal().done
    while model.slots["r0c0"].report().internal_level > level:
        assert model.slots["r0c0"].shrink_internal().done

    assert agrees(shared, model)


@pytest.mark.parametrize("settings", [PATIENT, NOT_ISOLATED], ids=["isolated", "not isolated"])
def test_a_gate_is_paid_for_while_it_is_there_and_not_after(shared: Costs, settings: SlotSettings) -> None:
    gated, held = grown(settings), grown(settings)
    bring(gated.slots["r0c1"], SeedStage.BLENDING, blend="GATE")
    bring(held.slots["r0c1"], SeedStage.HOLDING, blend="GATE")

    assert agrees(shared, gated)
    assert agrees(shared, held)
    assert summed_step(shared, gated) > summed_step(shared, held)


def test_a_fossil_whose_weights_rest_costs_less_than_the_same_seed_while_it_learned() -> None:
    settings, costs = replace(NOT_ISOLATED, fossil_train=False), Costs(TASK)
    held, fossil = grown(settings), grown(settings)
    bring(held.slots["r0c1"], SeedStage.HOLDING)
    bring(fossil.slots["r0c1"], SeedStage.FOSSILIZED)

    assert agrees(costs, held)
    assert agrees(costs, fossil)
    # No gradient for 9 * 6 * 6 weights at 16 places of 16 images.
    assert summed_step(costs, held) - summed_step(costs, fossil) == BATCH * LIGHT_ON_6


def test_what_was_counted_for_seeds_apart_is_right_for_them_together() -> None:
    costs = Costs(TASK)
    for slot_id, blueprint in (("r0c0", "conv_heavy"), ("r0c1", "bottleneck"), ("r0c2", "attention")):
        alone = grown()
        bring(alone.slots[slot_id], SeedStage.HOLDING, blueprint=blueprint)
        assert agrees(costs, alone)
    together = grown()
    bring(together.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_heavy")
    bring(together.slots["r0c1"], SeedStage.HOLDING, blueprint="bottleneck")
    bring(together.slots["r0c2"], SeedStage.HOLDING, blueprint="attention")

    assert agrees(costs, together)


def test_a_step_of_the_host_and_of_a_seed_is_what_a_hand_sum_says() -> None:
    model = grown()
    bring(model.slots["r0c1"], SeedStage.TRAINING)

    host, seeds = Costs(TASK).step(model)

    # Forward, gradient of the weights, gradient of the input; none for the images, and none out of an isolated seed
    # except through its norm, which has weights of its own.
    assert host == BATCH * (3 * (BLOCK_0 + BLOCK_1 + BLOCK_2 + HEAD) - BLOCK_0)
    assert seeds == {"r0c1.1": BATCH * 3 * LIGHT_ON_6}


def two_seeds() -> MorphogeneticModel:
    model = grown()
    bring(model.slots["r0c0"], SeedStage.HOLDING)
    bring(model.slots["r0c1"], SeedStage.BLENDING)
    return model


WHOLE = BLOCK_0 + LIGHT_ON_4 + BLOCK_1 + LIGHT_ON_6 + BLOCK_2 + HEAD


@pytest.mark.parametrize(
    ("off", "by_hand"),
    [
        ([], WHOLE),
        # From the input of the first slot that is touched on, the touched seeds left out.
        (["r0c0"], BLOCK_1 + LIGHT_ON_6 + BLOCK_2 + HEAD),
        (["r0c1"], BLOCK_2 + HEAD),
        (["r0c0", "r0c1"], BLOCK_1 + BLOCK_2 + HEAD),
        (["r0c2"], HEAD),
    ],
)
def test_a_counterfactual_pass_is_charged_from_its_cached_prefix(off: list[str], by_hand: int) -> None:
    configuration = Configuration(off=frozenset(off))

    assert Costs(TASK).evaluation(two_seeds(), PROBE, [configuration]) == len(PROBE) * by_hand


def test_a_pass_at_another_level_is_charged_from_the_input_of_its_slot() -> None:
    model = grown()
    bring(model.slots["r0c1"], SeedStage.HOLDING, blueprint="conv_ladder")
    at_level_1 = Configuration(rungs=(("r0c1", (True, False, False, False)),))

    charged = Costs(TASK).evaluation(model, PROBE, [at_level_1])

    assert charged == len(PROBE) * (LIGHT_ON_6 + BLOCK_2 + HEAD)


def test_configurations_are_charged_one_by_one() -> None:
    costs, model = Costs(TASK), two_seeds()
    several = [AS_IS, Configuration(off=frozenset({"r0c0"})), Configuration(off=frozenset({"r0c1"}))]

    together = costs.evaluation(model, PROBE, several)

    assert together == len(PROBE) * (WHOLE + BLOCK_1 + LIGHT_ON_6 + 2 * (BLOCK_2 + HEAD))


def test_the_last_batch_of_validation_costs_by_its_own_size() -> None:
    costs, model = Costs(TASK), two_seeds()

    assert costs.evaluation(model, PROBE[:7], [AS_IS]) == 7 * WHOLE
    assert costs.evaluation(model, PROBE, [AS_IS]) == 10 * WHOLE
    assert costs.evaluation(model, PROBE[:7], [AS_IS]) == 7 * WHOLE
    bare = BLOCK_0 + BLOCK_1 + BLOCK_2 + HEAD
    assert Costs(TASK).evaluation(grown(), PROBE[:7], [AS_IS]) == 7 * bare
    assert costs.evaluation(grown(), PROBE[:3], [AS_IS]) == 3 * bare


def in_slots(model: SlottedModel, stages: Sequence[SeedStage]) -> SlottedModel:
    model.configure(PATIENT)
    for slot, stage in zip(model.slots.values(), stages, strict=True):
        bring(slot, stage)
    return model


def test_a_network_that_cannot_be_cut_pays_every_counterfactual_in_full() -> None:
    model, costs = in_slots(SlottedModel(Chainless()), [SeedStage.HOLDING, SeedStage.BLENDING]), Costs(TASK)
    convolutions, head, seed = 2 * 64 * 9 * (1 * 4 + 4 * 4), 2 * 4 * 4, 2 * 64 * 9 * 4 * 4

    assert agrees(costs, model)
    assert costs.evaluation(model, PROBE, [AS_IS]) == 10 * (convolutions + head + 2 * seed)
    assert costs.evaluation(model, PROBE, [Configuration(off=frozenset({"r0c0"}))]) == 10 * (convolutions + head + seed)


def test_counting_leaves_the_model_and_the_random_state_alone() -> None:
    model = two_seeds()
    weights = {name: param.clone() for name, param in model.named_parameters()}
    before = torch.random.get_rng_state()

    Costs(TASK).step(model)
    Costs(TASK).evaluation(model, PROBE, [AS_IS])

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(param, weights[name]) and param.grad is None for name, param in model.named_parameters())
