"""What a step is worth, term by term: pure functions of one environment's step, in points of the task's metric.

To add a term write a function below its line `@TERMS.register(name)` and give it a weight in a mode (`modes.py`).
`esper list terms`, the telemetry column and the tests asked of every term follow.

`outcome` and `progress` together sum up to the objective of the episode; every other term is a price, never above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import OPS, FactoredAction, LifecycleOp
from esper.leyline.registry import Registry
from esper.leyline.reports import HostReport, SeedStateReport
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.footprint import alpha_delta_sq_sum, effective_seed_params, effective_seed_params_alpha

LARGEST = 1e6
"""A metric further from 0 than this is as bad as one that is not finite: no reward can be made of it."""


@dataclass(frozen=True)
class Transition:
    """One step of one environment."""

    before: HostReport
    action: FactoredAction
    receipt: Receipt
    after: HostReport
    settled: HostReport  # after the governor was obeyed: where the next step begins
    verdict: Verdict

    @property
    def last(self) -> bool:
        """It ends the episode."""
        return self.after.epoch >= self.after.episode_length

    @property
    def terminal(self) -> bool:
        """It ends a sequence: the episode does, or the governor took the host back."""
        return self.last or not self.verdict.healthy

    @property
    def seed(self) -> SeedStateReport:
        """The slot that the action is about, as it was; only where the operation needs one."""
        return self.before.slots[self.action.slot_idx]


Term = Callable[[Transition, RewardConfig], float]
TERMS: Registry[Term] = Registry("reward term")


def usable(metric: float | None) -> float | None:
    """The metric if it was measured and a reward can be made of it."""
    return None if metric is None or not abs(metric) <= LARGEST else metric


def worth(sign: float, metric: float, host_params: int, params: float, rent: float) -> float:
    """Points of the metric, more being better, minus rent for every doubling of the host's parameters."""
    return sign * metric - rent * math.log2(params / host_params)


def objective(report: HostReport, metric: float, params: float, config: RewardConfig) -> float:
    """`worth` of a host with `params` parameters in all."""
    return worth(report.metric_sign, metric, report.host_params, params, config.rent)


def potential(report: HostReport, config: RewardConfig) -> float:
    """The objective of the whole network as it is, seeds on probation included; 0 where it was not measured."""
    metric = usable(report.val_metric)
    if metric is None:
        return 0.0
    seeds = effective_seed_params_alpha(report) if config.alpha_weighted_rent else effective_seed_params(report)
    return objective(report, metric, report.host_params + seeds, config)


@TERMS.register("outcome")
def outcome(step: Transition, config: RewardConfig) -> float:
    """The objective of the exported network on validation, after the last step."""
    metric = usable(step.after.exported_metric)
    if not step.last or not step.verdict.healthy or metric is None:
        return 0.0
    return objective(step.after, metric, step.after.exported_params, config)


@TERMS.register("progress")
def progress(step: Transition, config: RewardConfig) -> float:
    """Change of the potential (Ng et al. 1999): of the whole host, so that all slots are credited; 0 over an episode.

    A terminal state has potential 0. A host that was taken back has no measurement, so its sequence starts from 0 too.
    """
    ahead = 0.0 if step.terminal else config.gamma * potential(step.settled, config)
    return ahead - potential(step.before, config)


@TERMS.register("intervention")
def intervention(step: Transition, config: RewardConfig) -> float:
    """The operation's price in the table of operations, also where it was refused: asking is not free."""
    return -config.price_scale * OPS[step.action.op].price


@TERMS.register("alpha_shock")
def alpha_shock(step: Transition, config: RewardConfig) -> float:
    """Price of sudden changes of alpha, squared and in proportion to the seed's parameters."""
    return -config.shock * alpha_delta_sq_sum(step.before, step.after)


@TERMS.register("churn")
def churn(step: Transition, config: RewardConfig) -> float:
    """Price of undoing: of pruning a seed, the more the younger it is, and of taking back the last change of level."""
    if not step.receipt.done:
        return 0.0
    if step.action.op is LifecycleOp.PRUNE:
        grown_up = config.young * step.before.episode_length
        return -config.churn * max(0.0, 1.0 - step.seed.age / grown_up) if grown_up > 0 else 0.0
    return -config.churn if _takes_back(step) else 0.0


def _takes_back(step: Transition) -> bool:
    if step.action.op not in (LifecycleOp.GROW_INTERNAL, LifecycleOp.SHRINK_INTERNAL):
        return False
    previous, level = step.seed.internal_previous_level, step.seed.internal_level
    return previous is not None and (
        previous > level if step.action.op is LifecycleOp.GROW_INTERNAL else previous < level
    )


@TERMS.register("rollback")
def rollback(step: Transition, config: RewardConfig) -> float:
    """Penalty of the step that made the governor take the host back, once."""
    return 0.0 if step.verdict.healthy else _crash(step, config.rollback, config)


@TERMS.register("divergence")
def divergence(step: Transition, config: RewardConfig) -> float:
    """Penalty for a host that is lost for good, or whose metric cannot be used though the governor let it pass."""
    if not step.verdict.healthy:
        return -config.divergence if step.verdict.ended else 0.0
    unmeasured = step.last and usable(step.after.exported_metric) is None
    overflown = step.after.val_metric is not None and usable(step.after.val_metric) is None
    return _crash(step, config.divergence, config) if unmeasured or overflown else 0.0


def _crash(step: Transition, points: float, config: RewardConfig) -> float:
    """A sequence that crashes ends at 0. Where the potential is negative, as with losses, that must be no escape."""
    return min(0.0, potential(step.before, config)) - points
