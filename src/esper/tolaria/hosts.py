"""An engine and its governor, and the way to put both away between two steps and take them up again.

The state is the same whichever processes the hosts live in (`workers.py`), so that a run goes on with another number of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from esper.leyline.reports import HostReport
from esper.tolaria.engine import Engine
from esper.tolaria.full_state import load_engine_state, load_governor_state, state_of_engine, state_of_governor
from esper.tolaria.governor import Governor

BY_NUMBER = ("environments", "governor")
"""The parts of a state that have an entry for every environment."""


class Hosts(Protocol):
    """All that trains in a run."""

    def state(self) -> dict[str, Any]:
        """All that changes, tensors and primitives; later steps do not write into it."""
        ...

    def load(self, state: dict[str, Any]) -> list[HostReport]:
        """Everything as it was, bit for bit. Raises CheckpointError where the state is of other hosts."""
        ...


@dataclass(frozen=True)
class LocalHosts:
    """Those of this process, or of a worker."""

    engine: Engine
    governor: Governor

    def state(self) -> dict[str, Any]:
        """The round, and by their numbers what each environment is and what its governor remembers of it."""
        return {**state_of_engine(self.engine), "governor": state_of_governor(self.governor)}

    def load(self, state: dict[str, Any]) -> list[HostReport]:
        """Of more environments than these the others are left alone."""
        load_engine_state(self.engine, state)
        load_governor_state(self.governor, {env: state["governor"][env] for env in self.engine.numbers})
        return self.engine.reports()
