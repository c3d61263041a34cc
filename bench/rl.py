"""Does our PPO remember, mask and factor at once, where the best-known public ones can do one of these at a time?

`python -m bench.rl [--game NAME ...] [--seeds N] [--quick]` plays the same games with the same seeds, budgets and
greedy evaluation with ours and with sb3-contrib's RecurrentPPO and MaskablePPO, prints a table and keeps the JSON.
Exit code 1 if a bound was missed. Others see the masks among their observations; they cannot use masks and memory both.
They learn with settings that they publish for the game or, where there are none, with their defaults (`PeerSettings`);
ours are chosen for each game, which favours ours. Everyone finishes the rollout in which the budget ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tests.simic.collector import Player
from tests.simic.games import CartPoleNoVel, Game, MemoryMaskedFactored, TMaze

from esper.simic.agent.config import PPOConfig

RESULTS = Path(__file__).parent / "results"


class AsGym(gymnasium.Env[np.ndarray, np.ndarray]):
    """A game for others: everything in one row of numbers, heads with a choice side by side.

    An episode that lasts `limit` steps is cut, not over: what others expect after it counts. Games do not tell the
    two apart, so one that ends by itself in that very step is cut as well.
    """

    def __init__(self, make: Callable[[int], Game], seed: int, limit: int | None = None) -> None:
        self.game, self.limit, self.taken = make(seed), limit, 0
        self.heads = [head for head, size in enumerate(self.game.table.sizes) if size > 1]
        self.sizes = [self.game.table.sizes[head] for head in self.heads]
        seen = self._look()
        self.observation_space = spaces.Box(-np.inf, np.inf, seen.shape, np.float32)
        self.action_space = spaces.MultiDiscrete(self.sizes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed, options=options)
        self.game.begin()
        self.taken = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        decision = [0] * len(self.game.table.sizes)
        for head, chosen in zip(self.heads, action, strict=True):
            decision[head] = int(chosen)
        reward, over = self.game.act(decision)
        self.taken += 1
        cut = over and self.taken == self.limit
        return self._look(), reward, over and not cut, cut, {}

    def action_masks(self) -> np.ndarray:
        """What is possible with some other choice: heads are drawn apart, so a combination may still be forbidden."""
        slots = np.any(self.game.slots_by_op(), axis=0)
        masks = {0: np.array(self.game.ops()), 1: slots if slots.any() else ~slots}
        found = [masks.get(head, np.ones(size, bool)) for head, size in zip(self.heads, self.sizes, strict=True)]
        return np.concatenate(found)

    def _look(self) -> np.ndarray:
        return np.array([*self.game.base, *(number for row in self.game.slots for number in row)], np.float32)


@dataclass(frozen=True)
class PeerSettings:
    """How others learn a game; what is not given is their library's default."""

    ppo: dict[str, Any] = field(default_factory=dict)  # of both
    lstm: dict[str, Any] = field(default_factory=dict)  # the network of RecurrentPPO; MaskablePPO has its own
    normalised: bool = False  # observations and rewards, by running statistics


@dataclass(frozen=True)
class Trial:
    """A game, how it is learned, and what has to come of it."""

    game: type[Game]
    steps: int
    seeds: int
    episodes: int  # of the greedy evaluation
    ours: PPOConfig
    envs: int
    at_least: float
    others: PeerSettings = PeerSettings()
    others_below: float | None = None
    limit: int | None = None  # steps after which an episode is cut; ours takes that for its end
    peers: tuple[str, ...] = ("RecurrentPPO", "MaskablePPO")


@dataclass(frozen=True)
class Result:
    """One training."""

    game: str
    learner: str
    seed: int
    score: float
    steps: int
    seconds: float  # of this process's CPU


# Those of sb3-contrib's own test on this game: tests/test_lstm.py, test_ppo_lstm_performance (8 environments, gamma
# and the rest by default). MaskablePPO has none for it and takes what is not about the LSTM.
CARTPOLE = PeerSettings(
    {
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 10,
        "learning_rate": 7e-4,
        "gae_lambda": 0.98,
        "max_grad_norm": 1.0,
    },
    lstm={
        "lstm_hidden_size": 64,
        "enable_critic_lstm": True,
        "net_arch": {"pi": [], "vf": [64]},
        "ortho_init": False,
    },
    normalised=True,
)
# These games are not alike within a round, so none can be held against the others.
APART: dict[str, Any] = {"baseline": "none", "lam": 0.95, "lr_left": 1.0}
TRIALS = {
    "T5 cart pole without velocities": Trial(
        CartPoleNoVel,
        50_000,
        3,
        20,
        PPOConfig(lr=1e-3, epochs=6, minibatch=2, gamma=0.99, entropy=(0.0,), target_kl=None, **APART),
        8,
        450.0,
        others=CARTPOLE,
        limit=gymnasium.spec("CartPole-v1").max_episode_steps,
    ),
    "T6 T-maze of 10": Trial(
        TMaze,
        40_000,
        3,
        200,
        PPOConfig(lr=1e-3, epochs=6, minibatch=16, entropy=(0.01,), target_kl=None, **APART),
        32,
        0.98,
    ),
    "T7 memory, masks and arguments": Trial(
        MemoryMaskedFactored,
        100_000,
        5,
        400,
        PPOConfig(lr=5e-4, epochs=6, minibatch=32, entropy=(0.2,), target_kl=0.05, **APART),
        64,
        0.68,
        others_below=0.2,
    ),
}
PEER_ENVS = 8
SPEED = 2.0  # times RecurrentPPO's steps per second


def ours(trial: Trial, seed: int) -> tuple[float, int]:
    expected = trial.envs * 5
    player = Player(trial.game, trial.ours, trial.envs, seed, updates=max(1, trial.steps // expected))
    player.train(trial.steps)
    return player.score(trial.episodes), player.steps


def peer(name: str, trial: Trial, seed: int) -> tuple[float, int]:
    others = trial.others
    games: VecEnv = DummyVecEnv(
        [lambda env=env: AsGym(trial.game, 1000 * seed + env, trial.limit) for env in range(PEER_ENVS)]
    )
    if others.normalised:
        games = VecNormalize(games)
    if name == "RecurrentPPO":
        model: Any = RecurrentPPO(
            "MlpLstmPolicy", games, seed=seed, device="cpu", policy_kwargs=others.lstm, **others.ppo
        )
    else:
        model = MaskablePPO("MlpPolicy", games, seed=seed, device="cpu", **others.ppo)
    model.learn(trial.steps)
    score = sum(_episode(name, model, trial, index) for index in range(trial.episodes)) / trial.episodes
    return score, model.num_timesteps


def _episode(name: str, model: Any, trial: Trial, index: int) -> float:
    """Return of one greedy episode on a game not seen before; what it sees is normalised as at the end of training."""
    game = AsGym(trial.game, 10**6 + index, trial.limit)
    normaliser = model.get_vec_normalize_env()
    seen, _ = game.reset()
    state, first, total, over = None, np.ones(1, bool), 0.0, False
    while not over:
        if normaliser is not None:
            seen = normaliser.normalize_obs(seen)
        if name == "RecurrentPPO":
            action, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
        else:
            action, _ = model.predict(seen, action_masks=game.action_masks(), deterministic=True)
        seen, reward, ended, cut, _ = game.step(action)
        first, total, over = np.zeros(1, bool), total + reward, ended or cut
    return total


def play(name: str, trial: Trial, seeds: int, steps: int) -> list[Result]:
    """All learners in turn, seed by seed, so that a busy hour of the machine hits all of them."""
    found = []
    cut = Trial(**{**vars(trial), "steps": steps})
    for seed in range(seeds):
        for learner in ("ours", *trial.peers):
            began = time.process_time()
            score, taken = ours(cut, seed) if learner == "ours" else peer(learner, cut, seed)
            found.append(Result(name, learner, seed, score, taken, time.process_time() - began))
            print(f"  {learner:<14} seed {seed}: {score:8.3f}  {taken / found[-1].seconds:6.0f} steps/s", flush=True)
    return found


def judge(trial: Trial, results: Sequence[Result]) -> list[tuple[str, bool]]:
    """Every bound in words, and whether it was kept."""

    def mean(learner: str, of: Callable[[Result], float]) -> float:
        return statistics.fmean(of(result) for result in results if result.learner == learner)

    score = mean("ours", lambda result: result.score)
    said = [(f"ours {score:.3f}, at least {trial.at_least}", score >= trial.at_least)]
    for learner in trial.peers:
        other = mean(learner, lambda result: result.score)
        below = trial.others_below
        said.append((f"{learner} {other:.3f}" + (f", below {below}" if below else ""), below is None or other < below))
    speed = mean("ours", lambda result: result.steps / result.seconds)
    theirs = mean("RecurrentPPO", lambda result: result.steps / result.seconds)
    said.append((f"{speed:.0f} steps/s, at least {SPEED:g} x {theirs:.0f} of RecurrentPPO", speed >= SPEED * theirs))
    return said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rl", description="Our PPO beside sb3-contrib's.")
    parser.add_argument("--game", action="append", choices=[name.split()[0] for name in TRIALS], help="all by default")
    parser.add_argument("--seeds", type=int, help="of each game; by default as many as its bound speaks of")
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the steps: does it run at all")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the JSON file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    everything, missed = [], 0
    for name, trial in TRIALS.items():
        if args.game and name.split()[0] not in args.game:
            continue
        steps = trial.steps // 10 if args.quick else trial.steps
        print(f"\n{name}, {steps} steps", flush=True)
        results = play(name, trial, args.seeds or (1 if args.quick else trial.seeds), steps)
        everything += results
        for text, kept in judge(trial, results):
            print(f"  {text}  {'kept' if kept else 'MISSED'}", flush=True)
            missed += not kept
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"rl-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps([asdict(result) for result in everything], indent=2) + "\n")
    print(f"\n{missed or 'no'} bound{'' if missed == 1 else 's'} missed; all results: {path}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
