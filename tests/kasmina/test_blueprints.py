"""Blueprints against the formulas that they stand for, the ladders above all; and the shelf that they lie on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.places import built, spec_at
from tests.support import activation, noise, seeded
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.blueprints import BLUEPRINTS, blueprint, standard_set
from esper.kasmina.blueprints.channels import channel_groups, even_groups
from esper.kasmina.blueprints.cnn import group_norm
from esper.kasmina.blueprints.registry import weight_blueprint
from esper.kasmina.blueprints.transformer import CausalHeads, head_count
from esper.kasmina.ladder import Ladder, count_params
from esper.kasmina.planting import build_seed
from esper.leyline.errors import ConfigError
from esper.leyline.seed_internal import SeedInternalKind


def ladder_of(channels: int, level: int, *, used: bool = False) -> Ladder:
    """A conv ladder at a level; `used`: with weights in the layers that start at zero."""
    with seeded():
        ladder = BLUEPRINTS["conv_ladder"].build(spec_at("NCHW", channels))
        if used:
            for param in ladder.parameters():
                torch.nn.init.normal_(param, std=0.2)
    assert isinstance(ladder, Ladder)
    ladder.set_active((True,) * level + (False,) * (4 - level))
    return ladder


def stage_by_hand(rung: torch.nn.Module, x: Tensor, groups: int) -> Tensor:
    """x + conv3x3(relu(group_norm(x)))."""
    scale, shift, kernel = rung.parameters()
    return x + F.conv2d(torch.relu(F.group_norm(x, groups, scale, shift)), kernel, padding=1)


@pytest.mark.parametrize("level", range(5))
def test_a_conv_ladder_is_a_chain_of_residual_convolutions_as_long_as_its_level(level: int):
    ladder, x = ladder_of(8, level, used=True), noise(2, 8, 5, 5)

    expected = x
    for rung in list(ladder.rungs)[:level]:
        expected = stage_by_hand(rung, expected, groups=2)

    torch.testing.assert_close(ladder(x), expected)


def test_at_level_zero_the_conv_ladder_is_the_exact_identity():
    x = activation("NCHW", 8)

    assert torch.equal(ladder_of(8, 0, used=True)(x), x)


def test_it_has_four_rungs_and_says_what_it_is():
    ladder = ladder_of(8, 1)

    assert (ladder.max_level, ladder.kind) == (4, SeedInternalKind.CONV_LADDER)
    assert BLUEPRINTS["conv_ladder"].kind is ladder.kind


@pytest.mark.parametrize("level", range(4))
def test_switching_on_a_rung_that_was_never_used_moves_nothing(level: int):
    ladder, x = ladder_of(8, level, used=True), activation("NCHW", 8)
    with torch.no_grad():
        for rung in list(ladder.rungs)[level:]:
            rung[-1].weight.zero_()  # as it is built
    before = ladder(x)

    ladder.grow()

    assert torch.equal(ladder(x), before)


def test_as_it_is_built_the_last_layer_of_every_rung_is_zero():
    for rung in ladder_of(8, 0).rungs:
        assert rung[-1].weight.count_nonzero() == 0
        assert rung[-1].bias is None


def test_a_rung_that_is_restored_returns_as_it_was():
    ladder, x = ladder_of(8, 3, used=True), activation("NCHW", 8)
    before = ladder(x)

    ladder.shrink()
    assert not torch.equal(ladder(x), before)
    ladder.grow()

    assert torch.equal(ladder(x), before)


@pytest.mark.parametrize("channels", [8, 16, 64])
@pytest.mark.parametrize(("level", "plain"), [(1, "conv_light"), (2, "conv_heavy")])
def test_parameters_of_the_first_levels_match_the_plain_blueprints_within_a_tenth(channels, level, plain):
    ratio = ladder_of(channels, level).effective_params / count_params(built(plain, channels))

    assert 0.9 <= ratio <= 1.1


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_every_rung_costs_the_same(channels: int):
    costs = [ladder_of(channels, level).effective_params for level in range(5)]

    assert costs == [level * (9 * channels**2 + 2 * channels) for level in range(5)]


@pytest.mark.parametrize("level", [1, 2, 4])
def test_only_active_rungs_get_gradients(level: int):
    ladder = ladder_of(8, level, used=True)

    ladder(activation("NCHW", 8)).square().sum().backward()

    learning = [all(param.grad is not None for param in rung.parameters()) for rung in ladder.rungs]
    assert learning == [True] * level + [False] * (4 - level)


# --- the shelf --------------------------------------------------------------------------------------------------


def test_the_standard_set_has_no_ladder_so_that_a_control_is_a_control():
    assert standard_set("NCHW") == (
        *("norm", "attention", "depthwise", "bottleneck", "conv_small", "conv_light", "conv_heavy"),
    )
    assert standard_set("BTC") == ("norm", "attention", "lora", "lora_large", "mlp_small", "mlp")
    assert standard_set("weight") == standard_set("conv") == ("lora", "lora_large")
    assert standard_set("BC") == standard_set() == ()
    assert set(standard_set("NCHW", "weight")) == {*standard_set("NCHW"), *standard_set("weight")}
    assert not any(BLUEPRINTS[name].kind for name in standard_set("NCHW", "BTC", "weight"))


def test_a_name_is_given_once_in_a_place():
    with pytest.raises(ConfigError, match="'norm' is registered already for NCHW tensors; choose another name"):
        blueprint("norm", "another", "NCHW")(group_norm)
    with pytest.raises(ConfigError, match="'lora' is registered already for weights; choose another name"):
        weight_blueprint("lora", "another", "weight")(lambda _spec: torch.nn.Identity())


@pytest.mark.parametrize(
    ("name", "place", "dim", "why"),
    [
        ("conv_light", "BTC", 8, "is for NCHW tensors, but slot r0c0 carries BTC tensors"),
        ("norm", "weight", 8, "is for NCHW tensors or BTC tensors, but slot r0c0 stands around a weight"),
        ("lora", "BTC", 7, "has rank 8, which is above the width of slot r0c0, 7"),
        ("lora_ladder", "BTC", 31, "has rank 32, which is above the width of slot r0c0, 31"),
        ("norm", "conv", 8, "is for NCHW tensors or BTC tensors, but slot r0c0 stands around a convolution"),
        ("lora_ladder", "conv", 3, "has rank 4, which is above the width of slot r0c0, 3"),
        ("lora_large", "weight", 28, "has rank 32, which is above the width of slot r0c0, 28"),
    ],
)
def test_a_seed_that_cannot_stand_in_a_slot_is_refused_in_one_line(name, place, dim, why):
    with pytest.raises(ConfigError) as caught:
        build_seed(name, spec_at(place, dim), torch.device("cpu"))

    assert str(caught.value) == f"blueprint {name!r} {why}"


def test_the_width_of_a_slot_around_a_weight_is_its_narrower_side():
    assert not BLUEPRINTS["lora"].fits(spec_at("weight", 64, inputs=7))
    assert not BLUEPRINTS["lora"].fits(spec_at("weight", 7, inputs=64))
    assert BLUEPRINTS["lora"].fits(spec_at("weight", 8, inputs=64))


def test_a_module_that_does_not_keep_the_shape_is_refused():
    with seeded():
        blueprint("shrinks-in-a-test", "3x3 without padding", "NCHW", standard=False)(
            lambda dim: torch.nn.Conv2d(dim, dim, 3)
        )

    try:
        with pytest.raises(ConfigError, match=r"turns \(2, 8, 4, 4\) into \(2, 8, 2, 2\); a seed keeps the shape"):
            build_seed("shrinks-in-a-test", spec_at("NCHW", 8), torch.device("cpu"))
    finally:
        del BLUEPRINTS._entries["shrinks-in-a-test"]


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (12, 3), (16, 4), (17, 1), (20, 5), (24, 6), (32, 8), (34, 2), (64, 8)],
)
def test_norms_have_at_most_eight_groups_that_divide_the_channels(channels: int, groups: int):
    assert group_norm(channels).num_groups == groups


# --- groups -----------------------------------------------------------------------------------------------------

GROUPS = {1: [1], 15: [15], 16: [16], 17: [9, 8], 33: [11] * 3, 48: [16] * 3, 100: [15, 15, 14, 14, 14, 14, 14]}


@pytest.mark.parametrize(("channels", "sizes"), GROUPS.items())
def test_channels_are_parted_into_as_few_even_groups_of_at_most_sixteen_as_can_be(channels, sizes):
    groups = channel_groups(channels)

    assert [len(group) for group in groups] == sizes
    assert [channel for group in groups for channel in group] == list(range(channels))


@pytest.mark.parametrize("channels", GROUPS)
def test_a_channel_ladder_corrects_one_group_of_channels_after_the_other(channels: int):
    ladder, x = built("channel_ladder", channels, stirred=True), activation("NCHW", channels)
    assert isinstance(ladder, Ladder)
    full, ends = ladder(x), [sum(GROUPS[channels][:level]) for level in range(len(GROUPS[channels]) + 1)]

    for level, end in enumerate(ends):
        ladder.set_active((True,) * level + (False,) * (ladder.max_level - level))
        assert torch.equal(ladder(x), torch.cat([full[:, :end], x[:, end:]], 1))
    assert not torch.isclose(full, x).all((0, 2, 3)).any()


def test_a_group_of_channels_is_corrected_by_a_convolution_of_all():
    ladder, x = built("channel_ladder", 32, stirred=True), noise(2, 32, 5, 5)
    assert isinstance(ladder, Ladder)
    expected = x.clone()
    for rung, channels in zip(ladder.rungs, (slice(0, 16), slice(16, 32)), strict=True):
        scale, shift, kernel = rung.parameters()
        expected[:, channels] += F.conv2d(torch.relu(F.group_norm(x, 8, scale, shift)), kernel, padding=1)

    torch.testing.assert_close(ladder(x), expected)


def test_another_process_parts_channels_and_heads_alike():
    program = (
        "from esper.kasmina.blueprints.channels import channel_groups, even_groups\n"
        "print([channel_groups(n) for n in (1, 15, 16, 17, 48, 100)], [even_groups(n, 4) for n in (4, 6, 8)])"
    )
    here = [channel_groups(n) for n in (1, 15, 16, 17, 48, 100)], [even_groups(n, 4) for n in (4, 6, 8)]

    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert there.stdout.strip() == f"{here[0]} {here[1]}"


@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (8, 1), (16, 2), (17, 1), (20, 2), (48, 6), (64, 8), (256, 8)])
def test_heads_divide_the_channels_and_are_eight_channels_wide_or_more(channels: int, heads: int):
    assert head_count(channels) == heads


def causal_attention_by_hand(part: CausalHeads, x: Tensor, width: int) -> Tensor:
    """Softmax over earlier places, head by head."""
    scale, shift, project, merge = part.parameters()
    projected = F.layer_norm(x, x.shape[-1:], scale, shift) @ project.T
    query, key, value = projected.chunk(3, -1)
    later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    said = []
    for head in range(part.heads):
        of_head = slice(head * width, (head + 1) * width)
        scores = query[..., of_head] @ key[..., of_head].transpose(1, 2) / width**0.5
        said.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ value[..., of_head])
    return torch.cat(said, -1) @ merge.T


def test_attention_is_causal_self_attention_of_the_normalised_input():
    seed, x = built("attention", 48, "BTC", stirred=True), noise(2, 7, 48)

    torch.testing.assert_close(seed(x), x + causal_attention_by_hand(seed.body[0], x, 8), rtol=1e-4, atol=1e-4)


def test_head_groups_speak_side_by_side():
    ladder, x = built("attn_head_ladder", 48, "BTC", stirred=True), noise(2, 7, 48)
    assert isinstance(ladder, Ladder)

    expected = x + sum(causal_attention_by_hand(rung, x, 8) for rung in ladder.rungs)

    assert [rung.heads for rung in ladder.rungs] == [2, 2, 1, 1]
    torch.testing.assert_close(ladder(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", range(1, 5))
def test_a_lora_ladder_is_one_map_whose_rank_is_its_level(level: int):
    ladder, x = built("lora_ladder", 48, "BTC", stirred=True), noise(2, 7, 48)
    assert isinstance(ladder, Ladder)
    ladder.set_active((True,) * level + (False,) * (4 - level))
    on = list(ladder.rungs)[:level]

    matrix = 2.0 * torch.cat([rung.up.weight for rung in on], 1) @ torch.cat([rung.down.weight for rung in on])

    assert torch.linalg.matrix_rank(matrix) == {1: 4, 2: 8, 3: 16, 4: 32}[level]
    torch.testing.assert_close(ladder(x), x + x @ matrix.T, rtol=1e-4, atol=1e-4)
