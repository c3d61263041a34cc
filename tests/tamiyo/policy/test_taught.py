"""A policy with a teacher: who decides in which round, and what the policy remembers of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from tests.tamiyo.small import host, slot, space

from esper.leyline.decisions import Choice, Sight
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.controller import Memory, Rule, forget
from esper.tamiyo.policy.action_masks import LegalActions, possible
from esper.tamiyo.policy.features import observe
from esper.tamiyo.policy.learned import new_policy
from esper.tamiyo.policy.taught import Taught

SPACE = space(2)
ENVS = 3


def decide(report: HostReport, legal: LegalActions, seen: int) -> tuple[FactoredAction, int]:
    """Plants what it has counted to; waits where it may not."""
    planting = SPACE.action("GERMINATE", slot="r0c1", blueprint=SPACE.blueprints[seen % len(SPACE.blueprints)])
    return (planting if legal.allows(planting) else SPACE.action("WAIT")), seen + 1


def reports(epoch: int, round_: int) -> list[HostReport]:
    return [
        replace(host(slot(0), slot(1), env=env, val_loss=1.0 + env + epoch, epoch=epoch), round=round_)
        for env in range(ENVS)
    ]


@dataclass
class Lived:
    choices: list[Choice] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    memory: Memory = None


def live(controller: Taught, round_: int, steps: int = 4, ended_at: int | None = None) -> Lived:
    lived = Lived(memory=controller.blank_memory(ENVS))
    for epoch in range(steps):
        seen = reports(epoch, round_)
        lived.sights.append(observe(seen, controller.reads))
        choice, lived.memory = controller.act(lived.sights[-1], possible(seen, SPACE), lived.memory)
        lived.choices.append(choice)
        lived.memory = forget(controller, lived.memory, [epoch == ended_at, False, False])
    return lived


def make(rounds: int = 2) -> Taught:
    policy = new_policy(SPACE, NetworkConfig(size=16, slot_size=8), seed=0)
    return Taught(policy, Rule(decide, blank=0), rounds)


def test_the_teacher_decides_in_its_rounds_and_the_policy_afterwards() -> None:
    taught = make(rounds=2)

    for round_ in (0, 1):
        for step, choice in enumerate(live(taught, round_).choices):
            assert [action.as_names()["op"] for action in choice.actions] == ["GERMINATE"] * ENVS
            planted = SPACE.blueprints[step % len(SPACE.blueprints)]
            assert {action.as_names()["blueprint"] for action in choice.actions} == {planted}
    alone = taught.policy
    memory, later = alone.blank_memory(ENVS), live(taught, round_=2)
    for epoch, choice in enumerate(later.choices):
        seen = reports(epoch, 2)
        expected, memory = alone.act(observe(seen, SPACE), possible(seen, SPACE), memory)
        assert choice.actions == expected.actions
        assert torch.equal(choice.log_prob, expected.log_prob)


def test_the_policy_says_how_likely_it_finds_what_the_teacher_does_and_remembers_what_it_saw() -> None:
    taught = make()
    lived = live(taught, round_=0)

    for choice in lived.choices:
        assert choice.executed is not None
        assert [tuple(row) for row in choice.executed.tolist()] == [action.indices for action in choice.actions]
        assert (choice.log_prob < 0).all()
    own, counted = zip(*lived.memory, strict=True)
    assert counted == (4, 4, 4)
    memory = taught.policy.blank_memory(ENVS)
    for epoch in range(4):
        seen = reports(epoch, 0)
        _, memory = taught.policy.act(observe(seen, SPACE), possible(seen, SPACE), memory)
    assert all(torch.equal(one.hidden, other.hidden) for one, other in zip(own, memory, strict=True))


def test_both_forget_where_a_sequence_has_ended() -> None:
    lived = live(make(), round_=0, steps=2, ended_at=1)

    (blank, counted), (kept, counted_on), _ = lived.memory
    assert (counted, counted_on) == (0, 2)
    assert not blank.hidden.any()
    assert kept.hidden.any()
