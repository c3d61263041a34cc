"""Which heads matter to which operation: the single source for credit, entropy and canonical actions."""

from __future__ import annotations

from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp


def is_head_relevant(op: LifecycleOp, head: str) -> bool:
    """`op` itself always matters."""
    assert head in HEADS, f"no such head: {head!r}"
    return head == "op" or head in OPS[op].heads


def causal_mask(op: LifecycleOp) -> tuple[bool, ...]:
    """One flag per head, in the order of `HEADS`."""
    return tuple(is_head_relevant(op, head) for head in HEADS)


CAUSAL_MASKS: dict[LifecycleOp, tuple[bool, ...]] = {op: causal_mask(op) for op in LifecycleOp}
