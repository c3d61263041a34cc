"""Puts a run away between two steps, and takes it up again: `Keeping` for the run, a `TeamKeeper` for each team.

Between two steps a copy of everything is held in memory as often as its share of the time allows, and less often one is
written. On a signal the copy that is held is written, so that nothing waits for the end of an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from esper.leyline.errors import CheckpointError, StorageError
from esper.leyline.faults import fault
from esper.nissa.storage import reason, storage_errors
from esper.simic.training.budget import Budget
from esper.simic.training.packing import unpacked_reports
from esper.simic.training.team_keeper import TeamKeeper
from esper.tolaria.checkpoints.config import CheckpointConfig
from esper.tolaria.checkpoints.store import At, CheckpointStore

FORMAT = 1
HELD_SHARE = 0.33
"""Of the time that checkpoints may take, what goes into copies in memory."""


@dataclass(frozen=True)
class Before:
    """What has been done of a run up to a checkpoint."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    digest: str | None = None  # of a run that is done


@dataclass(frozen=True)
class Telling:
    """What a run's checkpoints have to do with its events."""

    settled: Callable[[], Mapping[str, Any]]  # waits until all events are on disk; says how many they are
    warn: Callable[[str], None]


class Keeping:
    """When to copy, when to write, and what to do where that fails."""

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        space: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
    ) -> None:
        """space: names of the action space. environment: this process's `fingerprint`."""
        self.store, self._config, self._space, self.environment = store, config, space, environment
        self._telling = Telling(dict, lambda _text: None)
        self._holding = Budget(config.share * HELD_SHARE)
        self._saving = Budget(config.share * (1 - HELD_SHARE))
        self._steps = self._failures = 0
        self._unsaved = False
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self.before = Before()
        self.teams: list[TeamKeeper] = []

    def tell(self, telling: Telling) -> None:
        """From now on."""
        self._telling = telling

    @property
    def seconds(self) -> float:
        """Of this process and those before it, without what was done again."""
        return self.before.seconds + time.monotonic() - self._began

    # --- when ---------------------------------------------------------------------------------------------------

    def boundary(self, team: TeamKeeper) -> None:
        """A team can be put away now. Raises StorageError where the disk has not taken anything for a while."""
        self._steps += not team.between_rounds
        due = self._due(team)
        if due or team.between_rounds or self._holding.allows:
            with self._holding.spending():
                team.hold()
            self._unsaved = True
        if due:
            self._try_to_save()

    def _due(self, team: TeamKeeper) -> bool:
        if self._config.every is not None:
            return not team.between_rounds and self._steps % self._config.every == 0
        value = self._value(len(team.played)) if team.between_rounds else None
        if value is not None and (self.store.best_value is None or value > self.store.best_value):
            return self._saving.in_credit
        return self._saving.allows

    def _value(self, rounds: int) -> float | None:
        """Mean return of the last of so many rounds; None where two teams are paid differently."""
        if len(self.teams) > 1 or rounds == 0:
            return None
        returns = self.teams[0].played[rounds - 1].rollout.returns()
        return sum(returns) / len(returns)

    def _try_to_save(self) -> None:
        try:
            self._save(self._so_far())
        except OSError as error:
            self._failures += 1
            self._telling.warn(f"the checkpoint could not be written: {reason(error)}; training goes on")
            if self._failures >= self._config.patience:
                raise StorageError(
                    f"{self.store.folder}: {self._failures} checkpoints in a row could not be written: "
                    f"{reason(error)}; make room, then go on with esper resume"
                ) from error

    # --- saving -------------------------------------------------------------------------------------------------

    def save_held(self) -> None:
        """Writes what is held, if that has not been done. Raises StorageError."""
        if self._unsaved:
            with storage_errors(self.store.folder):
                self._save(self._so_far())

    def finish(self, digest: str) -> None:
        """Writes the end of the run. Raises StorageError."""
        self.before = self._so_far(digest)
        with storage_errors(self.store.folder):
            self._save(self.before)

    def _so_far(self, digest: str | None = None) -> Before:
        return Before(self.seconds, self.before.cpu_seconds + time.process_time() - self._cpu_began, digest)

    def _save(self, done: Before) -> None:
        with self._saving.spending():
            telemetry = self._telling.settled()
            state = {
                "format": FORMAT,
                "space": {head: list(names) for head, names in self._space.items()},
                "done": asdict(done),
                "teams": [team.packed() for team in self.teams],
            }
            round_, step = max(team.place for team in self.teams)
            at = At(
                round=round_,
                step=step,
                value=self._value(round_) if step == 0 else None,
                blessed=all(team.held is None or team.held.healthy for team in self.teams),
                environment=self.environment,
            )
            self.store.save(state, self._page(round_, step, telemetry), at)
        self._failures, self._unsaved = 0, False
        fault("run.saved")

    def _page(self, round_: int, step: int, telemetry: Mapping[str, Any]) -> dict[str, Any]:
        """For people."""
        return {
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "round": round_,
            "step": step,
            "telemetry": dict(telemetry),
            "teams": [{"rounds": team.place[0], "environments": _environments(team)} for team in self.teams],
        }

    # --- going on -----------------------------------------------------------------------------------------------

    def load(self, state: Any, where: str) -> None:
        """Takes all teams up. Raises CheckpointError for a state that is of something else."""
        try:
            if state["format"] != FORMAT:
                raise CheckpointError(f"{where}: of format {state['format']}, and this version reads {FORMAT}")
            if state["space"] != {head: list(names) for head, names in self._space.items()}:
                raise CheckpointError(f"{where}: is of another action space than this run's")
            self.before = Before(**state["done"])
            for team, packed in zip(self.teams, state["teams"], strict=True):
                team.load(packed)
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError, msgspec.MsgspecError) as error:
            raise CheckpointError(f"{where}: does not fit this run ({type(error).__name__}: {error})") from error


def _environments(team: TeamKeeper) -> list[dict[str, Any]]:
    """Hosts and what grows in them, in words."""
    if team.held is None or not team.held.reports:
        outcomes = team.played[-1].outcomes if team.played else []
        return [{"env": outcome.env, "kept": [graft.as_dict() for graft in outcome.topology]} for outcome in outcomes]
    return [
        {
            "env": report.env,
            "epoch": report.epoch,
            "params": report.total_params,
            "slots": {
                slot.slot_id: f"{slot.stage.name} {slot.blueprint_id or ''} alpha {slot.alpha:.3g} "
                f"level {slot.internal_level} of {slot.internal_max_level}"
                for slot in report.slots
            },
        }
        for report in unpacked_reports(team.held.reports)
    ]
