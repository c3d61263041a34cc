"""A policy with a teacher: a rule decides in the first rounds, and the policy says what it thinks of that."""

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
    """A controller whose memory is a pair per environment: the policy's and the teacher's."""

    policy: LearnedPolicy
    teacher: Controller
    rounds: int  # in which the teacher decides

    @property
    def reads(self) -> ActionSpace:
        return self.policy.reads

    def blank_memory(self, envs: int) -> Memory:
        return tuple(zip(self.policy.blank_memory(envs), self.teacher.blank_memory(envs), strict=True))

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        own, teachers = zip(*memory, strict=True)
        if sight.reports[0].round >= self.rounds:
            choice, own = self.policy.act(sight, legal, own)
        else:
            shown, teachers = self.teacher.act(sight, legal, teachers)
            choice, own = self.policy.follow(sight, legal, own, shown.actions)
        return choice, tuple(zip(own, teachers, strict=True))

    def pack(self, memory: Memory) -> dict[str, Any]:
        own, teachers = zip(*memory, strict=True)
        return {"policy": self.policy.pack(own), "rule": self.teacher.pack(teachers)}

    def unpack(self, packed: dict[str, Any]) -> Memory:
        own, teachers = self.policy.unpack(packed["policy"]), self.teacher.unpack(packed["rule"])
        return tuple(zip(own, teachers, strict=True))
