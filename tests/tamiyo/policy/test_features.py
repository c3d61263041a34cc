"""What networks are given is what the sensors read, in the order of their lists, at the widths that the lists have."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from tests.tamiyo.small import held, host, ladder, slot, space

from esper.leyline import OBS_V3_BASE_FEATURE_SIZE, OBS_V3_SLOT_FEATURE_SIZE
from esper.leyline.reports import HostReport
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.stages import SeedStage
from esper.tamiyo.policy.features import FIRST_BLUEPRINT, encode, get_feature_size, observe

SPACE = space(3, ("conv_light", "norm"))


def some_hosts(count: int = 3) -> list[HostReport]:
    """Hosts that differ, each with an empty slot, a held seed and a ladder."""
    return [
        host(slot(0), held(1, 1.0 + env, alpha_target=1.0), ladder(2, 2.0), left=50 - env, env=env, val_loss=0.5 * env)
        for env in range(count)
    ]


def test_encoding_is_reading_sensor_by_sensor():
    reports = some_hosts()

    base, slots, _ = encode(reports, SPACE)

    for e, report in enumerate(reports):
        for b, sensor in enumerate(HOST_SENSORS):
            assert base[e, b].item() == pytest.approx(sensor.read(report), abs=1e-6), sensor.name
        for s, each in enumerate(report.slots):
            for f, seen in enumerate(SLOT_SENSORS):
                assert slots[e, s, f].item() == pytest.approx(seen.read(each, report), abs=1e-6), seen.name


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_widths_follow_from_the_lists_and_the_number_of_slots(count: int):
    offered = space(count)
    reports = [host(*(slot(index) for index in range(count)))] * 4

    base, slots, blueprints = encode(reports, offered)

    assert (base.shape, base.dtype) == ((4, OBS_V3_BASE_FEATURE_SIZE), torch.float32)
    assert (slots.shape, slots.dtype) == ((4, count, OBS_V3_SLOT_FEATURE_SIZE), torch.float32)
    assert (blueprints.shape, blueprints.dtype) == ((4, count), torch.int64)
    assert get_feature_size(offered.slot_config) == base.shape[1] + slots[0].numel()


@pytest.mark.parametrize("count", [2, 4])
def test_a_report_of_another_number_of_slots_is_told_with_got_and_want(count: int):
    other = host(*(slot(index) for index in range(count)), env=7)

    with pytest.raises(AssertionError, match=f"slots of environment 7 are {count}, want 3"):
        encode([*some_hosts(1), other], SPACE)


def test_a_blueprint_is_told_by_its_place_on_offer_and_a_stranger_by_a_number_of_its_own():
    seeds = [slot(index, SeedStage.TRAINING) for index in range(3)]
    names = ("norm", "conv_light", "from another run")
    planted = [replace(seed, blueprint_id=name) for seed, name in zip(seeds, names, strict=True)]

    _, _, blueprints = encode([host(*planted), host(slot(0), slot(1), planted[2])], SPACE)

    assert blueprints.tolist() == [[FIRST_BLUEPRINT + 1, FIRST_BLUEPRINT, 1], [0, 0, 1]]


def test_rules_are_shown_reports_and_networks_the_tensors_as_well():
    reports = some_hosts()

    for_rules, for_networks = observe(reports), observe(reports, SPACE)

    assert (for_rules.reports, for_rules.base, for_rules.slots, for_rules.blueprints) == (reports, None, None, None)
    assert for_networks.reports is reports
    read = (for_networks.base, for_networks.slots, for_networks.blueprints)
    assert all(torch.equal(got, want) for got, want in zip(read, encode(reports, SPACE), strict=True))


def test_twelve_hosts_of_five_slots_are_encoded_in_two_milliseconds():
    seeds = [slot(0), held(1, 1.0), ladder(2, 1.0), held(3, 2.0), ladder(4, 1.0)]
    reports, offered = [host(*seeds, val_loss=1.0, val_metric=50.0)] * 12, space(5)

    def cpu_seconds() -> float:
        start = time.process_time()
        encode(reports, offered)
        return time.process_time() - start

    assert min(cpu_seconds() for _ in range(100)) <= 2e-3
