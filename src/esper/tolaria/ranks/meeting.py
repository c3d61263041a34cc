"""How the ranks of a run find each other: what the launcher says, a store that all can reach, two lines per rank.

`torch.distributed` carries tensors (`group.py`). Requests and answers are no tensors, may take minutes, and must end
at once when a process dies, so every rank has a line of its own to rank 0 for them, and a second for its pulse.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, not marked so

from esper.leyline.errors import ConfigError, RanksError

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_RUN = "esper/run"  # in the store, where a restart finds the folder that was begun


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is."""

    rank: int
    world: int  # how many there are
    local_rank: int  # on this machine
    address: str  # of the machine of rank 0
    port: int  # of the launcher's store
    attempt: int  # how often the launcher has started all of them again
    launched: bool  # the launcher keeps the store; else rank 0 does

    @property
    def others(self) -> range:
        return range(1, self.world)


def place_in(environment: Mapping[str, str]) -> Place | None:
    """What a launcher has written there; None where this process is alone. Raises ConfigError for what is no place."""
    if not all(name in environment for name in _NAMES):
        return None
    numbers = {
        name: _number(environment, name, default)
        for name, default in (
            ("RANK", None),
            ("WORLD_SIZE", None),
            ("MASTER_PORT", None),
            ("LOCAL_RANK", environment["RANK"]),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    }
    rank, world = numbers["RANK"], numbers["WORLD_SIZE"]
    if world == 1:
        return None
    if not rank < world:
        raise ConfigError(f"RANK: {rank} of {world} ranks; they are counted from 0")
    return Place(
        rank=rank,
        world=world,
        local_rank=numbers["LOCAL_RANK"],
        address=environment["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
        attempt=numbers["TORCHELASTIC_RESTART_COUNT"],
        launched=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _number(environment: Mapping[str, str], name: str, default: str | None) -> int:
    text = environment[name] if default is None else environment.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name}: {text!r} is no number; start ranks with torchrun, or unset it")
    return int(text)


class Meeting:
    """The store of all ranks of a run, and of all attempts at it."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        """Waits for the store. Raises RanksError where it cannot be reached."""
        self.place, self.timeout_s = place, timeout_s
        try:
            self._base = TCPStore(
                place.address,
                place.port,
                is_master=place.rank == 0 and not place.launched,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:  # DistStoreError is one
            raise self._missed(str(error)) from error
        self.store = PrefixStore(f"esper/{place.attempt}", self._base)

    def begun(self) -> str | None:
        """The folder of the run that an earlier attempt has begun; None in the first."""
        if self.place.attempt == 0 or not self._base.check([_RUN]):
            return None
        return str(self._base.get(_RUN).decode())

    def begin(self, folder: str) -> None:
        """An attempt after this one shall go on in `folder`."""
        self._base.set(_RUN, folder)

    def lines(self, purpose: str) -> dict[int, Connection]:
        """On rank 0 a line to each other rank, on the others one to rank 0. Raises RanksError for who does not come."""
        place = self.place
        try:
            if place.rank == 0:
                return self._listen(purpose)
            host, port, key = self.store.get(purpose).decode().split()
            line = _as_line(socket.create_connection((host, int(port)), self.timeout_s))
            answer_challenge(line, bytes.fromhex(key))
            line.send(place.rank)
        except (OSError, EOFError, RuntimeError) as error:
            raise self._missed(str(error)) from error
        return {0: line}

    def _listen(self, purpose: str) -> dict[int, Connection]:
        key, found, deadline = secrets.token_bytes(16), dict[int, Connection](), time.monotonic() + self.timeout_s
        with socket.create_server((self.place.address, 0)) as server, ExitStack() as opened:
            host, port = server.getsockname()[:2]
            self.store.set(purpose, f"{host} {port} {key.hex()}")
            while len(found) < self.place.world - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line = opened.enter_context(_as_line(server.accept()[0]))
                except TimeoutError:
                    missing = [rank for rank in self.place.others if rank not in found]
                    names = ", ".join(map(str, missing))
                    text = f"rank {names} did not come within {self.timeout_s:g} s; look at what it said"
                    raise RanksError("stuck", missing, text) from None
                deliver_challenge(line, key)
                found[line.recv()] = line
            opened.pop_all()
        return found

    def _missed(self, reason: str) -> RanksError:
        where = f"{self.place.address}:{self.place.port}"
        said = reason.splitlines()[0] if reason else "no reason given"
        return RanksError("stuck", [self.place.rank], f"rank {self.place.rank} could not join at {where}: {said}")


def _as_line(stream: socket.socket) -> Connection:
    """The socket as what sends and receives objects; blocking."""
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(stream.detach())
