"""Rounds become sequences: cut at ends, padded, each step with what was seen and possible before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simic.agent.small import host_round, jumble_network, policy_on, round_of

from esper.simic.agent.batch import Batch
from esper.tamiyo.networks.factored_lstm import Inputs

POLICY = policy_on(3)


def test_a_column_is_one_environment_from_its_first_step_to_its_last():
    rollout = host_round(POLICY, envs=3, length=5)

    batch = Batch.of(rollout, POLICY.network)

    assert batch.valid.shape == (5, 3)
    assert batch.valid.all()
    assert all(len(column.unique()) == 1 for column in batch.env.T)
    assert batch.reward.tolist() == [[step, 10.0 + step, 20.0 + step] for step in range(5)]
    for step, taken in enumerate(rollout.steps):
        assert torch.equal(batch.inputs.base[step], taken.sight.base)
        assert torch.equal(batch.inputs.slots[step], taken.sight.slots)
        assert torch.equal(batch.decisions[step], taken.choice.executed)
        assert torch.equal(batch.log_prob[step], taken.choice.log_prob)
        assert batch.possible.op[step].tolist() == [list(legal.op) for legal in taken.legal]
        assert batch.possible.slot[step].tolist() == [[list(row) for row in legal.slot_by_op] for legal in taken.legal]


def test_a_rollback_ends_a_sequence_with_its_penalty_and_the_host_goes_on_as_another():
    """Environment 1 crashes in step 1: its reward is the last of the first sequence; no value comes after it."""
    rollout = host_round(POLICY, envs=2, length=5, ends=[(1, 1)])

    batch = Batch.of(rollout, POLICY.network)

    assert batch.sequences == 3
    assert [int(column.sum()) for column in batch.valid.T] == [5, 2, 3]
    assert batch.env[0].tolist() == [0, 1, 1]
    assert batch.time[0].tolist() == [0, 0, 2]
    assert batch.reward[batch.valid[:, 1], 1].tolist() == [10.0, 11.0]
    assert batch.reward[batch.valid[:, 2], 2].tolist() == [12.0, 13.0, 14.0]
    assert torch.equal(batch.inputs.base[:3, 2], torch.stack([step.sight.base[1] for step in rollout.steps[2:]]))


def test_the_memory_with_which_was_decided_is_the_one_that_a_sequence_begins_with():
    rollout = host_round(POLICY, envs=3, length=6, ends=[(0, 1), (2, 3)])
    batch = Batch.of(rollout, POLICY.network)

    output = POLICY.network(batch.inputs, POLICY.network.blank_memory(batch.sequences))

    assert torch.allclose(output.value[batch.valid], batch.value[batch.valid], atol=1e-6)


def test_steps_of_a_host_that_had_finished_are_left_out():
    batch = Batch.of(host_round(POLICY, envs=2, length=6, ends=[(1, 2)], gone={1: 3}), POLICY.network)

    assert [int(column.sum()) for column in batch.valid.T] == [6, 3]
    assert int(batch.valid.sum()) == 9


def test_the_end_of_the_last_step_makes_no_empty_sequence():
    batch = Batch.of(host_round(POLICY, envs=2, length=3, ends=[(0, 2), (1, 2)]), POLICY.network)

    assert batch.valid.shape == (3, 2)


def spelled(valid: list[bool], ended: list[bool]) -> list[list[int]]:
    """The steps of each sequence of one environment, one step at a time."""
    found: list[list[int]] = [[]]
    for step in range(len(valid)):
        if valid[step]:
            found[-1].append(step)
        if not valid[step] or ended[step]:
            found.append([])
    return [steps for steps in found if steps]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_the_ends_every_valid_step_is_in_one_sequence_in_order(data):
    envs, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    flags = st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=envs, max_size=envs)
    valid, ended = data.draw(flags), data.draw(flags)
    valid[0][0] = True
    whole = Batch.of(host_round(POLICY, envs, length), POLICY.network)

    batch = replace(whole, valid=torch.tensor(valid).T).cut(torch.tensor(ended).T)

    expected = [(env, steps) for env in range(envs) for steps in spelled(valid[env], ended[env])]
    assert batch.sequences == len(expected)
    for column, (env, steps) in enumerate(expected):
        counted = batch.valid[:, column]
        assert counted.tolist() == [True] * len(steps) + [False] * (len(counted) - len(steps))
        assert batch.time[counted, column].tolist() == steps
        assert batch.reward[counted, column].tolist() == [10.0 * env + step for step in steps]


def test_some_sequences_are_no_longer_than_the_longest_of_them():
    batch = round_of(jumble_network(), envs=8)
    lengths = batch.valid.sum(0)
    short = lengths.argsort()[:2]

    part = batch.only(short)

    assert part.valid.shape == (int(lengths[short].max()), 2)
    assert torch.equal(part.reward, batch.reward[: part.valid.shape[0], short])


def test_masks_are_of_the_step_at_which_they_are_stored():
    batch = round_of(jumble_network(), envs=20)
    ops, decisions = batch.possible.op[batch.valid], batch.decisions[batch.valid]

    assert ops.gather(1, decisions[:, :1]).all()
    assert not ops.all(1).all()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_another_width_is_named_with_what_is_wanted():
    batch = round_of(jumble_network())
    wide = torch.cat((batch.inputs.base, batch.inputs.base[..., :1]), dim=-1)

    with pytest.raises(AssertionError, match=r"host sensors: got 5, want 4"):
        replace(batch, inputs=Inputs(wide, batch.inputs.slots, batch.inputs.blueprints)).check(jumble_network())
    with pytest.raises(AssertionError, match=r"slots: got 3, want 2"):
        Batch.of(host_round(POLICY), policy_on(2).network)


def test_what_was_carried_out_must_be_what_was_drawn():
    rollout = host_round(POLICY, envs=2, length=2)
    step = rollout.steps[0]
    other = (POLICY.space.action("GERMINATE", slot="r0c1", blueprint="norm", tempo="slow"),) * 2
    rollout.steps[0] = replace(step, choice=replace(step.choice, actions=other))

    with pytest.raises(AssertionError, match="other decisions were carried out"):
        Batch.of(rollout, POLICY.network)


def test_a_rule_leaves_nothing_to_learn_from():
    rollout = host_round(POLICY, envs=2, length=2)
    step = rollout.steps[1]
    rollout.steps[1] = replace(step, choice=replace(step.choice, log_prob=None))

    with pytest.raises(AssertionError, match="no learned policy"):
        Batch.of(rollout, POLICY.network)
