"""The convolutional host cut on both sides of its pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support import noise, seeded

from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.leyline.injection_spec import InjectionSurface


def host_cut(cut: str, **options: Any) -> CNNHost:
    with seeded():
        return CNNHost(CNNConfig(widths=(4, 6, 8), pools=(True, False, True), cut=cut, **options))


def test_every_block_has_a_slot_before_its_pool_and_one_after_it_if_it_has_one() -> None:
    found = [(spec.slot_id, spec.surface, spec.dim, spec.host_layer) for spec in host_cut("pools").injection_specs]

    before, after = InjectionSurface.PRE_POOL, InjectionSurface.POST_POOL
    assert found == [
        ("r0c0", before, 4, 0),
        ("r0c1", after, 4, 0),
        ("r1c0", before, 6, 1),
        ("r2c0", before, 8, 2),
        ("r2c1", after, 8, 2),
    ]


def test_a_pool_halves_the_image_between_its_two_slots() -> None:
    host, x = host_cut("pools"), noise(2, 1, 8, 8)

    sides = {slot_id: host.forward_to(slot_id, x).shape[-1] for slot_id in host.slot_order}

    assert sides == {"r0c0": 8, "r0c1": 4, "r1c0": 4, "r2c0": 4, "r2c1": 2}


def test_where_a_host_is_cut_moves_no_weight_and_no_output() -> None:
    blocks, pools, x = host_cut("blocks"), host_cut("pools"), noise(3, 1, 8, 8)

    assert blocks.slot_order == ("r0c0", "r0c1", "r0c2")
    assert torch.equal(blocks(x), pools(x))


@pytest.mark.parametrize("slot_id", ["r0c0", "r0c1", "r1c0", "r2c0", "r2c1"])
def test_channels_last_reaches_both_sides_of_a_pool(slot_id: str) -> None:
    host = host_cut("pools", channels_last=True, in_channels=3)

    assert host.forward_to(slot_id, noise(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
