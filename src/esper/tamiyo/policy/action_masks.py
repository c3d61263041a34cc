"""What may be chosen: only physically impossible choices are masked.

`op` is possible if some enabled slot allows it; `slot` is masked exactly given the operation; a blueprint given the
slot. WAIT is always possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.leyline.factored_actions import CHOICES, HEADS, OPS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport

Mask = tuple[bool, ...]


@dataclass(frozen=True)
class LegalActions:
    """The masks of one environment."""

    space: ActionSpace
    op: Mask  # [operations]
    slot_by_op: tuple[Mask, ...]  # [operations][slots]; all False for an operation without a slot

    def slots(self, op: LifecycleOp) -> tuple[str, ...]:
        """The slots in which `op` is possible."""
        ids = self.space.slot_config.slot_ids
        return tuple(slot_id for slot_id, free in zip(ids, self.slot_by_op[op], strict=True) if free)

    def head_mask(self, head: str, op: LifecycleOp, slot_idx: int) -> Mask:
        """Which choices of a head are possible given the operation and, for the heads after it, the slot."""
        if head == "op":
            return self.op
        if head == "slot":
            return self.slot_by_op[op]
        if head == "blueprint":
            return self.space.fits[slot_idx]
        return (True,) * len(CHOICES[head])

    def allows(self, action: FactoredAction) -> bool:
        """Whether every head that matters to the action's operation stands at a possible choice."""
        op = action.op
        relevant = ("op", *OPS[op].heads)
        return all(
            self.head_mask(head, op, action.slot_idx)[index]
            for head, index in zip(HEADS, action.indices, strict=True)
            if head in relevant
        )

    @property
    def op_bits(self) -> int:
        """Bit i is set where operation i is possible."""
        return _bits(self.op)

    def slot_bits(self, op: LifecycleOp) -> int:
        """Bit i is set where `op` is possible in slot i; 0 for an operation that needs no slot."""
        return _bits(self.slot_by_op[op]) if OPS[op].needs_slot else 0


def _bits(mask: Mask) -> int:
    return sum(1 << index for index, free in enumerate(mask) if free)


def possible(reports: Sequence[HostReport], space: ActionSpace) -> list[LegalActions]:
    """The masks of every environment."""
    return [_of_one(report, space) for report in reports]


def _of_one(report: HostReport, space: ActionSpace) -> LegalActions:
    slot_by_op = tuple(_slots_for(op, report, space) for op in LifecycleOp)
    ops = tuple(not OPS[op].needs_slot or any(slot_by_op[op]) for op in LifecycleOp)
    return LegalActions(space, ops, slot_by_op)


def _slots_for(op: LifecycleOp, report: HostReport, space: ActionSpace) -> Mask:
    row = OPS[op]
    if not row.needs_slot or report.finished:
        return (False,) * space.slot_config.num_slots
    needs_blueprint = "blueprint" in row.heads
    return tuple(
        row.possible(slot, report) and (not needs_blueprint or any(fits))
        for slot, fits in zip(report.slots, space.fits, strict=True)
    )
