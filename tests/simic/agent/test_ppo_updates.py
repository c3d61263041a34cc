"""An update learns or leaves everything as it was, stops in time, and tells all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.simic.agent.small import (
    TABLE,
    adam_state,
    equal,
    fields,
    furthest,
    jumble_network,
    normalising_network,
    policy_weights,
    ppo_for,
    round_of,
    weights,
)

from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import Envelope, decode_event, encode_event
from esper.tamiyo.policy.heads import Possible

# --- what is not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_leaves_weights_and_moments_as_they_are(bad):
    network = normalising_network()
    ppo = ppo_for(network)
    ppo.learn(round_of(network, seed=1))
    kept, moments, scale = weights(network), adam_state(ppo), ppo.scale
    batch = round_of(network, seed=2)
    reward = batch.reward.clone()
    reward[0, 3] = bad

    told = ppo.learn(replace(batch, reward=reward))

    assert "loss is nan" in told.skipped
    assert told.policy_loss is None
    assert equal(weights(network), kept)
    assert equal(adam_state(ppo), moments)
    assert ppo.scale == scale
    assert ppo.learn(round_of(network, seed=3)).skipped == ""


def test_a_gradient_that_is_not_finite_undoes_the_steps_before_it():
    """The loss is finite and its gradient is not: the third sequence's Q is taken from a weight that overflows."""
    network = jumble_network()
    ppo = ppo_for(network, minibatch=1)
    kept = weights(network)
    steps = 0
    step = ppo.adam.step

    def overflow(*args: Any) -> None:
        nonlocal steps
        step()
        steps += 1
        if steps == 3:
            with torch.no_grad():
                network.critic[0].weight.fill_(1e30)
                network.critic[-1].weight.fill_(1e-30)

    ppo.adam.step = overflow

    told = ppo.learn(round_of(network))

    assert steps >= 3
    assert told.skipped != ""
    assert equal(weights(network), kept)
    assert adam_state(ppo) == {}


# --- how long, how far ---------------------------------------------------------------------------------------------


def test_epochs_stop_when_the_policy_has_moved_far_enough():
    far, near = jumble_network(), jumble_network()
    batch = round_of(far)

    patient = ppo_for(far, epochs=6, lr=1e-2).learn(batch)
    careful = ppo_for(near, epochs=6, lr=1e-2, target_kl=1e-6).learn(batch)

    assert (patient.epochs, careful.epochs) == (6, 1)
    assert careful.approx_kl < patient.approx_kl


def test_the_entropy_bonus_fades_over_the_updates_that_were_planned():
    network = jumble_network()
    ppo = ppo_for(network, updates=5, entropy_left=0.2)

    shares = [ppo.learn(round_of(network)).entropy_share for _ in range(6)]

    assert shares == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_each_head_may_have_an_entropy_weight_of_its_own():
    network = jumble_network()

    assert ppo_for(network, entropy=(0.1, 0.0, 0.2, 0.3)).learn(round_of(network)).entropy_bonus > 0
    with pytest.raises(ConfigError, match=r"config.ppo.entropy: 2 numbers; give one number, or one for each of op, sl"):
        ppo_for(network, entropy=(0.1, 0.2))


def test_the_diagnostic_critic_has_no_say():
    plain, shouting = jumble_network(), jumble_network()
    batch = round_of(plain)
    with torch.no_grad():
        shouting.op_critic[-1].weight.mul_(1e3)

    told, told_of_shouting = ppo_for(plain).learn(batch), ppo_for(shouting).learn(batch)

    assert equal(policy_weights(plain), policy_weights(shouting))
    diagnostic = ("op_values", "op_value_loss")
    assert fields(told, *diagnostic) == fields(told_of_shouting, *diagnostic)


def test_a_baseline_of_the_others_takes_out_what_all_share():
    """Luck that is the same for all at a step is no one's merit."""
    network, lucky, fooled = jumble_network(), jumble_network(), jumble_network()
    batch = round_of(network, envs=16)
    batch = batch.only((batch.valid.sum(0) >= 3).nonzero().squeeze(1)).map(lambda values: values[:3], None)
    luck = torch.tensor([[100.0], [-50.0], [30.0]], dtype=torch.float64)
    settings = {"baseline": "group", "value": 0.0, "value_norm": False, "entropy": (0.0,)}

    told = ppo_for(network, **settings).learn(batch)
    told_of_luck = ppo_for(lucky, **settings).learn(replace(batch, reward=batch.reward + luck))
    ppo_for(fooled, **settings | {"baseline": "none"}).learn(replace(batch, reward=batch.reward + luck))

    assert told_of_luck.policy_loss == pytest.approx(told.policy_loss, abs=1e-5)
    assert furthest(policy_weights(network), policy_weights(lucky)) < 1e-5
    assert furthest(policy_weights(network), policy_weights(fooled)) > 1e-3


# --- what is told --------------------------------------------------------------------------------------------------


def test_explained_variance_is_of_the_values_with_which_was_decided():
    network = jumble_network()
    ppo = ppo_for(network, lr=1e-2, gamma=0.9)
    ppo.learn(round_of(network, seed=1))
    scale, batch = ppo.scale, round_of(network, seed=2)
    returns, value = [], []
    for column in range(batch.sequences):
        steps = int(batch.valid[:, column].sum())
        reward = batch.reward[:steps, column].tolist()
        returns += [sum(0.9**k * later for k, later in enumerate(reward[t:])) for t in range(steps)]
        value += [scale.mean + scale.deviation * float(v) for v in batch.value[:steps, column]]

    told = ppo.learn(batch)

    errors = torch.tensor(returns, dtype=torch.float64) - torch.tensor(value, dtype=torch.float64)
    expected = 1 - errors.var(unbiased=False) / torch.tensor(returns, dtype=torch.float64).var(unbiased=False)
    assert told.explained_variance == pytest.approx(float(expected), abs=1e-9)


def test_everything_of_an_update_is_an_event():
    network = jumble_network()
    batch = round_of(network)

    told = ppo_for(network).learn(batch)

    envelope = Envelope(t=told.type.name, counter=0, writer="w", time_s=1.0)
    assert decode_event(encode_event(envelope, told))[1] == told
    assert told.sequences == batch.sequences
    assert told.steps == int(batch.valid.sum())
    assert 0 < told.forced_share < 1
    assert 0 < told.memory_rms < 1
    assert [name for name, _ in told.head_grad_norm] == list(TABLE.heads)
    assert [name for name, _ in told.op_values] == ["op 0", "op 1", "op 2", "op 3"]
    counted = {op: int((batch.decisions[batch.valid][:, 0] == op).sum()) for op in range(4)}
    expected = {"op": told.steps, "slot": counted[1] + counted[2], "blueprint": counted[1]}
    expected["tempo"] = counted[2] + counted[3]
    assert dict(told.relevant) == {head: steps for head, steps in expected.items() if steps}


def test_masks_that_forbid_what_was_done_or_everything_are_counted():
    network = jumble_network()
    batch = round_of(network)
    nothing = Possible(torch.zeros_like(batch.possible.op), torch.zeros_like(batch.possible.slot))

    told = ppo_for(network).learn(replace(batch, possible=nothing))

    assert told.invalid_executed == told.all_masked == told.steps
