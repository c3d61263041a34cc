"""What a network must offer to be grown, and what it may offer so that measuring it is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from esper.leyline.injection_spec import InjectionSpec


@runtime_checkable
class HostProtocol(Protocol):
    """A network that can be cut at its slots. `Host` implements it for chains of segments."""

    injection_specs: tuple[InjectionSpec, ...]  # in execution order
    isolate_blending: bool  # the family's default: keep a blending seed's gradient out of the host

    def __call__(self, x: Tensor) -> Tensor:
        """From the input to the output, past all slots."""
        ...

    @property
    def injection_points(self) -> Mapping[str, int]:
        """Slot id -> channels."""
        ...

    @property
    def slot_order(self) -> tuple[str, ...]:
        """Slot ids in the order of execution."""
        ...

    def forward_to(self, slot_id: str, x: Tensor, from_slot_id: str | None = None) -> Tensor:
        """From the input, or from just after `from_slot_id`, to the boundary where `slot_id` stands."""
        ...

    def forward_from(self, slot_id: str, x: Tensor) -> Tensor:
        """From just after `slot_id` to the output."""
        ...


@runtime_checkable
class OwnIsolation(Protocol):
    """A network with slots in its own forward may say what its family's default is."""

    isolate_blending: bool  # as in `HostProtocol`
