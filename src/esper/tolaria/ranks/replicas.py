"""One host trained data-parallel by all ranks while it grows: `Crew` as the engine knows it.

There is no wrapper around the model: growth would have it made again after every operation, and counterfactual passes
go past it. Every rank computes its part of a batch; after backward one `all_reduce` adds up gradients, flattened in the
order of parameter names, and with them the loss, so that all ranks skip a step together that is not finite on one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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

    def together(self, model: nn.Module, losses: Tensor, size: int) -> Tensor:
        grads = [param.grad for _, param in sorted(model.named_parameters()) if param.grad is not None]
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), (losses.sum() / size).reshape(1)])
        began = time.perf_counter()
        self._group.add_up(flat)
        self.waited_s += time.perf_counter() - began
        for grad, summed in zip(grads, flat[:-1].split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))
        return flat[-1]

    def agree(self, environments: Sequence[Environment], actions: Sequence[FactoredAction] | None = None) -> None:
        refuse_divergence(self._group, self._steps, lifecycle_of(environments, actions))

    def stepped(self, environments: Sequence[Environment]) -> None:
        self._steps += 1
        if self._steps % self._check_steps == 0:
            self.agree_on_weights(environments)

    def agree_on_weights(self, environments: Sequence[Environment]) -> None:
        refuse_divergence(self._group, self._steps, weights_of(environments))


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
