"""How many FLOPs one training step or one evaluation pass costs, counted on a copy that computes nothing.

Start with `count_step`. `FlopCounterMode` sees every matrix product and convolution that autograd really asks
for; this file repairs what it gets wrong (`_FORMULAS`, `_PlainLstm`) and adds which module each FLOP belongs to
(`_Owners`). `ledger.py` multiplies the counts by steps and charges them.

A multiply and an add are 2 FLOPs. Norms, activations, biases, losses and every other elementwise operation count
as 0, causal attention counts in full, and the optimiser is left out.
"""

from __future__ import annotations

import copy
import functools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from esper.leyline.errors import ConfigError

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepFlops:
    """The FLOPs of one pass over one batch.

    by_module: forward + backward of every named submodule with all that is inside it, by its name in
    `named_modules()`; 0 where it did nothing. Work of the root itself and of the loss is in `total` only.
    forward_by_module: the same for forward alone; "" is the whole model without the loss.
    output_shapes: what every submodule returned at its last call, if it was a tensor.
    """

    forward: int
    backward: int  # 0 for an evaluation pass
    by_module: dict[str, int]
    forward_by_module: dict[str, int]
    output_shapes: dict[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        return self.forward + self.backward


def count_step(model: nn.Module, inputs: Tensor, loss_fn: LossFn, targets: Tensor) -> StepFlops:
    """FLOPs of forward, loss and backward of `model` in training mode.

    Only the shapes, dtypes and devices of inputs and targets matter. `model` is deep-copied, so its Python state
    stays as it is; `loss_fn` and hooks that are closures are not copied: they see fake tensors and should keep none.
    Frozen parameters, detached inputs and first layers cost what autograd computes for them, which is no gradient.

    A module's share is the work of operations started inside its `forward`, and of their gradients. A seed that
    makes a frozen host carry gradients is not charged for those; the difference of two counts, with and without
    the seed, tells that.

    Raises ConfigError where the model or the loss trains a tensor that the copy does not own. A `forward` that
    branches on a tensor's value fails with torch's own error.
    """
    with _counting(model, training=True) as (twin, counter, owners):
        with torch.enable_grad():
            outputs = twin(_fake_batch(inputs))
            passed = _shares(twin, counter) | {"": counter.get_total_flops()}
            loss = loss_fn(outputs, _fake_batch(targets))
            forward = counter.get_total_flops()
            if loss.requires_grad:
                _refuse_strangers(loss)
                loss.backward()
        backward = counter.get_total_flops() - forward
        return StepFlops(forward, backward, _shares(twin, counter), passed, owners.output_shapes)


def count_eval(model: nn.Module, inputs: Tensor) -> StepFlops:
    """FLOPs of one pass of `model` in evaluation mode, without gradients; otherwise as `count_step`."""
    with _counting(model, training=False) as (twin, counter, owners):
        with torch.no_grad():
            twin(_fake_batch(inputs))
        forward, shares = counter.get_total_flops(), _shares(twin, counter)
        return StepFlops(forward, 0, shares, shares | {"": forward}, owners.output_shapes)


@contextmanager
def _counting(model: nn.Module, *, training: bool) -> Iterator[tuple[nn.Module, FlopCounterMode, _Owners]]:
    """A fake copy of the model in the given mode, and a counter running in a world of fake tensors."""
    # Constants that a loss or a forward closes over are real tensors; fake mode reads their shapes and no more.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = _fake_copy(model, mode).train(training)
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    owners = _Owners(twin)
    counter.mod_tracker = owners  # type: ignore[assignment]
    # Fused attention has no FLOP formula on a CPU; the plain one is two batched matrix products.
    # Under a caller's inference mode there would be no backward to count.
    with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH), mode, _PlainLstm(), counter:
        yield twin, counter, owners


def _fake_batch(real: Tensor) -> Tensor:
    """Made anew under fake mode, not converted: a tensor from inference mode would stay one and refuse gradients."""
    fake = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device=real.device)
    return fake.requires_grad_(real.requires_grad)


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A deep copy whose tensors have shapes and no data; whatever else the modules hold is copied as usual."""
    # deepcopy looks into its memo first. Faking inside deepcopy instead would also fake the state of a
    # torch.Generator, which then cannot be copied; and a cached activation refuses to be deep-copied at all.
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values()]
        for tensor in held:
            if isinstance(tensor, Tensor):
                twin = mode.from_tensor(tensor.detach(), static_shapes=True)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return copy.deepcopy(model, memo)


def _refuse_strangers(loss: Tensor) -> None:
    """backward() would write a fake gradient into a real tensor, so the graph may end in fake ones only."""
    assert loss.grad_fn is not None
    todo, seen = [loss.grad_fn], {loss.grad_fn}
    while todo:
        node = todo.pop()
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - seen
        todo.extend(fresh)
        seen |= fresh
        if node.name() == "torch::autograd::AccumulateGrad":
            leaf = node.variable  # type: ignore[attr-defined]
            if not isinstance(leaf, FakeTensor):
                raise ConfigError(
                    f"the model or its loss trains a tensor of shape {tuple(leaf.shape)} that is in no module of the "
                    "model, so a copy cannot be counted; register it as a parameter"
                )


def _shares(twin: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    counted = defaultdict(int, {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()})
    return {name: counted[name] for name, _ in twin.named_modules() if name}


# ---- whose FLOP it is --------------------------------------------------------------------------------------------


class _Owners:
    """Names the modules an operation belongs to, in forward and in backward: a tracker for FlopCounterMode.

    torch's own tracker guesses in backward from hooks on each module's inputs and outputs, so a module whose input
    needs no gradient is never left again. Autograd numbers its nodes as forward creates them, therefore the number
    of the node that is being run backward says inside which calls it was made.
    """

    def __init__(self, model: nn.Module) -> None:
        self._stack: list[str] = []
        # From autograd node `_since[i]` on, forward was inside the modules `_inside[i]`.
        self._since: list[int] = [0]
        self._inside: list[frozenset[str]] = [frozenset()]
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        for name, module in model.named_modules():
            if name:
                # Outermost, so that the model's own hooks count as part of their module.
                module.register_forward_pre_hook(functools.partial(self._enter, name), prepend=True)
                module.register_forward_hook(self._leave)

    def _enter(self, name: str, _module: nn.Module, _args: Any) -> None:
        self._stack.append(name)
        self._note()

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        name = self._stack.pop()
        if isinstance(output, Tensor):
            self.output_shapes[name] = tuple(output.shape)
        self._note()

    def _note(self) -> None:
        self._since.append(torch._C._autograd._get_sequence_nr())
        self._inside.append(frozenset(self._stack))

    @property
    def parents(self) -> set[str]:
        """What FlopCounterMode books the current operation under; "Global" is its name for the sum."""
        if torch._C._current_graph_task_id() == -1:  # not in backward
            return {"Global", *self._stack}
        number = torch._C._current_autograd_node()._sequence_nr()
        return {"Global", *self._inside[bisect_right(self._since, number) - 1]}

    def __enter__(self) -> _Owners:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass


# ---- what the counter gets wrong ---------------------------------------------------------------------------------


def _convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    needed: Sequence[bool],
    **_: object,
) -> int:
    """Each of the two gradients pairs every weight with every place it was used at: the cost of the forward pass.

    The arguments are those of aten.convolution_backward with shapes for tensors. A grouped weight is already
    smaller by the number of groups; torch's formula rebuilds its size from the channels and forgets that.
    """
    places = prod(x[2:]) if transposed else prod(grad_out[2:])
    for_input, for_weight, _for_bias = needed
    return 2 * x[0] * places * prod(weight) * (for_input + for_weight)


def _matrix_vector(matrix: Sequence[int], _vector: object, **_: object) -> int:
    return 2 * prod(matrix)


_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    # matmul of a batch of one: torch has no formula for these two.
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _matrix_vector,
}


class _PlainLstm(TorchFunctionMode):
    """Swaps a fused LSTM, which counts as 0 or not depending on device and mode, for its matrix products.

    Being a function mode, it also keeps attention layers off their fused evaluation path, which counts as 0 too.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.lstm:
            return _plain_lstm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _plain_lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: list[Tensor],
    has_biases: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    _batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result shapes of torch.lstm for a padded batch, wrong values, and the right products.

    Per token, layer and direction with I inputs, H cells: x @ W_ih [I, 4H] and h @ W_hh [H, 4H], that is
    8 H (I + H) FLOPs forward and, as autograd does with any product, as much again for the weights and for what
    comes in. All steps at once costs the same as one by one; a gradient to x is skipped where x needs none.
    """
    h, c = state
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // (layers * directions)
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            w_ih, w_hh, *more = weights[index * per_direction : (index + 1) * per_direction]
            hidden, cells = w_hh.shape[1], w_hh.shape[0] // 4
            gates = x @ w_ih.T + c[index].sum()  # the sums tie a trained initial state to the graph
            gates = gates + (gates[..., :hidden] + h[index].sum()) @ w_hh.T
            projection = more[2 if has_biases else 0 :]
            outputs.append(gates[..., :cells] @ projection[0].T if projection else gates[..., :cells])
        x = torch.cat(outputs, dim=-1)
    return x, h + x.sum(), c + x.sum()
