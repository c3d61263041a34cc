"""Learners: what makes a controller better after each round."""

from __future__ import annotations

from typing import Protocol

from esper.simic.agent.rollout_buffer import Rollout


class Learner(Protocol):
    """Changes a controller in the light of a round."""

    def update(self, rollout: Rollout) -> None: ...


class NoLearner:
    """For rules: nothing is learned."""

    def update(self, rollout: Rollout) -> None:
        """Leaves everything as it is."""
