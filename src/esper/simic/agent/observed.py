"""Statistics of what the sensors read in a round, by the sensors' names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS, HostSensor, SlotSensor
from esper.leyline.telemetry import ObservationsPayload
from esper.simic.agent.batch import Batch
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork
from esper.tamiyo.policy.normaliser import LIMIT, RunningNormaliser

_ROUNDING = 1e-5

Row = tuple[str, float, float, float, float]


def observed(batch: Batch, network: TamiyoNetwork) -> ObservationsPayload:
    """Of every sensor, over all steps (and slots): how it lies in its range and in the network's."""
    base, slots = batch.inputs.base[batch.valid], batch.inputs.slots[batch.valid].flatten(0, 1)
    hosts = _rows(HOST_SENSORS, base, network.base_norm)
    return ObservationsPayload(sensors=(*hosts, *_rows(SLOT_SENSORS, slots, network.slot_norm)))


def _rows(
    sensors: Sequence[HostSensor] | Sequence[SlotSensor], read: Tensor, normaliser: RunningNormaliser
) -> Iterator[Row]:
    """read: [N, sensors]."""
    mean, deviation = read.double().mean(0).tolist(), read.double().std(0, unbiased=False).tolist()
    low = read.new_tensor([sensor.low for sensor in sensors]) - _ROUNDING
    high = read.new_tensor([sensor.high for sensor in sensors]) + _ROUNDING
    outside = ((read < low) | (read > high)).float().mean(0).tolist()
    at_limit = (normaliser(read).abs() >= LIMIT).float().mean(0).tolist()
    names = [sensor.name for sensor in sensors]
    return zip(names, mean, deviation, outside, at_limit, strict=True)
