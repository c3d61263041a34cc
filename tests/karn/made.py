"""Runs made by hand, event by event, with the real writer. Read `Made`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EnvStepPayload,
    EpisodeFinishedPayload,
    GovernorRollbackPayload,
    ObservationsPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunStartedPayload,
    SeedContributionMeasuredPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
)
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

Tell = Callable[..., None]
"""Takes an event and, where it has one, its step."""
EVERY_OP = (1 << len(LifecycleOp)) - 1


@dataclass(frozen=True)
class Planted:
    slot: str
    blueprint: str
    params: int
    pruned: bool = False


@dataclass
class Made:
    """One host per round; in its first slot a ladder of four rungs trains from the first step on.

    ops: of every round the operations, one per step; a GROW or SHRINK is done. metrics: of every round the validation
    metric, one per step. planted: what is planted beside the ladder at the first step of every round and pruned at once
    where `pruned` says so. The rest is one per round.
    """

    ops: list[list[str]]
    metrics: list[list[float]] | None = None
    tests: list[float] | None = None
    params: int = 1000
    host_params: int = 1000
    rollbacks: list[int] = field(default_factory=list)  # per round
    refused: int = 0  # the first so many WAITs of each round were asked for in vain
    blueprint: str = "conv_ladder"
    entropies: list[float] | None = None  # of the head `op`
    seed: int = 0
    offered: tuple[str, ...] = ("conv_ladder", "conv_heavy")
    slots: tuple[str, ...] = ("r0c0",)
    planted: tuple[Planted, ...] = ()
    sensors: tuple[str, ...] = ()  # whose statistics are told, all 0.5
    metric: tuple[str, str, bool] = ("accuracy", "%", True)  # name, unit, whether more is better
    rent: float = 3.0
    brings: float | None = None  # what the ladder brings, more being better, measured at the last step of every round
    groups: tuple[str | None, ...] = (None,)  # two learners of an A/B run tell the same, each for itself
    unfinished: bool = False  # killed in the last round, after its last step

    def write(self, root: Path, run_id: str) -> Path:
        with RunFolder.create(root, "made", run_id) as folder:
            folder.write_manifest(self._manifest())
            with EventWriter(folder.ev, folder.next_writer()) as events:
                rounds, length = self._extent
                events.emit(
                    RunStartedPayload(
                        schema_version=SCHEMA_VERSION, controller="ppo", task="digits", envs=1, rounds=rounds,
                        episode_length=length,
                    )
                )  # fmt: skip
                for round_ in range(rounds):
                    for group in self.groups:
                        self._round(events, round_, group)
                if not self.unfinished:
                    events.emit(RunFinishedPayload(status="done", seconds=1.0))
        return folder.path

    @property
    def _extent(self) -> tuple[int, int]:
        """Rounds, and steps of each."""
        return len(self.ops), len(self.ops[0]) if self.ops else 1

    def _manifest(self) -> dict[str, Any]:
        rounds, length = self._extent
        run = {"controller": "ppo", "seed": self.seed, "envs": 1, "rounds": rounds}
        return {
            "schema_version": SCHEMA_VERSION,
            "config": {
                "run": {**run, "episode_length": length},
                "task": {"name": "digits"},
                "reward": {"rent": self.rent},
            },
            "slots": [
                {"id": slot, "order": order, "surface": "BLOCK_END", "channels": 8}
                for order, slot in enumerate(self.slots)
            ],
            "heads": {head: [] for head in HEADS} | {"blueprint": list(self.offered), "slot": list(self.slots)},
            "metric": dict(zip(("name", "unit", "higher_is_better"), self.metric, strict=True)),
        }

    def _round(self, events: EventWriter, round_: int, group: str | None) -> None:
        def tell(payload: Payload, step: int | None = None) -> None:
            events.emit(payload, group=group, round=round_, episode=round_, step=step)

        self._plant(tell, round_)
        self._live(tell, round_)
        for index in range(self.rollbacks[round_] if self.rollbacks else 0):
            tell(
                GovernorRollbackPayload(
                    env_id=0,
                    reason="made",
                    detector="burst",
                    steps=8,
                    restored_epoch=0,
                    restored_steps=0,
                    rollbacks=index + 1,
                ),
                index,
            )
        if not (self.unfinished and round_ == len(self.ops) - 1):
            self._end(tell, round_)

    def _seed(self, round_: int) -> dict[str, Any]:
        return {"env_id": 0, "slot_id": "r0c0", "seed_id": f"r0c0.{round_ + 1}", "blueprint_id": self.blueprint}

    @property
    def _rungs(self) -> int:
        return 4 if self.blueprint == "conv_ladder" else 1

    def _plant(self, tell: Tell, round_: int) -> None:
        seed, ladder = self._seed(round_), self._rungs
        tell(
            SeedGerminatedPayload(
                **seed, params=400, blend="add", tempo=3, internal_kind=1 if ladder > 1 else 0, internal_level=1,
                internal_max_level=ladder,
            ), 0,
        )  # fmt: skip
        tell(
            SeedStageChangedPayload(
                **seed, from_stage="GERMINATED", to_stage="TRAINING", driver="ADVANCE", alpha=0.0, age=0
            ),
            0,
        )
        for extra in self.planted:
            known: dict[str, Any] = {
                "env_id": 0, "slot_id": extra.slot, "seed_id": f"{extra.slot}.{round_ + 1}",
                "blueprint_id": extra.blueprint,
            }  # fmt: skip
            tell(
                SeedGerminatedPayload(
                    **known, params=extra.params, blend="add", tempo=3, internal_kind=0, internal_level=1,
                    internal_max_level=1,
                ), 0,
            )  # fmt: skip
            if extra.pruned:
                tell(SeedPrunedPayload(**known, initiator="controller", age=1, params=extra.params), 0)

    def _live(self, tell: Tell, round_: int) -> None:
        level, empty = 1, len(self.slots) - 1
        for step, op in enumerate(self.ops[round_]):
            was, change = level, {"GROW_INTERNAL": 1, "SHRINK_INTERNAL": -1}.get(op, 0)
            level += change
            if change:
                tell(
                    SeedInternalLevelChangedPayload(
                        **self._seed(round_), internal_kind=1, from_level=was, to_level=level,
                        internal_max_level=self._rungs, params_before=100 * was, internal_effective_params=100 * level,
                    ), step,
                )  # fmt: skip
            metric = 50.0 if self.metrics is None else self.metrics[round_][step]
            tell(
                EnvStepPayload(
                    env_id=0, op=op, slot=None if op == "WAIT" else "r0c0", done=step >= self.refused or op != "WAIT",
                    refused_by=None if step >= self.refused or op != "WAIT" else "G1", op_mask=EVERY_OP, slot_mask=1,
                    val_metric=metric, params=1400, effective_params=1000 + 100 * level, flops=1,
                    stage=(int(SeedStage.TRAINING), *[int(SeedStage.DORMANT)] * empty), alpha=(0.0,) * (1 + empty),
                    level=(level, *[0] * empty), slot_params=(100 * level, *[0] * empty),
                    grad_ratio=(None,) * (1 + empty),
                ), step,
            )  # fmt: skip
        if self.brings is not None:
            tell(
                SeedContributionMeasuredPayload(
                    **self._seed(round_), against="off", metric=self.brings, metric_sem=0.1, loss=0.1, loss_sem=0.1
                ),
                len(self.ops[round_]) - 1,
            )

    def _end(self, tell: Tell, round_: int) -> None:
        test = 50.0 if self.tests is None else self.tests[round_]
        tell(
            EpisodeFinishedPayload(
                env_id=0, val_metric=test, test_metric=test, host_params=self.host_params, params=self.params,
                fossilized=0, flops=10, flops_wasted=1, reward=test,
            )
        )  # fmt: skip
        if self.sensors:
            tell(ObservationsPayload(sensors=tuple((name, 0.5, 0.0, 0.0, 0.0) for name in self.sensors)))
        if self.entropies is not None:
            tell(
                PpoUpdatedPayload(
                    update=round_, sequences=1, steps=1, forced_share=0.0, ratio_error=0.0, invalid_executed=0,
                    all_masked=0, value_mean=0.0, value_deviation=1.0, memory_rms=0.0, lr=1e-3, entropy_share=1.0,
                    entropy=(("op", self.entropies[round_]), ("slot", 1.0)),
                )
            )  # fmt: skip
        tell(RoundFinishedPayload(episodes=1, metric_mean=test, reward_mean=test, seconds=1.0))
