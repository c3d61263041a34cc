"""What deciders and rewards may see. Plain values, never a tensor; None means not measured, never a made-up zero.

Read `SeedStateReport` first: one per slot, also for an empty one. `HostReport` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from esper.leyline.injection_spec import InjectionSurface, Layout
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.slot_id import Address
from esper.leyline.stages import SEEDED, SeedStage

BlendName = Literal["ADD", "MULTIPLY", "GATE"]


class AlphaMode(IntEnum):
    HOLD = 0
    UP = 1
    DOWN = 2


@dataclass(frozen=True)
class Contribution:
    """What a seed brings: the measured difference between the host with it and without it, on validation items.

    Positive is good whatever the task's metric. Errors are standard errors of the mean over items.
    """

    metric: float  # in the metric's unit (points of accuracy, bits per character), sign-corrected
    metric_sem: float
    loss: float  # reduction of the loss, nats
    loss_sem: float
    epoch: int  # host epoch of the measurement


@dataclass(frozen=True)
class SeedStateReport:
    """One slot and the seed in it, if any."""

    slot_id: str
    address: Address
    dim: int
    layout: Layout
    surface: InjectionSurface
    order: int
    stage: SeedStage
    seed_id: str | None = None
    blueprint_id: str | None = None
    blend: BlendName | None = None
    age: int = 0  # epochs since germination
    epochs_in_stage: int = 0
    embargo_left: int = 0  # epochs until the slot is free again, 0 when it is
    alpha: float = 0.0  # what forward used; the mean over items where a gate decides
    alpha_target: float = 0.0
    alpha_mode: AlphaMode = AlphaMode.HOLD
    alpha_steps_done: int = 0
    alpha_steps_total: int = 0
    params: int = 0  # of the seed, all rungs, without a gate
    internal_kind: SeedInternalKind = SeedInternalKind.NONE
    internal_level: int = 0  # number of active rungs
    internal_max_level: int = 1
    internal_effective_params: int = 0  # of active rungs
    internal_group_size: int | None = None  # channels or heads of a whole group; None where rungs are no groups
    internal_active_groups: int | None = None  # None where rungs are no groups
    internal_previous_level: int | None = None  # before the last internal operation
    rungs: tuple[bool, ...] = ()
    contribution: Contribution | None = None
    level_effect: Contribution | None = None  # against its level before the last internal op
    seed_grad_norm: float | None = None
    host_grad_norm: float | None = None
    grad_ratio: float | None = None  # per-parameter gradient of the seed over the host's, smoothed
    metric_at_germination: float | None = None  # of the host on validation items, sign-corrected, as all three
    metric_at_stage_start: float | None = None
    metric_now: float | None = None  # when the report was made
    broken: bool = False  # the seed's last gradient was not finite

    @property
    def holds_seed(self) -> bool:
        return self.stage in SEEDED

    @property
    def improvement_in_stage(self) -> float | None:
        """Gain of the host's metric since the stage began, in its unit; positive is good whatever the metric."""
        if self.metric_now is None or self.metric_at_stage_start is None:
            return None
        return self.metric_now - self.metric_at_stage_start


@dataclass(frozen=True)
class Rules:
    """What limits an environment, in epochs of this run; derived from fractions of the episode."""

    max_seeds: int  # fossilised ones count
    min_prune_age: int = 1
    min_training: int = 1  # epochs in TRAINING before a seed may be blended
    min_holding: int = 1
    internal_needs_hold: bool = False  # switch rungs only while alpha rests


@dataclass(frozen=True)
class HostReport:
    """One environment: the host's vital signs and its slots in execution order."""

    env: int
    epoch: int  # host epochs trained so far
    episode_length: int
    rules: Rules
    slots: tuple[SeedStateReport, ...]
    host_params: int
    total_params: int  # everything in the model, empty slots being free
    effective_params: int  # host and active rungs
    metric_sign: float = 1.0
    metric_point: float = 1.0  # how much of the metric counts like a point of accuracy
    train_loss: float | None = None  # mean over the last epoch, nats; None before the first
    val_loss: float | None = None
    val_metric: float | None = None
    suspicious: bool = False  # its losses are not trusted now
    finished: bool = False  # ended for good in this round
    round: int = 0
    train_items: int = 0  # of the train split
    previous_metric: float | None = None  # the validation metric one epoch before
    rollbacks: int = 0  # of this episode
    last_op: int = 0  # LifecycleOp of the last decision
    last_action_success: bool = True  # it was not refused
    exported_metric: float | None = None  # validation metric of host and fossils alone; after the last epoch only

    @property
    def exported_params(self) -> int:
        """Parameters of host and fossils."""
        return self.host_params + sum(slot.params for slot in self.slots if slot.stage is SeedStage.FOSSILIZED)

    @property
    def seeds_in_use(self) -> int:
        return sum(slot.holds_seed for slot in self.slots)
