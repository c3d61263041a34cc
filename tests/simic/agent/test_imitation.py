"""A teacher's rounds are imitated and nothing else is learned in them; then rewards take over."""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.simic.agent.small import adam_state, equal, flat_lesson, jumble_network, policy_weights, ppo_for, round_of
from torch import Tensor

from esper.leyline.telemetry import PpoUpdatedPayload
from esper.simic.agent.batch import Batch
from esper.simic.agent.config import TeacherConfig
from esper.simic.agent.losses import imitation_losses
from esper.simic.agent.ppo import PPO
from esper.tamiyo.networks.factored_lstm import TamiyoNetwork
from esper.tamiyo.policy.heads import likelihood


def taught(network: TamiyoNetwork, rounds: int = 2, updates: int = 5, **settings: Any) -> PPO:
    teacher = TeacherConfig(rule="heuristic", rounds=rounds, epochs=4)
    return ppo_for(network, updates=updates, teacher=teacher, **settings)


def critics(network: TamiyoNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_parameters() if "critic" in name}


def log_prob(network: TamiyoNetwork, batch: Batch) -> float:
    """Mean over the steps at which something could be decided."""
    with torch.no_grad():
        row = network(batch.inputs, network.blank_memory(batch.sequences)).row[batch.valid]
    found = likelihood(network.table, row, batch.possible.rows(batch.valid), batch.decisions[batch.valid])
    return float(found.joint[~found.forced].mean())


def test_decisions_that_are_shown_become_likelier_whatever_came_of_them() -> None:
    network = jumble_network()
    shown = round_of(jumble_network(seed=1), seed=1)
    ppo, before = taught(network), log_prob(network, shown)

    ppo.learn(shown)

    assert log_prob(network, shown) > before + 0.1
    again = jumble_network()
    taught(again).learn(Batch(**{**vars(shown), "reward": -100.0 * shown.reward}))
    assert equal(policy_weights(network), policy_weights(again))


def test_critics_and_their_unit_wait_until_there_are_rewards_to_learn_from() -> None:
    network = jumble_network()
    ppo, before = taught(network), critics(network)

    told = ppo.learn(round_of(network))

    assert equal(critics(network), before)
    assert ppo.scale.batches == 0
    assert told.explained_variance is None
    assert told.imitated == "heuristic"
    assert (told.epochs, told.entropy_bonus, told.value_loss) == (4, 0.0, 0.0)


def test_the_loss_is_how_unlikely_the_shown_decisions_are() -> None:
    network = jumble_network()
    said, lesson = flat_lesson(network, round_of(network))

    found = imitation_losses(network.table, said, lesson)

    rows = likelihood(network.table, said.row, lesson.possible, lesson.decisions)
    by_hand = [
        -float(each.detach().sum()) for each, forced in zip(rows.log_prob, rows.forced, strict=True) if not forced
    ]
    assert math.isclose(float(found.total.detach()), sum(by_hand) / len(by_hand), rel_tol=1e-5)
    assert len(by_hand) < len(lesson.decisions)  # steps without a choice are there, and do not count


def test_after_the_teacher_steps_and_bonus_shrink_from_their_start_to_what_is_left_of_them() -> None:
    network = jumble_network()
    ppo = taught(network, rounds=2, updates=5, lr=0.01, lr_left=0.2, entropy_left=0.4)

    told: list[PpoUpdatedPayload] = [ppo.learn(round_of(network, seed=index)) for index in range(5)]

    assert [each.imitated for each in told] == ["heuristic", "heuristic", None, None, None]
    assert torch.allclose(torch.tensor([each.lr for each in told]), torch.tensor([0.01, 0.01, 0.01, 0.006, 0.002]))
    assert torch.allclose(torch.tensor([each.entropy_share for each in told]), torch.tensor([1.0, 1.0, 1.0, 0.7, 0.4]))
    assert told[2].explained_variance is not None
    assert ppo.scale.batches == 3


def test_a_learner_that_is_put_away_among_its_teachers_rounds_goes_on_as_if_it_had_not_been() -> None:
    rounds = [round_of(jumble_network(), seed=index) for index in range(4)]
    straight, first = jumble_network(), jumble_network()
    whole, part = taught(straight), taught(first)
    for batch in rounds:
        whole.learn(batch)
    part.learn(rounds[0])
    second = jumble_network(seed=3)
    second.load_state_dict(first.state_dict())
    other = taught(second)
    other.load_state_dict(part.state_dict())
    for batch in rounds[1:]:
        other.learn(batch)

    assert equal(dict(straight.state_dict()), dict(second.state_dict()))
    assert equal(adam_state(whole), adam_state(other))
