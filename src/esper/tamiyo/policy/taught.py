"""A policy that is shown what to do: a rule decides in the first rounds, and the policy says what it thinks of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.leyline.decisions import Choice, Sight
from esper.leyline.factored_actions import ActionSpace
from esper.tamiyo.controller import Controller, Memory
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tamiyo.policy.learned import LearnedPolicy


@dataclass(frozen=True)
class Taught:
    """A controller whose memory is a pair per environment: the policy's and the rule's."""

    policy: LearnedPolicy
    rule: Controller
    rounds: int  # in which the rule decides

    @property
    def reads(self) -> ActionSpace:
        return self.policy.reads

    def blank_memory(self, envs: int) -> Memory:
        return tuple(zip(self.policy.blank_memory(envs), self.rule.blank_memory(envs), strict=True))

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        own, rules = zip(*memory, strict=True)
        if sight.reports[0].round >= self.rounds:
            choice, own = self.policy.act(sight, legal, own)
        else:
            shown, rules = self.rule.act(sight, legal, rules)
            choice, own = self.policy.follow(sight, legal, own, shown.actions)
        return choice, tuple(zip(own, rules, strict=True))

    def pack(self, memory: Memory) -> dict[str, Any]:
        own, rules = zip(*memory, strict=True)
        return {"policy": self.policy.pack(own), "rule": self.rule.pack(rules)}

    def unpack(self, packed: dict[str, Any]) -> Memory:
        own, rules = self.policy.unpack(packed["policy"]), self.rule.unpack(packed["rule"])
        return tuple(zip(own, rules, strict=True))
