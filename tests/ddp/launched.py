"""Ranks of the command line, started as a launcher does it but for the launcher: see `Ranks`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ddp.pair import free_port
from tests.scripts.zygote import Ended, Zygote

TINY = ("--task", "digits", "--set", "task.epoch_items=64", "--set", "task.widths=4,4", "--episode-length", "6")
RULE = ("random", *TINY, "--envs", "2", "--rounds", "2", "--seed", "3", "--blueprints", "conv_ladder", "conv_light")
PPO = ("ppo", *TINY, "--envs", "2", "--rounds", "2", "--set", "policy.network.size=16", "--set", "ppo.epochs=1")
HOST = ("--set", "run.ranks.parallel=host", "--set", "run.ranks.check_steps=1")
ALWAYS = ("--set", "run.checkpoint.every=1")


@dataclass(frozen=True)
class Left:
    """What a rank left behind, and how long it lived on after something was done to it (or from its start)."""

    ended: Ended
    seconds: float

    @property
    def code(self) -> int:
        return self.ended.code

    @property
    def err(self) -> str:
        return self.ended.err


class Ranks:
    """Processes that think that they are ranks of one run."""

    def __init__(
        self,
        zygote: Zygote,
        cwd: Path,
        *argv: str,
        world: int = 2,
        others: Mapping[int, Sequence[str]] | None = None,
        faults: Mapping[int, str] | None = None,
        absent: Sequence[int] = (),
    ) -> None:
        """others: other arguments for some ranks. faults: what goes wrong in some. absent: some that never start."""
        cwd.mkdir(parents=True, exist_ok=True)
        port, self._zygote, self.began = str(free_port()), zygote, time.monotonic()
        self.pids: dict[int, int] = {}
        for rank in (rank for rank in range(world) if rank not in absent):
            given = (others or {}).get(rank, argv)
            where = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            where |= {"ESPER_FAULTS": (faults or {}).get(rank, "")}
            self.pids[rank] = zygote.start(*given, "--quiet", cwd=cwd, **where)

    def hit(self, rank: int, sign: signal.Signals) -> None:
        """Sends it a signal; seconds count from here."""
        os.kill(self.pids[rank], sign)
        self.began = time.monotonic()

    def wait(self, *ranks: int) -> dict[int, Left]:
        """These ranks, or all, when they have ended."""
        left = {}
        for rank in ranks or self.pids:
            ended = self._zygote.wait(self.pids[rank])
            left[rank] = Left(ended, time.monotonic() - self.began)
        return left


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Waits for it to come true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def newest(cwd: Path) -> Path:
    return (cwd / "runs" / "latest").resolve()
