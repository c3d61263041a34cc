"""Every sensor stays within its range whatever a report says, and widths are what the lists and `encode` agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tamiyo.small import brings, held, host, ladder, slot

import esper.leyline
from esper.leyline.factored_actions import OPS, STYLES, LifecycleOp
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.reports import AlphaMode, Contribution, HostReport, Rules, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS, symlog
from esper.leyline.stages import SeedStage

COUNT = st.integers(0, 2**62)
FEW = st.integers(0, 200)
MEASURED = st.floats()  # NaN, infinities and 1e308 among them
MAYBE = st.none() | MEASURED
BLENDS = sorted({style.blend for style in STYLES.values()})


@st.composite
def contributions(draw: st.DrawFn, epoch: int) -> Contribution | None:
    if draw(st.booleans()):
        return None
    return Contribution(draw(MEASURED), draw(MEASURED), draw(MEASURED), draw(MEASURED), draw(st.integers(0, epoch)))


@st.composite
def slots(draw: st.DrawFn, index: int, epoch: int) -> SeedStateReport:
    """What is counted or set is sound; what is measured may be anything."""
    top = draw(st.integers(1, 64))
    params = draw(COUNT)
    return replace(
        slot(index),
        dim=draw(st.integers(1, 2**16)),
        surface=draw(st.sampled_from(InjectionSurface)),
        stage=draw(st.sampled_from(SeedStage)),
        blend=draw(st.none() | st.sampled_from(BLENDS)),
        age=draw(FEW),
        epochs_in_stage=draw(FEW),
        embargo_left=draw(FEW),
        alpha=draw(MEASURED),
        alpha_target=draw(st.floats(0, 1)),
        alpha_mode=draw(st.sampled_from(AlphaMode)),
        alpha_steps_done=draw(FEW),
        alpha_steps_total=draw(FEW),
        params=params,
        internal_kind=draw(st.sampled_from(SeedInternalKind)),
        internal_level=draw(st.integers(0, top)),
        internal_max_level=top,
        internal_effective_params=draw(st.integers(0, params)),
        contribution=draw(contributions(epoch)),
        level_effect=draw(contributions(epoch)),
        grad_ratio=draw(st.none() | st.floats(min_value=0) | st.just(math.nan)),
        metric_at_stage_start=draw(MAYBE),
        metric_now=draw(MAYBE),
        broken=draw(st.booleans()),
    )


@st.composite
def hosts(draw: st.DrawFn) -> HostReport:
    length = draw(st.integers(1, 1000))
    epoch = draw(st.integers(0, length))
    size = draw(COUNT)
    return HostReport(
        env=0,
        epoch=epoch,
        episode_length=length,
        rules=Rules(draw(st.integers(1, 9))),
        slots=tuple(draw(slots(index, epoch)) for index in range(draw(st.integers(1, 2)))),
        host_params=size,
        total_params=size + draw(COUNT),
        effective_params=size + draw(COUNT),
        metric_sign=draw(st.sampled_from([-1.0, 1.0])),
        metric_point=draw(st.sampled_from([1.0, 0.02])),
        train_loss=draw(MAYBE),
        val_loss=draw(MAYBE),
        val_metric=draw(MAYBE),
        previous_metric=draw(MAYBE),
        train_items=draw(COUNT),
        rollbacks=draw(FEW),
        last_op=draw(st.sampled_from(LifecycleOp)),
        last_action_success=draw(st.booleans()),
    )


def of_host(name: str) -> Callable[[HostReport], float]:
    return next(sensor.read for sensor in HOST_SENSORS if sensor.name == name)


def of_slot(name: str) -> Callable[[SeedStateReport, HostReport], float]:
    return next(sensor.read for sensor in SLOT_SENSORS if sensor.name == name)


@given(hosts())
def test_every_sensor_stays_within_its_range_whatever_was_measured(report: HostReport):
    read = [(sensor, sensor.read(report)) for sensor in HOST_SENSORS]
    read += [(sensor, sensor.read(each, report)) for sensor in SLOT_SENSORS for each in report.slots]

    assert not [(sensor.name, value) for sensor, value in read if not sensor.low <= value <= sensor.high]
    assert not [(sensor.name, value) for sensor, value in read if sensor.kind == "flag" and value not in (0, 1)]


@given(hosts())
def test_a_choice_among_named_things_is_shown_by_one_flag(report: HostReport):
    assert sum(sensor.read(report) for sensor in HOST_SENSORS if sensor.name.startswith("last_op_is_")) == 1
    for each in report.slots:
        for group in ("stage_is_", "alpha_mode_is_", "internal_kind_is_"):
            assert sum(s.read(each, report) for s in SLOT_SENSORS if s.name.startswith(group)) == 1, group
        blends = sum(sensor.read(each, report) for sensor in SLOT_SENSORS if sensor.name.startswith("blend_is_"))
        assert blends == (each.blend is not None)


def test_names_are_unique_and_ranges_are_not_empty():
    sensors = (*HOST_SENSORS, *SLOT_SENSORS)

    assert len({sensor.name for sensor in sensors}) == len(sensors)
    assert all(sensor.low < sensor.high for sensor in sensors)
    assert all((sensor.low, sensor.high) == (0, 1) for sensor in sensors if sensor.kind == "flag")


def test_the_widths_that_the_package_exports_are_the_lengths_of_the_lists():
    assert len(HOST_SENSORS) == esper.leyline.OBS_V3_BASE_FEATURE_SIZE
    assert len(SLOT_SENSORS) == esper.leyline.OBS_V3_SLOT_FEATURE_SIZE
    assert len(OPS) == esper.leyline.NUM_OPS


@pytest.mark.parametrize(("level", "top"), [(0, 1), (1, 1), (0, 4), (3, 4), (4, 4)])
def test_the_level_is_shown_as_a_share_of_the_highest(level: int, top: int):
    seed = ladder(internal_level=level, internal_max_level=top)

    assert of_slot("internal_level_norm")(seed, host(seed)) == level / top


@pytest.mark.parametrize("success", [True, False])
def test_whether_the_last_action_was_refused_is_a_sensor(success: bool):
    assert of_host("last_action_success")(host(slot(0), last_action_success=success)) == success


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_or_is_not_finite_reads_as_nothing_and_its_flag_says_so(value: float | None):
    seed = held(grad_ratio=value)
    report = host(seed, val_metric=value, train_loss=value, val_loss=value, previous_metric=value)

    for name in ("val_metric", "train_loss", "val_loss", "metric_gain", "overfit", "val_known"):
        assert of_host(name)(report) == 0, name
    for name in ("grad_ratio", "gradient_known"):
        assert of_slot(name)(seed, report) == 0, name


def test_a_measured_zero_differs_from_nothing():
    seed = held(grad_ratio=0.0)
    report = host(seed, val_metric=0.0)

    assert (of_host("val_metric")(report), of_host("val_known")(report)) == (0, 1)
    assert (of_slot("grad_ratio")(seed, report), of_slot("gradient_known")(seed, report)) == (0, 1)


def test_evidence_is_in_tens_of_standard_errors_and_none_where_it_is_not_a_number():
    def evidence(found: Contribution | None) -> float:
        seed = replace(held(), contribution=found)
        return of_slot("contribution_evidence")(seed, host(seed))

    assert evidence(brings(3.0)) == pytest.approx(0.3)
    assert evidence(brings(-25.0)) == -1
    assert evidence(replace(brings(3.0), loss=math.nan)) == 0
    assert evidence(replace(brings(3.0), loss_sem=0.0)) == 0
    assert evidence(None) == 0


def test_a_contribution_is_fresh_in_the_epoch_of_its_measurement_and_fades_by_a_tenth():
    def freshness(measured: int) -> float:
        seed = replace(held(), contribution=replace(brings(1.0), epoch=measured))
        return of_slot("contribution_freshness")(seed, host(seed, left=90))  # at epoch 10

    assert [freshness(epoch) for epoch in (10, 9, 8)] == pytest.approx([1.0, 0.9, 0.81])
    assert of_slot("contribution_freshness")(held(worth=None), host(held())) == 0


def test_gains_count_as_good_whatever_the_direction_of_the_metric():
    seed = held(metric_now=50.0, metric_at_stage_start=46.0)
    report = host(seed, val_metric=50.0, previous_metric=47.0)
    other_way = replace(report, metric_sign=-1.0)

    assert of_host("metric_gain")(report) == pytest.approx(0.3)
    assert of_host("metric_gain")(other_way) == pytest.approx(-0.3)
    assert of_slot("improvement_in_stage")(seed, report) == pytest.approx(0.4)
    assert of_slot("improvement_in_stage")(seed, other_way) == pytest.approx(0.4)  # the slot was told what is good


@pytest.mark.parametrize(("unit", "gain"), [(1.0, 2.5), (0.02, 0.05)])
def test_ten_points_worth_of_the_metric_read_as_one_on_every_task(unit: float, gain: float):
    """Of accuracy 2.5 points are a quarter of ten; of language 0.05 bits are, at 0.02 for a point."""
    found, lost = (replace(brings(1.0), metric=metric) for metric in (gain, -gain))
    seed = replace(held(metric_now=gain, metric_at_stage_start=0.0), contribution=found, level_effect=lost)
    report = host(seed, val_metric=gain, previous_metric=0.0, metric_point=unit)

    assert of_host("metric_gain")(report) == pytest.approx(0.25)
    assert of_slot("improvement_in_stage")(seed, report) == pytest.approx(0.25)
    assert of_slot("contribution")(seed, report) == pytest.approx(0.25)
    assert of_slot("level_effect")(seed, report) == pytest.approx(-0.25)
    much = replace(seed, contribution=replace(brings(1.0), metric=100 * gain))
    assert of_slot("contribution")(much, host(much, metric_point=unit)) == 1


def test_budget_sizes_and_places_by_hand():
    seeds = (held(0, params=300, internal_effective_params=100), slot(1), slot(2))
    report = host(*seeds, left=75, effective_params=400, rules=Rules(max_seeds=4))

    assert of_host("time_norm")(report) == 0.25
    assert of_host("doublings")(report) == 2  # 100 -> 400 parameters
    assert of_host("seeds_left")(report) == 0.75
    assert of_host("slots_in_use")(report) == pytest.approx(1 / 3)
    assert of_slot("seed_size")(seeds[0], report) == 0.25  # log2(1 + 3) / 8
    assert of_slot("seed_size_active")(seeds[0], report) == 0.125
    assert [of_slot("slot_order_norm")(each, report) for each in seeds] == [0, 0.5, 1]
    assert of_slot("slot_order_norm")(slot(0), host(slot(0))) == 0


@pytest.mark.parametrize(("value", "want"), [(0.0, 0.0), (math.e - 1, 1.0), (1 - math.e, -1.0), (1e308, 9.0)])
def test_symlog_is_a_signed_logarithm(value: float, want: float):
    assert symlog(value) == pytest.approx(want)
