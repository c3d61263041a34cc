"""The network remembers in order, keeps environments apart, and is the same function in training and in use.

Nothing is tested on a fresh network, whose heads are almost silent: `perturbed` makes every layer speak.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import noise, seeded
from tests.tamiyo.small import space
from torch import Tensor, nn

from esper.leyline import OBS_V3_BASE_FEATURE_SIZE, OBS_V3_SLOT_FEATURE_SIZE
from esper.leyline.randomness import drawing_from, stream
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.networks.factored_lstm import Inputs, Memory, Output, TamiyoNetwork
from esper.tamiyo.policy.features import FIRST_BLUEPRINT
from esper.tamiyo.policy.heads import HeadTable

SMALL = NetworkConfig(size=16, slot_size=8, embedding=4)
SLOTS = 3


def fresh(slots: int = SLOTS, seed: int = 0, config: NetworkConfig = SMALL) -> TamiyoNetwork:
    offered = space(slots)
    with seeded(seed):
        return TamiyoNetwork(slot_config=offered.slot_config, table=HeadTable.of(offered), config=config)


def perturbed(slots: int = SLOTS) -> TamiyoNetwork:
    """Every weight is moved, the last layers most, and the normalisers have seen something."""
    network, generator = fresh(slots), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, param in network.named_parameters():
            loud = name.startswith(("actor.2", "slot_scorer.2", "critic.2", "op_critic.2"))
            param += (0.5 if loud else 0.1) * torch.randn(param.shape, generator=generator)
    network.update_statistics(observations(5, 4, slots, seed=99), torch.ones(5, 4, dtype=torch.bool))
    return network


def observations(steps: int, envs: int, slots: int = SLOTS, seed: int = 0) -> Inputs:
    return Inputs(
        base=noise(steps, envs, OBS_V3_BASE_FEATURE_SIZE, seed=seed),
        slots=noise(steps, envs, slots, OBS_V3_SLOT_FEATURE_SIZE, seed=seed + 1),
        blueprints=torch.randint(0, 4, (steps, envs, slots), generator=torch.Generator().manual_seed(seed)),
    )


def wide(inputs: Inputs) -> Inputs:
    """In float64, where no rounding hides a difference of meaning."""
    return Inputs(inputs.base.double(), inputs.slots.double(), inputs.blueprints)


def blank(network: TamiyoNetwork, envs: int) -> Memory:
    """In the network's precision."""
    memory, dtype = network.blank_memory(envs), network.lstm.weight_hh_l0.dtype
    return Memory(memory.hidden.to(dtype), memory.cell.to(dtype))


def part(inputs: Inputs, *index: slice) -> Inputs:
    return Inputs(inputs.base[index], inputs.slots[index], inputs.blueprints[index])


def outputs(out: Output) -> tuple[Tensor, ...]:
    return out.row, out.value, out.op_values


def forget(memory: Memory, over: Tensor) -> Memory:
    """Blank rows where a sequence is over [N]."""
    kept = (~over).double().unsqueeze(1)
    return Memory(memory.hidden * kept, memory.cell * kept)


# --- memory -----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@torch.no_grad()
def test_a_sequence_at_once_is_its_steps_one_by_one_with_the_memory_carried(steps: int, envs: int, seed: int):
    network, inputs = perturbed().double(), wide(observations(steps, envs, seed=seed))

    at_once = network(inputs, blank(network, envs))
    memory, rows = blank(network, envs), []
    for t in range(steps):
        out = network(part(inputs, slice(t, t + 1)), memory)
        memory = out.memory
        rows.append(outputs(out))

    for together, apart in zip(outputs(at_once), zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at_once.memory.hidden, memory.hidden, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at_once.memory.cell, memory.cell, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
@torch.no_grad()
def test_episodes_of_any_length_as_rows_are_the_steps_of_one_environment_with_resets(lengths: list[int], seed: int):
    """The learner pads episodes to one length and starts each blank; the rollout lived them one after another."""
    network, lived = perturbed().double(), wide(observations(sum(lengths), 1, seed=seed))
    garbage = wide(observations(max(lengths), len(lengths), seed=500))
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    for k, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for target, source in ((garbage.base, lived.base), (garbage.slots, lived.slots)):
            target[:length, k] = source[start : start + length, 0]
        garbage.blueprints[:length, k] = lived.blueprints[start : start + length, 0]

    padded = network(garbage, blank(network, len(lengths)))
    memory = blank(network, 1)
    for t in range(sum(lengths)):
        memory = forget(memory, torch.tensor([t in starts]))
        out = network(part(lived, slice(t, t + 1)), memory)
        memory = out.memory
        k = max(k for k, start in enumerate(starts) if start <= t)
        for together, alone in zip(outputs(padded), outputs(out), strict=True):
            torch.testing.assert_close(together[t - starts[k], k], alone[0, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [0, 3, 6])
@torch.no_grad()
def test_a_step_changes_nothing_before_it_and_everything_after_it_in_its_environment_alone(step: int):
    network, inputs = perturbed(), observations(7, 4)
    other = Inputs(inputs.base.clone(), inputs.slots.clone(), inputs.blueprints)
    other.base[step, 2] += 1.0
    other.slots[step, 2] -= 1.0

    before, after = network(inputs, network.blank_memory(4)), network(other, network.blank_memory(4))

    for was, now in zip(outputs(before), outputs(after), strict=True):
        assert torch.equal(was[:step], now[:step])
        assert torch.equal(was[:, [0, 1, 3]], now[:, [0, 1, 3]])
        assert all(not torch.equal(was[t, 2], now[t, 2]) for t in range(step, 7))


@torch.no_grad()
def test_the_memory_that_goes_in_matters():
    network, inputs = perturbed(), observations(1, 2)
    lived = network(observations(5, 2, seed=3), network.blank_memory(2)).memory

    blank, remembered = network(inputs, network.blank_memory(2)), network(inputs, lived)

    assert (blank.row - remembered.row).abs().max() > 1e-3
    assert (blank.value - remembered.value).abs().max() > 1e-3


# --- one function -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_training_and_evaluation_are_the_same_function_bit_for_bit():
    network, inputs = perturbed(), observations(4, 3)

    network.train()
    training = network(inputs, network.blank_memory(3))
    network.eval()
    evaluation = network(inputs, network.blank_memory(3))

    assert all(torch.equal(one, other) for one, other in zip(outputs(training), outputs(evaluation), strict=True))
    random_or_moded = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    assert not [name for name, module in network.named_modules() if isinstance(module, random_or_moded)]
    assert network.lstm.dropout == 0.0


def test_weights_come_from_the_lent_generator_alone():
    before = torch.random.get_rng_state()

    def drawn(seed: int) -> dict[str, Tensor]:
        with drawing_from(stream(seed, "policy weights")):
            return TamiyoNetwork(space(3).slot_config, HeadTable.of(space(3)), SMALL).state_dict()

    one, same, other = drawn(0), drawn(0), drawn(1)

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["actor.0.weight"], other["actor.0.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_fresh_policy_is_nearly_uniform_and_its_memory_is_kept_at_first():
    network = fresh(config=NetworkConfig(size=32, slot_size=8, embedding=4))

    out = network(observations(3, 4), network.blank_memory(4))

    assert out.row.abs().max() < 0.1
    bias = network.lstm.bias_ih_l0 + network.lstm.bias_hh_l0
    assert bias.tolist() == [0.0] * 32 + [1.0] * 32 + [0.0] * 64  # gates in torch's order: in, forget, cell, out


def test_the_values_of_ops_send_no_gradient_into_the_rest():
    network = perturbed()

    network(observations(3, 2), network.blank_memory(2)).op_values.square().sum().backward()

    touched = {name for name, param in network.named_parameters() if param.grad is not None and param.grad.any()}
    assert touched == {name for name, _ in network.named_parameters() if name.startswith("op_critic.")}


def test_every_weight_serves_the_policy_the_value_or_the_values_of_ops():
    network = perturbed()
    out = network(observations(3, 8), network.blank_memory(8))
    (out.row.square().sum() + out.value.square().sum() + out.op_values.square().sum()).backward()

    idle = [name for name, param in network.named_parameters() if param.grad is None or not param.grad.any()]
    assert idle == []


# --- slots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
def test_any_number_of_slots_has_a_network_of_its_widths(slots: int):
    network = fresh(slots)

    out = network(observations(4, 2, slots), network.blank_memory(2))

    table = network.table
    assert out.row.shape == (4, 2, sum(table.widths))
    assert table.widths[:2] == (8, 7 * slots)
    assert (out.value.shape, out.op_values.shape) == ((4, 2), (4, 2, 8))
    assert out.memory.hidden.shape == out.memory.cell.shape == (2, SMALL.size)


@torch.no_grad()
def test_scores_follow_their_slots_when_slots_change_places():
    network, order = perturbed(slots=5), torch.tensor([3, 0, 4, 1, 2])
    inputs = observations(1, 6, slots=5)
    swapped = Inputs(inputs.base, inputs.slots[:, :, order], inputs.blueprints[:, :, order])
    # The trunk sees all slots side by side; what it says is held still, so that the scorer alone is asked.
    network.features.register_forward_hook(lambda *_: torch.ones(1, 6, SMALL.size))

    plain, other = network(inputs, network.blank_memory(6)), network(swapped, network.blank_memory(6))

    scores, moved = (out.row[..., 8 : 8 + 7 * 5].unflatten(-1, (7, 5)) for out in (plain, other))
    torch.testing.assert_close(moved, scores[..., order], rtol=1e-6, atol=1e-6)
    assert (scores[..., 0] - scores[..., 1]).abs().max() > 1e-3
    assert torch.equal(plain.row[..., :8], other.row[..., :8])


@torch.no_grad()
def test_a_blueprint_is_seen():
    network, inputs = perturbed(), observations(1, 1)
    rows = []
    for blueprint in range(FIRST_BLUEPRINT + 2):
        seen = replace(inputs, blueprints=torch.full((1, 1, SLOTS), blueprint))
        rows.append(network(seen, network.blank_memory(1)).row)

    assert len({tuple(row.flatten().tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("part_of", "got"),
    [
        (lambda seen: replace(seen, base=seen.base[..., :-1]), (OBS_V3_BASE_FEATURE_SIZE - 1, 3, None)),
        (lambda seen: replace(seen, slots=seen.slots[..., :-2]), (OBS_V3_BASE_FEATURE_SIZE, 3, -2)),
        (lambda seen: replace(seen, slots=seen.slots[:, :, :2]), (OBS_V3_BASE_FEATURE_SIZE, 2, None)),
    ],
)
def test_another_width_is_told_with_got_and_want(part_of, got):
    network, width = fresh(), OBS_V3_SLOT_FEATURE_SIZE
    found = (*got[:2], width + (got[2] or 0))

    with pytest.raises(AssertionError) as failure:
        network(part_of(observations(2, 2)), network.blank_memory(2))

    want = (OBS_V3_BASE_FEATURE_SIZE, SLOTS, width)
    assert str(failure.value).startswith(f"observations are {found}")
    assert str(failure.value).endswith(f"want {want}")


def test_a_table_for_another_number_of_slots_is_refused():
    with pytest.raises(AssertionError, match="2 slots, want 3"):
        TamiyoNetwork(space(3).slot_config, HeadTable.of(space(2)), SMALL)


# --- statistics -------------------------------------------------------------------------------------------------


def test_padding_enters_no_statistics():
    clean, padded = fresh(), fresh()
    inputs = observations(4, 3)
    valid = torch.tensor([[True] * 3, [True] * 3, [True, False, True], [False, False, True]])
    rubbish = Inputs(inputs.base.clone(), inputs.slots.clone(), inputs.blueprints)
    rubbish.base[~valid], rubbish.slots[~valid] = 1e6, -1e6

    clean.update_statistics(inputs, valid)
    padded.update_statistics(rubbish, valid)

    for one, other in zip(clean.buffers(), padded.buffers(), strict=True):
        assert torch.equal(one, other)
    assert clean.base_norm.count == 9
    assert clean.slot_norm.count == 27


@torch.no_grad()
def test_looking_moves_no_statistics():
    network = perturbed()
    before = [buffer.clone() for buffer in network.buffers()]

    network(observations(6, 4, seed=5), network.blank_memory(4))

    assert all(torch.equal(now, was) for now, was in zip(network.buffers(), before, strict=True))
