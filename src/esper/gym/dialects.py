"""Spaces and masks of gymnasium: what an `ActionSpace`, its masks and the sensors are called there.

A marginal mask is optimistic: a choice is possible if some possible operation, in some slot, could use it. A head that
no possible operation uses stands at its first choice. `OpFirst` (`op_first.py`) gives exact masks instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, product

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from esper.leyline.factored_actions import HEADS, OPS, ActionSpace, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.tamiyo.policy.action_masks import LegalActions, Mask
from esper.tamiyo.policy.features import encode

_NO_BLUEPRINT = ("none", "other")  # blueprint indices 0 and 1 of `features.encode`

Bits = NDArray[np.int8]


def action_space_of(space: ActionSpace) -> spaces.MultiDiscrete:
    """One index per head, in the order of `HEADS`."""
    return spaces.MultiDiscrete(list(space.head_sizes.values()))


def observation_space_of(space: ActionSpace) -> spaces.Dict:
    """`obs`: the sensors, in the order of `observation_names`. `action_mask`: all heads' masks side by side."""
    low, high = bounds(space)
    mask = spaces.MultiBinary(sum(space.head_sizes.values()))
    return spaces.Dict({"obs": spaces.Box(low, high, dtype=np.float32), "action_mask": mask})


def bounds(space: ActionSpace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What sensors read at least and at most, [D] each."""
    blueprints = [(0.0, 1.0)] * (len(_NO_BLUEPRINT) + len(space.blueprints))
    slot = [*((sensor.low, sensor.high) for sensor in SLOT_SENSORS), *blueprints]
    pairs = [*((sensor.low, sensor.high) for sensor in HOST_SENSORS), *slot * space.slot_config.num_slots]
    low, high = np.array(pairs, dtype=np.float32).T
    return low.copy(), high.copy()


def observation_names(space: ActionSpace) -> tuple[str, ...]:
    """Of every number in `obs`: the host's sensors, then each slot's, then which blueprint stands in it, one-hot."""
    blueprints = [f"blueprint_is_{name}" for name in (*_NO_BLUEPRINT, *space.blueprints)]
    slot = [*(sensor.name for sensor in SLOT_SENSORS), *blueprints]
    of_slots = (f"{slot_id}.{name}" for slot_id, name in product(space.slot_config.slot_ids, slot))
    return (*(sensor.name for sensor in HOST_SENSORS), *of_slots)


def sensed(reports: Sequence[HostReport], space: ActionSpace) -> NDArray[np.float32]:
    """[E, D] the sensors of all environments, flat."""
    base, slots, blueprints = (each.numpy() for each in encode(reports, space))
    known = np.eye(len(_NO_BLUEPRINT) + len(space.blueprints), dtype=np.float32)
    of_slots = np.concatenate((slots, known[blueprints]), axis=2)
    return np.concatenate((base, of_slots.reshape(len(reports), -1)), axis=1)


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
