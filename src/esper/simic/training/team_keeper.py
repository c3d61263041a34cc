"""One team between two steps: copied in memory, packed for a checkpoint, and taken up again in another process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from esper.leyline.factored_actions import ActionSpace
from esper.leyline.faults import fault
from esper.simic.agent.learner import Learner
from esper.simic.agent.rollout_buffer import Rollout, Step
from esper.simic.training.keeping import Moment, Round
from esper.simic.training.packing import (
    packed_brief,
    packed_reports,
    packed_round,
    packed_steps,
    unpacked_reports,
    unpacked_round,
    unpacked_steps,
)
from esper.simic.training.phases import Phases
from esper.tamiyo.controller import Controller, Memory
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tolaria.hosts import Hosts


@dataclass(frozen=True)
class Held:
    """One team at one moment. Nothing in it is ever written into."""

    hosts: dict[str, Any]
    learned: dict[str, Any]
    rounds: int  # that were over
    healthy: bool
    steps: tuple[Step, ...] = ()  # of the round that is being played; empty between two rounds
    memory: Memory = None
    reports: bytes = b""
    seconds: dict[str, float] | None = None  # of the round, by phase


class TeamKeeper:
    """A `Keeper` that can put its team away."""

    def __init__(
        self,
        hosts: Hosts,
        space: ActionSpace,
        controller: Controller,
        learner: Learner,
        policy: LearnedPolicy | None,
        boundary: Callable[[TeamKeeper], None],
    ) -> None:
        """policy: what is being learned. boundary: told of every moment at which the team could be put away."""
        self._hosts, self._space, self._controller = hosts, space, controller
        self._learner, self._policy, self._boundary = learner, policy, boundary
        self.played: list[Round] = []
        self.held: Held | None = None
        self._packed: list[dict[str, Any]] = []  # of all rounds but the last
        self._now: Moment | None = None  # in the middle of a round
        self._left_off: Moment | None = None
        self._learned = self._what_is_learned()

    # --- the main loop's side -----------------------------------------------------------------------------------

    def left_off(self) -> Moment | None:
        moment, self._left_off = self._left_off, None
        return moment

    def step(self, moment: Moment) -> None:
        fault("run.step")
        self._now = moment
        self._boundary(self)

    def round(self, played: Round) -> None:
        if self.played:
            last = self.played[-1]
            self._packed.append(packed_brief(last))
            self.played[-1] = Round(last.outcomes, last.rollout.brief())
        self.played.append(played)
        fault("run.round")
        self._learned, self._now = self._what_is_learned(), None
        self._boundary(self)

    # --- putting away -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Copies everything as it is now."""
        fault("run.hold")
        hosts, now = self._hosts.state(), self._now
        if now is None:
            self.held = Held(hosts, self._learned, len(self.played), healthy=True)
            return
        self.held = Held(
            hosts=hosts,
            learned=self._learned,
            rounds=len(self.played),
            healthy=not any(report.suspicious for report in now.reports),
            steps=tuple(now.rollout.steps),
            memory=now.memory,
            reports=packed_reports(now.reports),
            seconds=dict(now.spent.seconds),
        )

    def _what_is_learned(self) -> dict[str, Any]:
        network = None if self._policy is None else self._policy.network.state_dict()
        return copy.deepcopy({"network": network, "learner": self._learner.state_dict()})

    @property
    def between_rounds(self) -> bool:
        return self._now is None

    @property
    def place(self) -> tuple[int, int]:
        """Round and step with which a process goes on that loads what is held."""
        return (0, 0) if self.held is None else (self.held.rounds, len(self.held.steps))

    def packed(self) -> dict[str, Any]:
        """What is held, tensors and primitives; of a team that has not begun, that it has not."""
        held = self.held
        if held is None:
            return {"rounds": [], "hosts": None, "learned": self._learned, "now": None}
        # Interrupted between the end of a round and the copy that follows, this holds a round less than it knows.
        over = self.played[: held.rounds]
        last = [packed_brief(each) if held.steps else packed_round(each) for each in over[-1:]]
        rounds = [*self._packed[: max(0, held.rounds - 1)], *last]
        now = None
        if held.steps:
            memory, steps = self._controller.pack(held.memory), packed_steps(held.steps)
            now = {"steps": steps, "memory": memory, "reports": held.reports, "seconds": held.seconds}
        return {"rounds": rounds, "hosts": held.hosts, "learned": held.learned, "now": now}

    def load(self, packed: dict[str, Any]) -> None:
        """Takes the team up where `packed` left it."""
        reads = self._controller.reads
        self.played = [unpacked_round(each, self._space, reads) for each in packed["rounds"]]
        self._packed = packed["rounds"][:-1]
        learned = packed["learned"]
        if self._policy is not None:
            self._policy.network.load_state_dict(learned["network"])
        self._learner.load_state_dict(learned["learner"])
        self._learned = self._what_is_learned()
        if packed["hosts"] is None:
            return
        self._hosts.load(packed["hosts"])
        now = packed["now"]
        if now is not None:
            rollout = Rollout(unpacked_steps(now["steps"], self._space, reads))
            memory, reports = self._controller.unpack(now["memory"]), unpacked_reports(now["reports"])
            self._left_off = self._now = Moment(reports, memory, rollout, Phases(now["seconds"]))
        self.hold()
