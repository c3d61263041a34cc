"""Hosts of any family with slots around their weights, for seeds of low rank, in place of slots in their cuts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from esper.kasmina.host import Host, through
from esper.kasmina.weight_site import WeightSite


class SitedHost(nn.Module):
    """A chain of segments with a slot around a weight inside every segment after which the chain has one.

    It is no chain that could be cut at its slots, because what such a slot reads and what it adds to are not one
    tensor. Its modules have the names that they have in the chain.
    """

    def __init__(self, chain: Host, weight: str, enter: Callable[[Tensor], Tensor] | None = None) -> None:
        """Takes the chain's segments over. weight: the path of the Linear or convolution inside each of them.

        enter: what happens to the input once, before the first segment.
        """
        super().__init__()
        self.isolate_blending = chain.isolate_blending
        self.segments = chain.segments
        self.slot_order = chain.slot_order
        self._enter = enter
        for spec in chain.injection_specs:
            segment = self.segments[spec.host_block]
            layer = segment.get_submodule(weight)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            site = WeightSite(layer, spec.slot_id, None, spec.order, spec.surface, spec.host_layer)
            segment.set_submodule(weight, site)

    def forward(self, x: Tensor) -> Tensor:
        return through(self.segments, x if self._enter is None else self._enter(x))
