"""What every operation promises: one row, one handler, heads that exist, and a refusal where it makes no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.support import PATIENT, bring, cnn, find_healthy, noise, report_on, same, seeded, snapshot, space_of
from torch import Tensor, nn

from esper.kasmina.model import MorphogeneticModel, SlottedModel
from esper.kasmina.operations import HANDLERS, apply
from esper.kasmina.slot import SeedSlot
from esper.leyline.causal_masks import CAUSAL_MASKS
from esper.leyline.factored_actions import CHOICES, HEADS, OPS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.stages import TRANSITIONS, SeedStage

every_op = pytest.mark.parametrize("op", LifecycleOp)
on_slots = pytest.mark.parametrize("op", [op for op, row in OPS.items() if row.needs_slot])
PROBE = noise(4, 1, 8, 8)


def grown() -> MorphogeneticModel:
    model = MorphogeneticModel(cnn())
    model.configure(PATIENT)
    return model


def acted(model, action: FactoredAction, settings=PATIENT):
    with seeded():
        return apply(model, action, report_on(model, settings), PROBE)


def some_action(space: ActionSpace, op: LifecycleOp) -> FactoredAction:
    """Every head that matters stands at its last choice."""
    return space.from_indices([int(op), *(len(space.choices(head)) - 1 for head in HEADS[1:])])


@every_op
def test_an_operation_has_one_row_with_a_meaning_and_a_price(op: LifecycleOp):
    row = OPS[op]

    assert row.op is op
    assert row.meaning
    assert row.price >= 0.0


@every_op
def test_an_operation_has_a_handler_exactly_if_it_needs_a_slot(op: LifecycleOp):
    assert (op in HANDLERS) == OPS[op].needs_slot


@every_op
def test_the_heads_of_a_row_exist_each_once_and_in_order(op: LifecycleOp):
    heads = OPS[op].heads

    assert list(heads) == [head for head in HEADS if head in heads]
    assert "op" not in heads
    assert all(OPS[op].needs_slot for head in heads)


def test_every_head_matters_to_some_operation():
    assert set().union(*(row.heads for row in OPS.values())) == set(HEADS) - {"op"}
    assert set(CHOICES) < set(HEADS)


@every_op
def test_names_and_actions_are_inverse(op: LifecycleOp):
    action = some_action(space_of(grown(), ["norm", "conv_ladder"]), op)

    assert action.space.action(**action.as_names()) == action


@every_op
def test_the_causal_mask_says_which_heads_survive_canonicalisation(op: LifecycleOp):
    action = some_action(space_of(grown(), ["norm", "conv_ladder"]), op)

    survived = tuple(index > 0 or head == "op" for head, index in zip(HEADS, action.indices, strict=True))
    assert survived == CAUSAL_MASKS[op]


def test_every_driver_of_the_table_of_transitions_is_an_operation_or_time():
    assert {driver for edge in TRANSITIONS for driver in edge.drivers} <= {op.name for op in LifecycleOp} | {"time"}


@on_slots
def test_in_an_empty_slot_only_germination_is_possible(op: LifecycleOp):
    model = grown()
    before = snapshot(model)

    receipt = acted(model, some_action(space_of(model, ["norm", "conv_ladder"]), op))

    assert receipt.done == (op is LifecycleOp.GERMINATE)
    assert receipt.refused_by == (None if receipt.done else "illegal")
    assert (receipt.op, receipt.slot_id) == (op, "r0c2")
    if not receipt.done:
        assert "r0c2 is DORMANT" in receipt.why
        assert same(snapshot(model), before)


def test_waiting_does_nothing_and_is_done():
    model = grown()
    bring(model.slots["r0c1"], SeedStage.BLENDING)
    before = snapshot(model)

    receipt = acted(model, space_of(model, ["norm"]).action("WAIT"))

    assert (receipt.done, receipt.slot_id, receipt.events, receipt.why) == (True, None, (), "")
    assert same(snapshot(model), before)


SUITED: dict[LifecycleOp, SeedStage] = {
    LifecycleOp.GERMINATE: SeedStage.DORMANT,
    LifecycleOp.SET_ALPHA_TARGET: SeedStage.HOLDING,
    LifecycleOp.PRUNE: SeedStage.HOLDING,
    LifecycleOp.FOSSILIZE: SeedStage.HOLDING,
    LifecycleOp.ADVANCE: SeedStage.TRAINING,
    LifecycleOp.GROW_INTERNAL: SeedStage.HOLDING,
    LifecycleOp.SHRINK_INTERNAL: SeedStage.HOLDING,
}


def suited(op: LifecycleOp) -> MorphogeneticModel:
    """A model in whose last slot `op` is possible and allowed by its gate."""
    model = grown()
    slot = bring(model.slots["r0c2"], SUITED[op], blueprint="conv_ladder")
    if slot.state is not None:
        find_healthy(slot)
        slot.step_epoch()
    return model


@on_slots
def test_where_it_is_possible_it_is_done_and_touches_its_slot_alone(op: LifecycleOp):
    model = suited(op)
    before, others = snapshot(model.slots["r0c2"]), [snapshot(model.slots[s]) for s in ("r0c0", "r0c1")]
    host = snapshot(model.host)

    receipt = acted(model, some_action(space_of(model, ["norm", "conv_ladder"]), op))

    assert (receipt.done, receipt.why, receipt.refused_by) == (True, "", None)
    assert not same(snapshot(model.slots["r0c2"]), before)
    assert same(snapshot(model.host), host)
    assert all(same(snapshot(model.slots[s]), was) for s, was in zip(("r0c0", "r0c1"), others, strict=True))


@on_slots
def test_the_receipt_says_how_far_the_output_moved_and_what_is_paid_for(op: LifecycleOp):
    model = suited(op)
    model.eval()
    before, level_params = model(PROBE), model.slots["r0c2"].report().internal_effective_params

    receipt = acted(model, some_action(space_of(model, ["norm", "conv_ladder"]), op))

    assert receipt.output_change == pytest.approx((model(PROBE) - before).abs().max().item())
    assert receipt.params_before == level_params
    assert receipt.params_after == model.slots["r0c2"].report().internal_effective_params


@on_slots
def test_applying_leaves_modes_and_gradients_alone(op: LifecycleOp):
    model = suited(op)
    model.train()
    model.host.segments[0].eval()
    model(PROBE).square().mean().backward()
    grads = [param.grad.clone() for param in model.host.parameters()]

    acted(model, some_action(space_of(model, ["norm", "conv_ladder"]), op))

    assert model.training
    assert not model.host.segments[0].training
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.host.parameters(), grads, strict=True))


def test_at_the_limit_of_seeds_germination_is_refused():
    model = grown()
    bring(model.slots["r0c0"], SeedStage.FOSSILIZED)
    limited = replace(PATIENT, rules=replace(PATIENT.rules, max_seeds=1))
    model.configure(limited)

    receipt = acted(model, space_of(model, ["norm"]).action("GERMINATE", slot="r0c1"), limited)

    assert (receipt.done, receipt.refused_by) == (False, "illegal")
    assert "1 of 1 seeds" in receipt.why


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = SeedSlot.at("r0c0", 8, "BTC")
        self.images = SeedSlot.at("r0c1", 1, order=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.images(x)[:, 0])


def test_a_blueprint_for_another_layout_is_refused_not_raised():
    model = SlottedModel(Sequences())
    model.configure(PATIENT)
    before = snapshot(model)

    receipt = acted(model, space_of(model, ["conv_light"]).action("GERMINATE", slot="r0c0", blueprint="conv_light"))

    assert (receipt.done, receipt.refused_by) == (False, "illegal")
    assert receipt.why == (
        "not possible: blueprint 'conv_light' is for NCHW tensors, but slot r0c0 carries BTC tensors"
    )
    assert same(snapshot(model), before)


@pytest.mark.parametrize("op", [LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE])
def test_a_gates_refusal_passes_through_with_its_name(op: LifecycleOp):
    model = suited(op)
    impatient = replace(PATIENT, rules=replace(PATIENT.rules, min_training=9, min_holding=9))
    model.configure(impatient)
    before = snapshot(model)

    receipt = acted(model, some_action(space_of(model, ["norm", "conv_ladder"]), op), impatient)

    assert (receipt.done, receipt.refused_by) == (False, {"ADVANCE": "G2", "FOSSILIZE": "G5"}[op.name])
    assert "wants 9" in receipt.why
    assert len(receipt.events) == 1
    assert receipt.output_change is None
    assert same(snapshot(model), before)
