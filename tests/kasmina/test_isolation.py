"""A seed on probation is not noticed by its host, forward or backward, whatever the seed computes.

Expected gradients come from plain networks written out here with detach, lerp and ordinary autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import BLENDS, LINEAR, PATIENT, bring, empty_slot, noise, plant, seeded, stir
from torch import Tensor, nn
from torch.func import grad, vmap

from esper.kasmina.blending import CANDIDATES, GATED, BlendGate
from esper.kasmina.isolation import blend, leash, tap
from esper.kasmina.slot import SeedSlot
from esper.leyline.factored_actions import STYLES
from esper.leyline.reports import BlendName
from esper.leyline.stages import SeedStage

every_blend = pytest.mark.parametrize("blend_name", BLENDS)
Middle = Callable[[Tensor], Tensor]


class Sandwich(nn.Module):
    """A host of two layers, in double precision, with something in the middle."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.double()

    def forward(self, x: Tensor, middle: Middle) -> Tensor:
        out: Tensor = self.last(torch.relu(middle(self.first(x))))
        return out


def images() -> Tensor:
    return noise(3, 3, 4, 4, dtype=torch.float64)


def trained_once(host: Sandwich, middle: Middle) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of the host's parameters."""
    host.zero_grad()
    out = host(images(), middle)
    out.square().mean().backward()
    return out.detach(), [param.grad.clone() for param in host.parameters()]


def alone(host: Sandwich) -> tuple[Tensor, list[Tensor]]:
    return trained_once(host, lambda x: x)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [param.grad for param in module.parameters()]
    module.zero_grad()
    return [entry.clone() for entry in found if entry is not None]


def slot_in(stage: SeedStage, blend_name: BlendName, *, isolate: bool = True, alpha: float | None = None) -> SeedSlot:
    """A stirred conv_heavy in double precision; alpha set by force where given."""
    slot = empty_slot(settings=replace(PATIENT, isolate_blending=isolate)).double()
    bring(slot, stage, blueprint="conv_heavy", blend=blend_name)
    if alpha is not None:
        assert slot.state is not None
        slot.state.alpha.settle(alpha)
        slot.alpha.fill_(alpha)
    return slot


def candidate_of(blend_name: BlendName, x: Tensor, seed: nn.Module) -> Tensor:
    return x * (1 + torch.tanh(seed(x) - x)) if blend_name == "MULTIPLY" else seed(x)


def weight_of(slot: SeedSlot, x: Tensor) -> Tensor | float:
    alpha = slot.alpha.item()
    if slot.gate is None:
        return alpha
    openness = torch.sigmoid(slot.gate.score(x.mean((2, 3)))).reshape(-1, 1, 1, 1)
    return alpha * (openness + alpha * (1 - openness))


def all_equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def assert_close(ones: list[Tensor], others: list[Tensor]) -> None:
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- TRAINING ---------------------------------------------------------------------------------------------------


@every_blend
@pytest.mark.parametrize("poison", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reach", [0.2, math.inf])
def test_a_training_seed_leaves_the_hosts_output_and_gradients_bit_identical(blend_name, poison, reach):
    host, slot = Sandwich(), slot_in(SeedStage.TRAINING, blend_name)
    slot.settings = replace(slot.settings, leash=reach)
    expected_out, expected_grads = alone(host)
    if poison is not None:
        with torch.no_grad():
            for param in slot.seed.parameters():
                param.fill_(poison)

    out, grads = trained_once(host, slot)

    assert torch.equal(out, expected_out)
    assert all_equal(grads, expected_grads)


@every_blend
def test_a_single_poisoned_weight_does_not_leak_either(blend_name):
    host, slot = Sandwich(), slot_in(SeedStage.TRAINING, blend_name)
    expected_out, expected_grads = alone(host)
    with torch.no_grad():
        next(iter(slot.seed.parameters())).view(-1)[0] = math.nan

    out, grads = trained_once(host, slot)

    assert torch.equal(out, expected_out)
    assert all_equal(grads, expected_grads)


@every_blend
def test_a_training_seed_gets_the_task_gradient_as_if_it_stood_in_the_hosts_place(blend_name):
    host, slot = Sandwich(), slot_in(SeedStage.TRAINING, blend_name)

    def straight_through(x: Tensor) -> Tensor:
        candidate = candidate_of(blend_name, x.detach(), slot.seed)
        return x + (candidate - candidate.detach())

    trained_once(host, straight_through)
    expected = gradients(slot.seed)
    trained_once(host, slot)

    assert_close(gradients(slot.seed), expected)
    assert all(entry.abs().max() > 0 for entry in expected)


@every_blend
@pytest.mark.parametrize("reach", [0.2, 5.0, 50.0])
def test_the_leash_shortens_the_task_gradient_by_how_far_the_seed_has_strayed(blend_name, reach):
    host, slot = Sandwich(), slot_in(SeedStage.TRAINING, blend_name)
    trained_once(host, slot)
    free = gradients(slot.seed)
    with torch.no_grad():
        entry = host.first(images())
        strayed = (candidate_of(blend_name, entry, slot.seed) - entry).flatten().norm() / entry.flatten().norm()
    slack = max(0.0, 1.0 - strayed.item() / reach)

    slot.settings = replace(slot.settings, leash=reach)
    trained_once(host, slot)

    assert_close(gradients(slot.seed), [slack * entry for entry in free])


def test_a_seed_that_is_still_the_identity_feels_no_leash():
    candidate, pull = noise(2, 8, 4, 4).requires_grad_(), noise(2, 8, 4, 4, seed=1)

    (back,) = torch.autograd.grad(leash(candidate, candidate.detach(), 0.2), candidate, pull)

    assert torch.equal(back, pull)


def test_the_leash_holds_for_a_host_that_is_all_zero():
    candidate = noise(2, 3).requires_grad_()

    (back,) = torch.autograd.grad(leash(candidate, torch.zeros(2, 3), 0.2).sum(), candidate)

    assert torch.equal(back, torch.zeros(2, 3))


def test_a_training_seed_is_silent_in_evaluation_and_in_counterfactuals():
    slot, x = slot_in(SeedStage.TRAINING, "ADD"), noise(2, 8, 4, 4, dtype=torch.float64)

    slot.eval()

    assert not slot.is_active
    assert slot(x) is x


def test_a_germinated_seed_neither_runs_nor_learns():
    host, slot = Sandwich(), slot_in(SeedStage.GERMINATED, "ADD")
    expected = alone(host)

    out, grads = trained_once(host, slot)

    assert torch.equal(out, expected[0])
    assert all_equal(grads, expected[1])
    assert gradients(slot.seed) == []


# --- the exact zeros of BLENDING --------------------------------------------------------------------------------


@every_blend
@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("poison", [None, math.nan])
def test_at_alpha_zero_the_host_is_bit_identical_also_outside_training(blend_name, isolate, poison):
    host, slot = Sandwich(), slot_in(SeedStage.BLENDING, blend_name, isolate=isolate, alpha=0.0)
    expected_out, expected_grads = alone(host)
    if poison is not None:
        with torch.no_grad():
            for param in slot.seed.parameters():
                param.fill_(poison)

    out, grads = trained_once(host, slot)

    assert torch.equal(out, expected_out)
    assert all_equal(grads, expected_grads)


@every_blend
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_at_level_zero_the_host_is_bit_identical_at_any_alpha(blend_name, alpha):
    slot, x = empty_slot(), noise(2, 8, 4, 4)
    bring(slot, SeedStage.BLENDING, blueprint="conv_ladder", blend=blend_name)
    slot.shrink_internal()
    slot.alpha.fill_(alpha)

    assert slot.seed.level == 0
    assert torch.equal(slot(x), x)


# --- BLENDING on the way ----------------------------------------------------------------------------------------


@every_blend
@pytest.mark.parametrize("alpha", [0.25, 0.8, 1.0])
def test_isolated_blending_changes_the_output_but_is_a_constant_to_the_host(blend_name, alpha):
    host, slot = Sandwich(), slot_in(SeedStage.BLENDING, blend_name, isolate=True, alpha=alpha)

    def reference(x: Tensor) -> Tensor:
        fixed = x.detach()
        shift = weight_of(slot, fixed) * (candidate_of(blend_name, fixed, slot.seed) - fixed)
        return x + shift

    expected_out, expected_grads = trained_once(host, reference)
    expected_seed = gradients(slot)
    out, grads = trained_once(host, slot)

    assert_close([out, *grads], [expected_out, *expected_grads])
    assert_close(gradients(slot), expected_seed)


@every_blend
@pytest.mark.parametrize("alpha", [0.25, 0.8, 1.0])
def test_without_isolation_blending_is_ordinary_autograd_through_lerp(blend_name, alpha):
    host, slot = Sandwich(), slot_in(SeedStage.BLENDING, blend_name, isolate=False, alpha=alpha)

    def reference(x: Tensor) -> Tensor:
        weight = torch.as_tensor(weight_of(slot, x), dtype=x.dtype)
        return torch.lerp(x, candidate_of(blend_name, x, slot.seed), weight)

    expected_out, expected_grads = trained_once(host, reference)
    expected_seed = gradients(slot)
    out, grads = trained_once(host, slot)

    assert_close([out, *grads], [expected_out, *expected_grads])
    assert_close(gradients(slot), expected_seed)


def test_with_isolation_the_first_layer_feels_less_of_the_seed_than_without():
    host = Sandwich()
    firsts = []
    for isolate in (True, False):
        slot = slot_in(SeedStage.BLENDING, "ADD", isolate=isolate, alpha=0.5)
        firsts.append(trained_once(host, slot)[1][0])

    assert not torch.allclose(*firsts)


@pytest.mark.parametrize("isolate", [True, False])
def test_isolation_outside_training_is_a_setting_of_the_slot_and_saved(isolate):
    stages = [SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED]
    saved = {}
    for stage in stages:
        saved[stage.name] = slot_in(stage, "ADD", isolate=isolate).get_extra_state()["isolate_gradients"]

    assert saved == {
        "GERMINATED": True,
        "TRAINING": True,
        "BLENDING": isolate,
        "HOLDING": isolate,
        "FOSSILIZED": False,
    }


@every_blend
def test_a_fossil_at_alpha_one_is_part_of_the_host(blend_name):
    host, slot = Sandwich(), slot_in(SeedStage.FOSSILIZED, blend_name)

    expected_out, expected_grads = trained_once(host, lambda x: candidate_of(blend_name, x, slot.seed))
    out, grads = trained_once(host, slot)

    assert_close([out, *grads], [expected_out, *expected_grads])


# --- the two functions themselves -------------------------------------------------------------------------------

WEIGHTS = {
    "scalar": torch.tensor(0.3, dtype=torch.float64),
    "one": torch.tensor(1.0, dtype=torch.float64),
    "small": torch.tensor(1e-3, dtype=torch.float64),
    "per item": torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1),
    "per channel": torch.tensor([0.4, 0.6], dtype=torch.float64).reshape(1, 2, 1, 1),
}


def operands() -> tuple[Tensor, Tensor]:
    host, candidate = (noise(3, 2, 2, 2, seed=seed, dtype=torch.float64) for seed in (1, 2))
    return host.requires_grad_(), candidate.requires_grad_()


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_blends_gradients_are_those_of_its_own_finite_differences(weight: Tensor):
    weight = weight.clone().requires_grad_()

    assert torch.autograd.gradcheck(lambda h, c, w: blend(h, c, w, False), (*operands(), weight))


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_blend_equals_torch_lerp_forward_and_backward(weight: Tensor):
    def run(mix) -> list[Tensor]:
        inputs = (*operands(), weight.clone().requires_grad_())
        out = mix(*inputs)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    assert_close(run(lambda h, c, w: blend(h, c, w, False)), run(torch.lerp))


def test_isolated_blend_gives_the_host_its_whole_gradient_and_the_others_theirs():
    host, candidate = operands()
    weight, pull = WEIGHTS["per item"].clone().requires_grad_(), noise(3, 2, 2, 2, seed=3, dtype=torch.float64)

    out = blend(host, candidate, weight, True)
    to_host, to_candidate, to_weight = torch.autograd.grad(out, (host, candidate, weight), pull)

    assert torch.equal(to_host, pull)
    assert torch.equal(to_candidate, pull * weight)
    torch.testing.assert_close(to_weight, (pull * (candidate - host)).sum((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("isolated", [True, False])
def test_items_of_weight_zero_do_not_notice_a_broken_candidate(isolated: bool):
    host, candidate = operands()
    broken = torch.cat([torch.full_like(candidate[:1], math.nan), candidate[1:]])
    weight = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1).requires_grad_()

    out = blend(host, broken, weight, isolated)
    to_host, to_weight = torch.autograd.grad(out.sum(), (host, weight))

    assert torch.equal(out[0], host[0])
    assert torch.equal(to_host[0], torch.ones_like(host[0]))
    assert to_weight[0].item() == 0.0
    assert to_weight.isfinite().all()
    assert out.isfinite().all()


def test_at_weight_zero_the_candidate_gets_the_whole_gradient():
    host, candidate = operands()
    out = blend(host, candidate, torch.zeros((), dtype=torch.float64), False)

    assert torch.equal(torch.autograd.grad(out.sum(), candidate)[0], torch.ones_like(candidate))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_the_tap_lets_no_gradient_back_at_alpha_zero_however_broken(poison: float):
    x = noise(2, 2).requires_grad_()
    tapped = tap(x, torch.zeros(()), False)

    assert torch.equal(tapped, x)
    (back,) = torch.autograd.grad(tapped, x, torch.full((2, 2), poison))
    assert torch.equal(back, torch.zeros(2, 2))


def test_the_tap_is_transparent_at_any_other_alpha_and_shut_where_isolated():
    x, pull = noise(2, 2).requires_grad_(), noise(2, 2, seed=1)

    assert torch.equal(torch.autograd.grad(tap(x, torch.tensor(0.1), False), x, pull)[0], pull)
    assert not tap(x, torch.tensor(0.1), True).requires_grad


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), st.booleans())
def test_blend_stays_between_its_operands(weights: list[float], isolated: bool):
    host, candidate = operands()
    weight = torch.tensor(weights, dtype=torch.float64).reshape(3, 1, 1, 1)

    out = blend(host, candidate, weight, isolated)

    assert (out >= torch.minimum(host, candidate) - 1e-12).all()
    assert (out <= torch.maximum(host, candidate) + 1e-12).all()


# --- stacked hosts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolated", [True, False])
def test_stacked_alphas_give_what_each_alpha_gives_alone(isolated: bool):
    host, candidate = (tensor.detach() for tensor in operands())
    alphas = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)

    def loss(h: Tensor, c: Tensor, alpha: Tensor) -> Tensor:
        return blend(tap(h, alpha, isolated), c, alpha, isolated).square().sum()

    def out(alpha: Tensor) -> Tensor:
        return blend(host, candidate, alpha, isolated)

    grads = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, None, 0))(host, candidate, alphas)
    stacked = [vmap(out)(alphas), *grads]
    alone = [
        torch.stack(parts)
        for parts in zip(*([out(a), *grad(loss, argnums=(0, 1, 2))(host, candidate, a)] for a in alphas), strict=True)
    ]

    assert_close(stacked, alone)


def test_a_broken_host_in_a_stack_does_not_reach_the_others():
    host, candidate = (tensor.detach() for tensor in operands())
    candidates = torch.stack([candidate, torch.full_like(candidate, math.nan)])
    alphas = torch.tensor([0.5, 0.0], dtype=torch.float64)

    def loss(h: Tensor, c: Tensor, alpha: Tensor) -> Tensor:
        return blend(h, c, alpha, False).square().sum()

    grads = vmap(grad(loss), in_dims=(None, 0, 0))(host, candidates, alphas)

    assert torch.equal(grads[1], 2 * host)
    assert grads.isfinite().all()


# --- layout, dtype and the table --------------------------------------------------------------------------------


@every_blend
@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED])
def test_channels_last_stays_channels_last(blend_name, stage):
    slot = bring(empty_slot(), stage, blend=blend_name)
    slot.alpha.fill_(slot.alpha.item() or 0.5 * (stage is SeedStage.BLENDING))
    x = noise(2, 8, 4, 4)

    assert slot(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert slot(x).is_contiguous()


@every_blend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_host_of_another_precision_gets_seeds_and_gates_of_that_precision(blend_name, dtype):
    slot = empty_slot().to(dtype)

    bring(slot, SeedStage.BLENDING, blueprint="conv_ladder", blend=blend_name)
    slot.step_epoch()

    assert {param.dtype for param in slot.parameters()} == {dtype}
    assert slot(noise(2, 8, 4, 4, dtype=dtype)).dtype == dtype


def test_every_style_names_a_formula_of_the_table():
    assert {style.blend for style in STYLES.values()} <= set(CANDIDATES)
    assert set(BLENDS) == set(CANDIDATES)
    assert {"GATE"} == GATED


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (3, 8, 4, 4)), ("BTC", (3, 5, 8)), ("BC", (3, 8))])
def test_a_gate_gives_each_item_one_weight_whatever_the_others_are(layout, shape):
    with seeded():
        gate = BlendGate(8, layout)
    x = noise(*shape)

    weights = gate(x)

    assert weights.shape == (3, *(1,) * (len(shape) - 1))
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(gate(x[1:2]), weights[1:2])


def test_a_muted_slot_passes_the_very_same_tensor():
    slot, x = bring(empty_slot(), SeedStage.HOLDING), noise(2, 8, 4, 4)
    slot.muted = True

    assert slot(x) is x


def test_an_empty_slot_passes_the_very_same_tensor():
    slot, x = empty_slot(), noise(2, 8, 4, 4)

    assert slot(x) is x
    plant(slot)
    stir(slot)
    assert slot(x) is x
    slot.step_epoch()
    slot.prune(0, LINEAR)
    assert slot(x) is x


# --- sequences --------------------------------------------------------------------------------------------------


@every_blend
@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("blueprint", ["attention", "lora_ladder"])
def test_among_sequences_blending_is_the_same_formula_with_one_gate_for_all_places(blend_name, isolate, blueprint):
    slot = empty_slot(32, "BTC", replace(PATIENT, isolate_blending=isolate)).double()
    bring(slot, SeedStage.BLENDING, blueprint=blueprint, blend=blend_name)
    slot.alpha.fill_(0.5)
    slot.state.alpha.settle(0.5)
    pull, results = noise(3, 5, 32, seed=2, dtype=torch.float64), []

    def by_hand(x: Tensor) -> Tensor:
        read = x.detach() if isolate else x
        weight = slot.alpha
        if slot.gate is not None:
            openness = torch.sigmoid(slot.gate.score(read.mean(1))).reshape(3, 1, 1)
            weight = weight * (openness + weight * (1 - openness))
        return x + weight * (candidate_of(blend_name, read, slot.seed) - read)

    for run in (by_hand, slot):
        x = noise(3, 5, 32, dtype=torch.float64).requires_grad_()
        out = run(x)
        out.backward(pull)
        results.append([out.detach(), x.grad, *gradients(slot)])

    assert_close(*results)


@every_blend
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("blueprint", ["norm", "attention", "lora", "mlp", "attn_head_ladder", "lora_ladder"])
def test_a_training_seed_among_sequences_leaves_output_and_gradient_bit_identical(blend_name, poison, blueprint):
    slot = bring(empty_slot(32, "BTC"), SeedStage.TRAINING, blueprint=blueprint, blend=blend_name)
    with torch.no_grad():
        for param in slot.seed.parameters():
            param.fill_(poison)
    x, pull = noise(3, 5, 32).requires_grad_(), noise(3, 5, 32, seed=2)

    out = slot(x)
    out.backward(pull)

    assert torch.equal(out, x)
    assert torch.equal(x.grad, pull)
