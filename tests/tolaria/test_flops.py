"""Every expected number is worked out by hand: 2 x (multiply-adds), and each product twice more backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.leyline.errors import ConfigError
from esper.tolaria.flops import StepFlops, count_eval, count_step


def mean_loss(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.mean()


def step_of(model: nn.Module, *shape: int, input_gradient: bool = False) -> StepFlops:
    return count_step(model, torch.zeros(shape, requires_grad=input_gradient), mean_loss, torch.zeros(()))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


# ---- dense layers


def test_a_step_of_64_16_10_on_64_images_costs_323584():
    images, labels = torch.zeros(64, 64), torch.zeros(64, dtype=torch.long)

    cost = count_step(mlp(), images, F.cross_entropy, labels)

    first, second = 2 * 64 * 64 * 16, 2 * 64 * 16 * 10
    assert first + second == 151_552
    assert cost.forward == first + second
    assert cost.backward == first + 2 * second  # no gradient to the images
    assert cost.total == 323_584


def test_an_evaluation_pass_costs_the_forward_pass_alone():
    cost = count_eval(mlp(), torch.zeros(64, 64))

    assert (cost.forward, cost.backward, cost.total) == (151_552, 0, 151_552)


def test_a_frozen_layer_costs_no_weight_gradient():
    model = mlp()
    model[0].requires_grad_(False)

    cost = step_of(model, 64, 64)

    # The second layer is now the first that trains: weight gradient only.
    assert cost.backward == 2 * 64 * 16 * 10


def test_a_model_without_anything_to_train_costs_no_backward():
    cost = step_of(mlp().requires_grad_(False), 64, 64)

    assert (cost.forward, cost.backward) == (151_552, 0)


def test_an_input_that_needs_a_gradient_pays_for_it():
    cost = step_of(nn.Linear(5, 7), 3, 5, input_gradient=True)

    assert cost.backward == 2 * (2 * 3 * 5 * 7)


def test_a_tied_weight_is_one_weight_in_the_copy_as_well():
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11, bias=False))
    model[1].weight = model[0].weight

    cost = count_step(model, torch.zeros(2, 5, dtype=torch.long), mean_loss, torch.zeros(()))

    assert (cost.forward, cost.backward) == (2 * 10 * 4 * 11, 2 * (2 * 10 * 4 * 11))


def test_a_product_of_matrix_and_vector_is_counted():
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.direction = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.direction

    assert step_of(Score(), 3, 5).total == 2 * (2 * 3 * 5)


# ---- convolutions


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_convolution_costs_one_product_per_weight_and_place(groups: int):
    model = nn.Conv2d(8, 16, kernel_size=3, padding=1, stride=2, groups=groups)

    cost = step_of(model, 4, 8, 10, 10, input_gradient=True)

    once = 2 * 4 * (5 * 5) * 16 * (8 // groups) * (3 * 3)  # images x places x outputs x inputs of a group x kernel
    assert (cost.forward, cost.backward) == (once, 2 * once)


def test_a_first_convolution_has_no_input_gradient():
    cost = step_of(nn.Conv2d(3, 8, kernel_size=3), 2, 3, 6, 6)

    once = 2 * 2 * (4 * 4) * 8 * 3 * 9
    assert (cost.forward, cost.backward) == (once, once)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_is_counted_at_its_input_places(groups: int):
    model = nn.ConvTranspose2d(4, 8, kernel_size=2, stride=2, groups=groups)

    cost = step_of(model, 3, 4, 5, 5, input_gradient=True)

    once = 2 * 3 * (5 * 5) * 4 * (8 // groups) * (2 * 2)
    assert (cost.forward, cost.backward) == (once, 2 * once)


def test_a_depthwise_separable_block_costs_its_two_parts():
    model = nn.Sequential(
        nn.Conv1d(6, 6, kernel_size=5, padding="same", groups=6), nn.BatchNorm1d(6), nn.Conv1d(6, 10, kernel_size=1)
    )

    cost = step_of(model, 2, 6, 20)

    depthwise, pointwise = 2 * 2 * 20 * 6 * 5, 2 * 2 * 20 * 6 * 10
    assert cost.forward == depthwise + pointwise
    assert cost.backward == depthwise + 2 * pointwise


# ---- attention


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_attention_is_two_batched_products_though_its_kernel_is_fused():
    cost = step_of(Attention(), 3, 7, 8)

    projection = 2 * (3 * 7) * 8 * 24
    scores = values = 2 * (3 * 2) * 7 * 7 * 4  # batch x heads, 7 x 7 pairs, 4 wide
    assert cost.forward == projection + scores + values
    assert cost.backward == projection + 2 * (scores + values)


def test_the_fused_evaluation_path_of_a_transformer_layer_is_counted():
    layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=32, batch_first=True)

    cost = count_eval(layer, torch.zeros(3, 7, 8))

    tokens = 3 * 7
    projections = 2 * tokens * 8 * (24 + 8)
    attention = 2 * (2 * (3 * 2) * 7 * 7 * 4)
    feedforward = 2 * (2 * tokens * 8 * 32)
    assert cost.forward == projections + attention + feedforward


# ---- LSTM


class LastOutput(nn.Module):
    """Loss and next layer see the outputs; the states are thrown away."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.lstm(x)[0]
        return outputs


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_costs_8_hidden_times_input_plus_hidden_per_token(bias: bool, batch_first: bool):
    model = LastOutput(nn.LSTM(5, 7, bias=bias, batch_first=batch_first))

    cost = step_of(model, 3, 4, 5, input_gradient=True)

    assert cost.forward == (3 * 4) * 8 * 7 * (5 + 7)
    assert cost.backward == 2 * cost.forward
    assert count_eval(model, torch.zeros(3, 4, 5)).total == cost.forward


def test_an_lstm_on_data_has_no_input_gradient():
    cost = step_of(LastOutput(nn.LSTM(5, 7)), 3, 4, 5)

    from_input, from_hidden = 12 * 8 * 7 * 5, 12 * 8 * 7 * 7
    assert cost.backward == from_input + 2 * from_hidden


def test_the_layers_and_directions_of_an_lstm_add_up():
    model = LastOutput(nn.LSTM(5, 7, num_layers=2, bidirectional=True, dropout=0.5))

    cost = step_of(model, 3, 4, 5, input_gradient=True)

    below, above = 8 * 7 * (5 + 7), 8 * 7 * (2 * 7 + 7)
    assert cost.forward == 12 * 2 * (below + above)
    assert cost.backward == 2 * cost.forward


def test_the_projection_of_an_lstm_is_counted():
    cost = step_of(LastOutput(nn.LSTM(5, 7, proj_size=3)), 3, 4, 5, input_gradient=True)

    assert cost.forward == 12 * (8 * 7 * (5 + 3) + 2 * 7 * 3)
    assert cost.backward == 2 * cost.forward


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_stand_in_of_an_lstm_has_the_shapes_of_the_real_one():
    shapes = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            outputs, (h, c) = self.lstm(x)
            shapes.append((outputs.shape, h.shape, c.shape))
            return h.mean() + c.mean()

    model = Spy()
    model(torch.zeros(3, 4, 5))
    count_step(model, torch.zeros(3, 4, 5), mean_loss, torch.zeros(()))

    real, stand_in = shapes
    assert stand_in == real


# ---- who pays


class Scaled(torch.autograd.Function):
    """Elementwise, like the gradient-scaling functions of a slot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class Grown(nn.Module):
    """Host 6-8-5 with one slot after the first layer; the seed, 8-4-8, may read a detached copy of its input."""

    def __init__(self, detached: bool = False, seed: bool = True) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 8)
        self.slots = nn.ModuleDict({"r0c0": nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))} if seed else {})
        self.exit = nn.Linear(8, 5)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for seed in self.slots.values():
            grown = seed(x.detach() if self.detached else x)
            x = x + Scaled.apply(grown, 0.5)
        y: Tensor = self.exit(x)
        return y


@pytest.mark.parametrize("detached", [False, True])
def test_host_and_seed_are_told_apart_in_forward_and_backward(detached: bool):
    cost = step_of(Grown(detached), 10, 6)

    entry, seed, leave = 2 * 10 * 6 * 8, 2 * 10 * 8 * 4, 2 * 10 * 8 * 5
    of_seed = 2 * seed + (seed if detached else 2 * seed) + 2 * seed  # forward; first layer; second layer
    assert cost.by_module == {
        "entry": 2 * entry,
        "slots": 0,  # a container that is never called
        "slots.r0c0": of_seed,
        "slots.r0c0.0": seed + (seed if detached else 2 * seed),
        "slots.r0c0.1": 3 * seed,
        "exit": 3 * leave,
    }
    assert cost.total == 2 * entry + of_seed + 3 * leave


def test_a_seed_costs_the_difference_between_the_model_with_and_without_it():
    grown, bare = step_of(Grown(), 10, 6), step_of(Grown(seed=False), 10, 6)

    assert grown.by_module["slots.r0c0"] == grown.total - bare.total


def test_parallel_branches_do_not_pay_for_each_other():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x), self.right(x)], dim=1)

    # Inputs without a gradient are where torch's own tracker never leaves a module again.
    assert step_of(Branches(), 10, 6).by_module == {"left": 2 * (2 * 10 * 6 * 3), "right": 2 * (2 * 10 * 6 * 5)}


def test_a_module_called_twice_pays_twice():
    layer = nn.Linear(4, 4)

    cost = step_of(nn.Sequential(layer, nn.ReLU(), layer), 10, 4, input_gradient=True)

    assert cost.by_module["0"] == cost.total == 2 * (3 * 2 * 10 * 4 * 4)


def test_products_inside_a_custom_function_belong_to_the_module_that_applied_it():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return grad @ w.T, x.T @ grad

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = Product.apply(x, self.w)
            return y

    cost = step_of(nn.Sequential(Inner(), nn.Linear(5, 2)), 10, 6)

    assert cost.by_module == {"0": 3 * (2 * 10 * 6 * 5), "1": 3 * (2 * 10 * 5 * 2)}


def test_a_module_that_skips_computing_in_one_mode_costs_nothing_there():
    class TrainOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if self.training else x

    model = TrainOnly()

    assert step_of(model, 10, 6).total == 2 * (2 * 10 * 6 * 6)
    assert count_eval(model.train(), torch.zeros(10, 6)).by_module == {"layer": 0}


# ---- nothing real happens


class Stateful(nn.Module):
    """Everything a count could disturb: batch statistics, dropout, Python state, a generator, a kept activation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.calls = 0
        self.noise = torch.Generator().manual_seed(3)
        self.kept: Tensor | None = None
        self.scale = torch.ones(4)  # a tensor that is no buffer
        self.history = [torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.body(x) * self.scale.clone() + torch.rand(4, generator=self.noise) + self.history[0]
        self.scale *= 2
        self.history[0].add_(1)
        self.kept = y
        return y


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_real_model_and_all_randomness_as_they_were(training: bool):
    model = Stateful().train(training)
    inputs, targets = torch.randn(8, 6), torch.randn(8, 4)
    F.mse_loss(model(inputs), targets).backward()
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    kept, calls, scale, noise = model.kept, model.calls, model.scale.clone(), model.noise.get_state()
    history, randomness = model.history[0].clone(), torch.get_rng_state()

    count_step(model, inputs, F.mse_loss, targets)
    count_eval(model, inputs)

    assert all(torch.equal(now, state[name]) for name, now in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert all(m.training is training for m in model.modules())
    assert model.kept is kept
    assert model.calls == calls
    assert torch.equal(model.scale, scale)
    assert torch.equal(model.history[0], history)
    assert torch.equal(model.noise.get_state(), noise)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_parameter_without_a_gradient_gets_none():
    model = mlp()

    step_of(model, 64, 64)

    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_a_count_is_the_same_whatever_gradient_mode_surrounds_it(surroundings: Any):
    model = mlp()

    with surroundings():
        cost = step_of(model, 64, 64)

    assert cost.total == 323_584


def test_a_model_too_large_to_compute_can_be_counted():
    with torch.device("meta"):
        shape_only = nn.Linear(50_000, 50_000)
    inputs = torch.zeros(1_000_000, 50_000, device="meta")

    cost = count_eval(shape_only, inputs)

    assert cost.total == 2 * 1_000_000 * 50_000 * 50_000


def test_a_loss_may_close_over_a_constant():
    weights = torch.ones(10)

    cost = count_step(mlp(), torch.zeros(64, 64), nn.CrossEntropyLoss(weight=weights), torch.zeros(64).long())

    assert cost.total == 323_584


def test_a_trained_tensor_outside_the_model_is_refused():
    stranger = torch.zeros(10, requires_grad=True)

    with pytest.raises(ConfigError, match=r"trains a tensor of shape \(10,\)"):
        count_step(mlp(), torch.zeros(64, 64), lambda outputs, _: (outputs * stranger).mean(), torch.zeros(()))

    assert stranger.grad is None
