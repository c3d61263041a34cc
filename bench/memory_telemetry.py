"""How much of a training run's processor time goes into telling what happens?

The main loop with a policy that learns, all hosts in this process: the time of `emit` and of the thread that writes,
per second of all that the process does meanwhile. Beside it stand what making events out of reports takes, and rounds
that are told over the same rounds told to nobody. No setting leaves telemetry out; a publisher that says nothing takes
its place here, and the two runs take turns, round by round. Not on macOS: no thread can read another's clock there.
What a step takes on the disk is measured here too, as `memory_store.py` measures it on a made-up run.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measuring import Effort, Finding, noise_of, ratio_of
from bench.memory_store import STEP_BOUND_BYTES, bytes_of_a_step
from esper.leyline.telemetry import Payload
from esper.nissa.progress import Progress
from esper.nissa.writer import EventWriter
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.runner import Prepared, prepare
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.vectorized import play
from esper.tolaria.protocol import EngineProtocol

PRESETS = ("digits_scale", "demo")
ENVS = 2
BOUND_MS = 10.0  # per second: one percent


@dataclass(frozen=True)
class Spent:
    """Seconds of processor time in a round."""

    mute: float  # told to nobody
    loud: float  # the same round told: all that the process did, and of it
    emitting: float
    writing: float  # the thread that writes
    making: float  # what else the publisher did
    events: int


def answer(effort: Effort) -> list[Finding]:
    return [finding for preset in PRESETS for finding in _findings(preset, *_measured(preset, effort.runs))]


def _findings(preset: str, spent: Sequence[Spent], sealing: float, step_bytes: float) -> Iterator[Finding]:
    events = sum(each.events for each in spent)
    told = [(each.emitting + each.writing, each.loud) for each in spent]
    made = [(each.making, each.loud) for each in spent]
    pairs = [(each.mute, each.loud) for each in spent]
    yield _share(f"{preset}, emit and the thread that writes, {events} events", told, sealing, BOUND_MS)
    yield _share(f"{preset}, making the events", made, 0.0, None)
    yield ratio_of(f"{preset}, rounds that are told over rounds that are not", pairs, None)
    size = {"bytes": [step_bytes]}
    yield Finding(f"{preset}, JSONL of an env.step", step_bytes, "bytes", STEP_BOUND_BYTES, 0.0, size)


def _share(what: str, parts: Sequence[tuple[float, float]], besides: float, bound: float | None) -> Finding:
    """Of pairs (part, whole) the milliseconds of all parts and what was spent `besides` per second of all wholes."""
    part, whole = (sum(column) for column in zip(*parts, strict=True))
    shares = [1000 * each / of for each, of in parts]
    samples = {"part_s": [each for each, _ in parts], "whole_s": [of for _, of in parts], "besides_s": [besides]}
    return Finding(what, 1000 * (part + besides) / whole, "ms/s", bound, noise_of(shares), samples)


def _measured(preset: str, rounds: int) -> tuple[list[Spent], float, float]:
    """All rounds but the first, in which FLOPs are counted; the seconds of sealing the file; bytes of an `env.step`."""
    run = {"controller": "ppo", "envs": ENVS, "rounds": rounds + 1, "workers": 1}
    config = assemble(preset, None, {"run": run}, [])
    with closing(prepare(config)) as loud, closing(prepare(config)) as mute, tempfile.TemporaryDirectory() as folder:
        with EventWriter(Path(folder), config=config.telemetry) as writer:
            clocks = Clocks(writer)
            teams = _team(mute, Silence(mute.engine)), _team(loud, Clocked(config, loud.engine, clocks))
            spent = [_round(config, number, *teams, clocks) for number in range(rounds + 1)]
            began = time.process_time()
        return spent[1:], time.process_time() - began, bytes_of_a_step(Path(folder))


def _round(config: EsperConfig, number: int, mute: Team, loud: Team, clocks: Clocks) -> Spent:
    """Both play it; which goes first changes from round to round."""
    before = clocks.read()
    turn = 1 if number % 2 else -1
    played = [_played(config, number, team) for team in (mute, loud)[::turn]]
    (mute_s, chosen), (loud_s, also) = played[::turn]
    assert chosen == also, "the two runs are not the same"
    emitting, writing, publishing, events = (now - was for now, was in zip(clocks.read(), before, strict=True))
    return Spent(mute_s, loud_s, emitting, writing, publishing - emitting, int(events))


def _played(config: EsperConfig, number: int, team: Team) -> tuple[float, object]:
    """Seconds of a round, and what was decided in it."""
    began = time.process_time()
    played = play(number, config.run, team)
    return time.process_time() - began, played.rollout.decisions()


def _team(prepared: Prepared, publisher: Any) -> Team:
    (side,) = prepared.sides
    return Team(side.engine, side.governor, side.controller, side.learner, side.reward, publisher)


class Clocks:
    """Stands where the writer does; what it and a publisher spend is added up."""

    def __init__(self, writer: EventWriter) -> None:
        (thread,) = (each for each in threading.enumerate() if each.name == f"events-{writer.writer}")
        assert thread.ident is not None
        self._writer, self._writing = writer, time.pthread_getcpuclockid(thread.ident)
        self._emitting, self._events = 0.0, 0
        self.publishing = 0.0

    def emit(self, payload: Payload, **where: Any) -> None:
        began = time.thread_time()
        self._writer.emit(payload, **where)
        self._emitting += time.thread_time() - began
        self._events += 1

    def read(self) -> tuple[float, float, float, int]:
        """Seconds of emitting, writing and publishing (which holds emitting), and events, so far."""
        return self._emitting, time.clock_gettime(self._writing), self.publishing, self._events


class Clocked:
    """A publisher whose time is taken."""

    def __init__(self, config: EsperConfig, engine: EngineProtocol, clocks: Clocks) -> None:
        writer: Any = clocks
        progress = Progress(quiet=True)
        progress.start(config.run.rounds * config.run.episode_length, config.task.name)
        self._publisher = Publisher(config.run, engine, writer, progress)
        self._clocks = clocks

    def step(self, *told: Any) -> None:
        began = time.thread_time()
        self._publisher.step(*told)
        self._clocks.publishing += time.thread_time() - began

    def round(self, *told: Any) -> None:
        began = time.thread_time()
        self._publisher.round(*told)
        self._clocks.publishing += time.thread_time() - began


class Silence:
    """A publisher that says nothing."""

    def __init__(self, engine: EngineProtocol) -> None:
        self._engine = engine

    def step(self, *_: object) -> None:
        self._engine.events()  # or they would pile up

    def round(self, *_: object) -> None:
        pass
