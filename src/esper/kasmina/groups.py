"""The optimiser follows the structure: every seed and every gate is a parameter group of its own.

Parameters that stay keep their moments, new ones get their learning rate, removed ones leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.model import GrowingModel
from esper.kasmina.optimiser import add_group, keep_only, named_groups, remove_group

HOST_GROUP = "host"


def host_parameters(model: GrowingModel) -> list[tuple[str, nn.Parameter]]:
    """Named parameters outside every slot: what the first group of an optimiser for `model` holds."""
    grown = {id(param) for slot in model.slots.values() for param in slot.parameters()}
    return [(name, param) for name, param in model.named_parameters() if id(param) not in grown]


def sync_groups(
    model: GrowingModel, optimizer: Optimizer, lr_scale: float, schedulers: Sequence[LRScheduler] = ()
) -> None:
    """Brings the optimiser's groups in line with the seeds and gates that the model has now.

    Groups are called by seed id, and seed id + "/gate". lr_scale: a new seed's learning rate over the host's.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    wanted: dict[str, list[Tensor]] = {}
    for slot in model.slots.values():
        for suffix, part in (("", slot.seed), ("/gate", slot.gate)):
            held: list[Tensor] = [] if part is None else [*part.parameters()]
            if held and slot.state is not None:
                wanted[slot.state.seed_id + suffix] = held
    for name in list(named_groups(optimizer))[1:]:
        if name not in wanted:
            remove_group(optimizer, name, schedulers)
    present = named_groups(optimizer)
    for name, params in wanted.items():
        if name in present:
            keep_only(optimizer, name, params)
        else:
            named = [(names[id(param)], param) for param in params]
            add_group(optimizer, named, name=name, lr_scale=lr_scale, schedulers=schedulers)
