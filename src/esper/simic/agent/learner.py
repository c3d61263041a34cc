"""Learners: what makes a controller better after each round."""

from __future__ import annotations

from typing import Any, Protocol

from esper.leyline.telemetry import Payload
from esper.simic.agent.rollout_buffer import Rollout


class Learner(Protocol):
    """Changes a controller in the light of a round."""

    def update(self, rollout: Rollout, /) -> tuple[Payload, ...]:
        """Returns what there is to tell of it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives: what goes on from one update to the next."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Makes it what `state_dict` saw."""
        ...


class NoLearner:
    """For rules: nothing is learned."""

    def update(self, _rollout: Rollout, /) -> tuple[Payload, ...]:
        """Leaves everything as it is."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        assert not state, f"{list(state)}: rules learn nothing"
