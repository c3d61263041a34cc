"""The optimiser follows the structure: every seed and every gate is a parameter group of its own.

Parameters that stay keep their moments, new ones get their learning rate, removed ones leave nothing behind. Groups
of seeds are known by their names, a seed id ("r0c0.1") or seed id + "/gate"; all others are the user's and stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.model import GrowingModel
from esper.kasmina.optimiser import (
    add_group,
    assert_none_replaced,
    named_groups,
    remove_group,
    set_members,
    take_out,
)
from esper.leyline.errors import ConfigError

HOST_GROUP = "host"
_GATE = "/gate"


def host_parameters(model: GrowingModel) -> list[tuple[str, nn.Parameter]]:
    """Named trainable parameters outside every slot: what the first group of an optimiser for `model` holds."""
    grown = {id(param) for slot in model.slots.values() for param in slot.parameters()}
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in grown]


def sync_groups(
    model: GrowingModel,
    optimizer: Optimizer,
    lr_scale: float,
    schedulers: Sequence[LRScheduler] = (),
    others: Sequence[Optimizer] = (),
) -> None:
    """Brings the optimiser's groups in line with the seeds and gates that the model has now.

    Call it when the optimiser is made, once an epoch, and after the model's `load_state_dict`; load the optimiser's
    state after that. A seed's parameters that stand in another group, because the optimiser was made over all of
    `model.parameters()`, move into their own and keep their moments. A seed that was loaded is made of new tensors:
    its group holds those, and their moments start afresh.

    lr_scale: a new seed's learning rate over that of the optimiser's first group, whose other settings it takes over.
    schedulers: all that drive `optimizer`.
    others: further optimisers that train the rest of the model; seeds live in `optimizer` alone.

    Raises ConfigError for a module that is no growing model, and UnboundParameterError where a tensor of the model
    was replaced behind the optimisers' backs (`optimiser.assert_none_replaced`).
    """
    _check_grows(model)
    wanted = _wanted(model)
    for name in named_groups(optimizer):
        if name not in wanted and _is_of_a_seed(name, model):
            remove_group(optimizer, name, schedulers)
    present = named_groups(optimizer)
    for name, named in wanted.items():
        take_out(optimizer, [param for _, param in named], but=name)
        if name in present:
            set_members(optimizer, name, named)
        else:
            add_group(optimizer, named, name=name, lr_scale=lr_scale, schedulers=schedulers)
    assert_none_replaced(model, optimizer, *others)


def _check_grows(model: nn.Module) -> None:
    if not isinstance(model, GrowingModel):
        raise ConfigError(
            f"sync_groups: {type(model).__name__} is no growing model; wrap it once, SlottedModel(module) for slots in "
            "a forward of your own or MorphogeneticModel(host), and pass that"
        )


def _wanted(model: GrowingModel) -> dict[str, list[tuple[str, Tensor]]]:
    """Named parameters of every seed and gate, by the name of their group."""
    names = {id(param): name for name, param in model.named_parameters()}
    wanted: dict[str, list[tuple[str, Tensor]]] = {}
    for slot in model.slots.values():
        for suffix, part in (("", slot.seed), (_GATE, slot.gate)):
            held = [] if part is None else [(names[id(param)], param) for param in part.parameters()]
            if held and slot.state is not None:
                wanted[slot.state.seed_id + suffix] = [*held]
    return wanted


def _is_of_a_seed(group_name: str, model: GrowingModel) -> bool:
    """Whether the name is a seed id of one of the model's slots, with or without the gate's suffix."""
    slot_id, dot, count = group_name.removesuffix(_GATE).partition(".")
    return bool(dot) and slot_id in model.slots and count.isdecimal()
