"""What can be seen, observations V3: one line per sensor, host sensors first. Widths, names and statistics follow.

To add a sensor write a line in `HOST_SENSORS` or `SLOT_SENSORS`. A sensor reads reports and nothing else; what was
not measured reads as 0, with a flag beside it that says so where that could be mistaken. Flags (and one-hots, which
are flags) are 0 or 1 and are never normalised; the range of a number is a contract that tests hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from esper.leyline.factored_actions import STYLES, TEMPOS, LifecycleOp
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.reports import AlphaMode, Contribution, HostReport, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import TRANSITIONS, SeedStage

Kind = Literal["number", "flag"]

_LONGEST_TEMPO = max(TEMPOS.values())
_CONV_TAPS = 9  # of the 3x3 convolution that a slot's price is quoted for


@dataclass(frozen=True)
class HostSensor:
    """One column of `base`. `levers`: the operations or limits whose effect it lets a decider see."""

    name: str
    read: Callable[[HostReport], float]
    low: float
    high: float
    kind: Kind = "number"
    levers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlotSensor:
    """One column of `slots`; the host's report is at hand for what is relative to it."""

    name: str
    read: Callable[[SeedStateReport, HostReport], float]
    low: float
    high: float
    kind: Kind = "number"
    levers: tuple[str, ...] = ()


def symlog(value: float | None) -> float:
    """sign(v) log(1 + |v|), within [-9, 9]; 0 for what was not measured or is not finite."""
    if value is None or not math.isfinite(value):
        return 0.0
    return max(-9.0, min(9.0, math.copysign(math.log1p(abs(value)), value)))


def _known(value: float | None) -> float:
    return float(value is not None and math.isfinite(value))


def _unit(value: float) -> float:
    """Within [0, 1]; 0 for what is not finite, as a gate's mean is after its seed has broken."""
    return max(0.0, min(1.0, value)) if math.isfinite(value) else 0.0


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def _size(count: int) -> float:
    return math.log2(1 + count) / 32


def _overfit(host: HostReport) -> float:
    if host.train_loss is None or host.val_loss is None:
        return 0.0
    return symlog(host.val_loss - host.train_loss)


def _gain(host: HostReport) -> float:
    """What the metric gained since the epoch before."""
    if host.val_metric is None or host.previous_metric is None:
        return 0.0
    return _in_points(host.metric_sign * (host.val_metric - host.previous_metric), host)


def _in_points(gain: float | None, host: HostReport) -> float:
    """A difference of the metric, in tens of what counts like a point of accuracy."""
    return 0.0 if gain is None else _in_tens(gain / host.metric_point)


def _in_tens(count: float) -> float:
    return max(-1.0, min(1.0, count / 10)) if math.isfinite(count) else 0.0


def _of_op(op: LifecycleOp) -> HostSensor:
    return HostSensor(f"last_op_is_{op.name}", lambda host: float(host.last_op == op), 0, 1, "flag", (op.name,))


HOST_SENSORS: tuple[HostSensor, ...] = (
    HostSensor("time_norm", lambda host: host.epoch / host.episode_length, 0, 1),
    HostSensor("train_loss", lambda host: symlog(host.train_loss), -9, 9),
    HostSensor("val_loss", lambda host: symlog(host.val_loss), -9, 9),
    HostSensor("val_metric", lambda host: symlog(host.val_metric), -9, 9),
    HostSensor("val_known", lambda host: _known(host.val_metric), 0, 1, "flag"),
    HostSensor("metric_gain", _gain, -1, 1),
    HostSensor("overfit", _overfit, -9, 9),
    HostSensor("host_size", lambda host: _size(host.host_params), 0, 2),
    HostSensor("train_items", lambda host: _size(host.train_items), 0, 2),
    HostSensor(
        "doublings",
        lambda host: math.log2(max(1, host.effective_params) / max(1, host.host_params)),
        0,
        64,
        levers=("GERMINATE", "GROW_INTERNAL", "SHRINK_INTERNAL", "PRUNE"),
    ),
    HostSensor(
        "seeds_left", lambda host: 1 - _share(host.seeds_in_use, host.rules.max_seeds), 0, 1, levers=("max_seeds",)
    ),
    HostSensor("slots_in_use", lambda host: _share(host.seeds_in_use, len(host.slots)), 0, 1, levers=("GERMINATE",)),
    HostSensor("rollbacks", lambda host: min(1.0, host.rollbacks / 3), 0, 1),
    HostSensor("last_action_success", lambda host: float(host.last_action_success), 0, 1, "flag"),
    *(_of_op(op) for op in LifecycleOp),
)


def _of_stage(stage: SeedStage) -> SlotSensor:
    drivers = dict.fromkeys(driver for edge in TRANSITIONS if edge.new is stage for driver in edge.drivers)
    levers = tuple(driver for driver in drivers if driver != "time")
    return SlotSensor(f"stage_is_{stage.name}", lambda slot, _: float(slot.stage is stage), 0, 1, "flag", levers)


def _of_mode(mode: AlphaMode) -> SlotSensor:
    return SlotSensor(f"alpha_mode_is_{mode.name}", lambda slot, _: float(slot.alpha_mode is mode), 0, 1, "flag")


def _of_kind(kind: SeedInternalKind) -> SlotSensor:
    return SlotSensor(f"internal_kind_is_{kind.name}", lambda slot, _: float(slot.internal_kind == kind), 0, 1, "flag")


def _of_blend(blend: str) -> SlotSensor:
    return SlotSensor(f"blend_is_{blend}", lambda slot, _: float(slot.blend == blend), 0, 1, "flag", ("style",))


def _metric_of(found: Contribution | None) -> float | None:
    return None if found is None else found.metric


def _evidence(slot: SeedStateReport) -> float:
    """Standard errors by which the seed lowers the loss."""
    found = slot.contribution
    if found is None or not found.loss_sem > 0:
        return 0.0
    return _in_tens(found.loss / found.loss_sem)


def _freshness(slot: SeedStateReport, host: HostReport) -> float:
    return 0.0 if slot.contribution is None else 0.9 ** max(0, host.epoch - slot.contribution.epoch)


def _alpha_left(slot: SeedStateReport) -> float:
    return min(1.0, max(0, slot.alpha_steps_total - slot.alpha_steps_done) / _LONGEST_TEMPO)


def _size_over_host(params: int, host: HostReport) -> float:
    return math.log2(1 + params / max(1, host.host_params)) / 8


SLOT_SENSORS: tuple[SlotSensor, ...] = (
    *(_of_stage(stage) for stage in SeedStage),
    *(_of_mode(mode) for mode in AlphaMode),
    *(_of_kind(kind) for kind in SeedInternalKind),
    *(_of_blend(blend) for blend in dict.fromkeys(style.blend for style in STYLES.values())),
    SlotSensor(
        "alpha", lambda slot, _: _unit(slot.alpha), 0, 1, levers=("SET_ALPHA_TARGET", "alpha_speed", "alpha_curve")
    ),
    SlotSensor("alpha_target", lambda slot, _: slot.alpha_target, 0, 1, levers=("alpha_target",)),
    SlotSensor("alpha_time_left", lambda slot, _: _alpha_left(slot), 0, 1, levers=("tempo", "alpha_speed")),
    SlotSensor(
        "internal_level_norm",
        lambda slot, _: slot.internal_level / slot.internal_max_level,
        0,
        1,
        levers=("GROW_INTERNAL", "SHRINK_INTERNAL"),
    ),
    SlotSensor("contribution", lambda slot, host: _in_points(_metric_of(slot.contribution), host), -1, 1),
    SlotSensor("contribution_evidence", lambda slot, _: _evidence(slot), -1, 1),
    SlotSensor("contribution_freshness", _freshness, 0, 1),
    SlotSensor("level_effect", lambda slot, host: _in_points(_metric_of(slot.level_effect), host), -1, 1),
    SlotSensor("improvement_in_stage", lambda slot, host: _in_points(slot.improvement_in_stage, host), -1, 1),
    SlotSensor("grad_ratio", lambda slot, _: symlog(slot.grad_ratio), 0, 9),
    SlotSensor("gradient_known", lambda slot, _: _known(slot.grad_ratio), 0, 1, "flag"),
    SlotSensor("broken", lambda slot, _: float(slot.broken), 0, 1, "flag"),
    SlotSensor("age", lambda slot, host: _share(slot.age, host.episode_length), 0, 1),
    SlotSensor("time_in_stage", lambda slot, host: _share(slot.epochs_in_stage, host.episode_length), 0, 1),
    SlotSensor("rest_left", lambda slot, host: _share(slot.embargo_left, host.episode_length), 0, 1),
    SlotSensor("seed_size", lambda slot, host: _size_over_host(slot.params, host), 0, 16, levers=("blueprint",)),
    SlotSensor(
        "seed_size_active",
        lambda slot, host: _size_over_host(slot.internal_effective_params, host),
        0,
        16,
        levers=("GROW_INTERNAL", "SHRINK_INTERNAL"),
    ),
    SlotSensor("slot_width", lambda slot, _: math.log2(1 + slot.dim) / 16, 0, 4),
    SlotSensor("slot_price", lambda slot, host: _size_over_host(_CONV_TAPS * slot.dim**2, host), 0, 16),
    SlotSensor("slot_order_norm", lambda slot, host: _order(slot, host), 0, 1, levers=("slot",)),
    SlotSensor("slot_surface_norm", lambda slot, _: slot.surface / (len(InjectionSurface) - 1), 0, 1, levers=("slot",)),
)


def _order(slot: SeedStateReport, host: HostReport) -> float:
    last = max(other.order for other in host.slots)
    return slot.order / last if last > 0 else 0.0


OBS_V3_BASE_FEATURE_SIZE = len(HOST_SENSORS)
OBS_V3_SLOT_FEATURE_SIZE = len(SLOT_SENSORS)
NUM_OPS = len(LifecycleOp)
