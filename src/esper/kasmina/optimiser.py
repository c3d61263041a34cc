"""Optimiser surgery: parameters join, leave and change size while the moments of all others stay as they are.

Torch keys its state by parameter object, so moments survive as long as the objects do: a seed gets a group of
its own (`add_group`, `remove_group`), a grown tensor stays the same `Parameter` (`resize_param`), and what is
written down is keyed by name (`state_by_name`), because torch's own `state_dict` is keyed by position and loads
the wrong momentum when groups were made in another order. Learning-rate schedulers: `schedulers.py`.

Every group carries its name under "name"; the first one is "host" unless its maker named it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Adafactor, Adagrad, Muon, Optimizer, Rprop, SparseAdam
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.schedulers import SCALED_KEYS, append_scaled, follow, rearrange
from esper.leyline.errors import CheckpointError, ConfigError, EsperError, did_you_mean

ParamGroup = dict[str, Any]  # torch's own: "params", the optimiser's settings, and our "name" and "members"

# Not settings: which parameters a group holds, and what they and it are called.
_IDENTITY = ("params", "param_names", "name", "members")


class UnboundParameterError(EsperError):
    """Optimiser and model disagree about which parameters exist."""


def check_supported(optimizer: Optimizer) -> None:
    """Raises ConfigError, one sentence, for an optimiser that cannot follow a growing network."""
    if isinstance(optimizer, LBFGS):
        raise ConfigError(
            "optimizer: LBFGS keeps one flat history over all parameters, which cannot grow; use SGD or AdamW"
        )
    if isinstance(optimizer, SparseAdam):
        raise ConfigError("optimizer: SparseAdam wants sparse gradients, which seeds do not have; use Adam or AdamW")


def named_groups(optimizer: Optimizer) -> dict[str, ParamGroup]:
    """The groups by name, in the optimiser's order.

    A group that nobody has named yet is named here, for good: host, host.1, host.2, ... Raises ConfigError if
    two groups share a name.
    """
    taken = [group["name"] for group in optimizer.param_groups if "name" in group]
    if len(set(taken)) < len(taken):
        raise ConfigError(f"optimizer: two groups have the same name; they are called {', '.join(taken)}")
    candidates = itertools.chain(["host"], (f"host.{i}" for i in itertools.count(1)))
    for group in optimizer.param_groups:
        if "name" not in group:
            group["name"] = next(name for name in candidates if name not in taken)
    return {group["name"]: group for group in optimizer.param_groups}


def group_of(optimizer: Optimizer, name: str) -> ParamGroup:
    """The group called `name`; ConfigError if there is none."""
    groups = named_groups(optimizer)
    if name not in groups:
        raise ConfigError(f"optimizer: no group {name!r}; it has {', '.join(groups)}{did_you_mean(name, groups)}")
    return groups[name]


# ---------------------------------------------------------------- parameters join and leave


def add_group(
    optimizer: Optimizer,
    named_params: Iterable[tuple[str, Tensor]],
    *,
    name: str,
    lr_scale: float = 1.0,
    schedulers: Sequence[LRScheduler] = (),
    options: Mapping[str, Any] | None = None,
) -> ParamGroup:
    """A new group that trains at `lr_scale` times the first group's learning rate, now and along its schedule.

    named_params: as `model.named_parameters()` gives them, with the names they have in the model.
    schedulers: all that drive this optimiser; their lists per group grow with it (pytorch#53712).
    options: settings that differ from the first group's, weight_decay for instance; all others are taken over
    from it as they are now, a scheduled momentum included.

    Proportional under every scheduler of torch except where it has one absolute number for all groups:
    CosineAnnealingLR and CosineAnnealingWarmRestarts take every group to the same `eta_min`, and
    ReduceLROnPlateau skips a group whose own reduction is below its `eps`.

    Raises ConfigError, and changes nothing, if the name is taken, a parameter is already held, an option does
    not exist, a scheduler is not this optimiser's, or Muon is given anything but matrices.
    """
    check_supported(optimizer)
    groups, joining = named_groups(optimizer), list(named_params)
    if name in groups:
        raise ConfigError(f"optimizer: there is already a group {name!r}; remove it first or choose another name")
    if not (math.isfinite(lr_scale) and lr_scale >= 0):
        raise ConfigError(f"lr_scale: {lr_scale} is not a number of at least 0")
    _check_can_join(optimizer, joining, name)
    attached = follow(optimizer, schedulers)

    host = optimizer.param_groups[0]
    group: ParamGroup = {key: copy.deepcopy(value) for key, value in host.items() if key not in _IDENTITY}
    group.update({key: lr_scale * value for key, value in group.items() if key in SCALED_KEYS})
    group.update(_checked_options(optimizer, options or {}))
    group |= {"name": name, "members": [member for member, _ in joining]}
    # Torch wants all groups with names of its own kind or none.
    group["params"] = joining if "param_names" in host else [param for _, param in joining]
    optimizer.add_param_group(group)
    append_scaled(attached, lr_scale)
    _start_state(optimizer, group)
    return group


def remove_group(optimizer: Optimizer, name: str, schedulers: Sequence[LRScheduler] = ()) -> None:
    """Forget a group, the state of its parameters and its entries in `schedulers`.

    Raises ConfigError, and changes nothing, if there is no such group, if it is the first one (later groups take
    their settings from it), or if a scheduler is not this optimiser's.
    """
    leaving = group_of(optimizer, name)
    index = list(named_groups(optimizer)).index(name)
    if index == 0:
        raise ConfigError(f"optimizer: {name!r} is the host's group and stays; groups of seeds can be removed")
    attached = follow(optimizer, schedulers)

    rearrange(attached, [i for i in range(len(optimizer.param_groups)) if i != index])
    del optimizer.param_groups[index]
    for param in leaving["params"]:
        optimizer.state.pop(param, None)


def set_members(optimizer: Optimizer, name: str, named_params: Iterable[tuple[str, Tensor]]) -> None:
    """The group holds exactly these from now on, under the settings it has.

    Parameters that stay keep their moments, those that leave are forgotten, those that join bring what state the
    optimiser still has of them (`take_out`) or start afresh. Raises ConfigError, and changes nothing, if there is
    no such group or a parameter cannot join it.
    """
    group, wanted = group_of(optimizer, name), list(named_params)
    held, staying = {id(param) for param in group["params"]}, {id(param) for _, param in wanted}
    if joining := [(member, param) for member, param in wanted if id(param) not in held]:
        _check_can_join(optimizer, joining, name)
    for param in group["params"]:
        if id(param) not in staying:
            optimizer.state.pop(param, None)
    group |= {"params": [param for _, param in wanted], "members": [member for member, _ in wanted]}
    if "param_names" in group:
        group["param_names"] = group["members"][:]
    _start_state(optimizer, group)


def take_out(optimizer: Optimizer, leaving: Iterable[Tensor], *, but: str) -> None:
    """Takes parameters out of every group except the one called `but`; their moments wait for their next group."""
    gone = {id(param) for param in leaving}
    for name, group in named_groups(optimizer).items():
        places = [place for place, param in enumerate(group["params"]) if id(param) not in gone]
        if name != but and len(places) < len(group["params"]):
            for key in {"params", "members", "param_names"} & group.keys():
                group[key] = [group[key][place] for place in places]


def _check_can_join(optimizer: Optimizer, joining: list[tuple[str, Tensor]], group_name: str) -> None:
    if not joining:
        raise ConfigError(f"optimizer: group {group_name!r} would be empty; a seed without parameters needs none")
    seen = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for name, param in joining:
        if id(param) in seen:
            raise ConfigError(f"optimizer: {name!r} is already in a group; a parameter belongs to exactly one")
        seen.add(id(param))
        if isinstance(optimizer, Muon) and param.ndim != 2:
            raise ConfigError(
                f"optimizer: Muon trains matrices only and {name!r} has shape {tuple(param.shape)}; "
                "train this seed with AdamW"
            )


def _checked_options(optimizer: Optimizer, options: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in options:
        if key == "lr":
            raise ConfigError("options: set lr_scale instead of lr, or the schedulers would not know")
        if key not in optimizer.defaults:
            kind = type(optimizer).__name__
            raise ConfigError(f"options.{key}: {kind} has no such setting{did_you_mean(key, optimizer.defaults)}")
    return options


def _start_state(optimizer: Optimizer, group: ParamGroup) -> None:
    """State that torch makes too early or too late for parameters that join or wake up later than others."""
    for param in group["params"]:
        if param in optimizer.state:
            continue
        if isinstance(optimizer, Adagrad):
            # Torch 2.9 makes it in the constructor only and fails at the next step (pytorch#53712).
            step = torch.zeros((), dtype=torch.float32, device=param.device if group["fused"] else "cpu")
            optimizer.state[param] = {"step": step, "sum": _fresh(optimizer, "sum", group, param)}
        if isinstance(optimizer, SGD) and group["fused"] and group["momentum"] != 0 and group["dampening"] == 0:
            # The fused kernel refuses a group where some parameters have a buffer and some, never active so
            # far, have none. Zeros give the same first step: 0 * momentum + gradient.
            optimizer.state[param] = {"momentum_buffer": torch.zeros_like(param)}


# ---------------------------------------------------------------- parameters change size


def resize_param(optimizer: Optimizer, param: Tensor, new_value: Tensor, index_map: Tensor, *, dim: int = 0) -> None:
    """Give a parameter another size along `dim`; it stays the same object, its surviving rows keep their moments.

    new_value: like `param` in every dimension but `dim`; copied, with its memory format.
    index_map: [new_value.shape[dim]] integers: which row of the present tensor each row comes from, -1 for a
    row that had no predecessor. Moments of such a row start as torch starts them for a fresh parameter.

    `.grad` is dropped. Step counts belong to the whole tensor and are kept, so the bias correction of the Adam
    family no longer shrinks a fresh row's first update: it is (1 - beta1) / sqrt(1 - beta2) learning rates,
    3.2 at the defaults, instead of 1. A DistributedDataParallel wrapper has to be made again.

    Raises ConfigError, and changes nothing, if the optimiser does not hold `param`, the map does not fit, or
    the state cannot be split into rows (Adafactor).
    """
    check_supported(optimizer)
    kind = type(optimizer).__name__
    if isinstance(optimizer, Adafactor):
        raise ConfigError(
            "optimizer: Adafactor keeps its second moment in factors without rows of their own; use Adam to resize"
        )
    group = next((g for g in optimizer.param_groups if any(held is param for held in g["params"])), None)
    if group is None:
        raise ConfigError(f"optimizer: {kind} does not hold this parameter of shape {tuple(param.shape)}; add it first")
    _check_map(param, new_value, index_map, dim)

    value = new_value.detach().clone()
    state = optimizer.state.get(param, {})
    resized: dict[str, Tensor] = {}
    for key, old in state.items():
        if isinstance(old, Tensor) and old.shape == param.shape:
            # Like `value` also in memory: fused kernels on CPUs pair elements by address, not by index.
            fresh = _fresh(optimizer, key, group, value).to(old.dtype)
            rows = torch.nonzero(index_map >= 0).squeeze(1).to(old.device)
            kept = old.index_select(dim, index_map.to(old.device)[rows])
            resized[key] = fresh.index_copy_(dim, rows, kept)
        elif isinstance(old, Tensor) and old.numel() != 1:
            raise ConfigError(
                f"optimizer: {kind} keeps {key!r} of shape {tuple(old.shape)} for a parameter of shape "
                f"{tuple(param.shape)}; its rows cannot be told apart, so this parameter cannot be resized"
            )
    state.update(resized)
    _replace_data(param, value)


def _check_map(param: Tensor, new_value: Tensor, index_map: Tensor, dim: int) -> None:
    if not -param.ndim <= dim < param.ndim:
        raise ConfigError(f"dim: {dim} is not a dimension of a parameter of shape {tuple(param.shape)}")
    want = list(param.shape)
    want[dim] = len(index_map)
    if index_map.dtype != torch.long or index_map.ndim != 1 or list(new_value.shape) != want:
        raise ConfigError(
            f"index_map: {tuple(index_map.shape)} {index_map.dtype} does not lead from {tuple(param.shape)} to "
            f"{tuple(new_value.shape)} along dim {dim}; give one int64 per row of the new value"
        )
    if len(index_map) and not -1 <= int(index_map.min()) <= int(index_map.max()) < param.shape[dim]:
        raise ConfigError(f"index_map: entries must be -1 or a row of the old value, 0 to {param.shape[dim] - 1}")
    if (new_value.dtype, new_value.device) != (param.dtype, param.device):
        raise ConfigError(
            f"new_value: {new_value.dtype} on {new_value.device}, the parameter is {param.dtype} on {param.device}; "
            "resize and cast in two steps"
        )


def _replace_data(param: Tensor, value: Tensor) -> None:
    """`param.data = value`, also for a parameter whose earlier graph is still alive."""
    param.grad = None
    # Autograd remembers the old shape for as long as someone holds an earlier loss, and then refuses the next
    # backward pass. It forgets when the dtype changes, so the data passes through another one.
    other = torch.float64 if param.dtype != torch.float64 else torch.float32
    param.data = torch.empty(0, dtype=other, device=param.device)
    param.data = value


def _fresh(optimizer: Optimizer, key: str, group: ParamGroup, value: Tensor) -> Tensor:
    """A state tensor as torch first makes it for a parameter of this value; zeros but for three optimisers."""
    if isinstance(optimizer, ASGD) and key == "ax":  # the average of the parameter
        return value.detach().clone()
    start = 0.0
    if isinstance(optimizer, Adagrad) and key == "sum":
        start = float(group["initial_accumulator_value"])
    if isinstance(optimizer, Rprop) and key == "step_size":  # zero would be clamped to the least step
        start = float(group["lr"])
    return torch.full_like(value, complex(start, start) if value.is_complex() else start, requires_grad=False)


# ---------------------------------------------------------------- who is in, by name


def assert_bound(model: nn.Module, *optimizers: Optimizer) -> None:
    """Raises UnboundParameterError unless the optimisers together hold the model's trainable parameters.

    They may hold frozen ones too, but none that the model no longer has (pytorch#14467).
    """
    strangers = [sentence for optimizer in optimizers for sentence in _strangers(model, optimizer)]
    if wrong := strangers + _left_out(model, optimizers):
        raise UnboundParameterError("; ".join(wrong))


def assert_none_replaced(model: nn.Module, *optimizers: Optimizer) -> None:
    """Raises UnboundParameterError if it looks as though a tensor of the model was replaced by another one.

    Weaker than `assert_bound`: an optimiser may train a part of the model only, or something besides it, a learned
    loss for instance. Both at once is what a layer replaced after the optimiser was made looks like, or
    `load_state_dict(assign=True)`; whoever means it names all optimisers, or freezes what is not to be trained.
    Costs one look at each parameter's id where nothing is left out.
    """
    left_out = _left_out(model, optimizers)
    strangers = [sentence for optimizer in optimizers if left_out for sentence in _strangers(model, optimizer)]
    if strangers:
        raise UnboundParameterError(
            f"{strangers[0]}, while {left_out[0]}: a tensor was replaced after the optimiser was made; make the "
            "optimiser again, or name the model's other optimisers too"
        )


def _left_out(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """A sentence for each trainable parameter that no optimiser holds."""
    held = {id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
    return [
        f"{name} is trainable and in no group"
        for name, param in model.named_parameters()
        if param.requires_grad and id(param) not in held
    ]


def _strangers(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """A sentence for each parameter that the optimiser holds and the model does not."""
    owned = {id(param) for param in model.parameters()}
    found = []
    for name, group in named_groups(optimizer).items():
        for index, param in enumerate(group["params"]):
            if id(param) not in owned:
                what = group["members"][index] if "members" in group else f"parameter {index}"
                found.append(f"group {name!r} holds {what} {tuple(param.shape)}, which the model does not have")
    return found


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """A copy of everything the optimiser knows, keyed by the model's parameter names.

    {"optimizer": class name,
     "groups": {group name: {"params": [parameter names], "options": {setting: value}}},
     "shapes": {parameter name: [sizes]},
     "state": {parameter name: {key: tensor or number}}}

    Tensors (cloned) and primitives only, so that plain `torch.load` reads it back. Raises UnboundParameterError
    if a parameter is not the model's, ConfigError for a setting or state that is neither tensor nor primitive.
    """
    if strangers := _strangers(model, optimizer):
        raise UnboundParameterError("; ".join(strangers))
    names = {id(param): name for name, param in model.named_parameters()}
    groups, shapes, state = {}, {}, {}
    for group_name, group in named_groups(optimizer).items():
        options = {key: value for key, value in group.items() if key not in _IDENTITY}
        members = [names[id(param)] for param in group["params"]]
        groups[group_name] = {"params": members, "options": _plain(options, group_name)}
        for name, param in zip(members, group["params"], strict=True):
            shapes[name] = list(param.shape)
            if param in optimizer.state:
                state[name] = _plain(optimizer.state[param], name)
    if len(optimizer.state) > len(state):
        raise ConfigError(f"optimizer: {type(optimizer).__name__} keeps state for no parameter of its groups")
    return {"optimizer": type(optimizer).__name__, "groups": groups, "shapes": shapes, "state": state}


def load_state_by_name(
    model: nn.Module, optimizer: Optimizer, saved: Mapping[str, Any], *, schedulers: Sequence[LRScheduler] = ()
) -> None:
    """Make the optimiser what `state_by_name` saw: same groups in the same order, same settings, same state.

    The optimiser's own groups do not matter, so a fresh one over the host alone will do. The schedulers' lists
    get one entry per saved group; load their `state_dict` next. Training goes on bit for bit.

    Raises CheckpointError, and changes nothing, if the state is of another class of optimiser, or if the
    model's parameters have other names or shapes.
    """
    params = dict(model.named_parameters())
    _check_fits(params, optimizer, saved)
    attached = follow(optimizer, schedulers)

    groups: list[ParamGroup] = []
    for name, entry in saved["groups"].items():
        group: ParamGroup = {**optimizer.defaults, **_plain(entry["options"], name)}
        group |= {"params": [params[member] for member in entry["params"]], "name": name}
        group["members"] = list(entry["params"])
        if "param_names" in optimizer.param_groups[0]:
            group["param_names"] = list(entry["params"])
        groups.append(group)
    present = list(named_groups(optimizer))
    rearrange(attached, [present.index(name) if name in present else 0 for name in saved["groups"]])
    optimizer.param_groups[:] = groups
    optimizer.state.clear()
    for group in groups:
        for name, param in zip(group["members"], group["params"], strict=True):
            if name in saved["state"]:
                entries = _plain(saved["state"][name], name).items()
                optimizer.state[param] = {key: _placed(value, key, param, group) for key, value in entries}


def _check_fits(params: Mapping[str, Tensor], optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    kind = type(optimizer).__name__
    if saved["optimizer"] != kind:
        raise CheckpointError(
            f"optimizer: the state was saved by {saved['optimizer']}, this is {kind}; use the same class"
        )
    for name, shape in saved["shapes"].items():
        if name not in params:
            raise CheckpointError(f"optimizer: the state has {name!r}, the model does not; rebuild its slots first")
        if shape != list(params[name].shape):
            raise CheckpointError(
                f"optimizer: {name!r} was saved with shape {tuple(shape)}, the model has {tuple(params[name].shape)}; "
                "rebuild its slots first"
            )
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for name, param in params.items():
        if id(param) in held and name not in saved["shapes"]:
            raise CheckpointError(
                f"optimizer: {name!r} is trained here and has no saved state; rebuild its slots first"
            )


def _placed(value: Any, key: str, param: Tensor, group: ParamGroup) -> Any:
    """A saved entry on the device where the optimiser expects it, in its own dtype.

    Torch's `load_state_dict` casts to the parameter's dtype, which rounds NAdam's product of momenta in bfloat16.
    """
    if not isinstance(value, Tensor):
        return value
    if value.shape == param.shape and value.ndim > 0:
        # Laid out like the parameter, for the fused kernels; see `resize_param`.
        return torch.empty_like(param, dtype=value.dtype, requires_grad=False).copy_(value)
    on_device = key != "step" or any(flag in group and group[flag] for flag in ("capturable", "fused"))
    return value.to(param.device) if on_device else value


def _plain(value: Any, where: str) -> Any:
    """A copy made of tensors and primitives; ConfigError, naming `where`, if that cannot be."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.detach().clone()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's float64 is a float that plain `torch.load` refuses
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, where) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ConfigError(f"optimizer: {where} is a {type(value).__name__}; only tensors and primitives can be saved")
