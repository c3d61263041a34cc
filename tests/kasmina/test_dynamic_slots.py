"""Models with any number of slots: routing composes, and counterfactual passes equal full ones bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import combinations

import pytest
import torch
from tests.support import BLENDS, PATIENT, bring, cnn, in_place_host, noise, plant, seeded
from torch import Tensor, nn

from esper.kasmina.cnn_host import CNNConfig
from esper.kasmina.model import Configuration, GrowingModel, MorphogeneticModel, SlottedModel, grow_from, probe_output
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.stages import SeedStage

IMAGES = (4, 1, 8, 8)
# Every stage occurs, so do all blends, rungs and seeds that stand aside in evaluation.
TENANTS: list[tuple[SeedStage, str]] = [
    (SeedStage.BLENDING, "conv_ladder"),
    (SeedStage.DORMANT, ""),
    (SeedStage.TRAINING, "conv_heavy"),
    (SeedStage.HOLDING, "bottleneck"),
    (SeedStage.GERMINATED, "norm"),
    (SeedStage.FOSSILIZED, "conv_ladder"),
    (SeedStage.PRUNED, "conv_light"),
    (SeedStage.BLENDING, "depthwise"),
    (SeedStage.EMBARGOED, "attention"),
    (SeedStage.FOSSILIZED, "conv_light"),
    (SeedStage.RESETTING, "conv_small"),
    (SeedStage.BLENDING, "conv_light"),
]


def inhabit(model: GrowingModel) -> GrowingModel:
    """Seeds in all stages, as far as there are slots; alpha under way where it blends."""
    model.configure(PATIENT)
    for index, (slot, (stage, blueprint)) in enumerate(zip(model.slots.values(), TENANTS, strict=False)):
        bring(slot, stage, blueprint=blueprint or "norm", blend=BLENDS[index % 3], seed=index)
        if stage is SeedStage.BLENDING:
            slot.step_epoch()
    return model


def inhabited(widths: tuple[int, ...] = (8, 12, 8), slots: list[str] | None = None) -> MorphogeneticModel:
    model = MorphogeneticModel(cnn(widths), slots)
    inhabit(model)
    return model


def by_hand(model: MorphogeneticModel, x: Tensor) -> Tensor:
    """The model as a plain sequence of blocks and slots."""
    for index, block in enumerate(model.host.segments):
        x = block(x)
        if f"r0c{index}" in model.slots:
            x = model.slots[f"r0c{index}"](x)
    return x


# --- how many, and which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12])
def test_n_blocks_give_the_slots_r0c0_to_r0c_n_minus_1(count: int):
    model = MorphogeneticModel(cnn((4,) * count))

    assert list(model.slots) == [f"r0c{index}" for index in range(count)]
    assert model.slot_config.num_slots == count
    assert dict(model.host.injection_points) == dict.fromkeys(model.slots, 4)


@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_a_model_with_seeds_in_all_stages_is_the_sequence_of_its_blocks_and_slots(count: int):
    model, x = inhabited((4,) * count), noise(*IMAGES)

    for mode in (True, False):
        model.train(mode)
        assert torch.equal(model(x), by_hand(model, x))


def test_an_empty_model_computes_exactly_what_its_host_computes():
    model, x = MorphogeneticModel(cnn()), noise(*IMAGES)

    assert torch.equal(model(x), model.host(x))


@pytest.mark.parametrize("slots", [["r0c1"], ["r0c2", "r0c0"], ["r0c3", "r0c1", "r0c2"]])
def test_a_model_may_use_some_of_the_hosts_slots(slots: list[str]):
    model, x = inhabited((4,) * 4, slots), noise(*IMAGES)

    assert list(model.slots) == sorted(slots)
    assert torch.equal(model(x), by_hand(model, x))
    assert [spec.slot_id for spec in model.specs] == ["r0c0", "r0c1", "r0c2", "r0c3"]


def test_slots_run_in_row_major_order_however_they_are_named():
    model = MorphogeneticModel(cnn((4,) * 12), ["r0c10", "r0c9", "r0c2"])

    assert model.slot_config.slot_ids == ("r0c2", "r0c9", "r0c10")


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (
            ["early"],
            "Invalid slot 'early'. Use canonical format: r0c0, r0c1, r0c2, ... This host has r0c0, r0c1, r0c2.",
        ),
        (["r0c0", "r0c3"], "slots: 'r0c3' is not in this host; it has r0c0, r0c1, r0c2"),
        (["r1c0"], "slots: 'r1c0' is not in this host; it has r0c0, r0c1, r0c2"),
        ([], "slots: none: name at least one slot, each once"),
        (["r0c0", "r0c0"], "slots: r0c0 r0c0: name at least one slot, each once"),
    ],
)
def test_a_slot_that_the_host_lacks_is_refused(slots: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        MorphogeneticModel(cnn(), slots)

    assert str(caught.value) == message


@pytest.mark.parametrize("slot_id", ["early", "r0c3", "r0c1"])
def test_routing_to_a_slot_that_is_unknown_or_not_enabled_is_refused(slot_id: str):
    model, x = MorphogeneticModel(cnn(), ["r0c0", "r0c2"]), noise(*IMAGES)

    for route in (model.forward_to, model.forward_from):
        with pytest.raises(ConfigError, match=slot_id):
            route(slot_id, x)


@pytest.mark.parametrize("widths", [(), (8,)])
def test_a_host_of_fewer_than_two_blocks_is_refused(widths: tuple[int, ...]):
    with pytest.raises(ConfigError, match="two blocks or more"):
        CNNConfig(widths=widths, pools=(False,) * len(widths))


# --- routing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("mode", [True, False])
def test_cutting_at_any_slot_and_going_on_is_the_whole_pass(count: int, mode: bool):
    model, x = inhabited((4,) * count).train(mode), noise(*IMAGES)

    for slot_id in model.slots:
        parts = model.forward_from(slot_id, model.slots[slot_id](model.forward_to(slot_id, x)))
        assert torch.equal(parts, model(x))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_the_way_to_a_slot_composes_over_every_slot_before_it(count: int):
    model, x = inhabited((4,) * count), noise(*IMAGES)

    for first, second in combinations(model.slots, 2):
        after_first = model.slots[first](model.forward_to(first, x))
        assert torch.equal(model.forward_to(second, after_first, from_slot_id=first), model.forward_to(second, x))


def test_the_way_composes_over_enabled_slots_that_are_not_neighbours():
    model, x = inhabited((4,) * 6, ["r0c0", "r0c2", "r0c5"]), noise(*IMAGES)

    for first, second in combinations(model.slots, 2):
        after_first = model.slots[first](model.forward_to(first, x))
        assert torch.equal(model.forward_to(second, after_first, from_slot_id=first), model.forward_to(second, x))


def test_there_is_no_way_back_to_an_earlier_slot():
    model = MorphogeneticModel(cnn((4,) * 3))

    for owner in (model, model.host):
        with pytest.raises(ConfigError, match="'r0c0' comes before 'r0c2'"):
            owner.forward_to("r0c0", noise(4, 4, 4, 4), from_slot_id="r0c2")


def test_routing_carries_gradients_like_the_whole_pass():
    model, x = inhabited(), noise(*IMAGES)
    model(x).square().mean().backward()
    expected = [None if param.grad is None else param.grad.clone() for param in model.parameters()]
    model.zero_grad()

    parts = model.forward_from("r0c1", model.slots["r0c1"](model.forward_to("r0c1", x)))
    parts.square().mean().backward()

    for param, grad in zip(model.parameters(), expected, strict=True):
        assert (grad is None and param.grad is None) or torch.equal(param.grad, grad)


# --- counterfactual passes --------------------------------------------------------------------------------------


def configurations_of(model: GrowingModel) -> list[Configuration]:
    """As it is, every subset of up to two slots off, and every ladder at another level, alone and with a slot off."""
    ids = list(model.slots)
    found = [Configuration()]
    found += [Configuration(frozenset(off)) for size in (1, 2) for off in combinations(ids, size)]
    for slot_id, slot in model.slots.items():
        report = slot.report()
        if report.internal_kind and report.holds_seed:
            other = (not report.rungs[0], *report.rungs[1:])
            found.append(Configuration(rungs=((slot_id, other),)))
            found.append(Configuration(frozenset(ids[:1]) - {slot_id}, ((slot_id, other),)))
    return found


def full_pass(model: GrowingModel, x: Tensor, configuration: Configuration) -> Tensor:
    """From the input, on a copy whose seeds were changed for good: alpha 0 and no gate for those that are off."""
    changed = copy.deepcopy(model)
    for slot_id in configuration.off:
        slot = changed.slots[slot_id]
        if slot.seed is not None:
            slot.gate = None
            slot.alpha.fill_(0.0)
    for slot_id, rungs in configuration.rungs:
        changed.slots[slot_id].seed.active = rungs
    return changed(x)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("count", [2, 6])
def test_passes_from_a_cached_prefix_equal_full_passes_with_alpha_set_to_zero(count: int, mode: bool):
    model, x = inhabited((4,) * count).train(mode), noise(*IMAGES)
    asked = configurations_of(model)

    outputs = model.outputs(x, asked)

    assert len(outputs) == len(asked)
    for configuration, output in zip(asked, outputs, strict=True):
        assert torch.equal(output, full_pass(model, x, configuration)), configuration


def test_a_counterfactual_pass_differs_where_the_seed_can_be_heard():
    model, x = inhabited((4,) * 12).eval(), noise(*IMAGES)

    plain, *others = model.outputs(x, [Configuration(), *(Configuration(frozenset({s})) for s in model.slots)])

    heard = [slot_id for slot_id, other in zip(model.slots, others, strict=True) if not torch.equal(other, plain)]
    assert heard == ["r0c0", "r0c3", "r0c5", "r0c7", "r0c9", "r0c11"]


def test_the_order_of_asking_does_not_matter_nor_does_asking_twice():
    model, x = inhabited((4,) * 5).eval(), noise(*IMAGES)
    asked = configurations_of(model)

    forth, back = model.outputs(x, asked * 2), model.outputs(x, asked[::-1])

    assert all(map(torch.equal, forth[: len(asked)], forth[len(asked) :]))
    assert all(map(torch.equal, forth[: len(asked)], back[::-1]))


def test_counterfactual_passes_leave_the_model_as_it_was():
    model, x = inhabited((4,) * 12).eval(), noise(*IMAGES)
    before, levels = model(x), [slot.report() for slot in model.slots.values()]

    model.outputs(x, configurations_of(model))

    assert torch.equal(model(x), before)
    assert [slot.report() for slot in model.slots.values()] == levels
    assert not any(slot.muted for slot in model.slots.values())


def test_a_counterfactual_that_fails_leaves_the_model_as_it_was():
    model, x = inhabited(), noise(*IMAGES)

    with pytest.raises(RuntimeError), model.configured(Configuration(frozenset({"r0c0", "r0c2"}))):
        model(x.double())

    assert not any(slot.muted for slot in model.slots.values())


def test_no_operation_overwrites_a_cached_activation_even_if_segments_work_in_place():
    model, x = inhabit(MorphogeneticModel(in_place_host())).eval(), noise(*IMAGES)
    asked = configurations_of(model)

    with torch.no_grad():
        outputs = model.outputs(x, asked * 2)
        expected = [full_pass(model, x, configuration) for configuration in asked]

    for configuration, output, again in zip(asked, outputs, outputs[len(asked) :], strict=False):
        index = asked.index(configuration)
        assert torch.equal(output, expected[index]), configuration
        assert torch.equal(again, expected[index]), configuration


def test_passes_work_under_inference_mode():
    model, x = inhabited((4,) * 4).eval(), noise(*IMAGES)
    asked = configurations_of(model)
    expected = model.outputs(x, asked)

    with torch.inference_mode():
        outputs = model.outputs(x, asked)

    assert all(map(torch.equal, outputs, expected))


# --- networks that place their own slots ------------------------------------------------------------------------


class Own(nn.Module):
    """Someone's network: the blocks of a CNN host, with slots written into its forward."""

    def __init__(self, blocks: nn.ModuleList, slots: Mapping[str, int]) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(blocks)
        self.places = nn.ModuleList(
            SeedSlot.at(slot_id, dim, order=order) for order, (slot_id, dim) in enumerate(slots.items())
        )

    def forward(self, x: Tensor) -> Tensor:
        for block, place in zip(self.blocks, self.places, strict=False):
            x = place(block(x))
        return self.blocks[-1](x)


def both(count: int) -> tuple[MorphogeneticModel, SlottedModel]:
    chain = inhabited((4,) * count)
    own = SlottedModel(Own(chain.host.segments, chain.host.injection_points))
    inhabit(own)
    return chain, own


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_with_slots_of_its_own_equals_the_chain_of_the_same_parts(mode: bool):
    chain, own = both(5)
    x = noise(*IMAGES)
    asked = configurations_of(chain)

    outputs = [model.train(mode).outputs(x, asked) for model in (chain, own)]

    assert all(map(torch.equal, *outputs))
    assert chain.slot_config == own.slot_config
    assert [slot.report() for slot in chain.slots.values()] == [slot.report() for slot in own.slots.values()]


def test_both_kinds_count_the_same_parameters_as_the_hosts():
    chain, own = both(5)

    hosts = sum(param.numel() for param in cnn((4,) * 5).parameters())
    assert chain.host_params == own.host_params == hosts


def test_some_slots_of_a_network_of_ones_own_may_be_enabled():
    chain = MorphogeneticModel(cnn((4,) * 4))
    own = SlottedModel(Own(chain.host.segments, chain.host.injection_points), ["r0c3", "r0c1"])

    assert list(own.slots) == ["r0c1", "r0c3"]
    assert [spec.slot_id for spec in own.specs] == ["r0c0", "r0c1", "r0c2", "r0c3"]
    assert own.slot_config.order_map == {"r0c1": 1, "r0c3": 3}


def test_a_network_without_slots_is_told_how_to_get_them():
    with pytest.raises(ConfigError, match=r"Sequential has no slot; place SeedSlot\.at"):
        SlottedModel(nn.Sequential(nn.Linear(2, 2)))


def test_two_slots_of_one_name_are_refused():
    net = nn.Sequential(SeedSlot.at("r0c0", 4), SeedSlot.at("r0c0", 4, order=1))

    with pytest.raises(ConfigError, match="distinct"):
        SlottedModel(net)


def test_a_slot_that_a_network_uses_twice_is_one_slot():
    shared = SeedSlot.at("r0c0", 4)

    assert list(SlottedModel(nn.Sequential(shared, nn.ReLU(), shared)).slots) == ["r0c0"]


def test_a_chain_is_cut_and_anything_else_is_run_whole():
    assert isinstance(grow_from(cnn()), MorphogeneticModel)
    assert isinstance(grow_from(nn.Sequential(SeedSlot.at("r0c0", 4))), SlottedModel)
    assert list(grow_from(cnn(), ["r0c2"]).slots) == ["r0c2"]


# --- the model as a module --------------------------------------------------------------------------------------


def test_a_deep_copy_is_independent_of_the_original():
    model, x = inhabited(), noise(*IMAGES)
    twin, before = copy.deepcopy(model), model(x)
    assert torch.equal(twin(x), before)

    with torch.no_grad():
        for param in twin.parameters():
            param.zero_()
    twin.slots["r0c0"].uproot()

    assert torch.equal(model(x), before)
    assert model.slots["r0c0"].stage is SeedStage.BLENDING


def test_slots_with_a_seed_in_them_are_those_on_the_way_or_kept():
    model = inhabited((4,) * 12)

    assert [slot.spec.slot_id for slot in model.fossil_and_live] == [
        *("r0c0", "r0c2", "r0c3", "r0c4", "r0c5", "r0c7", "r0c9", "r0c11")
    ]


def test_growing_changes_no_parameter_of_the_host():
    model = MorphogeneticModel(cnn())
    before = {name: param.clone() for name, param in model.host.named_parameters()}

    inhabit(model)

    after = dict(model.host.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class WithFrozenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.place = nn.BatchNorm2d(1), SeedSlot.at("r0c0", 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.norm(x))


def test_probing_moves_neither_modes_nor_statistics():
    model = SlottedModel(WithFrozenNorm())
    model.train()
    model.module.norm.eval()
    statistics = model.module.norm.running_mean.clone()

    probe_output(model, noise(*IMAGES))

    assert model.training
    assert not model.module.norm.training
    assert torch.equal(model.module.norm.running_mean, statistics)


def test_planting_draws_from_the_generator_that_is_lent_and_from_no_other():
    model = MorphogeneticModel(cnn())
    model.configure(PATIENT)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    for slot in model.slots.values():
        plant(slot, "conv_heavy")
    with seeded():
        model(noise(*IMAGES))

    assert torch.equal(torch.rand(2), expected)
