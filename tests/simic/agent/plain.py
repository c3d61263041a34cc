"""PPO of operations without arguments, written out sequence by sequence: what `PPO` must equal. Read `learn` first.

It reads the network's logits and values, and shares nothing else with the learner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import torch
from tests.simic.games import NO, YES, Game, only_ops
from torch import Tensor

from esper.simic.agent.batch import Batch
from esper.simic.agent.config import PPOConfig
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork

OPS = 3


class Choices(Game):
    """One to seven steps with noise to see. At half of them one of three operations is all that is possible, and those
    steps pay ten times as much."""

    table = only_ops(OPS)

    def begin(self) -> None:
        self.left = int(self.random.integers(1, 8))
        self._look()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        pays = (10.0 if sum(self.free) == 1 else 1.0) * (decision[0] + float(self.random.normal()))
        self.left -= 1
        self._look()
        return pays, self.left == 0

    def ops(self) -> Sequence[bool]:
        return self.free

    def slots_by_op(self) -> Sequence[Sequence[bool]]:
        return [(self.free[0],), (NO,), (NO,)]

    def _look(self) -> None:
        self.base = self.random.normal(size=4).tolist()
        only = int(self.random.integers(OPS))
        self.free = (YES,) * OPS if self.random.random() < 0.5 else tuple(op == only for op in range(OPS))


@dataclass
class Unit:
    """Mean and deviation of the returns of all batches, which weigh alike."""

    means: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def and_of(self, returns: list[float]) -> Unit:
        return Unit([*self.means, fmean(returns)], [*self.squares, fmean(each**2 for each in returns)])

    @property
    def mean(self) -> float:
        return fmean(self.means)

    @property
    def deviation(self) -> float:
        return math.sqrt(fmean(self.squares) - self.mean**2)


@dataclass
class Taken:
    """One step of a sequence, and what is known of it before an update."""

    at: tuple[int, int]  # where it stands in the batch
    free: bool
    reward: float
    said: float  # value, in the unit of the time
    advantage: float = 0.0  # in points
    target: float = 0.0  # of the value, in the unit there is now


class Plain:
    """Learns with every sequence in every step of Adam."""

    def __init__(self, network: TamiyoNetwork, config: PPOConfig, updates: int) -> None:
        self.network, self.config, self.planned, self.done = network, config, updates, 0
        self.adam = torch.optim.Adam(network.parameters(), lr=config.lr, eps=config.adam_eps, foreach=False)
        self.unit: Unit | None = None

    def learn(self, batch: Batch) -> None:
        self.adam.param_groups[0]["lr"] = self.config.lr * self._left(self.config.lr_left)
        steps = self._understood([_sequence(batch, column) for column in range(batch.sequences)])
        for _ in range(self.config.epochs):
            self._descend(self._loss(batch, steps))
        self.done += 1

    def _understood(self, sequences: list[list[Taken]]) -> list[Taken]:
        """All steps with advantages and targets: sums of rewards and of surprises, every one written out."""
        gamma, decay = self.config.gamma, self.config.gamma * self.config.lam
        returns = [
            _faded(gamma, [step.reward for step in each[first:]]) for each in sequences for first in range(len(each))
        ]
        now = (self.unit or Unit()).and_of(returns)
        then = self.unit or now
        for each in sequences:
            value = [then.mean + then.deviation * step.said for step in each]
            after = [*value[1:], 0.0]
            surprise = [step.reward + gamma * b - a for step, a, b in zip(each, value, after, strict=True)]
            for index, step in enumerate(each):
                step.advantage = _faded(decay, surprise[index:])
                step.target = (value[index] + step.advantage - now.mean) / now.deviation
        self._say_the_same(then, now)
        self.unit = now
        return [step for each in sequences for step in each]

    @torch.no_grad()
    def _say_the_same(self, then: Unit, now: Unit) -> None:
        """In another unit: then.mean + then.deviation x = now.mean + now.deviation y, solved for y."""
        for critic in (self.network.critic, self.network.op_critic):
            critic[-1].weight.mul_(then.deviation / now.deviation)
            critic[-1].bias.copy_((then.deviation * critic[-1].bias + then.mean - now.mean) / now.deviation)

    def _left(self, at_the_end: float) -> float:
        """Of what shrinks evenly from the first update to the last."""
        return 1 + (at_the_end - 1) * self.done / (self.planned - 1)

    def _loss(self, batch: Batch, steps: list[Taken]) -> Tensor:
        config = self.config
        free = [step.advantage for step in steps if step.free]
        mean, deviation = fmean(free), pstdev(free)
        policy, value, diagnostic, entropy = [], [], [], []
        output = self.network(batch.inputs, self.network.blank_memory(batch.sequences))
        for step in steps:
            op = int(batch.decisions[step.at][0])
            value.append((output.value[step.at] - step.target) ** 2 / 2)
            diagnostic.append((output.op_values[step.at][op] - step.target) ** 2 / 2)
            if step.free:
                log_probs = output.row[step.at][:OPS].log_softmax(0)
                ratio = (log_probs[op] - batch.log_prob[step.at]).exp()
                near = ratio.clamp(1 - config.clip, 1 + config.clip)
                good = (step.advantage - mean) / deviation
                policy.append(-torch.minimum(ratio * good, near * good))
                entropy.append(-(log_probs.exp() * log_probs).sum() / math.log(OPS))
        weight = config.entropy[0] * self._left(config.entropy_left)
        return _mean(policy) + config.value * _mean(value) - weight * _mean(entropy) + _mean(diagnostic)

    def _descend(self, loss: Tensor) -> None:
        """A step of Adam. The critic that is for diagnostics has a gradient, and a length of it, of its own."""
        self.adam.zero_grad()
        loss.backward()
        named = [(name, each.grad) for name, each in self.network.named_parameters() if each.grad is not None]
        for diagnostic in (True, False):
            part = [gradient for name, gradient in named if name.startswith("op_critic") == diagnostic]
            length = math.sqrt(sum(float(gradient.square().sum()) for gradient in part))
            for gradient in part:
                gradient.mul_(min(1.0, self.config.max_grad_norm / length))
        self.adam.step()


def _sequence(batch: Batch, column: int) -> list[Taken]:
    rows = [(row, column) for row in range(int(batch.valid[:, column].sum()))]
    free = batch.possible.op.all(2)
    return [Taken(at, bool(free[at]), float(batch.reward[at]), float(batch.value[at])) for at in rows]


def _faded(factor: float, values: list[float]) -> float:
    return sum(factor**index * value for index, value in enumerate(values))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
