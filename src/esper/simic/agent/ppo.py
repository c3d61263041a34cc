"""Proximal policy optimisation of a recurrent, factored, masked policy (Schulman et al. 2017). Read `PPO.learn` first.

Sequences are whole, from a blank memory to their end, and the network reads them anew for every step of Adam: no memory
is stored, none goes stale. `batch.py` is what is learned from, `advantages.py` what was good, `losses.py` what is
descended, `told.py` what is told of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.randomness import stream
from esper.leyline.telemetry import Payload, PpoUpdatedPayload
from esper.simic.agent.advantages import (
    ValueScale,
    against_the_others,
    discounted_returns,
    explained_variance,
    gae,
    standardised,
)
from esper.simic.agent.batch import Batch
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.losses import Lesson, Losses, Move, Opinion, imitation_losses, losses
from esper.simic.agent.observed import observed
from esper.simic.agent.policy_guard import UNTRAINED, Known, PolicyGuard, failure, finite
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.agent.told import after_learning, before_learning
from esper.tamiyo.networks.factored_lstm import Inputs, Output, TamiyoNetwork
from esper.tamiyo.policy.heads import likelihood

OP_NAMES = tuple(op.name for op in LifecycleOp)


@dataclass
class Descent:
    """How one update went."""

    losses: list[tuple[float, ...]] = field(default_factory=list)  # policy, value, bonus, Q, norm of each step
    head_grad_norms: list[Tensor] = field(default_factory=list)  # [H] likewise
    epochs: int = 0
    failed: str = ""  # why it must be undone


class PPO:
    """Makes a network better, round by round: a `Learner`."""

    def __init__(
        self, network: TamiyoNetwork, config: PPOConfig, seed: int, updates: int, op_names: Sequence[str] = OP_NAMES
    ) -> None:
        """seed: of the order of sequences. updates: how many there will be, over which the entropy bonus shrinks.

        Raises ConfigError where the entropy bonus has neither one weight nor one for each head.
        """
        heads = network.table.heads
        if len(config.entropy) not in (1, len(heads)):
            wanted = f"one number, or one for each of {', '.join(heads)}"
            raise ConfigError(f"config.ppo.entropy: {len(config.entropy)} numbers; give {wanted}")
        assert len(op_names) == network.table.num_ops, f"{len(op_names)} names, want {network.table.num_ops}"
        self.network, self.config, self.seed, self.planned, self.op_names = network, config, seed, updates, op_names
        self._entropy = torch.tensor(config.entropy).expand(len(heads))
        # Apart, so that the diagnostic critic has no say in how much the others' gradient is shortened.
        named = list(network.named_parameters())
        self._diagnostic = [param for name, param in named if name.startswith("op_critic.")]
        self._learned = [param for name, param in named if not name.startswith("op_critic.")]
        self.adam = torch.optim.Adam(network.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        self.scale = ValueScale()
        self.updates = 0
        self.guard = PolicyGuard(config.guard, Known(UNTRAINED, self._copied()))

    def update(self, rollout: Rollout) -> tuple[Payload, ...]:
        """Learns from a round. Afterwards, never before, the network's normalisers take in what was seen in it."""
        batch = Batch.of(rollout, self.network)
        seen = observed(batch, self.network)
        return self.learn(batch), seen

    def learn(self, batch: Batch) -> PpoUpdatedPayload:
        """One update. One that goes wrong is undone: weights, moments and unit are what they were (`policy_guard.py`).

        After several of those in a row, and at once where the network is broken, they are what a good update left.
        """
        batch.check(self.network)
        everything = torch.arange(batch.sequences)
        kept = self._copied()
        with torch.no_grad():
            before = self._read(batch)
        lesson, explained = self._prepare(batch, before)
        flat = lesson.at(everything, batch.valid)
        facts = before_learning(self.network.table, batch, before, flat)
        facts |= {"update": self.updates, "explained_variance": explained, "entropy_share": self.entropy_share}
        facts |= {"lr": self.lr, "imitated": self.config.teacher.rule if self.imitates else None}
        descent, said_before = self._descend(batch, lesson), Opinion.of(before, batch.valid)
        said = self._opinion(batch)
        limits = None if self.imitates else self.config.guard
        failed = descent.failed or failure(self.network.table, said_before, said, flat, limits)
        if failed:
            self._become(kept)
            facts |= {"skipped": failed} | self._gone_back(ill=not finite(said_before))
        else:
            facts |= after_learning(self.network.table, said, flat, self.config.clip, self.scale, self.op_names)
            facts |= self._told(descent)
            self.network.update_statistics(batch.inputs, batch.valid)
            self.guard.passed(self.updates, self._copied)
        facts |= {"value_mean": self.scale.mean, "value_deviation": self.scale.deviation}
        self.updates += 1
        return PpoUpdatedPayload(**facts)

    @property
    def imitates(self) -> bool:
        """Whether this update learns from the decisions of a teacher, and not from rewards."""
        return self.updates < self.config.taught_rounds

    @property
    def entropy_share(self) -> float:
        """Of the entropy's first weight, in this update."""
        return 1.0 + self._way * (self.config.entropy_left - 1.0)

    @property
    def lr(self) -> float:
        """Adam's step size in this update."""
        return self.config.lr * (1.0 + self._way * (self.config.lr_left - 1.0))

    @property
    def _way(self) -> float:
        """How far learning from rewards has come: 0 in its first update, 1 in the last that was planned."""
        taught = self.config.taught_rounds
        return min(1.0, max(0, self.updates - taught) / max(1, self.planned - taught - 1))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives: all that goes on after a restart, but for the network."""
        moments, guard = self.adam.state_dict(), self.guard.state_dict()
        return {"adam": moments, "scale": asdict(self.scale), "updates": self.updates, "guard": guard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.scale = ValueScale(**state["scale"])
        self.updates = state["updates"]
        self.guard.load_state_dict(state["guard"])

    # --- going back -----------------------------------------------------------------------------------------------

    def _copied(self) -> dict[str, Any]:
        """All that an update changes."""
        moments, unit = self.adam.state_dict(), asdict(self.scale)
        return copy.deepcopy({"network": self.network.state_dict(), "adam": moments, "scale": unit})

    def _become(self, then: dict[str, Any]) -> None:
        self.network.load_state_dict(then["network"])
        self.adam.load_state_dict(copy.deepcopy(then["adam"]))  # which goes on in the tensors that it is given
        self.scale = ValueScale(**then["scale"])

    def _gone_back(self, ill: bool) -> dict[str, Any]:
        """What is told of an update that was undone, once the policy has gone back further if it must."""
        count = self.guard.failures + 1
        known = self.guard.failed(ill)
        if known is None:
            return {"failures": count}
        self._become(known.state)
        return {"failures": count, "restored_update": known.update}

    # --- what was good --------------------------------------------------------------------------------------------

    def _prepare(self, batch: Batch, before: Output) -> tuple[Lesson, float | None]:
        """The lesson [T, N], and the explained variance. Settles the critic's unit; what it says stays the same."""
        config, valid, table = self.config, batch.valid, self.network.table
        reward = torch.where(valid, batch.reward, 0.0)
        if config.baseline == "group":
            reward = against_the_others(reward, valid, batch.time)
        beyond = self._beyond(batch)
        returns = discounted_returns(reward, valid, config.gamma, beyond)
        unit = self.scale.taken_in(returns[valid]) if config.value_norm and not self.imitates else self.scale
        said_in = unit if self.scale.batches == 0 else self.scale  # before there was a unit, nothing had been learned
        value = torch.where(valid, said_in.points(batch.value), 0.0)
        self.network.rescale_values(*said_in.change_to(unit))
        self.scale = unit
        advantage = gae(reward, value, valid, config.gamma, config.lam, beyond)
        target = unit.unit(advantage + value)
        found = likelihood(table, before.row[valid], batch.possible.rows(valid), batch.decisions[valid])
        head_log_prob, free = torch.zeros(*valid.shape, len(table.heads)), torch.zeros_like(valid)
        head_log_prob[valid], free[valid] = found.log_prob, ~found.forced
        lesson = Lesson(
            possible=batch.possible,
            decisions=batch.decisions,
            log_prob=batch.log_prob,
            head_log_prob=head_log_prob,
            advantage=standardised(advantage, free),
            target=target,
        )
        return lesson, None if self.imitates else explained_variance(value[valid], returns[valid])

    @torch.no_grad()
    def _beyond(self, batch: Batch) -> Tensor:
        """[N] points that the critic expects after each sequence; 0 where it has ended, and before it has learned."""
        nothing = torch.zeros(batch.sequences, dtype=torch.float64)
        if self.config.horizon_end == "terminated" or batch.horizon is None or self.updates == 0:
            return nothing
        inputs, index = batch.beyond()
        value = self._read_from_blank(inputs).value[index, torch.arange(batch.sequences)]
        return torch.where(batch.horizon.open, self.scale.points(value), nothing)

    # --- descent --------------------------------------------------------------------------------------------------

    def _descend(self, batch: Batch, lesson: Lesson) -> Descent:
        """Epochs of minibatches of whole sequences, until the policy has moved far enough."""
        descent, generator = Descent(), stream(self.seed, "minibatches", self.updates)
        for group in self.adam.param_groups:
            group["lr"] = self.lr
        epochs = self.config.teacher.epochs if self.imitates else self.config.epochs
        for _ in range(epochs):
            for index in torch.randperm(batch.sequences, generator=generator).split(self.config.minibatch):
                self._step(batch.only(index), lesson, index, descent)
                if descent.failed:
                    return descent
            descent.epochs += 1
            if descent.epochs < epochs and self._far_enough(batch, lesson):
                break
        return descent

    def _step(self, part: Batch, lesson: Lesson, index: Tensor, descent: Descent) -> None:
        said = Opinion.of(self._read(part), part.valid)
        said.row.retain_grad()
        found = self._losses(said, lesson.at(index, part.valid))
        self.adam.zero_grad(set_to_none=True)
        found.total.backward()
        norm = nn.utils.clip_grad_norm_(self._learned, self.config.max_grad_norm)
        diagnostic_norm = nn.utils.clip_grad_norm_(self._diagnostic, self.config.max_grad_norm)
        descent.failed = _not_finite(found, norm + diagnostic_norm)
        if descent.failed:
            return
        self.adam.step()
        parts = [each.detach() for each in (found.policy, found.value, found.bonus, found.op_value, norm)]
        descent.losses.append(tuple(float(each) for each in parts))
        assert said.row.grad is not None
        widths = self.network.table.widths
        descent.head_grad_norms.append(torch.stack([each.norm() for each in said.row.grad.split(widths, dim=1)]))

    def _losses(self, said: Opinion, lesson: Lesson) -> Losses:
        if self.imitates:
            return imitation_losses(self.network.table, said, lesson)
        return losses(self.network.table, said, lesson, self.config, self._entropy * self.entropy_share)

    def _far_enough(self, batch: Batch, lesson: Lesson) -> bool:
        if self.imitates or self.config.target_kl is None:
            return False
        flat = lesson.at(torch.arange(batch.sequences), batch.valid)
        return bool(Move.of(self.network.table, self._opinion(batch), flat).kl > self.config.target_kl)

    def _told(self, descent: Descent) -> dict[str, Any]:
        names = ("policy_loss", "value_loss", "entropy_bonus", "op_value_loss", "grad_norm")
        means = torch.tensor(descent.losses, dtype=torch.float64).mean(0).tolist()
        norms = torch.stack(descent.head_grad_norms).mean(0).tolist()
        by_head = tuple(zip(self.network.table.heads, norms, strict=True))
        return {**dict(zip(names, means, strict=True)), "epochs": descent.epochs, "head_grad_norm": by_head}

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self, batch: Batch) -> Output:
        return self._read_from_blank(batch.inputs)

    def _read_from_blank(self, inputs: Inputs) -> Output:
        output: Output = self.network(inputs, self.network.blank_memory(inputs.base.shape[1]))
        return output

    @torch.no_grad()
    def _opinion(self, batch: Batch) -> Opinion:
        return Opinion.of(self._read(batch), batch.valid)


def _not_finite(found: Losses, norm: Tensor) -> str:
    named = {"policy": found.policy, "value": found.value, "entropy": found.bonus, "Q(s, op)": found.op_value}
    for name, loss in named.items():
        if not torch.isfinite(loss):
            return f"the {name} loss is {float(loss.detach())}"
    return "" if torch.isfinite(norm) else f"the norm of the gradient is {float(norm)}"
