"""All ranks of a run, as one of them sees it: how they start together, what rank 0 leads and the others do for it.

`meeting.py` is how they find each other, `watch.py` notices who dies or hangs, `group.py` has the collectives.
`spread.py` shares out environments, `leading.py` and `replicas.py` the batches of every host.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

import esper
from esper.leyline.errors import EsperError, RanksError
from esper.tolaria.checkpoints.fingerprint import fingerprint
from esper.tolaria.digest import digest_of_state
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol
from esper.tolaria.ranks.config import RanksConfig
from esper.tolaria.ranks.group import Group, refuse_differences
from esper.tolaria.ranks.leading import LeadingEngine, LeadingGovernor, Replica, follow
from esper.tolaria.ranks.lifecycle import SHOWN
from esper.tolaria.ranks.meeting import Meeting
from esper.tolaria.ranks.replicas import Replicas, check_replicable
from esper.tolaria.ranks.spread import answer, shares_of_ranks, spread_engine
from esper.tolaria.ranks.watch import Watch, leave
from esper.tolaria.setup import Setup
from esper.tolaria.share import Build
from esper.tolaria.workers import WorkerGovernor

Told = Callable[[], Mapping[str, str]]
"""Values that have to be the same on all ranks, by name. Raises EsperError for settings that cannot be run."""


class Fleet:
    """The ranks of a run. On rank 0 a handler for `watch.ALARM` is there before the fleet is made."""

    def __init__(self, meeting: Meeting, config: RanksConfig, device: str, on_watch: Callable[[Watch], None]) -> None:
        """on_watch: gets the watch before it starts. Raises RanksError where the ranks do not come together."""
        self.place, self._meeting, self._config = meeting.place, meeting, config
        meeting.timeout_s = config.timeout_s
        self.device = _of_rank(device, self.place.local_rank)
        self.watch = Watch(self.place.rank, meeting.lines("pulse"), config.timeout_s)
        on_watch(self.watch)
        self.watch.start()
        self._lines = meeting.lines("orders")
        self._group = Group(meeting, self.watch, self.device)

    def engine_and_governor(self, build: Build, told: Told) -> tuple[EngineProtocol, GovernorProtocol]:
        """On rank 0, while `serve` runs on the others. told: what has to be the same on all ranks.

        Raises RanksError where ranks differ, and whatever else kept one of them from starting.
        """
        setup = self._start(build, told)
        if self._config.parallel == "environments":
            return spread_engine(setup, self._lines, self.watch, self._config.straggler), WorkerGovernor()
        replica = self._replica(setup)
        leading = LeadingEngine(replica, list(self._lines.values()), self._config.straggler)
        return leading, LeadingGovernor(replica.share.governor)

    def serve(self, build: Build, told: Told) -> NoReturn:
        """On every other rank: takes part until rank 0 ends the run, and ends the process as rank 0 says."""
        try:
            setup = self._start(build, told)
            if self._config.parallel == "environments":
                share = shares_of_ranks(setup.envs, self.place.world)[self.place.rank]
                answer(self._lines[0], self.watch, setup, share)
            else:
                follow(self._lines[0], self._replica(setup))
        except EsperError:
            pass  # all ranks meet it, and rank 0 says so for all
        except Exception as error:
            rank = self.place.rank
            self.watch.tell(RanksError("failed", [rank], f"rank {rank} failed: {type(error).__name__}: {error}"))
            raise
        time.sleep(self._config.timeout_s)  # the watch ends the process
        leave(self.place.rank, RanksError("stuck", [0], "rank 0 did not end the run"))

    def close(self, code: int, text: str = "") -> None:
        """On rank 0: ends all others with this exit code. text: what they say on stderr."""
        self.watch.close(code, text)

    def begin(self, folder: Path) -> None:
        """Where the launcher starts all ranks again they go on with this folder."""
        self._meeting.begin(str(folder))

    def _start(self, build: Build, told: Told) -> Setup:
        """The setup of this rank, once all ranks have one and it is the same."""
        setup: Setup | None = None
        found: Mapping[str, str] | EsperError
        try:
            setup = build()
            setup = replace(setup, engine=replace(setup.engine, device=self.device))
            self._check(setup)
            found = {**told(), **code_and_data(setup), **fingerprint(self.device)}
        except EsperError as error:
            found = error
        ranks = self._group.gather(found)
        for rank, one in enumerate(ranks):
            if isinstance(one, EsperError):
                raise one if rank == 0 else type(one)(f"rank {rank}: {one}")
        refuse_differences([one for one in ranks if not isinstance(one, EsperError)])
        assert setup is not None, "a rank without a setup has an error"
        return setup

    def _check(self, setup: Setup) -> None:
        if self._config.parallel == "environments":
            shares_of_ranks(setup.envs, self.place.world)
        else:
            check_replicable(setup, self.place.world)

    def _replica(self, setup: Setup) -> Replica:
        crew = Replicas(self._group, self._config.check_steps)
        return Replica(replace(setup, crew=crew), self._group, crew)


def _of_rank(device: str, local_rank: int) -> str:
    """`cuda` is another device on every rank of a machine."""
    if device != "cuda":
        return device
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def code_and_data(setup: Setup) -> dict[str, str]:
    """Hashes of this program and of what hosts are trained and measured on."""
    code = hashlib.sha256()
    source = Path(esper.__file__).parent
    for path in sorted(source.rglob("*.py")):
        code.update(str(path.relative_to(source)).encode() + b"\n" + path.read_bytes())
    splits = setup.task.splits
    data = [[split.inputs, split.targets] for split in (splits.train, splits.val, splits.test)]
    return {"version of the code": code.hexdigest()[:SHOWN], "data": digest_of_state(data)[:SHOWN]}
