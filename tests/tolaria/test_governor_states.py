"""The governor under any order of steps, faults, operations, rollbacks and restarts. Read the invariants first."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.tolaria.small import at_random, engine_on, live, toy, waiting
from torch import Tensor

from esper.leyline.telemetry import GovernorRollbackPayload
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.rewards import ModeReward
from esper.tolaria.config import GovernorConfig
from esper.tolaria.digest import digest_of_state
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts

CONFIG = GovernorConfig(
    window=16, warmup=4, snapshot_steps=4, bless_steps=8, cool_down_steps=4, escalation_steps=12, max_rollbacks=1000
)
"""Everything within reach of a few epochs of four steps."""
PENALTY = RewardConfig().rollback


class Watched(RuleBasedStateMachine):
    """Two hosts, of which one meets faults; its twin must never notice, and what holds at any time holds here."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine_on(toy(), envs=2, length=1000, governor=CONFIG)
        self.governor = Governor(CONFIG)
        self.governor.begin(self.engine)
        self.twin = engine_on(toy(), envs=2, length=1000, governor=CONFIG)
        self.lot = 0
        self.taken: dict[int, str] = {0: self._state()}  # what the host was after so many steps, by digest
        self.mistrusted: set[int] = set()  # steps after which the host was suspicious

    # --- what may happen --------------------------------------------------------------------------------------------

    @rule(epochs=st.integers(1, 4))
    def step(self, epochs: int) -> None:
        for _ in range(epochs):
            self._live(waiting)

    @rule(epochs=st.integers(1, 3))
    def mutate(self, epochs: int) -> None:
        """Decisions by lot, the twin's among them."""
        for _ in range(epochs):
            self.lot += 1
            self._live(at_random(self.lot))

    @rule()
    def nan(self) -> None:
        """A weight is spoilt, so that no step can be taken any more."""
        with torch.no_grad():
            next(self.environment.model.parameters()).view(-1)[0] = torch.nan

    @rule(last=st.integers(1, 4))
    def spike(self, last: int) -> None:
        """The losses of an epoch's last steps read a thousand times what they are; all four are an alarm."""
        task, steps = self.environment.task, count(1)

        def spiking(outputs: Tensor, targets: Tensor) -> Tensor:
            losses = task.loss(outputs, targets)
            high = outputs.requires_grad and next(steps) > task.steps_per_epoch - last
            return losses + 1e3 * losses.detach() if high else losses

        self.environment.task = replace(task, loss=spiking)
        self._live(waiting)
        self.environment.task = task

    @rule()
    def restart(self) -> None:
        """Another process takes over from a file."""
        file = io.BytesIO()
        torch.save(LocalHosts(self.engine, self.governor).state(), file)
        file.seek(0)
        self.engine, self.governor = Engine(self.engine.setup), Governor(CONFIG)
        LocalHosts(self.engine, self.governor).load(torch.load(file))

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def there_is_always_a_good_snapshot_that_is_as_it_was_taken(self) -> None:
        good = self.governor.watches[0].ring.good
        assert 1 <= len(good) <= CONFIG.ring
        for snapshot in good:
            assert digest_of_state([snapshot.model, snapshot.optimiser]) == snapshot.digest

    @invariant()
    def nothing_is_good_that_a_suspicion_followed_too_soon(self) -> None:
        for snapshot in self.governor.watches[0].ring.good:
            soon = range(snapshot.steps, snapshot.steps + CONFIG.bless_steps + 1)
            assert snapshot.steps == 0 or self.mistrusted.isdisjoint(soon)

    @invariant()
    def weights_and_moments_of_a_snapshot_are_of_one_moment(self) -> None:
        for snapshot in self.governor.watches[0].ring.good:
            assert snapshot.digest == self.taken[snapshot.steps]

    @invariant()
    def nothing_that_is_learned_from_is_not_finite(self) -> None:
        vitals = self.environment.vitals
        for known in (vitals.past, vitals.fresh):
            assert all(map(torch.isfinite, torch.tensor([*known.losses, *known.norms, 0.0])))

    # --- living -----------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> Any:
        return self.engine.environments[0]

    def _state(self) -> str:
        snapshot = self.environment.snapshot()
        return digest_of_state([snapshot.model, snapshot.optimiser])

    def _live(self, decide: Any) -> None:
        """An epoch of both, the twin without a governor."""
        before, rollbacks = self.engine.reports(), self.environment.rollbacks
        (step,) = live(self.engine, decide, 1, self.governor)
        live(self.twin, at_random(self.lot) if decide is not waiting else waiting, 1)
        vitals = self.environment.vitals
        if step.after[0].suspicious:
            self.mistrusted.add(vitals.steps)
        back = [event for event in step.verdicts[0].events if isinstance(event, GovernorRollbackPayload)]
        waits = [self.engine.space.action("WAIT")] * 2
        scores, ended = ModeReward(RewardConfig())(
            before, waits, step.receipts, step.after, step.settled, step.verdicts
        )
        assert len(back) == self.environment.rollbacks - rollbacks <= 1
        assert dict(scores[0].terms)["rollback"] == (-PENALTY if back else 0.0)
        assert ended == [bool(back), False]
        if back:
            assert vitals.steps not in range(back[0].restored_steps)  # time does not go back
            assert not vitals.suspicious
        else:
            self.taken[vitals.steps] = self._state()
        assert digest_of_state(self.engine.digests()[1]) == digest_of_state(self.twin.digests()[1])


TestWatched = Watched.TestCase
TestWatched.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
