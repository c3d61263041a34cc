"""Optimiser surgery, over every optimiser and every scheduler that this torch has: a newcomer fails here first."""

from __future__ import annotations

import copy
import inspect
import io
import math
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.optimiser import (
    UnboundParameterError,
    add_group,
    assert_bound,
    check_supported,
    group_of,
    load_state_by_name,
    named_groups,
    remove_group,
    resize_param,
    state_by_name,
)
from esper.kasmina.schedulers import COPIED_LISTS, SCALED_LISTS
from esper.leyline.errors import CheckpointError, ConfigError

REFUSED = {"LBFGS", "SparseAdam"}
# Settings that bring every kind of state tensor into play.
SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "Adagrad": {"initial_accumulator_value": 0.1, "lr_decay": 0.01},
    "ASGD": {"t0": 1},
    "RMSprop": {"momentum": 0.9, "centered": True},
}


def optimiser_cases() -> Iterator[tuple[str, str]]:
    for name, cls in sorted(vars(torch.optim).items()):
        if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer and name not in REFUSED:
            known = inspect.signature(cls).parameters
            yield name, "plain"
            yield from ((name, kernel) for kernel in ("foreach", "fused") if kernel in known and name != "Muon")


CASES = list(optimiser_cases())
every_optimiser = pytest.mark.parametrize("case", CASES, ids=["-".join(case) for case in CASES])
resizable = pytest.mark.parametrize(
    "case", [case for case in CASES if case[0] != "Adafactor"], ids=lambda case: "-".join(case)
)


def make(case: tuple[str, str], params: Any) -> Optimizer:
    name, kernel = case
    cls = getattr(torch.optim, name)
    known = inspect.signature(cls).parameters
    settings = {"lr": 0.05, **SETTINGS.get(name, {})}
    if "weight_decay" in known:
        settings["weight_decay"] = 0.1
    if "foreach" in known and kernel != "fused":
        settings["foreach"] = kernel == "foreach"
    if kernel == "fused":
        settings["fused"] = True
    return cls(params, **settings)


class Net(nn.Module):
    """A host of two layers and a seed; matrices only for Muon."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 3, bias=bias)
        self.head = nn.Linear(3, 2, bias=bias)
        self.seed = nn.Linear(3, 3, bias=bias)

    def host(self) -> list[nn.Parameter]:
        return [*self.stem.parameters(), *self.head.parameters()]

    def sprout(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.seed.named_parameters(prefix="seed"))


def net(case: tuple[str, str]) -> Net:
    return Net(bias=case[0] != "Muon")


def give_gradients(model: nn.Module, time: int, only: str = "") -> None:
    """Gradients that depend on name and time alone; None for names that do not start with `only`."""
    for name, param in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {time}".encode()))
        param.grad = torch.randn(param.shape, generator=generator) if name.startswith(only) else None


def train(model: nn.Module, optimizer: Optimizer, times: range, only: str = "") -> None:
    for time in times:
        give_gradients(model, time, only)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def facts(optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
    """The value and the state of one parameter, copied."""
    return {"value": param.detach().clone(), **copy.deepcopy(dict(optimizer.state[param]))}


def assert_identical(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for key in want:
        assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(want[key])), key


# ---------------------------------------------------------------- parameters join and leave


@every_optimiser
def test_the_host_does_not_notice_a_seed_that_comes_and_goes(case: tuple[str, str]) -> None:
    grown, untouched = net(case), net(case)
    optimizer, reference = make(case, grown.host()), make(case, untouched.host())

    train(grown, optimizer, range(3))
    add_group(optimizer, grown.sprout(), name="r0c0/1", lr_scale=0.3)
    train(grown, optimizer, range(3, 6))
    remove_group(optimizer, "r0c0/1")
    train(grown, optimizer, range(6, 8))

    train(untouched, reference, range(8))
    for got, want in zip(grown.host(), untouched.host(), strict=True):
        assert_identical(facts(optimizer, got), facts(reference, want))


@every_optimiser
def test_a_seed_trains_like_one_that_has_an_optimiser_to_itself(case: tuple[str, str]) -> None:
    grown, alone = net(case), net(case)
    optimizer, reference = make(case, grown.host()), make(case, alone.seed.parameters())

    train(grown, optimizer, range(3))
    add_group(optimizer, grown.sprout(), name="seed", lr_scale=0.5)
    train(grown, optimizer, range(3, 6))

    reference.param_groups[0]["lr"] = 0.025
    train(alone, reference, range(3, 6))
    for got, want in zip(grown.seed.parameters(), alone.seed.parameters(), strict=True):
        assert_identical(facts(optimizer, got), facts(reference, want))


@every_optimiser
def test_a_removed_seed_leaves_nothing_behind(case: tuple[str, str]) -> None:
    model = net(case)
    optimizer = make(case, model.host())
    add_group(optimizer, model.sprout(), name="seed")
    train(model, optimizer, range(2))
    weight = weakref.ref(model.seed.weight)

    remove_group(optimizer, "seed")
    del model.seed

    assert weight() is None
    assert list(named_groups(optimizer)) == ["host"]
    assert all(any(param is held for held in model.host()) for param in optimizer.state)


@every_optimiser
def test_a_parameter_without_gradient_stays_bit_identical_and_wakes_up_where_it_stopped(case: tuple[str, str]) -> None:
    model, reference_model = net(case), net(case)
    optimizer, reference = make(case, model.host()), make(case, reference_model.host())
    for each, its_model in ((optimizer, model), (reference, reference_model)):
        add_group(each, its_model.sprout(), name="seed")
        train(its_model, each, range(3))
    before = facts(optimizer, model.seed.weight)

    train(model, optimizer, range(10, 14), only="stem")
    assert_identical(facts(optimizer, model.seed.weight), before)

    train(model, optimizer, range(3, 5), only="seed")
    train(reference_model, reference, range(3, 5), only="seed")
    assert_identical(facts(optimizer, model.seed.weight), facts(reference, reference_model.seed.weight))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_gradient_of_zeros_is_no_substitute_for_none(name: str) -> None:
    model = Net()
    optimizer = make((name, "plain"), model.parameters())
    train(model, optimizer, range(2))
    before = facts(optimizer, model.seed.weight)

    model.seed.weight.grad = torch.zeros(3, 3)
    optimizer.step()

    after = facts(optimizer, model.seed.weight)
    assert not torch.equal(after.pop("value"), before.pop("value"))
    assert any(not torch.equal(after[key], before[key]) for key in before)


def test_a_rung_that_wakes_up_later_trains_under_fused_sgd() -> None:
    # Torch alone raises here: its fused kernel wants a momentum buffer for all of a group or for none.
    weights = {}
    for kernel in ("plain", "fused"):
        model = Net()
        optimizer = make(("SGD", kernel), model.host())
        add_group(optimizer, model.sprout(), name="seed")
        train(model, optimizer, range(2), only="seed.weight")
        train(model, optimizer, range(2, 4), only="seed")
        weights[kernel] = model.seed.bias.detach()

    torch.testing.assert_close(weights["fused"], weights["plain"])


def test_a_seed_takes_over_the_settings_of_the_host_except_its_options() -> None:
    model = Net()
    optimizer = SGD(model.host(), lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer.param_groups[0]["momentum"] = 0.7  # as a schedule would

    group = add_group(optimizer, model.sprout(), name="seed", lr_scale=0.1, options={"weight_decay": 0.0})

    assert group is group_of(optimizer, "seed")
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1 * 0.1, 0.7, 0.0)
    assert group_of(optimizer, "host")["weight_decay"] == 0.01


def test_groups_made_elsewhere_are_named_once_and_keep_their_names() -> None:
    model = Net()
    parts = [{"params": part.parameters()} for part in (model.stem, model.head)]
    optimizer = SGD([*parts, {"params": model.seed.parameters(), "name": "seed"}])

    assert list(named_groups(optimizer)) == ["host", "host.1", "seed"]
    remove_group(optimizer, "host.1")
    assert list(named_groups(optimizer)) == ["host", "seed"]


def test_an_optimiser_made_with_parameter_names_grows_too() -> None:
    model = Net()
    optimizer = SGD(list(model.stem.named_parameters(prefix="stem")), momentum=0.9)

    add_group(optimizer, model.sprout(), name="seed")

    assert group_of(optimizer, "seed")["param_names"] == ["seed.weight", "seed.bias"]
    load_state_by_name(model, optimizer, state_by_name(model, optimizer))
    assert group_of(optimizer, "seed")["param_names"] == ["seed.weight", "seed.bias"]


# ---------------------------------------------------------------- refusals


def test_lbfgs_and_sparse_adam_are_refused_with_a_sentence() -> None:
    params = list(Net().parameters())
    for optimizer in (torch.optim.LBFGS(params), torch.optim.SparseAdam(params)):
        with pytest.raises(ConfigError, match=type(optimizer).__name__):
            check_supported(optimizer)
    check_supported(Adam(params))


def test_muon_refuses_a_seed_with_a_bias_and_is_left_as_it_was() -> None:
    model = Net()
    optimizer = torch.optim.Muon([model.stem.weight])

    with pytest.raises(ConfigError, match=r"matrices only and 'seed\.bias' has shape \(3,\)"):
        add_group(optimizer, model.sprout(), name="seed")

    assert len(optimizer.param_groups) == 1


def grown_sgd() -> tuple[Net, SGD]:
    model = Net()
    optimizer = SGD(model.host(), lr=0.1, momentum=0.9)
    add_group(optimizer, model.sprout(), name="seed")
    return model, optimizer


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "seed"}, "already a group 'seed'"),
        ({"named_params": "seed"}, r"'seed\.weight' is already in a group"),
        ({"named_params": "twice"}, "'b' is already in a group"),
        ({"named_params": "none"}, "would be empty"),
        ({"lr_scale": -1.0}, "lr_scale: -1.0"),
        ({"lr_scale": math.nan}, "lr_scale: nan"),
        ({"options": {"lr": 0.1}}, "set lr_scale instead"),
        ({"options": {"weight_decy": 0.1}}, "did you mean 'weight_decay'"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused_and_nothing_changes(change: dict[str, Any], sentence: str) -> None:
    model, optimizer = grown_sgd()
    param = nn.Parameter(torch.ones(2))
    offers = {"new": [("a", param)], "seed": model.sprout(), "twice": [("a", param), ("b", param)], "none": []}
    asked = {"named_params": "new", "name": "other", **change}

    with pytest.raises(ConfigError, match=sentence):
        add_group(optimizer, offers[asked.pop("named_params")], **asked)

    assert list(named_groups(optimizer)) == ["host", "seed"]


def test_the_host_and_unknown_groups_cannot_be_removed() -> None:
    _, optimizer = grown_sgd()
    with pytest.raises(ConfigError, match="'host' is the host's group"):
        remove_group(optimizer, "host")
    with pytest.raises(ConfigError, match="no group 'sed'; it has host, seed; did you mean 'seed'"):
        remove_group(optimizer, "sed")


# ---------------------------------------------------------------- parameters change size

ROWS = torch.tensor([2, -1, 0, 1, -1])  # three rows become five, in another order
OLD, NEW = ROWS >= 0, ROWS < 0


def resized(value: Tensor) -> Tensor:
    out = torch.full((5, *value.shape[1:]), 0.5)
    out[OLD] = value.detach()[ROWS[OLD]]
    return out


@resizable
def test_surviving_rows_train_on_as_if_nothing_had_happened_and_fresh_rows_move(case: tuple[str, str]) -> None:
    grown, untouched = net(case), net(case)
    optimizer, reference = make(case, grown.host()), make(case, untouched.host())
    train(grown, optimizer, range(3))
    train(untouched, reference, range(3))
    stem = list(grown.stem.parameters())

    for param in stem:
        resize_param(optimizer, param, resized(param), ROWS)
    for time in range(3, 6):
        give_gradients(untouched, time)
        for param, other in zip(stem, untouched.stem.parameters(), strict=True):
            assert other.grad is not None
            param.grad = resized(other.grad)
        optimizer.step()
        reference.step()

    assert all(got is want for got, want in zip(grown.stem.parameters(), stem, strict=True))
    for param, other in zip(stem, untouched.stem.parameters(), strict=True):
        got, want = facts(optimizer, param), facts(reference, other)
        assert (got["value"][NEW] != 0.5).all()
        for key in want:
            if torch.as_tensor(want[key]).shape != other.shape:
                assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(want[key])), key
            elif case[1] == "fused":  # its vectors round otherwise than the elements left over at the end
                torch.testing.assert_close(got[key][OLD], want[key][ROWS[OLD]])
            elif not (case[0] == "Muon" and key == "value"):  # Muon's step mixes all rows
                assert torch.equal(got[key][OLD], want[key][ROWS[OLD]]), key


@resizable
def test_fresh_rows_start_with_the_state_that_torch_gives_a_fresh_parameter(case: tuple[str, str]) -> None:
    grown = net(case)
    optimizer = make(case, grown.host())
    train(grown, optimizer, range(3))

    resize_param(optimizer, grown.stem.weight, resized(grown.stem.weight), ROWS)

    # Another route to a fresh state: the first step of a fresh optimiser, on gradients of zero and without decay.
    newborn = nn.Parameter(grown.stem.weight.detach().clone())
    fresh = make(case, [newborn])
    fresh.param_groups[0].update(weight_decay=0.0, lambd=0.0)
    newborn.grad = torch.zeros(5, 4)
    fresh.step()
    for key, want in fresh.state[newborn].items():
        if torch.as_tensor(want).shape == (5, 4):  # Adamax adds its eps of 1e-8 to the maximum in the state
            torch.testing.assert_close(optimizer.state[grown.stem.weight][key][NEW], want[NEW], rtol=0, atol=1e-7)


def test_columns_can_be_resized_too() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    optimizer.step()

    resize_param(optimizer, weight, torch.ones(2, 2), torch.tensor([2, -1]), dim=1)

    assert weight.grad is None
    assert torch.equal(weight, torch.ones(2, 2))
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [[3.0, 0.0], [6.0, 0.0]]


def test_an_earlier_loss_that_is_still_held_does_not_spoil_the_next_backward_pass() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    held = model.stem(torch.ones(1, 4)).sum()
    held.backward()

    for param in model.stem.parameters():
        resize_param(optimizer, param, resized(param), ROWS)
    model.stem(torch.ones(1, 4)).sum().backward()

    assert model.stem.weight.grad is not None
    assert model.stem.weight.grad.shape == (5, 4)


def test_resized_moments_lie_in_memory_like_the_parameter() -> None:
    weight = nn.Parameter(torch.randn(3, 2, 3, 3))
    optimizer = Adam([weight], fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()

    resize_param(optimizer, weight, resized(weight).to(memory_format=torch.channels_last), ROWS)

    assert weight.stride() == (18, 1, 6, 2)
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()


def test_a_fresh_row_under_adam_opens_with_a_step_of_3_2_learning_rates() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Adam([weight], lr=0.01)
    weight.grad = torch.ones(1)
    optimizer.step()
    optimizer.state[weight]["step"].fill_(1e6)  # a long history

    resize_param(optimizer, weight, torch.zeros(2), torch.tensor([0, -1]))
    weight.grad = torch.ones(2)
    optimizer.step()

    assert weight[1].item() == pytest.approx(-0.01 * 0.1 / math.sqrt(0.001), rel=1e-4)


class Factored(Optimizer):
    """A third-party optimiser whose second moment is one number per row."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            self.state[param]["row_var"] = torch.ones(len(param), 1)


def test_state_without_rows_of_its_own_cannot_be_resized() -> None:
    model = Net()
    adafactor, factored = torch.optim.Adafactor(model.parameters()), Factored(model.parameters())
    factored.step()

    for optimizer in (adafactor, factored):
        before = model.stem.weight.detach().clone()
        with pytest.raises(ConfigError, match=type(optimizer).__name__):
            resize_param(optimizer, model.stem.weight, resized(before), ROWS)
        assert torch.equal(model.stem.weight, before)


@pytest.mark.parametrize(
    ("new_value", "index_map", "dim", "sentence"),
    [
        (torch.ones(5, 4), torch.tensor([0, 1, 2, 3, -1]), 0, "a row of the old value, 0 to 2"),
        (torch.ones(5, 4), torch.tensor([0, -2, 1, 2, -1]), 0, "entries must be -1"),
        (torch.ones(5, 4), torch.tensor([0, 1]), 0, "does not lead from"),
        (torch.ones(5, 5), ROWS, 0, "does not lead from"),
        (torch.ones(5, 4), ROWS.float(), 0, "one int64 per row"),
        (torch.ones(5, 4), ROWS, 2, "dim: 2 is not a dimension"),
        (torch.ones(5, 4, dtype=torch.float64), ROWS, 0, "resize and cast in two steps"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(new_value: Tensor, index_map: Tensor, dim: int, sentence: str) -> None:
    model = Net()
    optimizer = SGD(model.parameters())
    with pytest.raises(ConfigError, match=sentence):
        resize_param(optimizer, model.stem.weight, new_value, index_map, dim=dim)


def test_a_stranger_cannot_be_resized() -> None:
    _, optimizer = grown_sgd()
    with pytest.raises(ConfigError, match=r"SGD does not hold this parameter of shape \(3,\)"):
        resize_param(optimizer, nn.Parameter(torch.ones(3)), torch.ones(5), ROWS)


# ---------------------------------------------------------------- learning-rate schedulers

STEPS = 14
MAKERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.5, total_iters=6), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3, mode="triangular2"),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch + 0.1),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, total_iters=8),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[3, 3, 7], gamma=0.5),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=0.02),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=6),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, start_factor=0.25, total_iters=3),
            lr_scheduler.LambdaLR(o, lambda epoch: 0.8**epoch),
            lr_scheduler.CosineAnnealingLR(o, T_max=6),
        ],
        milestones=[3, 8],
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
}
every_scheduler = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())


def test_every_scheduler_of_this_torch_is_in_the_table() -> None:
    found = [cls for module in (lr_scheduler, swa_utils) for cls in vars(module).values() if inspect.isclass(cls)]
    names = {cls.__name__ for cls in found if issubclass(cls, LRScheduler)} - {"LRScheduler", "_LRScheduler"}
    assert names == set(MAKERS)


@every_scheduler
def test_every_list_per_group_is_declared(maker: Callable[[Optimizer], LRScheduler]) -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(13)]  # a length that nothing else has
    whole = maker(SGD([{"params": [param]} for param in params], lr=0.1, momentum=0.9))
    for scheduler in [whole, *vars(whole).get("_schedulers", [])]:
        per_group = {key for key, value in vars(scheduler).items() if isinstance(value, list) and len(value) == 13}
        assert per_group <= {*SCALED_LISTS, *COPIED_LISTS}


def tick(optimizer: Optimizer, scheduler: LRScheduler) -> None:
    optimizer.step()  # without gradients: the schedulers want to see it called
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


def ungrown(maker: Callable[[Optimizer], LRScheduler]) -> list[tuple[float, float]]:
    """Learning rate and momentum of a host that never grows, before each step."""
    optimizer = SGD(Net().host(), lr=0.1, momentum=0.9)
    scheduler = maker(optimizer)
    seen = []
    for _ in range(STEPS):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        tick(optimizer, scheduler)
    return seen


@every_scheduler
@pytest.mark.parametrize("lr_scale", [0.5, 0.3])
def test_a_seed_follows_the_schedule_at_its_own_scale_and_the_host_does_not_notice(
    maker: Callable[[Optimizer], LRScheduler], lr_scale: float
) -> None:
    want = ungrown(maker)
    assert len({lr for lr, _ in want}) > 1
    for grow_at in range(STEPS):
        model = Net()
        optimizer = SGD(model.host(), lr=0.1, momentum=0.9)
        scheduler = maker(optimizer)
        for time in range(STEPS):
            if time == grow_at:
                add_group(optimizer, model.sprout(), name="seed", lr_scale=lr_scale, schedulers=[scheduler])
            host = optimizer.param_groups[0]
            assert (host["lr"], host["momentum"]) == want[time]
            if time >= grow_at:
                seed = group_of(optimizer, "seed")
                # A power of two scales without rounding.
                exact = lr_scale * host["lr"]
                assert seed["lr"] == (exact if lr_scale == 0.5 else pytest.approx(exact, rel=1e-9))
                assert seed["momentum"] == host["momentum"]
                assert scheduler.get_last_lr() == [host["lr"], seed["lr"]]
            tick(optimizer, scheduler)


@every_scheduler
def test_a_seed_between_two_others_leaves_them_on_their_own_curves(
    maker: Callable[[Optimizer], LRScheduler],
) -> None:
    want = ungrown(maker)
    optimizer = SGD(Net().host(), lr=0.1, momentum=0.9)
    scheduler = maker(optimizer)
    for time in range(STEPS):
        if time == 2:
            for name, lr_scale in (("a", 0.5), ("b", 2.0), ("c", 0.25)):
                param = nn.Parameter(torch.ones(2))
                add_group(optimizer, [(name, param)], name=name, lr_scale=lr_scale, schedulers=[scheduler])
        if time == 5:
            remove_group(optimizer, "b", [scheduler])
        tick(optimizer, scheduler)
        if time >= 5 and time + 1 < STEPS:
            lr, _ = want[time + 1]
            assert [group["lr"] for group in optimizer.param_groups] == [lr, 0.5 * lr, 0.25 * lr]


def test_schedulers_given_along_with_those_they_contain_grow_once() -> None:
    model = Net()
    optimizer = SGD(model.host(), lr=0.1)
    inner = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    outer = lr_scheduler.ChainedScheduler([inner])

    add_group(optimizer, model.sprout(), name="seed", schedulers=[inner, outer])

    assert len(inner.base_lrs) == 2


@pytest.mark.parametrize("kind", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts"])
def test_eta_min_is_one_number_for_all_groups_so_a_seed_ends_at_it_unscaled(kind: str) -> None:
    # Half a cosine of 8 steps from 0.1 to 0.02, grown at the start: the seed goes from 0.05 to the same 0.02.
    model = Net()
    optimizer = SGD(model.host(), lr=0.1)
    scheduler = getattr(lr_scheduler, kind)(optimizer, 8, eta_min=0.02)
    add_group(optimizer, model.sprout(), name="seed", lr_scale=0.5, schedulers=[scheduler])

    for _ in range(4):
        tick(optimizer, scheduler)

    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 + 0.08 / 2)
    assert group_of(optimizer, "seed")["lr"] == pytest.approx(0.02 + 0.03 / 2)


def test_a_plateau_skips_a_seed_whose_own_reduction_is_below_eps() -> None:
    model = Net()
    optimizer = SGD(model.host(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, eps=0.01)
    add_group(optimizer, model.sprout(), name="seed", lr_scale=0.1, schedulers=[scheduler])

    for _ in range(2):
        tick(optimizer, scheduler)

    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1 * 0.1]  # 0.01 - 0.005 is not above eps


def test_settings_that_are_tensors_are_not_shared_between_groups() -> None:
    model = Net()
    optimizer = SGD(model.host(), lr=torch.tensor(0.1))
    optimizer.param_groups[0]["weight_decay"] = torch.tensor(0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    add_group(optimizer, model.sprout(), name="seed", lr_scale=0.5, schedulers=[scheduler])

    optimizer.param_groups[0]["weight_decay"].fill_(0.2)
    tick(optimizer, scheduler)

    assert group_of(optimizer, "seed")["weight_decay"].item() == pytest.approx(0.1)
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.05, 0.025])


def test_a_scheduler_of_another_optimiser_or_one_that_missed_a_group_is_refused() -> None:
    _, optimizer = grown_sgd()
    foreign = lr_scheduler.ExponentialLR(SGD([nn.Parameter(torch.ones(1))]), gamma=0.9)
    own = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    param = nn.Parameter(torch.ones(2))

    with pytest.raises(ConfigError, match="drives another optimiser"):
        add_group(optimizer, [("p", param)], name="other", schedulers=[foreign])
    add_group(optimizer, [("p", param)], name="other")
    with pytest.raises(ConfigError, match=r"ExponentialLR\.base_lrs has 2 entries, the optimiser 3 groups"):
        remove_group(optimizer, "other", [own])


# ---------------------------------------------------------------- who is in, by name


def test_what_the_model_lost_and_what_the_optimiser_misses_is_named() -> None:
    model, optimizer = grown_sgd()
    assert_bound(model, optimizer)
    model.seed = nn.Linear(3, 1)
    model.head.bias.requires_grad_(False)  # a frozen one may be held

    with pytest.raises(UnboundParameterError) as caught:
        assert_bound(model, optimizer)

    assert str(caught.value) == (
        "group 'seed' holds seed.weight (3, 3), which the model does not have; "
        "group 'seed' holds seed.bias (3,), which the model does not have; "
        "seed.weight is trainable and in no group; seed.bias is trainable and in no group"
    )


def test_two_optimisers_may_share_a_model() -> None:
    model = Net()
    muon = torch.optim.Muon([param for param in model.parameters() if param.ndim == 2])
    adamw = AdamW([param for param in model.parameters() if param.ndim != 2])

    assert_bound(model, muon, adamw)
    with pytest.raises(UnboundParameterError, match=r"stem\.bias is trainable"):
        assert_bound(model, muon)


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)  # weights only, by default
    return loaded


@every_optimiser
def test_a_fresh_model_with_its_groups_in_another_order_takes_the_same_next_steps(case: tuple[str, str]) -> None:
    model, fresh = net(case), net(case)
    optimizer = make(case, model.host())
    add_group(optimizer, model.sprout(), name="seed", lr_scale=0.5)
    train(model, optimizer, range(3))
    fresh.load_state_dict(model.state_dict())
    saved = through_a_file(state_by_name(model, optimizer))

    backwards = [{"params": list(fresh.seed.parameters()), "name": "seed"}, {"params": fresh.host()[::-1]}]
    other = make(case, backwards)
    load_state_by_name(fresh, other, saved)
    train(model, optimizer, range(3, 6))
    train(fresh, other, range(3, 6))

    assert list(named_groups(other)) == ["host", "seed"]
    for (name, want), got in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert_identical(facts(other, got), facts(optimizer, want))
        assert got.requires_grad, name


@every_optimiser
def test_a_snapshot_in_memory_can_be_returned_to_twice(case: tuple[str, str]) -> None:
    model = net(case)
    optimizer = make(case, model.parameters())
    train(model, optimizer, range(2))
    weights, saved = copy.deepcopy(model.state_dict()), state_by_name(model, optimizer)

    train(model, optimizer, range(2, 5))
    first = facts(optimizer, model.head.weight)
    for _ in range(2):
        model.load_state_dict(weights)
        load_state_by_name(model, optimizer, saved)
        train(model, optimizer, range(2, 5))
        assert_identical(facts(optimizer, model.head.weight), first)


@every_scheduler
def test_a_fresh_optimiser_over_the_host_alone_resumes_a_schedule_with_seeds(
    maker: Callable[[Optimizer], LRScheduler],
) -> None:
    model, fresh = Net(), Net()
    optimizer = SGD(model.stem.parameters(), lr=0.1, momentum=0.9)
    scheduler = maker(optimizer)
    for time in range(5):
        if time == 1:
            add_group(optimizer, model.sprout(), name="a", lr_scale=0.5, schedulers=[scheduler])
        if time == 2:
            members = list(model.head.named_parameters(prefix="head"))
            add_group(optimizer, members, name="b", lr_scale=0.3, schedulers=[scheduler])
        tick(optimizer, scheduler)
    saved, schedule = through_a_file(state_by_name(model, optimizer)), copy.deepcopy(scheduler.state_dict())

    other = SGD(fresh.stem.parameters(), lr=0.1, momentum=0.9)
    resumed = maker(other)
    load_state_by_name(fresh, other, saved, schedulers=[resumed])
    resumed.load_state_dict(schedule)

    for _ in range(5, STEPS):
        tick(optimizer, scheduler)
        tick(other, resumed)
        assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
        assert [g["momentum"] for g in other.param_groups] == [g["momentum"] for g in optimizer.param_groups]


def test_a_learning_rate_from_numpy_is_saved_as_a_plain_number() -> None:
    model = Net()
    saved = state_by_name(model, SGD(model.parameters(), lr=np.float64(0.1)))
    assert through_a_file(saved)["groups"]["host"]["options"]["lr"] == 0.1


def test_scalars_keep_their_own_precision_when_loaded() -> None:
    # Torch's load_state_dict rounds NAdam's running product to the bfloat16 of the weights.
    model = Net().to(torch.bfloat16)
    optimizer = torch.optim.NAdam(model.parameters())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = optimizer.state[model.stem.weight]["mu_product"].clone()

    load_state_by_name(model, optimizer, state_by_name(model, optimizer))

    assert optimizer.state[model.stem.weight]["mu_product"].dtype == torch.float32
    assert torch.equal(optimizer.state[model.stem.weight]["mu_product"], before)


def test_loaded_moments_lie_in_memory_like_the_parameter() -> None:
    model, fresh = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.Conv2d(2, 3, 3)
    optimizer, other = Adam(model.parameters(), fused=True), Adam(fresh.parameters(), fused=True)
    train(model, optimizer, range(1))

    load_state_by_name(fresh, other, state_by_name(model, optimizer))

    got, want = other.state[fresh.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    assert torch.equal(got, want)
    assert got.stride() == fresh.weight.stride() != want.stride()


def test_state_that_belongs_to_another_model_or_optimiser_is_refused() -> None:
    model, optimizer = grown_sgd()
    train(model, optimizer, range(1))
    saved = state_by_name(model, optimizer)
    before = facts(optimizer, model.stem.weight)

    with pytest.raises(CheckpointError, match="saved by SGD, this is Adam"):
        load_state_by_name(model, Adam(model.parameters()), saved)
    without_seed, wider, taller = Net(), Net(), Net()
    del without_seed.seed
    with pytest.raises(CheckpointError, match=r"has 'seed\.weight', the model does not"):
        load_state_by_name(without_seed, SGD(without_seed.parameters()), saved)
    wider.seed = nn.Linear(3, 5)
    with pytest.raises(CheckpointError, match=r"saved with shape \(3, 3\), the model has \(5, 3\)"):
        load_state_by_name(wider, SGD(wider.parameters()), saved)
    taller.extra = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"'extra\.weight' is trained here and has no saved state"):
        load_state_by_name(taller, SGD(taller.parameters()), saved)
    assert_identical(facts(optimizer, model.stem.weight), before)


def test_state_of_a_parameter_that_the_model_lost_cannot_be_named() -> None:
    model, optimizer = grown_sgd()
    del model.seed
    with pytest.raises(UnboundParameterError, match=r"group 'seed' holds seed\.weight"):
        state_by_name(model, optimizer)


def test_a_setting_that_plain_torch_load_could_not_read_back_is_refused() -> None:
    model, optimizer = grown_sgd()
    group_of(optimizer, "seed")["hook"] = tick
    with pytest.raises(ConfigError, match=r"seed\.hook is a function; only tensors and primitives can be saved"):
        state_by_name(model, optimizer)
