"""A table of heads so small that every decision can be listed with its probability. Read `every_decision`.

`TINY` has an op for every case: one without arguments, one that plants, one with a slot and a tempo, one with a tempo
but no slot. What is here knows the layout of a row by hand and shares no code with the module that it is held against.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from tests.support import noise
from torch import Tensor

from esper.tamiyo.policy.heads import HeadTable, Possible

WAIT, PLANT, BLEND, REST = range(4)
NO, YES = False, True
FITS = ((YES, NO), (YES, YES), (NO, YES))  # [slots][blueprints]
TINY = HeadTable(
    heads=("op", "slot", "blueprint", "tempo"),
    sizes=(4, 3, 2, 3),
    relevant=((YES, NO, NO, NO), (YES, YES, YES, NO), (YES, YES, NO, YES), (YES, NO, NO, YES)),
    fits=FITS,
)
# The flat row by hand: four ops, three slots for PLANT, three for BLEND, two blueprints, three tempos.
OPS_AT, SLOTS_AT = slice(0, 4), {PLANT: slice(4, 7), BLEND: slice(7, 10)}
BLUEPRINTS_AT, TEMPOS_AT, WIDTH = slice(10, 12), slice(12, 15), 15
ALL = Possible(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[[NO] * 3, [YES] * 3, [YES] * 3, [NO] * 3]]))


def masks(plant: tuple[bool, ...], blend: tuple[bool, ...], rest: bool) -> Possible:
    """One step at which PLANT and BLEND are possible in these slots."""
    ops = (YES, any(plant), any(blend), rest)
    return Possible(torch.tensor([ops]), torch.tensor([[[NO] * 3, plant, blend, [NO] * 3]]))


three = st.tuples(st.booleans(), st.booleans(), st.booleans())
possibles = st.builds(masks, three, three, st.booleans())
rows = st.builds(lambda seed, scale: scale * noise(1, WIDTH, seed=seed), st.integers(0, 999), st.sampled_from([1, 5]))


def shares(logits: Tensor, free: tuple[bool, ...]) -> list[float]:
    """Softmax over the free choices, in plain float64; 0 for the others."""
    weights = [math.exp(float(logit)) if ok else 0.0 for logit, ok in zip(logits, free, strict=True)]
    return [weight / sum(weights) for weight in weights]


def every_decision(row: Tensor, free: Possible) -> dict[tuple[int, ...], float]:
    """All legal decisions (op, slot, blueprint, tempo) at one step, each with its probability."""
    logits, ops, slots = row[0], tuple(free.op[0].tolist()), free.slot[0].tolist()
    tempo = shares(logits[TEMPOS_AT], (YES,) * 3)
    op = shares(logits[OPS_AT], ops)
    found = {(WAIT, 0, 0, 0): op[WAIT]}
    if ops[PLANT]:
        for s, share in enumerate(shares(logits[SLOTS_AT[PLANT]], slots[PLANT])):
            blueprint = shares(logits[BLUEPRINTS_AT], FITS[s])
            found |= {(PLANT, s, b, 0): op[PLANT] * share * blueprint[b] for b in range(2)}
    if ops[BLEND]:
        slot_share = shares(logits[SLOTS_AT[BLEND]], slots[BLEND])
        found |= {(BLEND, s, 0, t): op[BLEND] * slot_share[s] * tempo[t] for s in range(3) for t in range(3)}
    if ops[REST]:
        found |= {(REST, 0, 0, t): op[REST] * tempo[t] for t in range(3)}
    return {decision: probability for decision, probability in found.items() if probability > 0}


def over(count: int, row: Tensor, free: Possible) -> tuple[Tensor, Possible]:
    """The same step many times."""
    return row.expand(count, -1), Possible(free.op.expand(count, -1), free.slot.expand(count, -1, -1))
