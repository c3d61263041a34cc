"""Hosts as chains of segments: slots stand in the cuts, so routing is one loop, written once.

`Host` is what to subclass: fill `segments` and `specs`. `cnn_host.py` and `transformer_host.py` are the families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from torch import Tensor, nn

from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, in_order
from esper.leyline.slot_id import parse_slot_id


class Host(nn.Module):
    """A network as a chain of modules. A slot with `host_block` i stands after segment i."""

    def __init__(self, segments: Iterable[nn.Module], specs: Iterable[InjectionSpec], isolate_blending: bool) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.injection_specs = in_order(specs)
        self.isolate_blending = isolate_blending
        self._cut = {spec.slot_id: spec.host_block + 1 for spec in self.injection_specs}
        cuts = list(self._cut.values())
        assert cuts == sorted(set(cuts)), "slots must stand after different segments, in order"
        assert all(cut <= len(self.segments) for cut in cuts)

    @property
    def injection_points(self) -> Mapping[str, int]:
        return {spec.slot_id: spec.dim for spec in self.injection_specs}

    @property
    def slot_order(self) -> tuple[str, ...]:
        return tuple(self._cut)

    def cut_of(self, slot_id: str) -> int:
        """How many segments lie before the slot. Raises ConfigError for a slot this host lacks."""
        if slot_id not in self._cut:
            parse_slot_id(slot_id, self._cut)
            raise ConfigError(f"slot {slot_id!r} is not in this host; it has {', '.join(self._cut)}")
        return self._cut[slot_id]

    def cuts_between(self, from_slot_id: str, slot_id: str) -> tuple[int, int]:
        """The cuts of two slots. Raises ConfigError if `slot_id` comes before `from_slot_id`."""
        start, stop = self.cut_of(from_slot_id), self.cut_of(slot_id)
        if start > stop:
            raise ConfigError(f"slot {slot_id!r} comes before {from_slot_id!r} in this host")
        return start, stop

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Segments start .. stop - 1."""
        return through(islice(self.segments, start, stop), x)

    def enter(self, x: Tensor) -> Tensor:
        """What happens to the input once, before the first segment."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.enter(x), 0, len(self.segments))

    def forward_to(self, slot_id: str, x: Tensor, from_slot_id: str | None = None) -> Tensor:
        """From the input, or from just after `from_slot_id`, to the boundary where `slot_id` stands."""
        if from_slot_id is None:
            return self.run(self.enter(x), 0, self.cut_of(slot_id))
        return self.run(x, *self.cuts_between(from_slot_id, slot_id))

    def forward_from(self, slot_id: str, x: Tensor) -> Tensor:
        """From just after `slot_id` to the output."""
        return self.run(x, self.cut_of(slot_id), len(self.segments))


def through(segments: Iterable[nn.Module], x: Tensor) -> Tensor:
    """One segment after the other."""
    for segment in segments:
        x = segment(x)
    return x
