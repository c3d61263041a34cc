"""Does the time of a ladder follow its level: a training step at level l of L in at most l/L + 0.15 of the full one?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.measuring import Effort, Finding, Work, compare
from bench.subjects import SEED
from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder
from esper.leyline.injection_spec import Convolution, InjectionSpec, InjectionSurface, Layout, Place
from esper.leyline.randomness import drawing_from

SLACK = 0.15
WIDTH = 64  # channels; large enough that products are most of the work
LAYOUTS: dict[Place, Layout] = {"NCHW": "NCHW", "BTC": "BTC", "weight": "BTC", "conv": "NCHW"}
BATCHES: dict[Layout, tuple[int, ...]] = {"NCHW": (32, WIDTH, 16, 16), "BTC": (16, 128, WIDTH)}


def answer(effort: Effort) -> list[Finding]:
    ladders = [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms if item.kind]
    return [finding for name, place in ladders for finding in _levels_of(name, place, effort)]


def ladder_at(name: str, place: Place, level: int) -> Ladder:
    """The ladder for 64 channels, all of its weights away from zero, with so many rungs on."""
    around = place == "weight" or place == "conv"
    inputs = WIDTH if around else None
    convolution = Convolution((3, 3), padding="same") if place == "conv" else None
    spec = InjectionSpec("r0c0", WIDTH, LAYOUTS[place], InjectionSurface.BLOCK_END, 0, 0, 0, inputs, convolution)
    with drawing_from(torch.Generator().manual_seed(SEED)):
        ladder = BLUEPRINTS[name].build(spec)
        for param in ladder.parameters():
            nn.init.normal_(param, std=0.02)
    assert isinstance(ladder, Ladder)
    ladder.set_active((True,) * level + (False,) * (ladder.max_level - level))
    return ladder


def _levels_of(name: str, place: Place, effort: Effort) -> list[Finding]:
    batch = torch.randn(BATCHES[LAYOUTS[place]], generator=torch.Generator().manual_seed(SEED))
    top = ladder_at(name, place, 0).max_level
    whole = _step_of(ladder_at(name, place, top), batch)
    found = []
    for level in range(top):
        part, what = _step_of(ladder_at(name, place, level), batch), f"{name} ({place}), level {level} of {top}"
        found.append(compare(what, whole, part, level / top + SLACK, effort.pairs))
    return found


def _step_of(ladder: Ladder, batch: Tensor) -> Work:
    """Forward and backward as in the middle of a host: the input needs a gradient too."""
    pull = torch.ones_like(batch)

    def step() -> None:
        x = batch.detach().requires_grad_()
        out = ladder(x)
        if out.requires_grad:  # a sum of no corrections is a constant
            out.backward(pull)

    return step
