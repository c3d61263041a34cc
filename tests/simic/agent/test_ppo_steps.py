"""Updates are those of the textbook, setting by setting: the same weights as PPO written out in plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.simic.agent.plain import Choices, Plain
from tests.simic.agent.small import furthest, perturbed, ppo_for
from tests.simic.collector import collect, network_for

from esper.leyline.randomness import stream
from esper.simic.agent.batch import Batch
from esper.simic.agent.config import PPOConfig
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork

UPDATES, SEQUENCES = 3, 8
# A large epsilon, so that a step is in proportion to its gradient and not to its sign alone.
BASE: dict[str, Any] = {
    "epochs": 2, "minibatch": SEQUENCES, "lr": 0.1, "adam_eps": 0.1, "gamma": 0.9, "lam": 0.8, "clip": 0.02,
    "entropy": (0.5,), "entropy_left": 0.25, "lr_left": 0.5, "baseline": "none", "value": 0.5, "max_grad_norm": 1e3,
}  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {"lr": 0.03},
    {"lr_left": 1.0},
    {"adam_eps": 0.3},
    {"gamma": 1.0},
    {"lam": 0.3},
    {"clip": 0.5},
    {"entropy": (0.1,)},
    {"entropy_left": 1.0},
    {"value": 1.5},
    {"max_grad_norm": 0.3},
    {"epochs": 1},
]


def fresh() -> TamiyoNetwork:
    return perturbed(network_for(Choices.table, 4, 1, size=8))


def rounds(network: TamiyoNetwork) -> list[Batch]:
    """As many rounds as there are updates, decided by the network as it is."""
    games = [Choices(env) for env in range(SEQUENCES)]
    return [collect(network, games, stream(index, "play")) for index in range(UPDATES)]


def learned(**settings: Any) -> dict[str, torch.Tensor]:
    network = fresh()
    ppo = ppo_for(network, updates=UPDATES, **BASE | settings)
    for batch in rounds(fresh()):
        ppo.learn(batch)
    return {name: value.detach() for name, value in network.named_parameters()}


def by_hand(**settings: Any) -> dict[str, torch.Tensor]:
    network = fresh()
    plain = Plain(network, PPOConfig(target_kl=None, **BASE | settings), UPDATES)
    for batch in rounds(fresh()):
        plain.learn(batch)
    return {name: value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("settings", [{}, *OTHERS], ids=lambda settings: next(iter(settings), "as they are"))
def test_updates_are_those_of_the_textbook(settings: dict[str, Any]) -> None:
    """Three rounds: the entropy bonus fades, the critic's unit moves, Adam remembers, ratios leave the region."""
    assert furthest(learned(**settings), by_hand(**settings)) < 1e-5


@pytest.mark.parametrize("settings", OTHERS, ids=lambda settings: next(iter(settings)))
def test_every_setting_makes_a_difference_that_could_not_be_overlooked(settings: dict[str, Any]) -> None:
    assert furthest(learned(), learned(**settings)) > 1e-3
