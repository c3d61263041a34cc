"""A slot around a weight: y = W x + b + alpha seed(x), and afterwards one layer.

Expected values are written out with the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.kasmina.images import image_model, images
from tests.kasmina.sequences import SequenceNet, grown_to, sequence_model, tokens
from tests.support import BLENDS, PATIENT, bring, find_healthy, noise, plant, same, seeded, snapshot, stir
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.export import export
from esper.kasmina.groups import host_parameters
from esper.kasmina.ladder import Ladder
from esper.kasmina.model import Configuration, MorphogeneticModel, SlottedModel, grow_from, probe_output
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite, merged
from esper.leyline.errors import ConfigError
from esper.leyline.stages import SeedStage

S = SeedStage
every_blend = pytest.mark.parametrize("blend", BLENDS)
every_slot = pytest.mark.parametrize("slot_id", ["r0c0", "r0c1", "r0c2"])
AROUND = [name for name, item in BLUEPRINTS.items() if "weight" in item.forms]


def site(stage: SeedStage, blueprint: str = "lora", blend: str = "ADD", level: int | None = None) -> WeightSite:
    """Around 40 -> 36 in double precision, with a stirred seed."""
    with seeded():
        made = WeightSite(nn.Linear(40, 36), "r0c0").double()
    made.slot.settings = PATIENT
    if stage is not S.DORMANT:
        grown_to(made.slot, stage, blueprint, blend, level)
    return made


def reads() -> Tensor:
    return noise(3, 5, 40, dtype=torch.float64)


def matrix_of(seed: nn.Module | None) -> Tensor:
    """The map of a seed that is a lora: 2 B A."""
    down, up = seed.parameters()
    return 2 * up @ down


def with_alpha(made: WeightSite, alpha: float) -> WeightSite:
    made.slot.state.alpha.settle(alpha)
    made.slot.alpha.fill_(alpha)
    return made


# --- what it computes -------------------------------------------------------------------------------------------


def test_an_empty_site_is_its_linear():
    made, x = site(S.DORMANT), reads()

    assert torch.equal(made(x), made.layer(x))
    assert [name for name, _ in made.named_parameters()] == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize("name", AROUND)
def test_a_seed_is_a_correction_of_zero_at_birth(name: str):
    made, x = site(S.DORMANT), reads()
    plant(made.slot, name)
    made.slot.advance_stage()
    with_alpha(made, 1.0)

    assert torch.equal(made(x), made.layer(x))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_add_is_a_linear_with_alpha_times_the_seeds_map_added(alpha: float):
    made, x = with_alpha(site(S.BLENDING), alpha), reads()

    expected = x @ (made.layer.weight + alpha * matrix_of(made.slot.seed)).T + made.layer.bias

    torch.testing.assert_close(made(x), expected)


def test_multiply_scales_what_the_linear_returns():
    made, x = with_alpha(site(S.BLENDING, blend="MULTIPLY"), 0.25), reads()
    y = made.layer(x)

    torch.testing.assert_close(made(x), y * (1 + 0.25 * torch.tanh(x @ matrix_of(made.slot.seed).T)))


def test_a_gate_weighs_each_item_by_what_the_linear_returns():
    made, x = with_alpha(site(S.BLENDING, blend="GATE"), 0.25), reads()
    y = made.layer(x)
    openness = torch.sigmoid(made.slot.gate.score(y.mean(1))).reshape(-1, 1, 1)

    weight = 0.25 * (openness + 0.25 * (1 - openness))

    torch.testing.assert_close(made(x), y + weight * (x @ matrix_of(made.slot.seed).T))


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 3, 5, 40)])
def test_a_linear_reads_any_number_of_axes_and_so_does_its_site(shape: tuple[int, ...]):
    made, x = site(S.HOLDING), noise(*shape, dtype=torch.float64)

    torch.testing.assert_close(made(x), made.layer(x) + x @ matrix_of(made.slot.seed).T)


def test_images_have_no_linear():
    with pytest.raises(ConfigError, match="a Linear's output is BTC or BC, not NCHW"):
        WeightSite(nn.Linear(4, 4), "r0c0", "NCHW")


def test_vectors_have():
    made = WeightSite(nn.Linear(40, 36), "r0c0", "BC")
    made.slot.settings = PATIENT
    grown_to(made.slot, S.BLENDING, "lora", "GATE").step_epoch()

    assert made(noise(7, 40)).shape == (7, 36)


# --- the host does not notice -----------------------------------------------------------------------------------


NETS: dict[str, tuple[Callable[[], SlottedModel], Callable[..., Tensor]]] = {
    "around Linears": (sequence_model, tokens),
    "around convolutions": (image_model, images),
}
every_net = pytest.mark.parametrize(("make", "batch"), NETS.values(), ids=NETS)


def trained_once(
    model: SlottedModel, forward: Callable[[Tensor], Tensor] | None = None, batch: Callable[..., Tensor] = tokens
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of the host's parameters."""
    model.zero_grad()
    out = (model if forward is None else forward)(batch(dtype=torch.float64))
    out.square().mean().backward()
    return out.detach(), [param.grad.clone() for _, param in host_parameters(model)]


@every_net
@pytest.mark.parametrize("slot_id", ["r0c1", "r0c2"])
@every_blend
@pytest.mark.parametrize("poison", [None, math.nan, math.inf])
@pytest.mark.parametrize("stage", [S.TRAINING, S.BLENDING])
@pytest.mark.parametrize("isolated", [True, False])
def test_at_alpha_zero_the_hosts_output_and_gradients_are_bit_identical(
    make, batch, slot_id, blend, poison, stage, isolated
):
    model = make().double().train()
    expected = trained_once(model, batch=batch)
    model.configure(replace(PATIENT, isolate_blending=isolated))
    slot = grown_to(model.slots[slot_id], stage, "lora", blend)
    slot.state.alpha.settle(0.0)
    slot.alpha.fill_(0.0)
    if poison is not None:
        with torch.no_grad():
            for param in slot.seed.parameters():
                param.fill_(poison)

    out, grads = trained_once(model, batch=batch)

    assert torch.equal(out, expected[0])
    assert all(map(torch.equal, grads, expected[1]))


@every_slot
def test_a_training_seed_gets_the_task_gradient_as_if_it_stood_there(slot_id: str):
    model = sequence_model().double().train()
    slot = grown_to(model.slots[slot_id], S.TRAINING, "lora")

    trained_once(model)
    found = [param.grad.clone() for param in slot.seed.parameters()]
    assert all(grad.abs().max() > 0 for grad in found)

    # At alpha 1, from the point where the others saw nothing of it: the straight-through estimate by hand.
    def straight_through(x: Tensor) -> Tensor:
        net = model.module
        assert isinstance(net, SequenceNet)
        h = net.embed(x)
        h = h + _difference(slot, h) if slot_id == "r0c0" else h
        y = net.up.layer(h)
        y = torch.relu(y + _difference(slot, h) if slot_id == "r0c1" else y)
        z = net.down.layer(y)
        return net.head(torch.tanh(z + _difference(slot, y) if slot_id == "r0c2" else z))

    trained_once(model, straight_through)
    expected = [param.grad for param in slot.seed.parameters()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def _difference(slot: SeedSlot, read: Tensor) -> Tensor:
    """Zero, with the gradient of what the seed adds to its place."""
    moved = slot.seed(read.detach()) - (read.detach() if slot.spec.in_dim is None else 0)
    return moved - moved.detach()


@pytest.mark.parametrize("isolated", [True, False])
def test_blending_gradients_are_ordinary_autograd_or_take_the_seed_for_a_constant(isolated: bool):
    model = sequence_model().double().train()
    model.configure(replace(PATIENT, isolate_blending=isolated))
    slot = grown_to(model.slots["r0c1"], S.BLENDING, "lora")
    slot.state.alpha.settle(0.5)
    slot.alpha.fill_(0.5)
    net = model.module

    def by_hand(x: Tensor) -> Tensor:
        h = net.embed(x)
        read = h.detach() if isolated else h
        y = torch.relu(net.up.layer(h) + 0.5 * read @ matrix_of(slot.seed).T)
        return net.head(torch.tanh(net.down.layer(y)))

    expected, found = trained_once(model, by_hand), trained_once(model)

    for one, other in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(one, other)


# --- in a model -------------------------------------------------------------------------------------------------


def test_a_slotted_model_finds_slots_around_weights_and_leaves_the_weights_to_the_host():
    model = sequence_model()
    plain = sum(layer.weight.numel() for layer in (nn.Linear(16, 48), nn.Linear(48, 40), nn.Linear(40, 36)))
    plain += nn.Linear(36, 10).weight.numel() + 48 + 40 + 10  # biases

    for slot in model.slots.values():
        bring(slot, S.HOLDING, blueprint="lora")

    assert list(model.slots) == ["r0c0", "r0c1", "r0c2"]
    assert [slot.spec.in_dim for slot in model.slots.values()] == [None, 48, 40]
    assert model.host_params == plain
    assert [slot.report().params for slot in model.slots.values()] == [2 * 8 * 48, 8 * (48 + 40), 8 * (40 + 36)]
    assert not isinstance(grow_from(SequenceNet()), MorphogeneticModel)


@every_net
@pytest.mark.parametrize("slot_id", ["r0c1", "r0c2"])
def test_without_a_seed_the_model_is_what_it_was_before_the_seed(make, batch, slot_id: str):
    model, x = make(), batch()
    before = model(x)
    bring(model.slots[slot_id], S.HOLDING, blueprint="lora")

    plain, without = model.outputs(x, [Configuration(), Configuration(off=frozenset({slot_id}))])

    assert torch.equal(without, before)
    assert torch.equal(plain, model(x))
    assert not torch.allclose(plain, before)


@every_net
def test_a_counterfactual_pass_may_choose_other_rungs(make, batch):
    model, x = make(), batch()
    slot = grown_to(model.slots["r0c1"], S.HOLDING, "lora_ladder", level=2)
    expected, before = model(x), slot.report().rungs
    slot.shrink_internal()

    (found,) = model.outputs(x, [Configuration(rungs=(("r0c1", before),))])

    assert torch.equal(found, expected)


# --- merging ----------------------------------------------------------------------------------------------------

KEPT = [("lora", None), ("lora_large", None), *(("lora_ladder", level) for level in (1, 2, 3, 4))]


@pytest.mark.parametrize(("blueprint", "level"), KEPT)
@pytest.mark.parametrize("blend", ["ADD", "GATE"])
def test_a_fossilised_seed_can_be_merged_and_the_linear_computes_the_same(blueprint, level, blend):
    made, x = site(S.FOSSILIZED, blueprint, blend, level).float(), reads().float()

    linear = merged(made)

    assert type(linear) is nn.Linear
    assert (linear.in_features, linear.out_features) == (40, 36)
    torch.testing.assert_close(linear(x), made(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(linear(x), made.layer(x), atol=0.1)


def test_merging_leaves_the_site_alone():
    made = site(S.FOSSILIZED)
    before = snapshot(made)

    with torch.no_grad():
        merged(made).weight.zero_()

    assert same(snapshot(made), before)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: site(S.DORMANT), id="empty"),
        pytest.param(lambda: site(S.HOLDING), id="on probation"),
        pytest.param(lambda: site(S.FOSSILIZED, blend="MULTIPLY"), id="a product"),
    ],
)
def test_what_is_not_kept_or_is_no_sum_cannot_be_merged(made: Callable[[], WeightSite]):
    with pytest.raises(ConfigError, match="slot r0c0: nothing to merge; it takes a fossilised seed"):
        merged(made())


# --- export -----------------------------------------------------------------------------------------------------


@every_net
@every_blend
@pytest.mark.parametrize("blueprint", ["lora", "lora_ladder"])
def test_an_exported_network_has_no_slots_and_computes_what_host_and_fossils_do(make, batch, blend, blueprint):
    model, x = make(), batch()
    in_the_cut = "norm" if make is image_model else blueprint
    for slot_id, seed in (("r0c0", in_the_cut), ("r0c1", blueprint)):
        grown_to(model.slots[slot_id], S.FOSSILIZED, seed, blend)
    expected = probe_output(model, x)
    grown_to(model.slots["r0c2"], S.HOLDING, "lora")
    before = snapshot(model)

    plain = export(model, x)

    assert not any(isinstance(module, SeedSlot | WeightSite) for module in plain.modules())
    torch.testing.assert_close(probe_output(plain, x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(probe_output(model, x), expected, atol=1e-3)
    assert same(snapshot(model), before)


@every_net
def test_a_merged_network_has_as_many_parameters_as_before_it_grew(make, batch):
    model, x = make(), batch()
    for slot_id in ("r0c1", "r0c2"):
        grown_to(model.slots[slot_id], S.FOSSILIZED, "lora")

    plain = export(model, x)

    assert type(plain.up) is type(plain.down) is (nn.Conv2d if make is image_model else nn.Linear)
    assert sum(param.numel() for param in plain.parameters()) == model.host_params
    assert isinstance(plain.cut, nn.Identity)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2**-7), (torch.float64, 2**-52)])
def test_networks_of_other_precisions_are_exported_to_theirs(dtype: torch.dtype, eps: float):
    model, x = sequence_model().to(dtype), tokens(dtype=dtype)
    for slot_id in ("r0c1", "r0c2"):
        grown_to(model.slots[slot_id], S.FOSSILIZED, "lora")
    expected = probe_output(model, x)

    plain = export(model, x)

    assert {param.dtype for param in plain.parameters()} == {dtype}
    assert (probe_output(plain, x) - expected).abs().max() <= 100 * eps * expected.abs().max()


def test_a_broken_network_is_exported_as_broken_as_it_is():
    model = sequence_model()
    slot = grown_to(model.slots["r0c1"], S.FOSSILIZED, "lora")
    with torch.no_grad():
        slot.seed.up.weight[0] = math.nan

    plain = export(model, tokens())

    assert plain.up.weight[0].isnan().all()
    assert not plain.up.weight[1:].isnan().any()


def test_a_seed_that_takes_its_slots_place_goes_on_learning():
    model, x = sequence_model(), tokens()
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora_ladder", level=2)

    plain = export(model, x).train()
    plain(x).square().mean().backward()

    assert isinstance(plain.cut, Ladder)
    assert all(param.grad is not None for param in plain.parameters())


def test_a_network_that_is_a_site_itself_is_exported_too():
    model = SlottedModel(WeightSite(nn.Linear(40, 36), "r0c0"))
    model.configure(PATIENT)
    x = noise(3, 5, 40)
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora")

    plain = export(model, x)

    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_site_that_stands_in_two_places_is_one_linear_afterwards():
    shared = WeightSite(nn.Linear(16, 16), "r0c0")
    model = SlottedModel(nn.Sequential(shared, nn.ReLU(), shared))
    model.configure(PATIENT)
    x = tokens()
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora")

    plain = export(model, x)

    assert plain[0] is plain[2]
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


def test_leaving_a_slot_out_of_the_run_leaves_an_identity_in_the_export():
    model, x = SlottedModel(SequenceNet(), ["r0c1"]), tokens()
    model.configure(PATIENT)
    slot = model.slots["r0c1"]
    plant(slot, "lora")
    stir(slot)
    find_healthy(slot)

    plain = export(model, x)

    torch.testing.assert_close(plain(x), SequenceNet()(x))
