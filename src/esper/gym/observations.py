"""What an environment shows: sensors, and masks beside them, in one of two layouts.

`flat`: `obs` [D] all sensors, `action_mask` [sum of head sizes]. `slots`, for policies that look slot by slot:

    base             [B]                 the host's sensors
    slots            [slots, F]          each slot's sensors, then which blueprint stands in it, one-hot
    slot_valid       [slots]             1: a row of `slots` that is one; all are, padding is for learners of many hosts
    action_mask      [sum of head sizes] as in `flat`
    slot_mask_by_op  [operations, slots] where each operation is possible, exactly
    head_relevance   [operations, heads] which heads matter to an operation; `op` matters to all

Both hold the same numbers in the same order: `obs` is `base`, then `slots` row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from esper.gym.dialects import Bits
from esper.leyline.factored_actions import HEADS, OPS, ActionSpace, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tamiyo.policy.features import FIRST_BLUEPRINT, NO_SEED, OTHER_BLUEPRINT

_NO_BLUEPRINT = ("none", "other")  # indices NO_SEED and OTHER_BLUEPRINT
_HOST_READERS = tuple(sensor.read for sensor in HOST_SENSORS)
_SLOT_READERS = tuple(sensor.read for sensor in SLOT_SENSORS)
_RELEVANT: Bits = np.array([[head in ("op", *OPS[op].heads) for head in HEADS] for op in LifecycleOp], dtype=np.int8)

LayoutName = Literal["flat", "slots"]
Observation = dict[str, Any]
"""Arrays by name; with a first axis of environments where there are many."""


def observation_space_of(space: ActionSpace, layout: LayoutName) -> spaces.Dict:
    """Of one environment."""
    low, high = bounds(space)
    mask = spaces.MultiBinary(sum(space.head_sizes.values()))
    if layout == "flat":
        return spaces.Dict({"obs": spaces.Box(low, high, dtype=np.float32), "action_mask": mask})
    ends, slots = len(HOST_SENSORS), space.slot_config.num_slots
    rows = (low[ends:].reshape(slots, -1), high[ends:].reshape(slots, -1))
    return spaces.Dict(
        {
            "base": spaces.Box(low[:ends], high[:ends], dtype=np.float32),
            "slots": spaces.Box(*rows, dtype=np.float32),
            "slot_valid": spaces.MultiBinary(slots),
            "action_mask": mask,
            "slot_mask_by_op": spaces.MultiBinary([len(LifecycleOp), slots]),
            "head_relevance": spaces.MultiBinary([len(LifecycleOp), len(HEADS)]),
        }
    )


def observation_of(
    sensors: NDArray[np.float32], mask: Bits, legal: Sequence[LegalActions], layout: LayoutName
) -> Observation:
    """Of E environments, in arrays of their own. sensors: [E, D] as `sensed`; mask: [E, sum of head sizes]."""
    if layout == "flat":
        return {"obs": sensors.copy(), "action_mask": mask.copy()}
    ends, slot_by_op = len(HOST_SENSORS), np.array([masks.slot_by_op for masks in legal], dtype=np.int8)
    envs, _, slots = slot_by_op.shape
    return {
        "base": sensors[:, :ends].copy(),
        "slots": sensors[:, ends:].reshape(envs, slots, -1).copy(),
        "slot_valid": np.ones((envs, slots), dtype=np.int8),
        "action_mask": mask.copy(),
        "slot_mask_by_op": slot_by_op,
        "head_relevance": np.tile(_RELEVANT, (envs, 1, 1)),
    }


def bounds(space: ActionSpace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What sensors read at least and at most, [D] each."""
    blueprints = [(0.0, 1.0)] * (FIRST_BLUEPRINT + len(space.blueprints))
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
    """[E, D] the sensors of all environments, flat: the numbers of `features.encode`, which makes tensors of them."""
    stands, other = _one_hot(space.blueprints)
    rows: list[list[float]] = []
    for host in reports:
        row = [read(host) for read in _HOST_READERS]
        for slot in host.slots:
            row += [read(slot, host) for read in _SLOT_READERS]
            row += stands.get(slot.blueprint_id, other)
        rows.append(row)
    return np.array(rows, dtype=np.float32)


@cache
def _one_hot(blueprints: tuple[str, ...]) -> tuple[dict[str | None, list[float]], list[float]]:
    """By the name of what stands in a slot; and of a seed that this action space could not have planted."""
    kinds = np.eye(FIRST_BLUEPRINT + len(blueprints)).tolist()
    names = (None, *blueprints)
    return dict(zip(names, (kinds[NO_SEED], *kinds[FIRST_BLUEPRINT:]), strict=True)), kinds[OTHER_BLUEPRINT]
