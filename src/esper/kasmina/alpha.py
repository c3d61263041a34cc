"""How alpha moves: from where it is to a target, along a curve, one step per host epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esper.leyline.factored_actions import CURVES, Curve
from esper.leyline.reports import AlphaMode


def along(curve: Curve, t: float) -> float:
    """The curve's height in [0, 1] at t in [0, 1]; monotone, exactly 0 at 0 and 1 at 1."""
    if t <= 0.0 or t >= 1.0:
        return float(t >= 1.0)
    if curve.name == "LINEAR":
        return t
    if curve.name == "COSINE":
        return 0.5 - 0.5 * math.cos(math.pi * t)
    low, high = (1 / (1 + math.exp(-curve.steepness * (end - 0.5))) for end in (0.0, 1.0))
    return (1 / (1 + math.exp(-curve.steepness * (t - 0.5))) - low) / (high - low)


@dataclass
class AlphaController:
    """Where alpha is on its way. `alpha` is what forward uses, or what a gate starts from."""

    alpha: float = 0.0
    start: float = 0.0
    target: float = 0.0
    steps_total: int = 0
    steps_done: int = 0
    curve: Curve = CURVES["linear"]

    @property
    def mode(self) -> AlphaMode:
        if self.steps_done >= self.steps_total or self.target == self.start:
            return AlphaMode.HOLD
        return AlphaMode.UP if self.target > self.start else AlphaMode.DOWN

    def retarget(self, target: float, steps: int, curve: Curve) -> None:
        """Starts a new way from where alpha is now; with 0 steps alpha is there at once."""
        assert 0.0 <= target <= 1.0, f"alpha target {target} is outside [0, 1]"
        self.start, self.target, self.curve = self.alpha, target, curve
        self.steps_total, self.steps_done = steps, 0
        if steps == 0:
            self.alpha = target

    def step(self) -> None:
        """One epoch further; lands on the target exactly."""
        if self.mode is AlphaMode.HOLD:
            return
        self.steps_done += 1
        way = along(self.curve, self.steps_done / self.steps_total)
        arrived = self.steps_done == self.steps_total
        self.alpha = self.target if arrived else self.start + (self.target - self.start) * way

    def settle(self, alpha: float) -> None:
        """Puts alpha to rest at a value."""
        self.alpha = self.start = self.target = alpha
        self.steps_total = self.steps_done = 0
