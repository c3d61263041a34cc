"""Controllers that are kept from seeing, to find out whether a policy acts on what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from esper.leyline.decisions import Choice, Sight
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import ActionSpace
from esper.tamiyo.controller import Controller, Memory
from esper.tamiyo.policy.action_masks import LegalActions


@dataclass(frozen=True)
class ShuffledSensors:
    """Every environment is decided on with the sensors of its neighbour, and with masks of its own.

    The time is as it was, and the neighbour is the same throughout; a policy that looks at nothing but the clock does
    what it would have done.
    """

    controller: Controller

    @property
    def reads(self) -> ActionSpace | None:
        return self.controller.reads

    def blank_memory(self, envs: int) -> Memory:
        """Raises ConfigError where there is no other environment to look at."""
        if envs < 2:
            raise ConfigError("policy.shuffle_sensors: there is one environment; use --envs 2 or more")
        return self.controller.blank_memory(envs)

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        base, slots, blueprints = map(_neighbours, (sight.base, sight.slots, sight.blueprints))
        return self.controller.act(replace(sight, base=base, slots=slots, blueprints=blueprints), legal, memory)

    def pack(self, memory: Memory) -> Any:
        return self.controller.pack(memory)

    def unpack(self, packed: Any) -> Memory:
        return self.controller.unpack(packed)


def _neighbours(read: Tensor | None) -> Tensor | None:
    return None if read is None else read.roll(1, 0)
