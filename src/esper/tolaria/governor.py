"""The governor: takes back hosts whose vital signs fail.

A host is ill when a loss is not finite, or when its training loss leaves its own recent past by a factor and is also
worse than where it began; there is no constant of any task in that. Snapshots become good only after the epoch that
followed them was healthy too, so that a slow explosion is not restored into.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.leyline.decisions import Verdict
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import GovernorRollbackPayload
from esper.tolaria.config import GovernorConfig
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment, Snapshot


@dataclass
class Watch:
    """What the governor remembers of one environment."""

    past: deque[float]  # training losses of healthy epochs
    first: float | None = None
    good: Snapshot | None = None
    candidate: Snapshot | None = None


@dataclass
class Governor:
    """Reviews every environment after every epoch."""

    config: GovernorConfig
    watches: dict[int, Watch] = field(default_factory=dict)

    def begin(self, engine: Engine) -> None:
        """New episodes: the untrained hosts are the first good snapshots."""
        for environment in engine.environments:
            past: deque[float] = deque(maxlen=self.config.window)
            self.watches[environment.env] = Watch(past, good=environment.snapshot())

    def review(self, engine: Engine, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        """A verdict on every environment, and the reports once the verdicts have been carried out."""
        verdicts = [self._judge(environment) for environment in engine.environments]
        settled = after if all(verdict.healthy for verdict in verdicts) else engine.reports()
        return verdicts, list(settled)

    def _judge(self, environment: Environment) -> Verdict:
        if environment.finished:
            return Verdict(healthy=True, ended=True)
        watch = self.watches[environment.env]
        illness = self._illness(environment, watch)
        if illness is None:
            self._remember(environment, watch)
            return Verdict(healthy=True)
        return self._take_back(environment, watch, illness)

    def _illness(self, environment: Environment, watch: Watch) -> tuple[str, float | None] | None:
        """Why the host is ill, and the limit that was crossed."""
        if not environment.finite:
            return "the training loss was not finite", None
        measurement = environment.measurement
        if measurement is not None and not math.isfinite(measurement.loss):
            return "the validation loss was not finite", None
        loss = environment.train_loss
        if loss is None or watch.first is None or len(watch.past) < 2:
            return None
        limit = max(self.config.panic_ratio * statistics.median(watch.past), self.config.panic_ratio**0.5 * watch.first)
        return ("the training loss diverged", limit) if loss > limit else None

    def _remember(self, environment: Environment, watch: Watch) -> None:
        loss = environment.train_loss
        if loss is not None:
            watch.first = loss if watch.first is None else watch.first
            watch.past.append(loss)
        if watch.candidate is not None:
            watch.good, watch.candidate = watch.candidate, None
        if environment.epoch % self.config.snapshot_epochs == 0:
            watch.candidate = environment.snapshot()

    def _take_back(self, environment: Environment, watch: Watch, illness: tuple[str, float | None]) -> Verdict:
        assert watch.good is not None
        reason, limit = illness
        watch.candidate = None
        pruned = environment.restore(watch.good)
        environment.finished = environment.rollbacks >= self.config.max_rollbacks
        told = GovernorRollbackPayload(
            env_id=environment.env,
            reason=reason,
            loss=environment.train_loss,
            limit=limit,
            restored_epoch=watch.good.epoch,
            rollbacks=environment.rollbacks,
        )
        return Verdict(
            healthy=False,
            reason=reason,
            restored_epoch=watch.good.epoch,
            ended=environment.finished,
            events=(told, *pruned),
        )
