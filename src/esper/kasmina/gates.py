"""Quality gates: small pure functions of a report that say whether a seed may go on, in a permissive and a strict set.

To add a check write a function here and put it into the rows of the gates that should ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from esper.leyline.config import check_ranges, setting
from esper.leyline.reports import AlphaMode, Rules, SeedStateReport
from esper.leyline.stages import GateName, SeedStage

LIMITS = ("min_improvement", "min_contribution")
"""The settings that are in the metric's unit; their defaults are in points of accuracy."""


@dataclass(frozen=True)
class GatesConfig:
    """Which set of gates is asked, and their limits."""

    mode: Literal["permissive", "strict"] = setting("permissive", help="which set of checks is asked")
    min_grad_ratio: float = setting(0.02, low=0.0, help="strict G2: seed over host gradient per parameter")
    min_improvement: float = setting(0.5, help="strict G2: metric gained while TRAINING, in its unit")
    min_contribution: float = setting(1.0, help="strict G5: measured contribution, in the metric's unit")

    def __post_init__(self) -> None:
        check_ranges(self)

    def counted_in(self, point: float) -> GatesConfig:
        """The same limits in a unit of which `point` counts like a point of accuracy (`Metric.point`)."""
        return replace(self, **{name: point * vars(self)[name] for name in LIMITS})


@dataclass(frozen=True)
class Check:
    """One question a gate asked. value None: never measured, which fails."""

    name: str
    value: float | None
    limit: float | None
    passed: bool


@dataclass(frozen=True)
class GateResult:
    gate: GateName
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def why(self) -> str:
        """The checks that failed, in words; empty when the gate is passed."""
        return "; ".join(
            f"{check.name} was never measured"
            if check.value is None
            else f"{check.name} is {check.value:g}, wants {check.limit:g}"
            for check in self.checks
            if not check.passed
        )


Question = Callable[[SeedStateReport, Rules, GatesConfig], Check]


def _at_least(name: str, value: float | None, limit: float) -> Check:
    return Check(name, value, limit, value is not None and value >= limit)


def _has_seed(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    return _at_least("seed present", float(report.seed_id is not None), 1.0)


def _is_germinated(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    return _at_least("germinated", float(report.stage is SeedStage.GERMINATED), 1.0)


def _trained_long_enough(report: SeedStateReport, rules: Rules, _config: GatesConfig) -> Check:
    return _at_least("epochs in TRAINING", float(report.epochs_in_stage), float(rules.min_training))


def _held_long_enough(report: SeedStateReport, rules: Rules, _config: GatesConfig) -> Check:
    return _at_least("epochs in HOLDING", float(report.epochs_in_stage), float(rules.min_holding))


def _has_a_rung(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    """A seed at level 0 is the identity: blending or keeping it would only look like growth."""
    return _at_least("internal level", float(report.internal_level), 1.0)


def _is_sound(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    """A gradient was measured and every number in it was finite."""
    value = None if report.seed_grad_norm is None and not report.broken else float(not report.broken)
    return _at_least("finite gradient", value, 1.0)


def _gradient_reaches_it(report: SeedStateReport, _rules: Rules, config: GatesConfig) -> Check:
    """Beside a host that learns nothing, a frozen one, there is no ratio and any gradient is enough."""
    if report.grad_ratio is None and report.host_grad_norm == 0.0 and report.seed_grad_norm is not None:
        return Check("gradient", report.seed_grad_norm, 0.0, report.seed_grad_norm > 0.0)
    return _at_least("gradient ratio", report.grad_ratio, config.min_grad_ratio)


def _host_improves(report: SeedStateReport, _rules: Rules, config: GatesConfig) -> Check:
    return _at_least("improvement in stage", report.improvement_in_stage, config.min_improvement)


def _alpha_is_full(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    return _at_least("alpha target", report.alpha_target, 1.0)


def _alpha_rests(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    """Integration state, not the gated alpha: the schedule has arrived."""
    return _at_least("blending finished", float(report.alpha_mode is AlphaMode.HOLD), 1.0)


def _is_measured(report: SeedStateReport, _rules: Rules, _config: GatesConfig) -> Check:
    known = report.contribution is not None
    return Check("contribution", float(known) if known else None, None if known else 1.0, known)


def _contributes(report: SeedStateReport, _rules: Rules, config: GatesConfig) -> Check:
    value = report.contribution.metric if report.contribution is not None else None
    return _at_least("contribution", value, config.min_contribution)


PERMISSIVE: dict[GateName, tuple[Question, ...]] = {
    "G0": (_has_seed,),
    "G1": (_is_germinated,),
    "G2": (_trained_long_enough, _has_a_rung, _is_sound),
    "G3": (_alpha_is_full, _alpha_rests),
    "G5": (_held_long_enough, _has_a_rung, _is_measured, _is_sound),
}
STRICT: dict[GateName, tuple[Question, ...]] = {
    **PERMISSIVE,
    "G2": (*PERMISSIVE["G2"], _gradient_reaches_it, _host_improves),
    "G5": (*PERMISSIVE["G5"], _contributes),
}
GATE_SETS = {"permissive": PERMISSIVE, "strict": STRICT}


def evaluate(gate: GateName, report: SeedStateReport, rules: Rules, config: GatesConfig) -> GateResult:
    """Asks every question of the gate, also after one has failed, so that the event tells all."""
    questions = GATE_SETS[config.mode][gate]
    return GateResult(gate, tuple(question(report, rules, config) for question in questions))
