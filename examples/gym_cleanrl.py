"""PPO on one page, in the manner of CleanRL: masked heads, 32 hosts in one process, the toy world.

.venv/bin/python examples/gym_cleanrl.py
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

ENVS, EPOCHS, MINIBATCHES, CLIP, ENTROPY, LR = 32, 4, 4, 0.2, 0.01, 2e-3
SCALE = 10.0  # points of return that are one unit to the critic


def layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    def __init__(self, sensors: int, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.body = nn.Sequential(layer(sensors, 64, 2**0.5), nn.Tanh(), layer(64, 64, 2**0.5), nn.Tanh())
        self.actor, self.critic = layer(64, sum(sizes), 0.01), layer(64, 1, 1.0)

    def forward(self, obs: Tensor, mask: Tensor) -> tuple[list[Categorical], Tensor]:
        """A distribution for each head, and the value."""
        features = self.body(obs)
        logits = self.actor(features).masked_fill(~mask, torch.finfo(torch.float32).min)
        return [Categorical(logits=head) for head in logits.split(self.sizes, dim=-1)], self.critic(features)[..., 0]


def log_prob(heads: list[Categorical], action: Tensor) -> Tensor:
    return sum(head.log_prob(chosen) for head, chosen in zip(heads, action.unbind(-1), strict=True))


def seen(obs: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.tensor(obs["obs"]), torch.tensor(obs["action_mask"], dtype=torch.bool)


def main(updates: int = 120, seed: int = 0) -> list[float]:
    """Trains, and returns the mean return of each update's episodes; growing nothing is worth 28.3, the best 65.8."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("esper.gym:Esper/Toy-v0", ENVS)
    agent = Agent(envs.single_observation_space["obs"].shape[0], envs.single_action_space.nvec.tolist())
    optimiser = torch.optim.Adam(agent.parameters(), lr=LR, eps=1e-5)
    curve = []
    for update in range(updates):
        # All hosts begin and end together, so that a batch is a whole episode of each and no value is added behind it.
        obs, mask = seen(envs.reset(seed=seed if update == 0 else None)[0])
        rows, over = [], False
        while not over:
            with torch.no_grad():
                heads, value = agent(obs, mask)
                action = torch.stack([head.sample() for head in heads], dim=-1)
            told, reward, terminated, truncated, infos = envs.step(action.numpy())
            earned = torch.tensor(reward, dtype=torch.float32) / SCALE
            rows.append((obs, mask, action, log_prob(heads, action), value, earned))
            (obs, mask), over = seen(told), (terminated | truncated).all()
        learn(agent, optimiser, [torch.stack(each) for each in zip(*rows, strict=True)])
        curve.append(float(infos["outcome"]["return"].mean()))
        if update % 20 == 19:
            print(f"update {update + 1}: {np.mean(curve[-20:]):.1f} points")
    envs.close()
    return curve


def learn(agent: Agent, optimiser: torch.optim.Optimizer, rows: list[Tensor]) -> None:
    """One update; rows: [steps, ENVS, ...] each."""
    *_, value, reward = rows
    advantage, after, carried = torch.zeros_like(value), torch.zeros(ENVS), torch.zeros(ENVS)
    for step in reversed(range(len(value))):  # generalised advantages with gamma 1, lambda 0.95
        carried = reward[step] + after - value[step] + 0.95 * carried
        advantage[step], after = carried, value[step]
    obs, mask, action, old, target, advantage = (
        each.flatten(0, 1) for each in (*rows[:4], advantage + value, advantage)
    )
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(target)).chunk(MINIBATCHES):
            heads, value = agent(obs[batch], mask[batch])
            gain = (advantage[batch] - advantage[batch].mean()) / (advantage[batch].std() + 1e-8)
            ratio = (log_prob(heads, action[batch]) - old[batch]).exp()
            policy = -torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
            entropy = sum(head.entropy() for head in heads).mean()
            loss = policy + 0.5 * (value - target[batch]).square().mean() - ENTROPY * entropy
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimiser.step()


if __name__ == "__main__":
    main()
