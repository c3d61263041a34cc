"""What every blueprint costs, by hand: 2 x (multiply-adds) forward, and twice as much again backward.

For 48 channels, 51 inputs around a weight, three images of 4x4 or three sequences of five places.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.kasmina.images import image_model, images
from tests.kasmina.sequences import grown_to, sequence_model, tokens
from tests.places import built, entry
from tests.support import PATIENT
from torch import nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder
from esper.leyline.injection_spec import Place
from esper.leyline.stages import SeedStage
from esper.tolaria.flops import count_eval, count_step

C, INPUTS = 48, 51
PIXELS, TOKENS = 3 * 16, 3 * 5
WRITTEN = 3 * 4 * 2  # pixels that the convolution around which a slot stands makes of them
PAIRS_OF_PLACES = 3 * 5 * 5  # all of them: what is masked is computed too

# Multiply-adds; of a ladder, rung by rung.
PRODUCTS: dict[tuple[str, Place], list[int]] = {
    ("norm", "NCHW"): [0],
    ("norm", "BTC"): [0],
    ("attention", "NCHW"): [3 * 2 * C * 12],  # of each image's channel means
    ("attention", "BTC"): [TOKENS * 4 * C * C + 2 * PAIRS_OF_PLACES * C],
    ("depthwise", "NCHW"): [PIXELS * (9 * C + C * C)],
    ("bottleneck", "NCHW"): [PIXELS * (2 * C * 12 + 9 * 12 * 12)],
    ("conv_small", "NCHW"): [PIXELS * C * C],
    ("conv_light", "NCHW"): [PIXELS * 9 * C * C],
    ("conv_heavy", "NCHW"): [PIXELS * 18 * C * C],
    ("conv_ladder", "NCHW"): [PIXELS * 9 * C * C] * 4,
    ("channel_ladder", "NCHW"): [PIXELS * 9 * C * 16] * 3,
    ("lora", "BTC"): [TOKENS * 2 * C * 8],
    ("lora", "weight"): [TOKENS * (C + INPUTS) * 8],
    ("lora", "conv"): [WRITTEN * (9 * INPUTS + C) * 8],
    ("lora_large", "BTC"): [TOKENS * 2 * C * 32],
    ("lora_large", "weight"): [TOKENS * (C + INPUTS) * 32],
    ("lora_large", "conv"): [WRITTEN * (9 * INPUTS + C) * 32],
    ("lora_ladder", "BTC"): [TOKENS * 2 * C * rank for rank in (4, 4, 8, 16)],
    ("lora_ladder", "weight"): [TOKENS * (C + INPUTS) * rank for rank in (4, 4, 8, 16)],
    ("lora_ladder", "conv"): [WRITTEN * (9 * INPUTS + C) * rank for rank in (4, 4, 8, 16)],
    ("mlp_small", "BTC"): [TOKENS * 2 * C * C],
    ("mlp", "BTC"): [TOKENS * 8 * C * C],
    ("attn_head_ladder", "BTC"): [
        TOKENS * 4 * C * 8 * heads + 2 * PAIRS_OF_PLACES * 8 * heads for heads in (2, 2, 1, 1)
    ],
}
PAIRS = [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms]


def counted(seed: nn.Module, place: Place) -> tuple[int, int, int]:
    """Forward, backward and an evaluation pass."""
    x = entry(place, C).requires_grad_()
    step = count_step(seed, x, lambda out, _: out.sum(), torch.zeros(()))
    return step.forward, step.backward, count_eval(seed, x.detach()).total


@pytest.mark.parametrize(("name", "place"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_blueprint_costs_what_its_products_do(name: str, place: Place):
    once = 2 * sum(PRODUCTS[name, place])

    assert counted(built(name, C, place, stirred=True), place) == (once, 2 * once, once)


@pytest.mark.parametrize(("name", "place"), [pair for pair in PAIRS if BLUEPRINTS[pair[0]].kind])
def test_the_cost_of_a_ladder_follows_its_level(name: str, place: Place):
    ladder = built(name, C, place, stirred=True)
    assert isinstance(ladder, Ladder)

    for level in range(1, ladder.max_level + 1):
        ladder.set_active((True,) * level + (False,) * (ladder.max_level - level))
        once = 2 * sum(PRODUCTS[name, place][:level])
        assert counted(ladder, place) == (once, 2 * once, once), level
    ladder.set_active((False,) * ladder.max_level)
    assert count_eval(ladder, entry(place, C)).total == 0


@pytest.mark.parametrize("isolated", [True, False])
def test_a_seed_around_a_weight_pays_for_itself_and_the_host_for_the_weight(isolated: bool):
    model = sequence_model().train()
    bare = count_step(model, tokens(), lambda out, _: out.sum(), torch.zeros(()))
    model.configure(replace(PATIENT, isolate_blending=isolated))
    grown_to(model.slots["r0c1"], SeedStage.HOLDING, "lora")

    cost = count_step(model, tokens(), lambda out, _: out.sum(), torch.zeros(()))

    down, up = 2 * TOKENS * 48 * 8, 2 * TOKENS * 8 * 40
    assert cost.by_module["module.up.slot"] == down + up + (1 if isolated else 2) * down + 2 * up
    assert cost.by_module["module.up.layer"] == bare.by_module["module.up.layer"] == 3 * (2 * TOKENS * 48 * 40)


@pytest.mark.parametrize("isolated", [True, False])
def test_a_seed_around_a_convolution_pays_for_itself_and_the_host_for_the_convolution(isolated: bool):
    model = image_model().train()
    bare = count_step(model, images(), lambda out, _: out.sum(), torch.zeros(()))
    model.configure(replace(PATIENT, isolate_blending=isolated))
    grown_to(model.slots["r0c1"], SeedStage.HOLDING, "lora")

    cost = count_step(model, images(), lambda out, _: out.sum(), torch.zeros(()))

    pixels = 4 * 3 * 4  # four images of 7x6, 3x3 at every other row
    down, up = 2 * pixels * 9 * 12 * 8, 2 * pixels * 8 * 10
    assert cost.by_module["module.up.slot"] == down + up + (1 if isolated else 2) * down + 2 * up
    layer = 2 * pixels * 9 * 12 * 10
    assert cost.by_module["module.up.layer"] == bare.by_module["module.up.layer"] == 3 * layer
