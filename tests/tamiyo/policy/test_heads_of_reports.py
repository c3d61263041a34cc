"""Masks of real reports: whatever the slots live through, every head has a choice and what is drawn is legal."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import noise
from tests.tamiyo.small import host, slot, space

from esper.leyline.factored_actions import HEADS, OPS, LifecycleOp
from esper.leyline.reports import AlphaMode, HostReport, Rules, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import SEEDED, SeedStage
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.heads import HeadTable, Possible, sample


@st.composite
def slots_in_any_state(draw: st.DrawFn, index: int) -> SeedStateReport:
    stage = draw(st.sampled_from(SeedStage))
    if stage not in SEEDED:
        return slot(index, stage)
    top = draw(st.sampled_from([1, 4]))
    return slot(
        index,
        stage,
        age=draw(st.integers(0, 6)),
        alpha_mode=draw(st.sampled_from(AlphaMode)),
        internal_kind=SeedInternalKind.NONE if top == 1 else SeedInternalKind.CONV_LADDER,
        internal_max_level=top,
    )


@st.composite
def reports(draw: st.DrawFn) -> HostReport:
    three_slots = tuple(draw(slots_in_any_state(index)) for index in range(3))
    limits = Rules(draw(st.integers(1, 4)), min_prune_age=3, internal_needs_hold=draw(st.booleans()))
    return host(*three_slots, rules=limits, finished=draw(st.integers(0, 5)) == 0)


OFFERED = space(3, ("first", "second"), r0c0=("second",), r0c2=("first", "second"))  # nothing can grow in r0c2
REAL = HeadTable.of(OFFERED)


@given(st.lists(reports(), min_size=1, max_size=3), st.integers(0, 99))
def test_masks_of_any_lifecycle_leave_every_head_a_choice_and_what_is_drawn_is_legal(seen: list[HostReport], seed: int):
    legal = possible(seen, OFFERED)
    free, row = Possible.of(legal), 3 * noise(len(seen), sum(REAL.widths), seed=seed)
    uniforms = torch.rand(len(seen), len(HEADS), generator=torch.Generator().manual_seed(seed))

    for decisions in (sample(REAL, row, free, uniforms), sample(REAL, row, free, None)):
        for masks_of, indices in zip(legal, decisions.tolist(), strict=True):
            action = OFFERED.from_indices(indices)
            assert masks_of.allows(action)
            assert action.indices == tuple(indices)  # what does not matter stands at its first choice already
    assert free.op[:, LifecycleOp.WAIT].all()


def test_the_table_of_an_action_space_has_its_sizes_and_the_relevance_of_its_ops():
    assert REAL.sizes == tuple(OFFERED.head_sizes[head] for head in HEADS)
    assert REAL.slot_ops == tuple(op for op in LifecycleOp if OPS[op].needs_slot)
    assert sum(REAL.widths) == 8 + 7 * 3 + 2 + REAL.argument_width - 2
    for op in LifecycleOp:
        used = {head for head, matters in zip(HEADS, REAL.relevant[op], strict=True) if matters}
        assert used == {"op", *OPS[op].heads}
