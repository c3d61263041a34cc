"""The governor: takes back hosts whose vital signs fail. Read `Governor.review` first.

Four layers, each with its own page: a step whose loss or gradient is not finite is never taken (`step_gate.py`); a loss
that leaves its own past is an alarm (`detector.py`); a host whose structure has just changed is on probation, and the
seed that changed goes first; operations on a suspicious host are refused (`environment.py`). A host goes back to a
snapshot that proved good (`snapshots.py`), with its optimiser. Every verdict is an event with its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.leyline.decisions import Verdict
from esper.leyline.reports import HostReport
from esper.leyline.stages import LIVE
from esper.leyline.telemetry import (
    GovernorRollbackPayload,
    GovernorStepsSkippedPayload,
    GovernorSuspectedPayload,
    Payload,
)
from esper.tolaria.config import GovernorConfig
from esper.tolaria.detector import Evidence
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.snapshots import Ring


@dataclass
class Watch:
    """What the governor remembers of one environment."""

    ring: Ring
    suspected: bool = False  # after the last epoch
    taken_back: int | None = None  # optimiser steps at the last rollback


@dataclass
class Governor:
    """Reviews every environment after every epoch."""

    config: GovernorConfig
    watches: dict[int, Watch] = field(default_factory=dict)

    def begin(self, engine: Engine) -> None:
        """New episodes: the untrained hosts are the first good snapshots."""
        for environment in engine.environments:
            self.watches[environment.env] = Watch(Ring.around(environment))

    def review(self, engine: Engine, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        """A verdict on every environment, and the reports once the verdicts have been carried out."""
        verdicts = [self._judge(environment) for environment in engine.environments]
        settled = engine.reports() if any(verdict.events for verdict in verdicts) else after
        return verdicts, list(settled)

    def _judge(self, environment: Environment) -> Verdict:
        if environment.finished:
            return Verdict(healthy=True, ended=True)
        watch = self.watches[environment.env]
        told = self._skipped(environment)
        evidence = _illness(environment)
        if evidence is not None:
            return self._take_back(environment, watch, evidence, told)
        told += self._suspected(environment, watch) + self._broken_seeds(environment)
        watch.ring.remember(environment)
        return Verdict(healthy=True, events=told)

    def _skipped(self, environment: Environment) -> tuple[Payload, ...]:
        if environment.skipped == 0 and not environment.seed_skips:
            return ()
        return (
            GovernorStepsSkippedPayload(
                env_id=environment.env,
                skipped=environment.skipped,
                seeds=tuple(environment.seed_skips.items()),
                steps=environment.vitals.steps,
            ),
        )

    def _suspected(self, environment: Environment, watch: Watch) -> tuple[Payload, ...]:
        """Told once, when it begins."""
        vitals, before = environment.vitals, watch.suspected
        watch.suspected = vitals.suspicious
        if before or not watch.suspected:
            return ()
        told = GovernorSuspectedPayload(
            env_id=environment.env, far_off=sum(vitals.hits), failing=vitals.failing, steps=vitals.steps
        )
        return (told,)

    def _broken_seeds(self, environment: Environment) -> tuple[Payload, ...]:
        """Seeds that have not learned for long, because their gradient is not finite, are removed; the host goes on."""
        lost = [slot_id for slot_id, bad in environment.seed_streaks.items() if bad >= self.config.seed_patience]
        live = [slot_id for slot_id in lost if environment.model.slots[slot_id].stage in LIVE]
        return tuple(event for slot_id in live for event in environment.uproot(slot_id))

    def _take_back(
        self, environment: Environment, watch: Watch, evidence: Evidence, told: tuple[Payload, ...]
    ) -> Verdict:
        """Restores first, tells after. A seed on probation goes alone, once; soon after that the whole host goes."""
        now = environment.vitals.steps
        again = watch.taken_back is not None and now - watch.taken_back < self.config.escalation_steps
        culprit = None if again else _culprit(environment)
        changed = None if culprit is None else environment.mutated[culprit]
        snapshot = watch.ring.go_back(again, changed)
        pruned = environment.restore(snapshot, None if culprit is None else {culprit})
        watch.taken_back, watch.suspected = now, False
        environment.finished = environment.rollbacks >= self.config.max_rollbacks
        rollback = GovernorRollbackPayload(
            env_id=environment.env,
            reason=evidence.reason,
            detector=evidence.detector,
            loss=evidence.loss,
            limit=evidence.limit,
            baseline=evidence.baseline,
            z_loss=evidence.z_loss,
            z_grad=evidence.z_grad,
            steps=now,
            culprit=culprit,
            restored_epoch=snapshot.epoch,
            restored_steps=snapshot.steps,
            rollbacks=environment.rollbacks,
        )
        return Verdict(
            healthy=False,
            reason=evidence.reason,
            restored_epoch=snapshot.epoch,
            ended=environment.finished,
            events=(*told, rollback, *pruned),
        )


def _illness(environment: Environment) -> Evidence | None:
    """Why the host is ill, if it is."""
    if environment.vitals.alarm is not None:
        return environment.vitals.alarm
    found = environment.measurement
    if found is not None and not math.isfinite(found.loss):
        return Evidence("validation", "the validation loss was not finite")
    return None


def _culprit(environment: Environment) -> str | None:
    """The slot that changed last of those on probation that hold a live seed."""
    live = {slot_id for slot_id, slot in environment.model.slots.items() if slot.stage in LIVE}
    return max(
        live & environment.mutated.keys(), key=lambda slot_id: (environment.mutated[slot_id], slot_id), default=None
    )
