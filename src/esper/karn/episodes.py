"""One host from its start on, as its events tell it: steps, and what became of its seeds. Read `Episode`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    Envelope,
    EnvStepPayload,
    EpisodeFinishedPayload,
    Payload,
    SeedContributionMeasuredPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPayload,
    TelemetryEventType,
)


class Told(NamedTuple):
    """An event where it was told. Sorts by time; writer and counter are unique, so nothing behind them is compared."""

    time_s: float
    writer: str
    counter: int
    where: Envelope
    payload: Payload


@dataclass(frozen=True)
class Change:
    """A change of a seed's level. `reverses`: it takes back the one before it."""

    step: int
    told: SeedInternalLevelChangedPayload
    reverses: bool


@dataclass
class Seed:
    """What was told of one seed."""

    slot: str
    seed_id: str
    blueprint: str
    planted: SeedGerminatedPayload | None = None
    planted_at: int = 0
    contribution: SeedContributionMeasuredPayload | None = None  # the last by leave-one-out
    changes: list[Change] = field(default_factory=list)

    @property
    def is_ladder(self) -> bool:
        return self.planted is not None and self.planted.internal_max_level > 1


@final
@dataclass
class Episode:
    """One host from its start on. `steps` are by number; `happened` is everything else of its environment, in order."""

    round: int
    env: int
    steps: dict[int, Told] = field(default_factory=dict)
    happened: list[Told] = field(default_factory=list)

    @property
    def last_step(self) -> int | None:
        return max(self.steps, default=None)

    def at(self, step: int | None) -> EnvStepPayload | None:
        """The decision of a step and the epoch it led to; None where that was not told."""
        if step is None or step not in self.steps:
            return None
        payload = self.steps[step].payload
        assert isinstance(payload, EnvStepPayload)
        return payload

    @property
    def last(self) -> EnvStepPayload | None:
        return self.at(self.last_step)

    def walk(self) -> Iterator[tuple[int, EnvStepPayload]]:
        for step in sorted(self.steps):
            payload = self.steps[step].payload
            assert isinstance(payload, EnvStepPayload)
            yield step, payload

    @property
    def metric(self) -> float | None:
        """The last that was measured."""
        for step in sorted(self.steps, reverse=True):
            told = self.at(step)
            if told is not None and told.val_metric is not None:
                return told.val_metric
        return None

    @property
    def metrics(self) -> list[float | None]:
        return [told.val_metric for _, told in self.walk()]

    @property
    def reward(self) -> float:
        return sum(told.reward for _, told in self.walk())

    @property
    def finished(self) -> EpisodeFinishedPayload | None:
        ends = [told.payload for told in self.happened if isinstance(told.payload, EpisodeFinishedPayload)]
        return ends[-1] if ends else None

    def seeds(self, until: int | None = None) -> dict[str, Seed]:
        """The last seed of every slot that had one, by slot, as it was known at the end of step `until`."""
        found: dict[str, Seed] = {}
        for told in self.happened:
            step, payload = told.where.step, told.payload
            if step is None or not isinstance(payload, SeedPayload) or (until is not None and step > until):
                continue
            seed = found.get(payload.slot_id)
            if seed is None or seed.seed_id != payload.seed_id:
                seed = found[payload.slot_id] = Seed(payload.slot_id, payload.seed_id, payload.blueprint_id)
            _learn(seed, step, payload)
        return found

    def governor(self) -> list[Told]:
        return [told for told in self.happened if is_governor(told.payload)]


GOVERNOR = "gov."
"""What the governor's events are called, before their own word."""


def is_governor(payload: Payload) -> bool:
    return payload.type.value.startswith(GOVERNOR)


def _letters() -> dict[TelemetryEventType, str]:
    """A letter for each: the first of its word that no other has, and of words that are used up the last one."""
    found: dict[TelemetryEventType, str] = {}
    for event in TelemetryEventType:
        if event.value.startswith(GOVERNOR):
            word = event.value.removeprefix(GOVERNOR).upper()
            found[event] = next((letter for letter in word if letter not in found.values()), word[-1])
    return found


GOVERNOR_LETTERS = _letters()
"""How lanes show what the governor said: R for a rollback."""


_STAGES = {int(stage): stage for stage in SeedStage}


def stages_of(told: EnvStepPayload) -> list[SeedStage]:
    """Of every slot, in order; a number that no stage has is an empty slot's."""
    return [_STAGES.get(stage, SeedStage.DORMANT) for stage in told.stage]


def _learn(seed: Seed, step: int, payload: SeedPayload) -> None:
    if isinstance(payload, SeedGerminatedPayload):
        seed.planted, seed.planted_at = payload, step
    elif isinstance(payload, SeedContributionMeasuredPayload) and payload.against == "off":
        seed.contribution = payload
    elif isinstance(payload, SeedInternalLevelChangedPayload):
        decided = next((change for change in reversed(seed.changes) if change.told.cause == "op"), None)
        reverses = decided is not None and payload.cause == "op" and _is_up(payload) != _is_up(decided.told)
        seed.changes.append(Change(step, payload, reverses))


def _is_up(told: SeedInternalLevelChangedPayload) -> bool:
    return told.to_level > told.from_level
