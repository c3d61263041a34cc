"""The loss and everything told of it: exact gradients, and no word from heads that did not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.simic.agent.small import BLEND, PLANT, REST, TABLE, WAIT, flat_lesson, jumble_network, round_of
from torch import Tensor

from esper.simic.agent.advantages import ValueScale
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.losses import Lesson, Move, Opinion, impossible, losses, mean_where
from esper.simic.agent.told import after_learning
from esper.tamiyo.policy.heads import HeadTable, Possible, likelihood

CONFIG = PPOConfig()
NETWORK = jumble_network()
BATCH = round_of(NETWORK, envs=40)
ENTROPY = torch.full((4,), 0.5)
ONE = torch.ones(4)
# The flat row by hand: four ops, three slots for PLANT, three for BLEND, two blueprints, three tempos.
COLUMNS = {"op": range(4), "slots of PLANT": range(4, 7), "slots of BLEND": range(7, 10)}
COLUMNS |= {"blueprint": range(10, 12), "tempo": range(12, 15)}
MATTERS = {
    WAIT: {"op"},
    PLANT: {"op", "slots of PLANT", "blueprint"},
    BLEND: {"op", "slots of BLEND", "tempo"},
    REST: {"op", "tempo"},
}
modes = pytest.mark.parametrize("clip_mode", ["joint", "per_head"])


def everything_told(said: Opinion, lesson: Lesson, config: PPOConfig = CONFIG) -> dict[str, Any]:
    found = losses(TABLE, said, lesson, config, ENTROPY)
    with torch.no_grad():
        told = after_learning(TABLE, said, lesson, config.clip, ValueScale(), ("a", "b", "c", "d"))
    return told | {
        name: float(getattr(found, name).detach()) for name in ("policy", "value", "bonus", "op_value", "total")
    }


def unavailable(lesson: Lesson) -> Tensor:
    """[V, W] bool: logits of heads that no possible operation uses at that step."""
    op = lesson.possible.op
    found = torch.zeros(len(op), 15, dtype=torch.bool)
    users = {"slots of PLANT": [PLANT], "slots of BLEND": [BLEND], "blueprint": [PLANT], "tempo": [BLEND, REST]}
    for name, ops in users.items():
        found[:, list(COLUMNS[name])] = ~op[:, ops].any(1, keepdim=True)
    return found


def irrelevant(lesson: Lesson) -> Tensor:
    """[V, W] bool: logits of heads that did not matter to the operation that was taken."""
    found = torch.ones(len(lesson.decisions), 15, dtype=torch.bool)
    for row, op in enumerate(lesson.decisions[:, 0].tolist()):
        for name in MATTERS[op]:
            found[row, list(COLUMNS[name])] = False
    return found


# --- gradients ----------------------------------------------------------------------------------------------------


@modes
def test_a_head_gets_no_gradient_from_decisions_to_which_it_did_not_matter(clip_mode):
    said, lesson = flat_lesson(NETWORK, BATCH)
    config = replace(CONFIG, clip_mode=clip_mode)
    move = Move.of(TABLE, said, lesson)

    for loss in (losses(TABLE, said, lesson, config, ENTROPY).policy, move.kl):
        (gradient,) = torch.autograd.grad(loss, said.row, retain_graph=True)

        assert not gradient[irrelevant(lesson)].any()
        assert gradient.any()


def test_the_entropy_bonus_pulls_at_no_head_that_was_not_available():
    said, lesson = flat_lesson(NETWORK, BATCH)

    (gradient,) = torch.autograd.grad(losses(TABLE, said, lesson, CONFIG, ENTROPY).bonus, said.row)

    assert not gradient[unavailable(lesson)].any()
    assert all(gradient[:, list(columns)].any() for columns in COLUMNS.values())


@modes
def test_impossible_choices_get_no_gradient_at_all(clip_mode):
    said, lesson = flat_lesson(NETWORK, BATCH)
    free = torch.ones(len(lesson.decisions), 15, dtype=torch.bool)
    free[:, :4] = lesson.possible.op
    free[:, 4:7], free[:, 7:10] = lesson.possible.slot[:, PLANT], lesson.possible.slot[:, BLEND]

    losses(TABLE, said, lesson, replace(CONFIG, clip_mode=clip_mode), ENTROPY).total.backward()

    assert said.row.grad is not None
    assert not said.row.grad[~free].any()


def bandit(theta: Tensor, rewards: dict[tuple[int, int], float]) -> Tensor:
    """Exact expected reward: op 0 has no argument, op 1 one of five. theta: two op logits, five arguments."""
    op, argument = theta[:2].softmax(0), theta[2:].softmax(0)
    planted = sum(argument[index] * rewards[1, index] for index in range(5))
    return op[0] * rewards[0, 0] + op[1] * planted


@modes
def test_the_gradient_is_that_of_the_expected_reward(clip_mode):
    """Every decision as often as the policy takes it: from uniform logits op 0 five times, each argument once."""
    table = HeadTable(("op", "slot", "bet"), (2, 1, 5), ((True, False, False), (True, True, True)))
    rewards = {(0, 0): 0.6, **{(1, index): 0.1 * index**2 for index in range(5)}}
    taken = [(0, 0)] * 5 + [(1, index) for index in range(5)]
    decisions = torch.tensor([(op, 0, index) for op, index in taken])
    possible = Possible(torch.ones(10, 2, dtype=torch.bool), torch.tensor([[[False], [True]]] * 10))
    theta = torch.zeros(7, requires_grad=True)
    row = torch.cat((theta[:2], torch.zeros(1), theta[2:])).expand(10, 8)  # between them the only slot's
    found = likelihood(table, row.detach(), possible, decisions)
    reward = torch.tensor([rewards[each] for each in taken])
    lesson = Lesson(possible, decisions, found.joint, found.log_prob, reward - reward.mean(), reward)
    said = Opinion(row, torch.zeros(10), torch.zeros(10, 2))

    (gradient,) = torch.autograd.grad(
        losses(table, said, lesson, replace(CONFIG, clip_mode=clip_mode), torch.zeros(3)).policy, theta
    )

    exact = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    bandit(exact, rewards).backward()
    assert torch.allclose(-gradient.double(), exact.grad, atol=1e-6)


def test_a_head_that_is_seldom_used_keeps_its_entropy():
    """PLANT once in a thousand decisions, and no advantage: the blueprint's logits go back to even."""
    steps = 32
    possible = Possible(torch.tensor([[True, True, False, False]] * steps), torch.ones(steps, 4, 3, dtype=torch.bool))
    decisions = torch.zeros(steps, 4, dtype=torch.long)
    logits = torch.zeros(15)
    logits[PLANT], logits[10] = -6.9, 4.0
    logits.requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.02)
    op_alone_rests = torch.tensor([0.0, 0.02, 0.02, 0.02])

    def of_blueprint() -> float:
        share = logits[10:12].softmax(0).detach()
        return float(-(share * share.log()).sum() / torch.log(torch.tensor(2.0)))

    began = of_blueprint()
    for _ in range(500):
        row = logits.expand(steps, 15)
        found = likelihood(TABLE, row.detach(), possible, decisions)
        lesson = Lesson(possible, decisions, found.joint, found.log_prob, torch.zeros(steps), torch.zeros(steps))
        said = Opinion(row, torch.zeros(steps), torch.zeros(steps, 4))
        adam.zero_grad()
        losses(TABLE, said, lesson, CONFIG, op_alone_rests).total.backward()
        adam.step()

    assert began < 0.2
    assert float(logits.detach().softmax(0)[PLANT]) < 0.01
    assert of_blueprint() > 0.9


def test_an_even_policy_has_all_the_entropy_there_is_in_every_head():
    said, lesson = flat_lesson(NETWORK, BATCH)
    even = replace(said, row=torch.zeros_like(said.row))

    told = everything_told(even, lesson)

    assert dict(told["entropy"]) == pytest.approx(dict.fromkeys(TABLE.heads, 1.0), abs=1e-5)
    assert told["bonus"] == pytest.approx(0.5, abs=1e-5)


# --- what is told -------------------------------------------------------------------------------------------------


@modes
def test_noise_in_heads_that_could_not_be_used_changes_nothing_that_is_told(clip_mode):
    said, lesson = flat_lesson(NETWORK, BATCH)
    config = replace(CONFIG, clip_mode=clip_mode)
    shaken = said.row + 10 * torch.randn(said.row.shape, generator=torch.Generator().manual_seed(3)) * unavailable(
        lesson
    )
    assert not torch.equal(shaken, said.row)

    assert everything_told(replace(said, row=shaken), lesson, config) == everything_told(said, lesson, config)


@modes
def test_noise_in_heads_that_did_not_matter_changes_entropies_alone(clip_mode):
    said, lesson = flat_lesson(NETWORK, BATCH)
    config = replace(CONFIG, clip_mode=clip_mode)
    shaken = said.row + 10 * torch.randn(said.row.shape, generator=torch.Generator().manual_seed(3)) * irrelevant(
        lesson
    )

    quiet, loud = (everything_told(each, lesson, config) for each in (said, replace(said, row=shaken)))

    assert {name for name in quiet if quiet[name] != loud[name]} == {"entropy", "bonus", "total"}


def test_divergence_and_clipping_by_hand():
    """Two free steps with ratios 1.5 and 0.9, a forced one with an absurd ratio."""
    ratio = torch.tensor([1.5, 0.9, 9.0])
    heads = ratio.log().unsqueeze(1).expand(3, 2)
    relevant = torch.tensor([[True, True], [True, False], [True, False]])
    move = Move(ratio.log(), heads, relevant, torch.tensor([True, True, False]))

    k3 = [0.5 - torch.tensor(1.5).log(), -0.1 - torch.tensor(0.9).log()]

    assert float(move.kl) == pytest.approx(float(sum(k3)) / 2, abs=1e-6)
    assert float(move.clipped(0.2)) == 0.5
    assert float(move.head_kl(1)) == pytest.approx(float(k3[0]), abs=1e-6)
    assert float(move.head_clipped(0, 0.05)) == 1.0


@pytest.mark.parametrize(("clip_mode", "still"), [("joint", True), ("per_head", False)])
def test_two_heads_that_moved_a_little_have_moved_too_far_together(clip_mode, still):
    """Each ratio is 1.15, within 0.2; the whole decision's 1.3225 is not, so its gradient is cut off."""
    table = HeadTable(("op", "slot"), (2, 2), ((True, True), (True, True)))
    possible = Possible(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool))
    row, decisions = torch.zeros(1, 6, requires_grad=True), torch.zeros(1, 2, dtype=torch.long)
    before = likelihood(table, row.detach(), possible, decisions).log_prob - torch.tensor(1.15).log()
    lesson = Lesson(possible, decisions, before.sum(1), before, torch.ones(1), torch.zeros(1))
    said = Opinion(row, torch.zeros(1), torch.zeros(1, 2))

    found = losses(table, said, lesson, replace(CONFIG, clip_mode=clip_mode), torch.zeros(2)).policy
    (gradient,) = torch.autograd.grad(found, row)

    assert (not gradient.any()) == still
    assert float(found.detach()) == pytest.approx(-1.2 if still else -2.3)


def test_losses_of_values_by_hand():
    said, lesson = flat_lesson(NETWORK, BATCH)

    found = losses(TABLE, said, lesson, CONFIG, ENTROPY)

    error = [(float(v) - float(t)) ** 2 / 2 for v, t in zip(said.value.detach(), lesson.target, strict=True)]
    taken = [float(row[op]) for row, op in zip(said.op_values.detach(), lesson.decisions[:, 0].tolist(), strict=True)]
    q_error = [(q - float(t)) ** 2 / 2 for q, t in zip(taken, lesson.target, strict=True)]
    assert float(found.value.detach()) == pytest.approx(sum(error) / len(error), rel=1e-5)
    assert float(found.op_value.detach()) == pytest.approx(sum(q_error) / len(q_error), rel=1e-5)


def test_forced_steps_have_no_say_in_the_policy_and_all_in_the_values():
    said, lesson = flat_lesson(NETWORK, BATCH)
    forced = ~Move.of(TABLE, said, lesson).free
    assert forced.any()
    shouting = replace(lesson, advantage=torch.where(forced, 1e6, lesson.advantage))

    quiet, loud = (losses(TABLE, said, each, CONFIG, ENTROPY) for each in (lesson, shouting))

    assert torch.equal(quiet.policy, loud.policy)
    assert torch.autograd.grad(quiet.value, said.value)[0][forced].all()


def test_what_the_masks_forbid_is_counted():
    said, lesson = flat_lesson(NETWORK, BATCH)
    planted = int((lesson.decisions[:, 0] == PLANT).sum())
    nothing = Possible(torch.zeros_like(lesson.possible.op), torch.zeros_like(lesson.possible.slot))
    without = lesson.possible.op.clone()
    without[:, PLANT] = False

    assert impossible(TABLE, lesson) == (0, 0)
    assert impossible(TABLE, replace(lesson, possible=replace(lesson.possible, op=without))) == (planted, 0)
    assert impossible(TABLE, replace(lesson, possible=nothing)) == (len(said.row),) * 2


def test_a_mean_over_nothing_is_nothing():
    values = torch.tensor([float("nan"), 2.0], requires_grad=True)

    assert mean_where(values, torch.tensor([False, False])).item() == 0.0
    assert mean_where(values, torch.tensor([False, True])).item() == 2.0
