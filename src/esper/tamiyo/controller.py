"""Controllers: whatever decides, behind one interface.

A controller's memory is an immutable value that the main loop carries, one entry per environment, so that a controller
can be resumed, replayed and compared. To add a rule write a function that takes a `Build`, and register it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Protocol

import msgspec

from esper.leyline.decisions import Choice, Sight
from esper.leyline.factored_actions import ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.registry import Registry
from esper.leyline.reports import HostReport
from esper.tamiyo.config import HeuristicConfig, PolicyConfig
from esper.tamiyo.policy.action_masks import LegalActions

Memory = Any
"""What a controller remembers; its own business."""


class Controller(Protocol):
    """Decides for all environments at once."""

    @property
    def reads(self) -> ActionSpace | None:
        """The action space in whose terms this controller reads sensors; None where it reads reports alone."""
        ...

    def blank_memory(self, envs: int) -> Memory:
        """The memory at the start of an episode."""
        ...

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        """One action per environment, each allowed by its masks, and the memory to go on with."""
        ...

    def pack(self, memory: Memory) -> Any:
        """The memory as tensors and primitives."""
        ...

    def unpack(self, packed: Any) -> Memory:
        """The inverse of `pack`."""
        ...


@dataclass(frozen=True)
class Build:
    """What a controller is made from."""

    config: PolicyConfig
    space: ActionSpace
    seed: int
    script: Sequence[Sequence[dict[str, str]]] = ()  # recorded decisions: [environment][step]
    variants: Sequence[Sequence[HeuristicConfig]] = ()  # settings of the heuristic: [environment][round]


@dataclass(frozen=True)
class Rule:
    """A controller that looks at each environment by itself: memory is a tuple with one entry per environment."""

    decide: Callable[[HostReport, LegalActions, Memory], tuple[FactoredAction, Memory]]
    blank: Memory
    reads: None = None

    def blank_memory(self, envs: int) -> Memory:
        return (self.blank,) * envs

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        decided = [self.decide(*each) for each in zip(sight.reports, legal, memory, strict=True)]
        return Choice(tuple(action for action, _ in decided)), tuple(after for _, after in decided)

    def pack(self, memory: Memory) -> bytes:
        return msgspec.msgpack.encode(memory)

    def unpack(self, packed: bytes) -> Memory:
        """By the type of the blank memory, which is None or a dataclass."""
        return msgspec.msgpack.decode(packed, type=GenericAlias(tuple, (type(self.blank), ...)))


CONTROLLERS: Registry[Callable[[Build], Controller]] = Registry("controller")


def wait(space: ActionSpace) -> FactoredAction:
    """The action that changes nothing."""
    return space.action(LifecycleOp.WAIT)


def forget(controller: Controller, memory: Memory, ended: Sequence[bool]) -> Memory:
    """The memory with a blank entry where an environment's sequence has ended."""
    if not any(ended):
        return memory
    blank = controller.blank_memory(len(ended))
    return tuple(fresh if over else kept for fresh, kept, over in zip(blank, memory, ended, strict=True))
