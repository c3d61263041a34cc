"""What a controller sees of the environments: reports for rules, and for networks the sensors of `leyline/sensors.py`.

Sensors are read here as they are; a policy normalises them with statistics of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from esper.leyline.decisions import Sight
from esper.leyline.factored_actions import ActionSpace
from esper.leyline.reports import HostReport
from esper.leyline.sensors import HOST_SENSORS, OBS_V3_BASE_FEATURE_SIZE, OBS_V3_SLOT_FEATURE_SIZE, SLOT_SENSORS
from esper.leyline.slot_config import SlotConfig

NO_SEED, OTHER_BLUEPRINT = 0, 1
"""Blueprint indices of an empty slot, and of a seed that this action space could not have planted."""
FIRST_BLUEPRINT = 2

_HOST_READERS = tuple(sensor.read for sensor in HOST_SENSORS)
_SLOT_READERS = tuple(sensor.read for sensor in SLOT_SENSORS)


def get_feature_size(slot_config: SlotConfig) -> int:
    """Width of all sensors side by side, as a flat network takes them; blueprint indices come apart."""
    return OBS_V3_BASE_FEATURE_SIZE + slot_config.num_slots * OBS_V3_SLOT_FEATURE_SIZE


def observe(reports: Sequence[HostReport], space: ActionSpace | None = None) -> Sight:
    """The sight of all environments at one step; `space` is None for a controller that reads reports alone."""
    return Sight(reports) if space is None else Sight(reports, *encode(reports, space))


def encode(reports: Sequence[HostReport], space: ActionSpace) -> tuple[Tensor, Tensor, Tensor]:
    """Returns base [E, B] and slots [E, S, F], both float32, and the index of each slot's blueprint [E, S], int64.

    Raises AssertionError, got and want, for reports of another number of slots.
    """
    for host in reports:
        assert len(host.slots) == space.slot_config.num_slots, (
            f"slots of environment {host.env} are {len(host.slots)}, want {space.slot_config.num_slots}"
        )
    known = {None: NO_SEED} | {name: index for index, name in enumerate(space.blueprints, FIRST_BLUEPRINT)}
    base = [[read(host) for read in _HOST_READERS] for host in reports]
    slots = [[[read(slot, host) for read in _SLOT_READERS] for slot in host.slots] for host in reports]
    blueprints = [[_index(slot.blueprint_id, known) for slot in host.slots] for host in reports]
    read = torch.tensor(base), torch.tensor(slots), torch.tensor(blueprints)
    got = (read[0].shape[1:], read[1].shape[1:])
    want = ((OBS_V3_BASE_FEATURE_SIZE,), (space.slot_config.num_slots, OBS_V3_SLOT_FEATURE_SIZE))
    assert got == want, f"sensors of hosts and slots are {got}, want {want}"
    return read


def _index(name: str | None, known: Mapping[str | None, int]) -> int:
    return known.get(name, OTHER_BLUEPRINT)
