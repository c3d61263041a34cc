"""Rounds of a game that asks for everything at once, and rounds of hosts made by hand. Read `round_of` first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
from tests.simic.collector import collect, network_for, op_names
from tests.simic.games import NO, YES, Game
from tests.tamiyo.small import host, ladder, slot, space
from torch import Tensor

from esper.leyline.factored_actions import ActionSpace
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import PpoUpdatedPayload
from esper.simic.agent.batch import Batch
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.losses import Lesson, Opinion
from esper.simic.agent.ppo import PPO
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.rewards import StepScore
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.controller import forget
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tamiyo.policy.heads import HeadTable, Possible, likelihood
from esper.tamiyo.policy.learned import LearnedPolicy, new_policy

WAIT, PLANT, BLEND, REST = range(4)
TABLE = HeadTable(
    heads=("op", "slot", "blueprint", "tempo"),
    sizes=(4, 3, 2, 3),
    relevant=((YES, NO, NO, NO), (YES, YES, YES, NO), (YES, YES, NO, YES), (YES, NO, NO, YES)),
    fits=((YES, NO), (YES, YES), (NO, YES)),
)


class Jumble(Game):
    """Episodes of 1 to 9 steps with noise to see, random masks (about 30 % possible) and rewards at random."""

    table = TABLE

    def begin(self) -> None:
        self.left = int(self.random.integers(1, 10))
        self._look()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        assert self.free_ops[decision[0]]
        self.left -= 1
        self._look()
        return float(self.random.normal()) + 0.5 * decision[0], self.left == 0

    def ops(self) -> Sequence[bool]:
        return self.free_ops

    def slots_by_op(self) -> Sequence[Sequence[bool]]:
        return self.free

    def _look(self) -> None:
        self.base = self.random.normal(size=4).tolist()
        self.slots = self.random.normal(size=(3, 2)).tolist()
        chosen = (self.random.random((4, 3)) < 0.4) * [[row[1]] for row in TABLE.relevant]
        self.free = chosen.astype(bool).tolist()
        self.free_ops = (YES, any(self.free[PLANT]), any(self.free[BLEND]), bool(self.random.random() < 0.3))


def perturbed(network: TamiyoNetwork, gain: float = 50.0) -> TamiyoNetwork:
    """The same with opinions: its output layers begin at 0.01 times the size that matters."""
    with torch.no_grad():
        for last in (network.actor[-1], network.slot_scorer[-1]):
            last.weight.mul_(gain)
    return network


def jumble_network(seed: int = 0, size: int = 16) -> TamiyoNetwork:
    return perturbed(network_for(TABLE, 4, 2, size, seed))


def jumbles(envs: int, seed: int = 0) -> list[Game]:
    return [Jumble(100 * seed + env) for env in range(envs)]


def round_of(network: TamiyoNetwork, envs: int = 6, seed: int = 0) -> Batch:
    """One episode of so many games, decided by the network."""
    return collect(network, jumbles(envs, seed), stream(seed, "play"))


def ppo_for(network: TamiyoNetwork, seed: int = 0, updates: int = 10, **settings: Any) -> PPO:
    plain = {"epochs": 3, "minibatch": 2, "lr": 1e-3, "target_kl": None, "baseline": "none", "lam": 0.95}
    config = PPOConfig(**(plain | settings))
    return PPO(network, config, seed, updates, op_names(network.table))


def flat_lesson(network: TamiyoNetwork, batch: Batch, seed: int = 0) -> tuple[Opinion, Lesson]:
    """What the network says of a batch, as leaves of a graph, and a lesson with advantages at random."""
    with torch.no_grad():
        said = Opinion.of(network(batch.inputs, network.blank_memory(batch.sequences)), batch.valid)
    said = Opinion(*(each.requires_grad_() for each in (said.row, said.value, said.op_values)))
    table, possible_ops = network.table, batch.possible.rows(batch.valid)
    decisions = batch.decisions[batch.valid]
    found = likelihood(table, said.row.detach(), possible_ops, decisions)
    generator = torch.Generator().manual_seed(seed)
    count = len(decisions)
    # As if the policy had moved: ratios differ from 1, and some are clipped.
    noise = 0.15 * torch.randn(found.log_prob.shape, generator=generator)
    heads = found.log_prob - noise * (found.log_prob != 0)
    lesson = Lesson(
        possible=possible_ops,
        decisions=decisions,
        log_prob=heads.sum(1),
        head_log_prob=heads,
        advantage=torch.randn(count, generator=generator),
        target=torch.randn(count, generator=generator),
    )
    return said, lesson


def weights(network: TamiyoNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fields(told: PpoUpdatedPayload, *without: str) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(told).items() if name not in without}


def adam_state(ppo: PPO) -> dict[str, Tensor]:
    state = ppo.adam.state_dict()["state"]
    return {f"{index} {name}": value.clone() for index, each in state.items() for name, value in each.items()}


def normalising_network() -> TamiyoNetwork:
    network = jumble_network()
    network.base_norm.is_flag.fill_(False)
    network.slot_norm.is_flag.fill_(False)
    return network


def policy_weights(network: TamiyoNetwork) -> dict[str, Tensor]:
    """All but the critics', which speak of rewards."""
    return {name: value for name, value in weights(network).items() if not name.startswith(("critic", "op_critic"))}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


# --- rounds of hosts --------------------------------------------------------------------------------------------------


def policy_on(slots: int, seed: int = 0, size: int = 16) -> LearnedPolicy:
    policy = new_policy(space(slots), NetworkConfig(size=size, slot_size=8, prior=0.0), seed)
    perturbed(policy.network)
    return policy


def hosts(offered: ActionSpace, envs: int, epoch: int, length: int, **facts: Any) -> list[HostReport]:
    """Hosts that differ, with an empty slot first and a ladder last."""
    count = offered.slot_config.num_slots
    return [
        replace(
            host(
                slot(0), *(slot(i) for i in range(1, count - 1)), ladder(count - 1, 2.0), val_loss=0.1 * (env + epoch)
            ),
            env=env,
            epoch=epoch,
            episode_length=length,
            **facts,
        )
        for env in range(envs)
    ]


def host_round(
    policy: LearnedPolicy,
    envs: int = 4,
    length: int = 6,
    ends: Sequence[tuple[int, int]] = (),
    gone: dict[int, int] | None = None,
    round_: int = 0,
) -> Rollout:
    """A round of the main loop without hosts. ends: (environment, step) after which a sequence ended; gone: steps from
    which an environment has finished. The reward is 10 x environment + step."""
    rollout, memory = Rollout(), policy.blank_memory(envs)
    for step in range(length):
        reports = [
            replace(report, round=round_, finished=gone is not None and step >= gone.get(report.env, length))
            for report in hosts(policy.space, envs, step, length)
        ]
        legal = possible(reports, policy.space)
        sight = observe(reports, policy.space)
        choice, memory = policy.act(sight, legal, memory)
        ended = [(env, step) in ends for env in range(envs)]
        rollout.add(sight, legal, choice, [StepScore(10.0 * env + step) for env in range(envs)], ended)
        memory = forget(policy, memory, ended)
    return rollout


def every_choice(batch: Batch) -> Possible:
    """As if nothing had been masked."""
    return Possible(torch.ones_like(batch.possible.op), torch.ones_like(batch.possible.slot))
