"""The optimiser's groups follow the model, whoever made the optimiser and whatever was loaded in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import LINEAR, PATIENT, bring, cnn, find_healthy, noise, plant, seeded
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from esper.kasmina.groups import host_parameters, sync_groups
from esper.kasmina.model import GrowingModel, MorphogeneticModel, SlottedModel
from esper.kasmina.optimiser import UnboundParameterError, group_of, named_groups
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.stages import LIVE, SeedStage


class Net(nn.Module):
    """A network of one's own with two slots in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.early, self.late = SeedSlot.at("r0c0", dim=4, order=0), SeedSlot.at("r0c1", dim=4, order=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        late: Tensor = self.late(torch.relu(self.early(self.stem(x))))
        out: Tensor = self.head(late.mean((2, 3)))
        return out


def own_model(seed: int = 0) -> SlottedModel:
    with seeded(seed):
        model = SlottedModel(Net())
    model.configure(PATIENT)
    return model


def step(model: GrowingModel, *optimisers: Optimizer, seed: int = 0) -> None:
    model.train()
    model.zero_grad()
    model(noise(4, 1, 6, 6, seed=seed)).square().mean().backward()
    for optimiser in optimisers:
        optimiser.step()


def moves(model: GrowingModel, optimiser: Optimizer) -> set[str]:
    """Names of the parameters that a few steps change."""
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for seed in range(3):  # a layer that starts at zero holds up the gradient of those before it for one step
        step(model, optimiser, seed=seed)
    return {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}


def names_in(model: nn.Module, group: dict[str, Any]) -> list[str]:
    names = {id(param): name for name, param in model.named_parameters()}
    return [names[id(param)] for param in group["params"]]


def seed_names(model: GrowingModel, slot_id: str = "r0c0") -> set[str]:
    ids = {id(param) for param in model.slots[slot_id].parameters()}
    return {name for name, param in model.named_parameters() if id(param) in ids}


# ---------------------------------------------------------------- groups of the user


def split_by_decay(model: GrowingModel) -> AdamW:
    matrices = [param for _, param in host_parameters(model) if param.ndim > 1]
    vectors = [param for _, param in host_parameters(model) if param.ndim == 1]
    return AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1)


def test_a_second_group_of_the_host_stays_and_trains_on_while_seeds_come_and_go() -> None:
    model = own_model()
    optimiser = split_by_decay(model)
    scheduler = StepLR(optimiser, 1, gamma=0.5)

    sync_groups(model, optimiser, 0.3, [scheduler])
    plant(model.slots["r0c0"])
    sync_groups(model, optimiser, 0.3, [scheduler])
    assert list(named_groups(optimiser)) == ["host", "host.1", "r0c0.1"]
    bring_down(model.slots["r0c0"])
    sync_groups(model, optimiser, 0.3, [scheduler])

    assert list(named_groups(optimiser)) == ["host", "host.1"]
    assert group_of(optimiser, "host.1")["weight_decay"] == 0.0
    assert moves(model, optimiser) == {name for name, _ in model.named_parameters()}
    assert scheduler.base_lrs == [0.01, 0.01]


def bring_down(slot: SeedSlot) -> None:
    slot.advance_stage()
    slot.step_epoch()
    assert slot.prune(0, LINEAR).done


@pytest.mark.parametrize("name", ["head", "r9c9.1", "r0c0", "r0c0.first", "r0c0.1/other", "block.1", "r0c0.1.2"])
def test_only_a_name_that_is_a_seed_id_of_this_model_is_taken_for_a_seeds_group(name: str) -> None:
    model = own_model()
    first, *rest = [param for _, param in host_parameters(model)]
    optimiser = SGD([{"params": [first]}, {"params": rest, "name": name}], lr=0.1)

    sync_groups(model, optimiser, 1.0)

    assert list(named_groups(optimiser)) == ["host", name]


def test_a_removed_seed_and_its_gate_leave_no_group_and_no_moments() -> None:
    model = own_model()
    optimiser = SGD([param for _, param in host_parameters(model)], lr=0.1, momentum=0.9)
    slot = bring(model.slots["r0c0"], SeedStage.BLENDING, blend="GATE")
    sync_groups(model, optimiser, 1.0)
    assert list(named_groups(optimiser)) == ["host", "r0c0.1", "r0c0.1/gate"]
    step(model, optimiser)

    assert slot.prune(0, LINEAR).done
    sync_groups(model, optimiser, 1.0)

    assert list(named_groups(optimiser)) == ["host"]
    assert set(optimiser.state) == set(model.parameters())


# ---------------------------------------------------------------- models that were loaded


def test_a_seed_that_was_loaded_over_itself_trains() -> None:
    model = own_model()
    plant(model.slots["r0c0"])
    model.slots["r0c0"].advance_stage()
    optimiser = SGD([param for _, param in host_parameters(model)], lr=0.1, momentum=0.9)
    scheduler = StepLR(optimiser, 1, gamma=0.5)
    sync_groups(model, optimiser, 0.3, [scheduler])
    step(model, optimiser)
    lr = group_of(optimiser, "r0c0.1")["lr"]

    model.load_state_dict(copy.deepcopy(model.state_dict()))
    sync_groups(model, optimiser, 0.3, [scheduler])

    assert set(names_in(model, group_of(optimiser, "r0c0.1"))) == seed_names(model)
    assert group_of(optimiser, "r0c0.1")["lr"] == lr
    assert set(optimiser.state) <= set(model.parameters()), "moments of tensors that are gone"
    assert seed_names(model) <= moves(model, optimiser)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loaded_seed_trains_under_optimisers_that_make_their_state_early(fused: bool) -> None:
    model = own_model()
    plant(model.slots["r0c0"])
    model.slots["r0c0"].advance_stage()
    host = [param for _, param in host_parameters(model)]
    optimiser = SGD(host, lr=0.1, momentum=0.9, fused=True) if fused else Adagrad(host, lr=0.1)
    sync_groups(model, optimiser, 1.0)
    step(model, optimiser)

    model.load_state_dict(copy.deepcopy(model.state_dict()))
    sync_groups(model, optimiser, 1.0)

    assert seed_names(model) <= moves(model, optimiser)


def test_loading_another_seed_under_the_same_name_replaces_the_group() -> None:
    model, other = own_model(), own_model(seed=1)
    plant(model.slots["r0c0"], "conv_light")
    plant(other.slots["r0c0"], "norm")
    optimiser = SGD(model.parameters(), lr=0.1)
    sync_groups(model, optimiser, 1.0)

    model.load_state_dict(other.state_dict())
    sync_groups(model, optimiser, 1.0)

    assert set(names_in(model, group_of(optimiser, "r0c0.1"))) == seed_names(model)


# ---------------------------------------------------------------- optimisers made over everything


MAKERS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "fused sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda params: AdamW(params, lr=0.01),
    "adagrad": lambda params: Adagrad(params, lr=0.1),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_seed_in_the_hosts_group_moves_into_its_own_and_trains_on_as_if_nothing_had_happened(
    kind: str, named: bool
) -> None:
    model = own_model()
    plant(model.slots["r0c0"])
    model.slots["r0c0"].advance_stage()
    untouched = copy.deepcopy(model)
    optimiser = MAKERS[kind](model.named_parameters() if named else model.parameters())
    reference = MAKERS[kind](untouched.parameters())

    for seed in range(6):
        if seed == 3:
            sync_groups(model, optimiser, lr_scale=1.0)
        step(model, optimiser, seed=seed)
        step(untouched, reference, seed=seed)

    assert list(named_groups(optimiser)) == ["host", "r0c0.1"]
    assert set(names_in(model, group_of(optimiser, "r0c0.1"))) == seed_names(model)
    for got, want in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(got, want)


def test_a_seed_spread_over_groups_of_the_user_is_gathered_at_its_own_learning_rate() -> None:
    model = own_model()
    plant(model.slots["r0c0"])
    matrices = [param for param in model.parameters() if param.ndim > 1]
    vectors = [param for param in model.parameters() if param.ndim <= 1]
    optimiser = AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01)

    sync_groups(model, optimiser, lr_scale=0.5)

    assert group_of(optimiser, "r0c0.1")["lr"] == 0.005
    assert set(names_in(model, group_of(optimiser, "r0c0.1"))) == seed_names(model)
    held = [id(param) for group in optimiser.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for param in model.parameters())


@pytest.mark.parametrize("kind", MAKERS)
def test_torchs_own_state_dict_resumes_a_grown_model_with_a_fresh_optimiser_over_everything(kind: str) -> None:
    model = own_model()
    optimiser = MAKERS[kind](model.parameters())
    plant(model.slots["r0c1"])
    model.slots["r0c1"].advance_stage()
    sync_groups(model, optimiser, 0.3)
    step(model, optimiser)

    resumed = own_model(seed=1)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    fresh = MAKERS[kind](resumed.parameters())
    sync_groups(resumed, fresh, 0.3)
    fresh.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for seed in (1, 2):
        step(model, optimiser, seed=seed)
        step(resumed, fresh, seed=seed)

    for got, want in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want)


# ---------------------------------------------------------------- what can go wrong


def test_a_network_that_was_not_wrapped_is_refused_with_a_sentence() -> None:
    net = Net()

    with pytest.raises(ConfigError, match=r"Net is no growing model; wrap it once, SlottedModel\(module\)"):
        sync_groups(net, SGD(net.parameters(), lr=0.1), 1.0)  # type: ignore[arg-type]


def test_a_layer_replaced_after_the_optimiser_was_made_is_an_error() -> None:
    net = Net()
    model = SlottedModel(net)
    optimiser = SGD(model.parameters(), lr=0.1)
    net.head = nn.Linear(4, 3)

    with pytest.raises(UnboundParameterError, match=r"module\.head\.weight is trainable and in no group"):
        sync_groups(model, optimiser, 1.0)


def test_weights_loaded_by_assignment_are_an_error_and_not_a_host_that_stands_still() -> None:
    model = own_model()
    optimiser = SGD(model.parameters(), lr=0.1)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)

    with pytest.raises(UnboundParameterError, match="make the optimiser again"):
        sync_groups(model, optimiser, 1.0)


def test_an_optimiser_of_the_head_alone_gets_the_seeds_and_nothing_else() -> None:
    model = own_model()
    optimiser = SGD(model.module.get_submodule("head").parameters(), lr=0.1)
    plant(model.slots["r0c0"])

    sync_groups(model, optimiser, 1.0)

    assert list(named_groups(optimiser)) == ["host", "r0c0.1"]
    assert len(group_of(optimiser, "host")["params"]) == 2


def test_an_optimiser_may_train_something_besides_the_model() -> None:
    model, temperature = own_model(), nn.Parameter(torch.ones(()))
    optimiser = SGD([*model.parameters(), temperature], lr=0.1)

    sync_groups(model, optimiser, 1.0)

    assert optimiser.param_groups[0]["params"][-1] is temperature


def test_two_optimisers_may_share_a_model_and_a_learned_loss_when_both_are_named() -> None:
    model, temperature = own_model(), nn.Parameter(torch.ones(()))
    stem, head = model.module.get_submodule("stem"), model.module.get_submodule("head")
    optimiser, other = SGD([*stem.parameters(), temperature], lr=0.1), AdamW(head.parameters())
    plant(model.slots["r0c0"])

    with pytest.raises(UnboundParameterError, match="name the model's other optimisers"):
        sync_groups(model, optimiser, 1.0)
    sync_groups(model, optimiser, 1.0, others=[other])

    assert list(named_groups(optimiser)) == ["host", "r0c0.1"]


# ---------------------------------------------------------------- whatever happens

WHATS = ("plant", "advance", "prune", "fossilise", "load", "train")


@settings(max_examples=40, deadline=None)
@given(whats=st.lists(st.tuples(st.sampled_from(WHATS), st.integers(0, 2)), max_size=12), everything=st.booleans())
def test_every_parameter_is_in_exactly_one_group_and_nothing_else_is(
    whats: list[tuple[str, int]], everything: bool
) -> None:
    model = MorphogeneticModel(cnn((4, 4, 4)))
    model.configure(PATIENT)
    plant(model.slots["r0c0"], blend="GATE")
    host = [param for _, param in host_parameters(model)]
    optimiser = SGD(model.parameters() if everything else host, lr=0.01, momentum=0.9)
    sync_groups(model, optimiser, 0.3)

    for what, where in whats:
        slot = model.slots[f"r0c{where}"]
        if what == "plant":
            plant(slot, "conv_ladder" if where == 1 else "norm", blend="GATE", tempo=1)
        elif what == "load":
            model.load_state_dict(copy.deepcopy(model.state_dict()))
        elif what == "prune":
            slot.prune(0, LINEAR)
        elif what == "fossilise":
            slot.fossilize()
        elif what == "advance" and slot.stage in LIVE:
            find_healthy(slot)
            with seeded():
                slot.advance_stage()
        slot.step_epoch()
        sync_groups(model, optimiser, 0.3)
        if what == "train":
            model(noise(2, 1, 8, 8)).square().mean().backward()
            optimiser.step()

        held = [id(param) for group in optimiser.param_groups for param in group["params"]]
        assert sorted(held) == sorted(id(param) for param in model.parameters())
        assert set(optimiser.state) <= set(model.parameters())
        assert [id(param) for param in optimiser.param_groups[0]["params"]] == [id(param) for param in host]
