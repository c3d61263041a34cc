"""Actions and masks of gymnasium: what an `ActionSpace` and its masks are called there; `observations.py` is the rest.

A marginal mask is optimistic: a choice is possible if some possible operation, in some slot, could use it. A head that
no possible operation uses stands at its first choice. `OpFirst` (`op_first.py`) gives exact masks instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from esper.leyline.factored_actions import HEADS, OPS, ActionSpace, LifecycleOp
from esper.tamiyo.policy.action_masks import LegalActions, Mask

Bits = NDArray[np.int8]


def action_space_of(space: ActionSpace) -> spaces.MultiDiscrete:
    """One index per head, in the order of `HEADS`."""
    return spaces.MultiDiscrete(list(space.head_sizes.values()))


def marginal(legal: LegalActions) -> Bits:
    """[sum of head sizes] 1 where a choice is possible."""
    ops = [LifecycleOp(index) for index, free in enumerate(legal.op) if free]
    masks = [legal.op, *(_of_head(head, ops, legal) for head in HEADS[1:])]
    return np.array([free for mask in masks for free in mask], dtype=np.int8)


def _of_head(head: str, ops: Sequence[LifecycleOp], legal: LegalActions) -> Mask:
    """The union of the head's masks over the operations that use it and the slots in which they are possible."""
    places = [
        (op, slot) for op in ops if head in OPS[op].heads for slot, free in enumerate(legal.slot_by_op[op]) if free
    ]
    masks = [legal.head_mask(head, op, slot) for op, slot in places]
    if masks:
        return tuple(map(any, zip(*masks, strict=True)))
    return first_only(len(legal.space.choices(head)))


def first_only(size: int) -> Mask:
    """The mask of a head that does not matter."""
    return (True, *(False,) * (size - 1))


def by_head(flat: Bits, sizes: Sequence[int]) -> tuple[Bits, ...]:
    """One mask per head, as `MultiDiscrete.sample(mask=...)` wants them; of a copy."""
    own = flat.copy()
    return tuple(own[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))
