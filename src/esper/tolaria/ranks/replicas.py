"""One host trained data-parallel by all ranks while it grows: `Crew` as the engine knows it.

There is no wrapper around the model: growth would have it made again after every operation, and counterfactual passes
go past it. Every rank computes its part of a batch; after backward one `all_reduce` adds up gradients, flattened in the
order of parameter names, and with them the loss, so that all ranks skip a step together that is not finite on one. A
seed's leash looks at a whole batch, so what it looks at is summed up too, and pulled afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.kasmina.isolation import slack
from esper.kasmina.model import GrowingModel
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import FactoredAction
from esper.tolaria.environment import Environment
from esper.tolaria.ranks.group import Group
from esper.tolaria.ranks.lifecycle import lifecycle_of, refuse_divergence, weights_of
from esper.tolaria.setup import Setup


class Replicas:
    """This rank's end of it."""

    def __init__(self, group: Group, check_steps: int) -> None:
        """check_steps: optimiser steps from one comparison of weights to the next."""
        self._group, self._check_steps = group, check_steps
        self._steps = 0  # optimiser steps that this process has taken with all hosts
        self.waited_s = 0.0  # for sums

    def part_of(self, size: int) -> int:
        return size // self._group.world

    def part(self, batch: Tensor) -> Tensor:
        size = self.part_of(len(batch))
        return batch[self._group.rank * size : (self._group.rank + 1) * size]

    def together(self, model: GrowingModel, losses: Tensor, size: int) -> Tensor:
        grads = [param.grad for _, param in sorted(model.named_parameters()) if param.grad is not None]
        training = [slot for slot in model.slots.values() if slot.strayed is not None]
        strayed = [slot.strayed for slot in training if slot.strayed is not None]
        parts = [*grads, *strayed, losses.sum() / size]
        flat = torch.cat([part.reshape(-1) for part in parts])
        began = time.perf_counter()
        self._group.add_up(flat)
        self.waited_s += time.perf_counter() - began
        summed: tuple[Tensor, ...] = flat.split([part.numel() for part in parts])
        for grad, whole in zip(grads, summed, strict=False):
            grad.copy_(whole.view_as(grad))
        for slot, whole in zip(training, summed[len(grads) : -1], strict=True):
            _pull(slot, whole)
        return summed[-1].reshape(())

    def agree(self, environments: Sequence[Environment], actions: Sequence[FactoredAction] | None = None) -> None:
        refuse_divergence(self._group, self._steps, lifecycle_of(environments, actions))

    def stepped(self, environments: Sequence[Environment]) -> None:
        self._steps += 1
        if self._steps % self._check_steps == 0:
            self.agree_on_weights(environments)

    def agree_on_weights(self, environments: Sequence[Environment]) -> None:
        refuse_divergence(self._group, self._steps, weights_of(environments))


def _pull(slot: SeedSlot, squares: Tensor) -> None:
    """Leashes the seed's gradient. squares: [2], of the whole batch (`isolation.squares`)."""
    strayed, size = squares.sqrt()
    left = slack(strayed, size, slot.settings.leash)
    for param in slot.parameters():
        if param.grad is not None:
            param.grad *= left
    slot.strayed = None


def check_replicable(setup: Setup, world: int) -> None:
    """Raises ConfigError for hosts or batches that cannot be trained by so many ranks as by one."""
    size = setup.task.recipe.batch_size
    if size % world:
        raise ConfigError(
            f"task.batch_size: {size} items cannot be dealt out evenly to {world} ranks; use a multiple of {world}"
        )
    for name, part in setup.task.make_host().named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"run.ranks.parallel: host: {name} normalises over a batch, of which each rank sees a part; "
                "use a host without BatchNorm, or share out environments"
            )
