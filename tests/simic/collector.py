"""Plays small games with the same network, batch and PPO that grow hosts. Read `Player.train` first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tests.simic.games import Game
from torch import Tensor

from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.randomness import drawing_from, stream
from esper.leyline.slot_config import SlotConfig
from esper.leyline.telemetry import PpoUpdatedPayload
from esper.simic.agent.batch import Batch
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.ppo import PPO
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.networks.factored_lstm import Inputs, TamiyoNetwork
from esper.tamiyo.policy.heads import HeadTable, Possible, likelihood, sample


def slots_of(count: int) -> SlotConfig:
    return SlotConfig.from_specs(
        InjectionSpec(f"r0c{i}", 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(count)
    )


def network_for(table: HeadTable, base: int, per_slot: int, size: int = 64, seed: int = 0) -> TamiyoNetwork:
    """A network that normalises nothing: games show flags and small numbers."""
    config = NetworkConfig(size=size, slot_size=32, embedding=2)
    with drawing_from(stream(seed, "weights")):
        return TamiyoNetwork(slots_of(table.num_slots), table, config, (None,) * base, (None,) * per_slot)


def op_names(table: HeadTable) -> tuple[str, ...]:
    return tuple(f"op {op}" for op in range(table.num_ops))


@dataclass
class Player:
    """A policy that learns a game by playing `envs` episodes side by side, then updating, and so on."""

    make: Callable[[int], Game]
    config: PPOConfig
    envs: int
    seed: int = 0
    size: int = 64
    updates: int = 100
    steps: int = 0
    told: list[PpoUpdatedPayload] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.games = [self.make(1000 * self.seed + env) for env in range(self.envs)]
        first = self.games[0]
        self.network = network_for(first.table, len(first.base), len(first.slots[0]), self.size, self.seed)
        self.ppo = PPO(self.network, self.config, self.seed, self.updates, op_names(first.table))
        self.generator = stream(self.seed, "play")

    def train(self, steps: int) -> None:
        """Until so many steps have been taken in all; an update that would begin later is left out."""
        while self.steps < steps:
            batch = self.collect()
            self.steps += int(batch.valid.sum())
            self.told.append(self.ppo.learn(batch))

    def train_until(self, score: float, steps: int, every: int) -> float:
        """Until the likeliest decisions score so much, looked at now and then, or so many steps have been taken."""
        reached = self.score(1)
        while reached < score and self.steps < steps:
            self.train(min(steps, self.steps + every))
            reached = self.score(1)
        return reached

    def collect(self) -> Batch:
        """One episode of every game."""
        return collect(self.network, self.games, self.generator)

    def score(self, episodes: int, make: Callable[[int], Game] | None = None) -> float:
        """Mean return of the likeliest decisions on games not seen before."""
        games = [(make or self.make)(10**6 + index) for index in range(episodes)]
        batch = collect(self.network, games, None)
        return float(batch.reward[batch.valid].sum()) / episodes


@torch.no_grad()
def collect(network: TamiyoNetwork, games: list[Game], generator: torch.Generator | None) -> Batch:
    """One episode of every game, drawn by `generator` or, without one, the likeliest."""
    for game in games:
        game.begin()
    memory, running = network.blank_memory(len(games)), [True] * len(games)
    rows: list[tuple[Tensor, ...]] = []
    while any(running):
        inputs, masks = look(games), possible(games)
        output = network(inputs, memory)
        shape = (len(games), len(network.table.heads))
        uniforms = None if generator is None else torch.rand(shape, generator=generator)
        decisions = sample(network.table, output.row[0], masks, uniforms)
        joint = likelihood(network.table, output.row[0], masks, decisions).joint
        valid = torch.tensor(running)
        rewards = [0.0] * len(games)
        for index, decision in enumerate(decisions.tolist()):
            if running[index]:
                rewards[index], over = games[index].act(decision)
                running[index] = not over
        reward = torch.tensor(rewards, dtype=torch.float64)
        seen = (inputs.base[0], inputs.slots[0], inputs.blueprints[0], masks.op, masks.slot)
        rows.append((*seen, decisions, joint, output.value[0], reward, valid))
        memory = output.memory
    return into_batch(rows).cut(torch.zeros(len(rows), len(games), dtype=torch.bool))


def into_batch(rows: list[tuple[Tensor, ...]]) -> Batch:
    base, slots, blueprints, op, slot, decisions, joint, value, reward, valid = map(
        torch.stack, zip(*rows, strict=True)
    )
    steps, envs = valid.shape
    return Batch(
        inputs=Inputs(base, slots, blueprints),
        possible=Possible(op, slot),
        decisions=decisions,
        log_prob=joint,
        value=value,
        reward=reward,
        valid=valid,
        env=torch.arange(envs).expand(steps, envs),
        time=torch.arange(steps).unsqueeze(1).expand(steps, envs),
    )


def look(games: list[Game]) -> Inputs:
    slots = torch.tensor([game.slots for game in games], dtype=torch.float32).unsqueeze(0)
    blueprints = torch.zeros(slots.shape[:3], dtype=torch.long)
    return Inputs(torch.tensor([game.base for game in games], dtype=torch.float32).unsqueeze(0), slots, blueprints)


def possible(games: list[Game]) -> Possible:
    return Possible(torch.tensor([game.ops() for game in games]), torch.tensor([game.slots_by_op() for game in games]))
