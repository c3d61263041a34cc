"""What a slot remembers about its seed: numbers and names only, so that a checkpoint loads with plain `torch.load`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from esper.kasmina.alpha import AlphaController
from esper.kasmina.gradient_health import GradientHealthMonitor
from esper.leyline.factored_actions import Curve, Style
from esper.leyline.reports import BlendName, Contribution
from esper.leyline.stages import SeedStage


@dataclass
class SeedMetrics:
    """What has been measured of a seed; None until it was."""

    metric_now: float | None = None
    metric_at_germination: float | None = None
    metric_at_stage_start: float | None = None
    metric_at_blending_start: float | None = None
    contribution: Contribution | None = None
    level_effect: Contribution | None = None
    gate_weight: float = 0.0  # mean weight over items in the last measured pass; 0 is exact before the first


@dataclass
class SeedState:
    """One seed from germination until its slot is free again."""

    seed_id: str
    blueprint_id: str
    slot_id: str
    blend: BlendName
    tempo: int  # epochs of the first blend
    curve: Curve  # of the first blend
    first_target: float  # alpha at the end of the first blend
    stage: SeedStage = SeedStage.DORMANT
    stage_entered_at: float = 0.0  # on the slot's clock, in epochs
    age: int = 0
    fading: bool = False  # a prune waits for alpha to reach 0
    blending_started: bool = False
    previous_rungs: tuple[bool, ...] | None = None  # before the last internal operation
    level_effect_due: bool = False
    alpha: AlphaController = field(default_factory=AlphaController)
    metrics: SeedMetrics = field(default_factory=SeedMetrics)
    health: GradientHealthMonitor = field(default_factory=GradientHealthMonitor)

    @classmethod
    def planted(
        cls, seed_id: str, blueprint_id: str, slot_id: str, style: Style, tempo: int, target: float
    ) -> SeedState:
        return cls(seed_id, blueprint_id, slot_id, style.blend, tempo, style.curve, target)

    def to_primitives(self) -> dict[str, Any]:
        """Stage by name; no enum, dataclass or datetime."""
        data = asdict(self)
        alpha = data.pop("alpha")
        data["stage"] = self.stage.name
        data["alpha"] = alpha["alpha"]
        data["blending_steps_done"] = alpha["steps_done"]
        data["blending_steps_total"] = alpha["steps_total"]
        return data

    @classmethod
    def from_primitives(cls, data: dict[str, Any], schedule: dict[str, Any] | None) -> SeedState:
        """Inverse of `to_primitives` and `schedule_config`."""
        fields = {key: value for key, value in data.items() if key not in _OF_THE_SCHEDULE and key not in _OF_THE_SLOT}
        metrics = dict(fields["metrics"])
        for name in ("contribution", "level_effect"):
            if metrics[name] is not None:
                metrics[name] = Contribution(**metrics[name])
        alpha = AlphaController(alpha=data["alpha"], start=data["alpha"], target=data["alpha"])
        if schedule is not None:
            alpha = AlphaController(
                alpha=data["alpha"],
                start=schedule["start"],
                target=schedule["target"],
                steps_total=schedule["total_steps"],
                steps_done=schedule["current_step"],
                curve=Curve(schedule["algorithm_id"], schedule["steepness"]),
            )
        rungs = fields["previous_rungs"]
        fields |= {
            "stage": SeedStage[fields["stage"]],
            "curve": Curve(**fields["curve"]),
            "previous_rungs": None if rungs is None else tuple(rungs),
            "alpha": alpha,
            "metrics": SeedMetrics(**metrics),
            "health": GradientHealthMonitor(**fields["health"]),
        }
        return cls(**fields)

    def schedule_config(self) -> dict[str, Any] | None:
        """The way alpha is on; None where it rests and no way is remembered."""
        alpha = self.alpha
        if alpha.steps_total == 0 and alpha.start == alpha.target == alpha.alpha:
            return None
        return {
            "algorithm_id": alpha.curve.name,
            "steepness": alpha.curve.steepness,
            "total_steps": alpha.steps_total,
            "current_step": alpha.steps_done,
            "start": alpha.start,
            "target": alpha.target,
        }


_OF_THE_SCHEDULE = ("alpha", "blending_steps_done", "blending_steps_total")
_OF_THE_SLOT = ("internal_kind", "internal_level", "internal_max_level", "internal_mask")
