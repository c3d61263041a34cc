"""How much better a decision was than expected: advantages, baselines, and the unit in which values are learned.

T steps of N sequences, float64, in points. Nothing comes after a sequence's end, unless it is told what would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_DEVIATION = 1e-6  # of advantages, in points; below it they are all the same
_LEAST_UNIT = 1e-4  # of values, in points
_WINDOW = 20  # batches that the unit of values remembers


def gae(reward: Tensor, value: Tensor, valid: Tensor, gamma: float, lam: float, beyond: Tensor | None = None) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), newest step first.

    reward, value: [T, N]; valid: [T, N], False after a sequence's end; beyond: [N] the value of the state after it,
    0 if not given. Returns [T, N], 0 where not valid.
    """
    found = torch.zeros_like(reward)
    end = torch.zeros_like(reward[0]) if beyond is None else beyond
    ahead, next_value = torch.zeros_like(reward[0]), end
    for step in reversed(range(reward.shape[0])):
        surprise = reward[step] + gamma * next_value - value[step]
        ahead = torch.where(valid[step], surprise + gamma * lam * ahead, 0.0)
        next_value = torch.where(valid[step], value[step], end)
        found[step] = ahead
    return found


def discounted_returns(reward: Tensor, valid: Tensor, gamma: float, beyond: Tensor | None = None) -> Tensor:
    """[T, N]: what was still to come at each step; no estimate enters but `beyond`."""
    return gae(reward, torch.zeros_like(reward), valid, gamma, 1.0, beyond)


def against_the_others(reward: Tensor, valid: Tensor, time: Tensor) -> Tensor:
    """Rewards minus the mean of the other environments' at the same step of the same round; alone, as they are.

    Hosts of a round start alike and see the same data, so luck that they share drops out. Others decide independently
    of this one, so no gradient is biased (leave-one-out baseline, Kool et al. 2019). Taken from rewards and not from
    advantages, so that the critic has to learn what decisions change and not how hard a host is. All shapes [T, N].
    """
    steps = int(time.max()) + 1
    total = torch.zeros(steps, dtype=reward.dtype).index_add(0, time[valid], reward[valid])
    count = torch.bincount(time[valid], minlength=steps).to(reward.dtype)
    others = (count[time] - 1).clamp(min=0)
    baseline = (total[time] - reward) / others.clamp(min=1)
    return torch.where(valid & (others > 0), reward - baseline, reward)


def standardised(advantage: Tensor, counted: Tensor) -> Tensor:
    """[T, N] float32 of mean 0 and deviation 1 over the steps that are `counted`, 0 elsewhere."""
    if not counted.any():
        return torch.zeros_like(advantage, dtype=torch.float32)
    mean, deviation = advantage[counted].mean(), advantage[counted].std(unbiased=False)
    scaled = (advantage - mean) / deviation.clamp(min=_LEAST_DEVIATION)
    return torch.where(counted, scaled, 0.0).float()


def explained_variance(value: Tensor, returns: Tensor) -> float | None:
    """1 - Var(returns - value) / Var(returns), both flat; None where the returns do not vary."""
    variance = returns.var(unbiased=False)
    if not variance > _LEAST_DEVIATION**2:
        return None
    return float(1 - (returns - value).var(unbiased=False) / variance)


@dataclass(frozen=True)
class ValueScale:
    """The unit of the critic: it says (value - mean) / deviation, of returns lately seen."""

    mean: float = 0.0
    square: float = 1.0  # mean of the squares
    batches: int = 0

    @property
    def deviation(self) -> float:
        return max(_LEAST_UNIT, math.sqrt(max(0.0, self.square - self.mean**2)))

    def taken_in(self, returns: Tensor) -> ValueScale:
        """The unit after a batch of returns, flat; batches weigh alike at first, later ones fade."""
        batches = self.batches + 1
        share = 1 / min(batches, _WINDOW)
        mean, square = float(returns.mean()), float(returns.square().mean())
        return ValueScale(self.mean + share * (mean - self.mean), self.square + share * (square - self.square), batches)

    def points(self, value: Tensor) -> Tensor:
        """What the critic says, in points, float64."""
        return self.mean + self.deviation * value.double()

    def unit(self, points: Tensor) -> Tensor:
        """Points in the critic's unit, float32."""
        return ((points - self.mean) / self.deviation).float()

    def change_to(self, other: ValueScale) -> tuple[float, float]:
        """Factor and addend that turn what is said in this unit into the same in another."""
        return self.deviation / other.deviation, (self.mean - other.mean) / other.deviation
