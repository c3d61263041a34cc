"""A network that decides: what it did can be recomputed, its draws are each environment's own, and it is a file.

Policies are perturbed, since a fresh one says nearly the same whatever it sees or remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import noise
from tests.tamiyo.small import held, host, ladder, slot, space

from esper.leyline.decisions import Choice, Sight
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, ActionSpace
from esper.leyline.reports import HostReport
from esper.leyline.saved import SAFE_LOADER
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.controller import forget
from esper.tamiyo.networks.factored_lstm import Inputs, Memory
from esper.tamiyo.policy.action_masks import LegalActions, possible
from esper.tamiyo.policy.features import encode, observe
from esper.tamiyo.policy.heads import Possible, likelihood
from esper.tamiyo.policy.learned import PRIOR, LearnedPolicy, load_policy, new_policy, save_policy

SPACE = space(3, ("conv_light", "norm"), r0c1=("norm",))
SMALL = NetworkConfig(size=16, slot_size=8, embedding=4)
STEPS = 6


def perturbed(greedy: bool = False, seed: int = 0, loud: float = 0.5) -> LearnedPolicy:
    policy, generator = new_policy(SPACE, SMALL, seed, greedy), torch.Generator().manual_seed(7)
    base, slots, blueprints = encode([at(env, step) for step in range(3) for env in range(4)], SPACE)
    seen = Inputs(base.unsqueeze(0), slots.unsqueeze(0), blueprints.unsqueeze(0))
    policy.network.update_statistics(seen, torch.ones(1, 12, dtype=torch.bool))
    with torch.no_grad():
        for name, param in policy.network.named_parameters():
            is_last = name.startswith(("actor.2", "slot_scorer.2", "critic.2"))
            param += (loud if is_last else 0.1) * torch.randn(param.shape, generator=generator)
    return policy


def at(env: int, epoch: int, round_: int = 0) -> HostReport:
    """A host that differs by environment and epoch, with much to choose."""
    seeds = (slot(0), held(1, 1.0 + env), ladder(2, 0.5 * epoch, alpha=0.1 * epoch))
    facts = {"env": env, "epoch": epoch, "round": round_}
    return host(*seeds, val_loss=2.0 / (1 + epoch), val_metric=50.0 + env, train_loss=1.0, **facts)


def acted(policy: LearnedPolicy, reports: Sequence[HostReport], memory: Any = None) -> tuple[Choice, Any]:
    blank = policy.blank_memory(len(reports)) if memory is None else memory
    return policy.act(observe(reports, policy.reads), possible(reports, SPACE), blank)


def decided(choice: Choice) -> list[list[int]]:
    assert choice.executed is not None
    return choice.executed.tolist()


# --- what was done can be recomputed ----------------------------------------------------------------------------


def lived(policy: LearnedPolicy, envs: int) -> tuple[list[Sight], list[list[LegalActions]], list[Choice]]:
    memory, sights, legals, choices = policy.blank_memory(envs), [], [], []
    for step in range(STEPS):
        reports = [at(env, step) for env in range(envs)]
        sights.append(observe(reports, policy.reads))
        legals.append(possible(reports, SPACE))
        choice, memory = policy.act(sights[-1], legals[-1], memory)
        choices.append(choice)
    return sights, legals, choices


@pytest.mark.parametrize("greedy", [False, True])
def test_stored_likelihoods_and_values_are_found_again_from_the_stored_sights(greedy: bool):
    policy = perturbed(greedy)
    network, envs = policy.network, 4

    sights, legals, choices = lived(policy, envs)
    inputs = Inputs(*(torch.stack([getattr(s, part) for s in sights]) for part in ("base", "slots", "blueprints")))
    with torch.no_grad():
        out = network(inputs, network.blank_memory(envs))
        free = Possible.of([masks for legal in legals for masks in legal])
        decisions = torch.cat([choice.executed for choice in choices if choice.executed is not None])
        again = likelihood(network.table, out.row.flatten(0, 1), free, decisions).joint
        forgetful = network(
            Inputs(*(part.flatten(0, 1).unsqueeze(0) for part in (inputs.base, inputs.slots, inputs.blueprints))),
            network.blank_memory(STEPS * envs),
        )
        lost = likelihood(network.table, forgetful.row[0], free, decisions).joint

    stored = torch.cat([choice.log_prob for choice in choices if choice.log_prob is not None])
    values = torch.stack([choice.value for choice in choices if choice.value is not None])
    torch.testing.assert_close(again, stored, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(out.value, values, rtol=1e-6, atol=2e-6)
    assert (lost - stored).abs().max() > 0.01  # without memory it would be another policy


def test_what_is_executed_is_the_action_and_it_is_legal():
    policy = perturbed()
    for _, legal, choice in zip(*lived(policy, 5), strict=True):
        for masks, action, indices in zip(legal, choice.actions, decided(choice), strict=True):
            assert masks.allows(action)
            assert action.indices == tuple(indices)


def test_greedy_and_sampling_look_alike_and_a_decided_policy_decides_alike():
    reports = [at(env, 2) for env in range(6)]
    one, other = perturbed(greedy=True, loud=2e3), perturbed(greedy=False, loud=2e3)

    likeliest, memory = acted(one, reports)
    drawn, memory_of_drawing = acted(other, reports)

    assert decided(likeliest) == decided(drawn)
    assert likeliest.value is not None
    assert drawn.value is not None
    assert torch.equal(likeliest.value, drawn.value)
    for kept, as_well in zip(memory, memory_of_drawing, strict=True):
        assert torch.equal(kept.hidden, as_well.hidden)
        assert torch.equal(kept.cell, as_well.cell)


def test_greedy_decides_alike_in_every_round_and_under_every_seed():
    first = decided(acted(perturbed(greedy=True), [at(env, 3) for env in range(4)])[0])
    policy = perturbed(greedy=True)
    policy.seed = 99

    assert decided(acted(policy, [at(env, 3, round_=5) for env in range(4)])[0]) == first


# --- draws ------------------------------------------------------------------------------------------------------


def test_draws_are_named_by_seed_round_environment_and_epoch_alone():
    fresh = new_policy(SPACE, replace(SMALL, prior=0.0), 0)  # nearly uniform, so that draws decide
    same_sight = [replace(at(0, 3), env=env) for env in range(12)]

    def drawn(policy: LearnedPolicy, reports: Sequence[HostReport]) -> list[list[int]]:
        return decided(acted(policy, reports)[0])

    first = drawn(fresh, same_sight)
    assert drawn(fresh, same_sight) == first
    assert len({tuple(row) for row in first}) > 3  # environments differ though they see the same
    assert drawn(fresh, [replace(report, round=1) for report in same_sight]) != first
    assert drawn(fresh, [replace(report, epoch=4) for report in same_sight]) != first
    other = new_policy(SPACE, SMALL, 0)
    other.seed = 1
    assert drawn(other, same_sight) != first


def test_an_environment_more_or_another_order_leaves_the_decisions_of_the_others_alone():
    policy = perturbed()
    alone_memory, mixed_memory = policy.blank_memory(3), policy.blank_memory(5)
    for step in range(STEPS):
        three = [at(env, step) for env in range(3)]
        mixed = [at(7, step), at(2, step), at(0, step), at(1, step), at(8, step)]
        alone, alone_memory = acted(policy, three, alone_memory)
        together, mixed_memory = acted(policy, mixed, mixed_memory)

        assert [decided(together)[place] for place in (2, 3, 1)] == decided(alone)


def test_acting_touches_no_global_generator():
    before = torch.random.get_rng_state()

    acted(new_policy(SPACE, SMALL, 3), [at(env, 1) for env in range(3)])

    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_same_seed_makes_the_same_policy_and_another_one_another():
    weights = [new_policy(SPACE, SMALL, seed).network.state_dict()["actor.0.weight"] for seed in (4, 4, 5)]

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- memory -----------------------------------------------------------------------------------------------------


def test_an_untrained_policy_leans_to_finish_what_it_begins_and_to_nothing_where_the_prior_is_off():
    even, leaning = (new_policy(SPACE, replace(SMALL, prior=prior), 3).network for prior in (0.0, 1.0))
    base, slots, blueprints = encode([at(env, 1) for env in range(4)], SPACE)
    seen = Inputs(base.unsqueeze(0), slots.unsqueeze(0), blueprints.unsqueeze(0))
    rows = [network(seen, network.blank_memory(4)).row[0] for network in (even, leaning)]
    op = torch.zeros(4, dtype=torch.long)

    for index, head in enumerate(HEADS):
        if head == "slot":
            continue
        before, after = (even.table.logits(index, row, op) for row in rows)
        added = [PRIOR.get(head, {}).get(name, 0.0) for name in SPACE.choices(head)]
        torch.testing.assert_close(after - before, torch.tensor(added).expand(4, -1))
    assert torch.equal(even.actor[-1].bias, torch.zeros_like(even.actor[-1].bias))


def test_an_untrained_policy_plants_small_seeds_sooner_than_large_ones_and_none_of_them_never():
    sized = replace(SPACE, params=((400, 25), (0, 100), (400, 100)))  # conv_light fits two of three slots
    network = new_policy(sized, SMALL, 3).network
    base, slots, blueprints = encode([at(0, 1)], sized)
    row = network(Inputs(base[None], slots[None], blueprints[None]), network.blank_memory(1)).row[0]

    logits = network.table.logits(HEADS.index("blueprint"), row, torch.zeros(1, dtype=torch.long))[0]

    # 400 against the geometric mean of 25, 100 and 100: one over the square root of their ratio
    ratio = (25 * 100 * 100) ** (1 / 3) / 400
    assert float((logits[0] - logits[1]).detach().exp()) == pytest.approx(ratio**0.5, rel=0.05)


def test_an_environment_whose_sequence_ended_begins_anew_and_the_others_remember():
    policy, memory = perturbed(), None
    for step in range(3):
        _, memory = acted(policy, [at(env, step) for env in range(3)], memory)

    kept = forget(policy, memory, [False, True, False])
    values = [acted(policy, [at(env, 3) for env in range(3)], state)[0].value for state in (memory, kept, None)]
    remembered, mixed, blank = values

    assert remembered is not None
    assert mixed is not None
    assert blank is not None
    assert torch.equal(mixed[[0, 2]], remembered[[0, 2]])
    assert torch.equal(mixed[1], blank[1])
    assert (remembered - blank).abs().min() > 1e-4


def test_memory_is_a_value_that_acting_does_not_change():
    policy = perturbed()
    _, memory = acted(policy, [at(0, 0), at(1, 0)])
    copies = [Memory(each.hidden.clone(), each.cell.clone()) for each in memory]

    acted(policy, [at(0, 1), at(1, 1)], memory)

    for each, copy in zip(memory, copies, strict=True):
        assert torch.equal(each.hidden, copy.hidden)
        assert torch.equal(each.cell, copy.cell)


def test_a_sight_without_sensors_is_a_mistake_that_says_what_to_do():
    policy, reports = perturbed(), [at(0, 0)]

    with pytest.raises(AssertionError, match=r"observe\(reports, controller\.reads\)"):
        policy.act(observe(reports), possible(reports, SPACE), policy.blank_memory(1))


# --- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def safe_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies that these tests have saved themselves may be read by any torch."""
    monkeypatch.setattr(torch, "__version__", f"{SAFE_LOADER[0]}.{SAFE_LOADER[1]}.0")


@pytest.mark.usefixtures("safe_torch")
def test_a_policy_that_was_saved_decides_as_before_normaliser_included(tmp_path: Path):
    policy = perturbed(greedy=True)

    save_policy(policy, tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt", SPACE, seed=5, greedy=True)

    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt"]
    assert (loaded.seed, loaded.greedy, loaded.reads, loaded.network.config) == (5, True, SPACE, SMALL)
    assert loaded.network.base_norm.count == 12
    for (_, _, first), (_, _, again) in zip(
        zip(*lived(policy, 4), strict=True), zip(*lived(loaded, 4), strict=True), strict=True
    ):
        assert decided(first) == decided(again)
        assert torch.equal(*(choice.value for choice in (first, again) if choice.value is not None))
        assert torch.equal(*(choice.log_prob for choice in (first, again) if choice.log_prob is not None))


def saved_as(tmp_path: Path, change: Any) -> Path:
    """A policy's file with its contents changed."""
    path = tmp_path / "policy.pt"
    save_policy(perturbed(), path)
    saved = torch.load(path)
    torch.save(change(saved), path)
    return path


def broken(weights: Any) -> Any:
    return weights | {"lstm.bias_hh_l0": torch.full_like(weights["lstm.bias_hh_l0"], torch.nan)}


def refusal(path: Path, offered: ActionSpace = SPACE) -> str:
    with pytest.raises(ConfigError) as refused:
        load_policy(path, offered, seed=0, greedy=True)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.usefixtures("safe_torch")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved["weights"], "not a policy that was saved here (KeyError)"),
        (lambda saved: noise(3), "not a policy that was saved here"),
        (lambda saved: [1, 2], "not a policy that was saved here"),
        (lambda saved: None, "not a policy that was saved here"),
        (lambda saved: {**saved, "kind": "model"}, "not a policy that was saved here"),
        (lambda saved: {**saved, "kind": noise(2, 2)}, "not a policy that was saved here"),
        (lambda saved: {**saved, "format": 99}, "not of format 1, which this version reads; train it again"),
        (lambda saved: {"kind": "policy", "format": 1}, "not a policy that was saved here (KeyError)"),
        (lambda saved: {**saved, "space": 3}, "not a policy that was saved here (AttributeError)"),
        (lambda saved: {**saved, "space": {"op": [1]}}, "not a policy that was saved here (TypeError)"),
        (lambda saved: {**saved, "sensors": saved["sensors"][:-1]}, "reads other sensors than this version offers"),
        (lambda saved: {**saved, "network": {**saved["network"], "sise": 3}}, "sise"),
        (lambda saved: {**saved, "network": {**saved["network"], "size": 8}}, "saved here (RuntimeError)"),
        (lambda saved: {**saved, "weights": {}}, "not a policy that was saved here (RuntimeError)"),
        (lambda saved: {**saved, "weights": 5}, "not a policy that was saved here (TypeError)"),
        (lambda saved: {**saved, "weights": broken(saved["weights"])}, "lstm.bias_hh_l0 is not finite"),
    ],
)
def test_a_file_that_is_no_such_policy_is_refused_in_one_line(tmp_path: Path, change: Any, words: str):
    assert words in refusal(saved_as(tmp_path, change))


@pytest.mark.usefixtures("safe_torch")
def test_text_and_nothing_are_refused_too(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("grow early, keep little\n")

    assert "not a policy that `esper train ppo` has saved" in refusal(tmp_path / "notes.txt")
    assert "no such file" in refusal(tmp_path / "absent.pt")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.usefixtures("safe_torch")
@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (space(2, ("conv_light", "norm")), "chooses its slot from [r0c0 r0c1 r0c2], but this run offers [r0c0 r0c1]"),
        (space(3, ("norm", "conv_light")), "chooses its blueprint from [conv_light norm], but this run offers [norm"),
        (space(3, ("conv_light",)), "chooses its blueprint from [conv_light norm], but this run offers [conv_light]"),
    ],
)
def test_another_action_space_is_refused_by_the_head_that_differs(tmp_path: Path, offered: ActionSpace, words: str):
    assert words in refusal(saved_as(tmp_path, lambda saved: saved), offered)


def test_an_old_torch_reads_no_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_policy(perturbed(), tmp_path / "policy.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1")

    assert "known hole in its loader" in refusal(tmp_path / "policy.pt")
