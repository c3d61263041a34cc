"""What the main loop asks of an engine and of its governor, whichever processes the hosts live in.

`Engine` and `Governor` answer in this process, `WorkerEngine` and `WorkerGovernor` (`workers.py`) from several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import Payload
from esper.tolaria.engine import Outcome
from esper.tolaria.setup import Setup


class EngineProtocol(Protocol):
    """Trains and measures the environments of a run, a round at a time; lists are in the order of environments."""

    setup: Setup
    specs: tuple[InjectionSpec, ...]
    space: ActionSpace

    def reset(self, round_: int) -> list[HostReport]: ...

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]: ...

    def train_epoch(self) -> None: ...

    def measure(self) -> list[HostReport]: ...

    def reports(self) -> list[HostReport]: ...

    def events(self) -> list[Payload]: ...

    def flops(self) -> list[int]: ...

    def outcomes(self) -> list[Outcome]: ...

    def digests(self) -> list[str]:
        """One per environment, for `digest.combined`."""
        ...

    def models(self) -> list[dict[str, Any]]:
        """The state_dict of each environment's model."""
        ...

    def close(self) -> None:
        """Ends what the engine has started; twice is once."""
        ...


class GovernorProtocol(Protocol):
    """Takes back hosts whose vital signs fail. `engine` is the engine that the governor was made with."""

    def begin(self, engine: Any) -> None: ...

    def review(self, engine: Any, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]: ...
