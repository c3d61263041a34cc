"""What is packed is what is unpacked, through a file, to the last bit and whatever is not finite."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tests.tolaria.small import QUICK, engine_on, toy

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.reports import HostReport
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.rewards import StepScore
from esper.simic.training.keeping import Round
from esper.simic.training.packing import (
    packed_brief,
    packed_reports,
    packed_round,
    packed_steps,
    unpacked_reports,
    unpacked_round,
    unpacked_steps,
)
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tamiyo.policy.learned import new_policy
from esper.tolaria.engine import Engine


def played(steps: int = 4) -> tuple[Engine, Rollout]:
    """Some steps under an untrained policy; the second step's figures are not finite."""
    engine, rollout = engine_on(toy(), envs=2, length=steps, body=QUICK), Rollout()
    policy = new_policy(engine.space, NetworkConfig(size=8, slot_size=4, embedding=2), seed=1)
    reports, memory = engine.reports(), policy.blank_memory(2)
    for step in range(steps):
        sight, legal = observe(reports, engine.space), possible(reports, engine.space)
        choice, memory = policy.act(sight, legal, memory)
        engine.apply(choice.actions)
        engine.train_epoch()
        scores = [StepScore(0.1 + step, (("outcome", 0.3), ("rent", -0.2 + step))), StepScore(math.inf, ())]
        rollout.add(sight, legal, choice, scores, [False, step == 2])
        reports = engine.measure()
        if step == 0:
            reports = [replace(report, val_loss=math.nan, train_loss=-math.inf) for report in reports]
    return engine, rollout


def through_a_file(tmp_path: Path, packed: Any) -> Any:
    torch.save(packed, tmp_path / "packed.pt")
    return torch.load(tmp_path / "packed.pt")


def test_reports_come_back_field_by_field_with_their_types(tmp_path: Path) -> None:
    _, rollout = played()
    for step in rollout.steps:
        back = unpacked_reports(through_a_file(tmp_path, packed_reports(step.sight.reports)))

        for one, other in zip(back, step.sight.reports, strict=True):
            assert told(one) == told(other)


def told(report: HostReport) -> list[tuple[str, str, str]]:
    """Every field of a report and of its slots: name, type, value. An operation counts as its number."""
    found = []
    for owner in (replace(report, slots=(), last_op=int(report.last_op)), *report.slots):
        for each in fields(owner):
            value = getattr(owner, each.name)
            found.append((each.name, type(value).__name__, repr(value)))
    return found


def test_a_rollout_comes_back_with_what_was_seen_possible_chosen_and_earned(tmp_path: Path) -> None:
    engine, rollout = played()

    back = unpacked_steps(through_a_file(tmp_path, packed_steps(rollout.steps)), engine.space, engine.space)

    for one, other in zip(back, rollout.steps, strict=True):
        for name in ("base", "slots", "blueprints"):
            assert torch.equal(vars(one.sight)[name], vars(other.sight)[name]) or name == "base"
        assert torch.allclose(one.sight.base, other.sight.base, rtol=0.0, atol=0.0, equal_nan=True)
        assert (one.legal, one.scores, one.ended) == (other.legal, other.scores, other.ended)
        assert one.choice.actions == other.choice.actions
        for name in ("log_prob", "value", "executed"):
            assert torch.equal(vars(one.choice)[name], vars(other.choice)[name])


def test_of_a_round_that_is_over_decisions_returns_and_outcomes_come_back(tmp_path: Path) -> None:
    engine, rollout = played()
    whole = Round(engine.outcomes(), rollout)

    for pack in (packed_round, packed_brief):
        back = unpacked_round(through_a_file(tmp_path, pack(whole)), engine.space, engine.space)

        assert back.rollout.decisions() == rollout.decisions() == rollout.brief().decisions()
        assert back.rollout.returns() == rollout.returns() == rollout.brief().returns()
        assert [each.as_dict() for each in back.outcomes] == [each.as_dict() for each in whole.outcomes]
    assert any(line["op"] != LifecycleOp.WAIT.name for row in rollout.decisions() for line in row)
