"""The live state of a run, made of its events one by one: what every screen shows. Read `State.take` first.

    state = State()
    for where, payload in events:          # any prefix of a run, writers one after another or mixed
        state.take(where, payload)
    state.team(None).episode(round_, env).last

Facts are kept, and what is derived from them is asked for: so the same events give the same state in whatever order
the lines of different writers come, and a later attempt that tells a step again replaces what was told before. Steps
of the last `retained` rounds are here; older ones are asked of the views, in the reader's process.
"""

from __future__ import annotations

import statistics
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import final

from esper.karn.episodes import Episode, Told
from esper.leyline.telemetry import (
    Envelope,
    EnvPayload,
    EnvStepPayload,
    LogPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    RunResumedPayload,
    RunStartedPayload,
)
from esper.nissa.reader import supersedes

RETAINED = 3
ENTROPY_FLOOR = 0.10  # of a head, normalised; below it `head_health` calls it collapsed
SILENT_S = 15.0  # three heartbeats without a word
_NOTICES = 500  # events of no environment that are kept
_ROUND_TIMES, _ENOUGH_ROUNDS = 10, 3  # that the estimate rests on, and without which there is none


@final
@dataclass
class Team:
    """One learner's part of the run; a run without --ab-test has one team, whose name is None."""

    name: str | None
    rounds: dict[int, Told] = field(default_factory=dict)
    updates: dict[int, Told] = field(default_factory=dict)
    episodes: dict[tuple[int, int], Episode] = field(default_factory=dict)  # by round and environment

    @property
    def envs(self) -> list[int]:
        return sorted({env for _, env in self.episodes})

    @property
    def round(self) -> int | None:
        """The newest that anything was told of."""
        return max((round_ for round_, _ in self.episodes), default=max(self.rounds, default=None))

    def episode(self, round_: int | None, env: int) -> Episode | None:
        """None where nothing is here of it."""
        return None if round_ is None or (round_, env) not in self.episodes else self.episodes[round_, env]

    def newest(self, env: int) -> Episode | None:
        """The last episode of an environment."""
        return self.episode(max((round_ for round_, other in self.episodes if other == env), default=None), env)

    def update(self, round_: int | None = None) -> PpoUpdatedPayload | None:
        """Of a round, or the last."""
        at = max(self.updates, default=None) if round_ is None else round_
        if at is None or at not in self.updates:
            return None
        payload = self.updates[at].payload
        assert isinstance(payload, PpoUpdatedPayload)
        return payload

    def round_seconds(self) -> list[float]:
        """Of the last rounds, oldest first."""
        ends = [self.rounds[round_].payload for round_ in sorted(self.rounds)[-_ROUND_TIMES:]]
        return [end.seconds for end in ends if isinstance(end, RoundFinishedPayload)]

    def chosen(self, round_: int) -> dict[str, int]:
        """How often each operation was decided in a round."""
        counts: dict[str, int] = {}
        for (of, _), episode in self.episodes.items():
            if of == round_:
                for told in episode.steps.values():
                    assert isinstance(told.payload, EnvStepPayload)
                    counts[told.payload.op] = counts.get(told.payload.op, 0) + 1
        return counts


@dataclass(frozen=True)
class Condition:
    """What is known of a run besides its events."""

    running: bool = False  # a process holds the folder
    lost: int = 0  # events that writers counted and no line tells
    bad_lines: int = 0
    incomplete: str | None = None  # what a writer said when the disk failed it


@dataclass(frozen=True)
class Left:
    """An estimate of the time that is left, in seconds, with half the range of its quartiles."""

    seconds: float
    spread: float


class Status(Enum):
    """How a run stands."""

    WAITING = "waiting"  # nothing has been told yet
    LIVE = "live"
    PAUSED = "paused"  # its process is there and says nothing
    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIED = "died"  # its process ended without a word


@dataclass(frozen=True)
class Alert:
    """Something to look at, and the event that told it, if one did."""

    text: str
    told: Told | None = None


@final
class State:
    """Everything that was told and still stands. `version` changes with it."""

    def __init__(self, retained: int = RETAINED) -> None:
        self._retained = retained
        self._resumes: list[Told] = []
        self._ends: list[Told] = []
        self._attempt = 0
        self.started: RunStartedPayload | None = None
        self.began_s: float | None = None
        self.heard_s: float | None = None
        """When the last event was told, by the clock of whoever told it."""
        self.heartbeat: Told | None = None
        self.teams: dict[str | None, Team] = {}
        self.notices: list[Told] = []
        """Events of no environment, in order; beats of the heart are not among them."""
        self.condition = Condition()
        self.version = 0

    def take(self, where: Envelope, payload: Payload) -> None:
        """One event, which comes after all others of its writer that were taken. Each is given once."""
        self.version += 1
        told = Told(where.time_s, where.writer, where.counter, where, payload)
        self.began_s = min(told.time_s, told.time_s if self.began_s is None else self.began_s)
        self.heard_s = max(told.time_s, told.time_s if self.heard_s is None else self.heard_s)
        self._attempt = max(self._attempt, attempt_of(where.writer))
        if any(_replaces(resume, told) for resume in self._resumes):
            return
        if isinstance(payload, RunHeartbeatPayload):
            self.heartbeat = max(told, self.heartbeat or told)
        elif isinstance(payload, EnvPayload) and where.round is not None:
            self._take_of_env(told, where.round, payload.env_id)
        else:
            self._take_of_run(told)

    def hear(self, condition: Condition) -> None:
        """What is known besides events, when it is known."""
        if condition != self.condition:
            self.condition = condition
            self.version += 1

    # ---- asked for

    def team(self, name: str | None = None) -> Team:
        """By name; an empty one where nothing was told of it."""
        return self.teams[name] if name in self.teams else Team(name)

    @property
    def finished(self) -> Told | None:
        """The end of the last attempt."""
        ends = [told for told in self._ends if attempt_of(told.writer) == self._attempt]
        return max(ends, default=None)

    def status(self, now_s: float) -> Status:
        end = self.finished
        if end is not None:
            assert isinstance(end.payload, RunFinishedPayload)
            known = {status.value: status for status in (Status.DONE, Status.INTERRUPTED, Status.FAILED)}
            return known.get(end.payload.status, Status.FAILED)
        if self.heard_s is None:
            return Status.WAITING
        if not self.condition.running:
            return Status.DIED
        return Status.PAUSED if now_s - self.heard_s > SILENT_S else Status.LIVE

    @property
    def rounds_done(self) -> int:
        """Of the team that is furthest behind, so that it is 1 where all have finished one."""
        return min((max(team.rounds, default=-1) + 1 for team in self.teams.values()), default=0)

    @property
    def share_done(self) -> float | None:
        """Of all steps that the run is to take, from 0 to 1."""
        if self.started is None:
            return None
        length, shares = self.started.episode_length, []
        for team in self.teams.values():
            done, now = max(team.rounds, default=-1) + 1, team.round
            steps = [len(team.episodes[key].steps) for key in team.episodes if key[0] == now and now >= done]
            shares.append(done + (statistics.fmean(steps) / length if steps and length else 0.0))
        return min(1.0, statistics.fmean(shares) / self.started.rounds) if shares and self.started.rounds else 0.0

    @property
    def left(self) -> Left | None:
        """Rounds left times the median of the last round times. None before three rounds, and where none is left."""
        if self.started is None or not self.teams:
            return None
        seconds = spread = 0.0
        for team in self.teams.values():
            times, rounds = team.round_seconds(), self.started.rounds - max(team.rounds, default=-1) - 1
            if len(times) < _ENOUGH_ROUNDS:
                return None
            low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
            seconds, spread = seconds + rounds * middle, spread + rounds * (high - low) / 2
        return Left(seconds, spread) if seconds > 0 else None

    @property
    def steps_per_second(self) -> float | None:
        """Of all environments together, over the newest round that has a length in time."""
        for name in self.teams:
            team = self.teams[name]
            for round_ in sorted({of for of, _ in team.episodes}, reverse=True):
                times = [t.time_s for key, e in team.episodes.items() if key[0] == round_ for t in e.steps.values()]
                if len(times) > 1 and max(times) > min(times):
                    return len(times) / (max(times) - min(times))
        return None

    def alerts(self, team: Team) -> list[Alert]:
        """What is wrong, or was until a round ago; the worst and the newest first."""
        found: list[Alert] = []
        if self.condition.incomplete:
            found.append(Alert(f"the run is incomplete: {self.condition.incomplete}"))
        if self.condition.bad_lines:
            found.append(Alert(f"{self.condition.bad_lines} lines are no events"))
        newest = team.round or 0
        happened = [told for key, each in team.episodes.items() if key[0] >= newest - 1 for told in each.governor()]
        found += [Alert("", told) for told in sorted(happened, reverse=True)]
        found += [Alert("", told) for told in reversed(self.notices) if is_trouble(told.payload)]
        return found + [Alert(text) for text in _unwell(team.update())]

    # ---- facts

    def _take_of_env(self, told: Told, round_: int, env: int) -> None:
        team = self._team_of(told)
        newest = team.round
        if newest is not None and round_ <= newest - self._retained:
            return
        episode = team.episodes.setdefault((round_, env), Episode(round_, env))
        step = told.where.step
        if isinstance(told.payload, EnvStepPayload) and step is not None:
            episode.steps[step] = max(told, episode.steps.get(step, told), key=_by_attempt)
        else:
            insort(episode.happened, told)
        if newest is not None and round_ > newest:
            team.episodes = {key: each for key, each in team.episodes.items() if key[0] > round_ - self._retained}

    def _take_of_run(self, told: Told) -> None:
        payload, round_ = told.payload, told.where.round
        if isinstance(payload, RunStartedPayload):
            self.started = payload
        elif isinstance(payload, RunFinishedPayload):
            self._ends.append(told)
        elif isinstance(payload, RunResumedPayload):
            self._resumes.append(told)
            self._forget(told)
        elif isinstance(payload, RoundFinishedPayload) and round_ is not None:
            self._team_of(told).rounds[round_] = told
        elif isinstance(payload, PpoUpdatedPayload) and round_ is not None:
            self._team_of(told).updates[round_] = told
        insort(self.notices, told)
        del self.notices[:-_NOTICES]

    def _team_of(self, told: Told) -> Team:
        name = told.where.group
        if name not in self.teams:
            self.teams[name] = Team(name)
        return self.teams[name]

    def _forget(self, resume: Told) -> None:
        """Takes out what has not happened after all."""
        self.notices = [told for told in self.notices if not _replaces(resume, told)]
        for team in self.teams.values():
            team.rounds = {at: told for at, told in team.rounds.items() if not _replaces(resume, told)}
            team.updates = {at: told for at, told in team.updates.items() if not _replaces(resume, told)}
            for episode in team.episodes.values():
                episode.steps = {at: told for at, told in episode.steps.items() if not _replaces(resume, told)}
                episode.happened = [told for told in episode.happened if not _replaces(resume, told)]
            team.episodes = {key: each for key, each in team.episodes.items() if each.steps or each.happened}
        self.teams = {n: t for n, t in self.teams.items() if t.episodes or t.rounds or t.updates}


# ---- single events -------------------------------------------------------------------------------------------------


def attempt_of(writer: str) -> int:
    return int(writer.rpartition(".")[2])


def is_trouble(payload: Payload) -> bool:
    """Among what is told of no environment: a warning, an end that was not wanted, or ranks in trouble."""
    if isinstance(payload, LogPayload):
        return payload.level != "info"
    if isinstance(payload, RunFinishedPayload):
        return payload.status != "done"
    return payload.type.value.startswith("ranks.")


def collapsed(entropy: float) -> bool:
    return entropy < ENTROPY_FLOOR


def _by_attempt(told: Told) -> tuple[int, Told]:
    return attempt_of(told.writer), told


def _replaces(resume: Told, told: Told) -> bool:
    assert isinstance(resume.payload, RunResumedPayload)
    return supersedes(resume.where, resume.payload, told.where)


def _unwell(update: PpoUpdatedPayload | None) -> Iterator[str]:
    """Signs by which a broken learner is known."""
    if update is None:
        return
    if update.skipped:
        yield f"update {update.update} was skipped: {update.skipped}"
    if update.invalid_executed:
        yield f"{update.invalid_executed} decisions were forbidden by their masks"
    if update.all_masked:
        yield f"at {update.all_masked} steps the masks forbade everything"
    for head, entropy in update.entropy:
        if collapsed(entropy):
            yield f"head {head!r} entropy {entropy:.2f} below floor {ENTROPY_FLOOR:.2f}"
