"""Gates ask every question, pass at the limit, and never take what was not measured for a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.kasmina.gates import PERMISSIVE, STRICT, Check, GateResult, GatesConfig, evaluate
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.reports import AlphaMode, Contribution, Rules, SeedStateReport
from esper.leyline.stages import TRANSITIONS, SeedStage

RULES = Rules(max_seeds=1, min_training=3, min_holding=2)
STRICT_CONFIG = GatesConfig("strict", min_grad_ratio=0.1, min_improvement=0.5, min_contribution=1.0)
FIT = SeedStateReport(
    "r0c0",
    ("r0c0",),
    8,
    "NCHW",
    InjectionSurface.BLOCK_END,
    0,
    SeedStage.GERMINATED,
    seed_id="r0c0.1",
    epochs_in_stage=3,
    alpha_target=1.0,
    internal_level=1,
    seed_grad_norm=0.5,
    grad_ratio=0.1,
    contribution=Contribution(1.0, 0.1, 0.0, 0.0, 4),
    metric_at_stage_start=50.0,
    metric_now=50.5,
)
FAILURES: dict[str, dict[str, object]] = {
    "G0": {"seed present": {"seed_id": None}},
    "G1": {"germinated": {"stage": SeedStage.TRAINING}},
    "G2": {
        "epochs in TRAINING": {"epochs_in_stage": 2},
        "internal level": {"internal_level": 0},
        "finite gradient": {"broken": True},
        "gradient ratio": {"grad_ratio": 0.0999},
        "improvement in stage": {"metric_now": 50.49},
    },
    "G3": {
        "alpha target": {"alpha_target": 0.99},
        "blending finished": {"alpha_mode": AlphaMode.UP},
    },
    "G5": {
        "epochs in HOLDING": {"epochs_in_stage": 1},
        "internal level": {"internal_level": 0},
        "finite gradient": {"broken": True},
        "contribution": {"contribution": Contribution(0.99, 0.1, 0.0, 0.0, 4)},
    },
}
CASES = [(gate, question) for gate, questions in FAILURES.items() for question in questions]


def test_every_gate_of_the_table_of_transitions_has_a_row_in_both_sets():
    named = {edge.gate for edge in TRANSITIONS if edge.gate is not None}

    assert named == set(PERMISSIVE) == set(STRICT)
    assert all(set(PERMISSIVE[gate]) <= set(STRICT[gate]) for gate in named)


@pytest.mark.parametrize("gate", STRICT)
def test_a_seed_exactly_at_every_limit_passes(gate: str):
    result = evaluate(gate, FIT, RULES, STRICT_CONFIG)

    assert result.passed
    assert result.why == ""


@pytest.mark.parametrize(("gate", "question"), CASES)
def test_a_seed_below_one_limit_fails_on_that_question_alone(gate: str, question: str):
    result = evaluate(gate, replace(FIT, **FAILURES[gate][question]), RULES, STRICT_CONFIG)

    failed = [check.name for check in result.checks if not check.passed]
    assert failed == [question]
    assert question in result.why


def test_together_these_cases_cover_every_question_but_the_measurement_of_a_contribution():
    asked = {(gate, check.name) for gate in STRICT for check in evaluate(gate, FIT, RULES, STRICT_CONFIG).checks}

    assert asked == set(CASES)


@pytest.mark.parametrize(
    ("gate", "missing", "question"),
    [
        ("G2", {"seed_grad_norm": None}, "finite gradient"),
        ("G2", {"grad_ratio": None}, "gradient ratio"),
        ("G2", {"metric_now": None}, "improvement in stage"),
        ("G2", {"metric_at_stage_start": None}, "improvement in stage"),
        ("G5", {"contribution": None}, "contribution"),
    ],
)
def test_what_was_never_measured_fails_and_says_so(gate: str, missing: dict[str, None], question: str):
    result = evaluate(gate, replace(FIT, **missing), RULES, STRICT_CONFIG)

    assert not result.passed
    assert f"{question} was never measured" in result.why


@pytest.mark.parametrize(
    "weak",
    [{"grad_ratio": 0.0}, {"grad_ratio": None}, {"metric_now": 0.0}, {"metric_now": None}],
)
def test_the_permissive_set_does_not_ask_how_much_a_training_seed_helps(weak: dict[str, float | None]):
    assert evaluate("G2", replace(FIT, **weak), RULES, GatesConfig()).passed


@pytest.mark.parametrize(("norm", "passes"), [(0.5, True), (0.0, False)])
def test_beside_a_frozen_host_any_gradient_reaches_the_seed(norm: float, passes: bool):
    alone = replace(FIT, grad_ratio=None, host_grad_norm=0.0, seed_grad_norm=norm)

    assert evaluate("G2", alone, RULES, STRICT_CONFIG).passed == passes


def test_the_permissive_set_keeps_a_harmful_seed_if_it_was_measured():
    harmful = replace(FIT, contribution=Contribution(-5.0, 0.1, 0.0, 0.0, 4))

    assert evaluate("G5", harmful, RULES, GatesConfig()).passed
    assert not evaluate("G5", harmful, RULES, STRICT_CONFIG).passed


def test_reasons_are_joined_in_one_line():
    result = GateResult("G2", (Check("a", 0.5, 1.0, False), Check("b", 2.0, 1.0, True), Check("c", None, 1.0, False)))

    assert not result.passed
    assert result.why == "a is 0.5, wants 1; c was never measured"


def test_a_negative_limit_for_a_ratio_is_refused():
    with pytest.raises(ConfigError, match="min_grad_ratio"):
        GatesConfig(min_grad_ratio=-0.1)
