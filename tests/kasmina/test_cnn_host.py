"""The convolutional host cut on both sides of its pools, or with slots around its convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kasmina.sequences import grown_to
from tests.support import PATIENT, noise, seeded

from esper.kasmina.adapters import adapter_of
from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.kasmina.export import export, topology_of, with_seeds
from esper.kasmina.model import SlottedModel, grow_from, probe_output
from esper.kasmina.sited_host import SitedHost
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.stages import SeedStage


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


# --- around weights ---------------------------------------------------------------------------------------------


def sited(**options: Any) -> SitedHost:
    with seeded():
        host = CNNConfig(**{"widths": (4, 6, 8), "pools": (True, False, True), "cut": "weights"} | options).build()
    assert isinstance(host, SitedHost)
    return host


def growing(**options: Any) -> SlottedModel:
    model = grow_from(sited(**options))
    assert isinstance(model, SlottedModel)
    model.configure(PATIENT)
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_slots_around_weights_move_no_weight_and_no_output(channels_last: bool) -> None:
    blocks, host = host_cut("blocks", channels_last=channels_last), sited(channels_last=channels_last)

    assert host.slot_order == blocks.slot_order == ("r0c0", "r0c1", "r0c2")
    assert all(map(torch.equal, blocks.parameters(), host.parameters()))
    assert torch.equal(blocks(noise(3, 1, 8, 8)), host(noise(3, 1, 8, 8)))


def test_slots_stand_around_the_convolution_of_every_block() -> None:
    specs = grow_from(sited()).specs

    found = [(s.slot_id, s.place, s.surface, s.order, s.host_layer, s.in_dim, s.dim, s.width) for s in specs]
    end = InjectionSurface.BLOCK_END
    assert found == [
        ("r0c0", "conv", end, 0, 0, 1, 4, 4),
        ("r0c1", "conv", end, 1, 1, 4, 6, 6),
        ("r0c2", "conv", end, 2, 2, 6, 8, 8),
    ]


def test_the_family_says_how_blending_seeds_are_isolated_under_every_cut() -> None:
    assert grow_from(sited()).isolate_blending is host_cut("blocks").isolate_blending is True


def test_beside_a_frozen_host_adapters_learn_alone_and_are_merged_or_saved() -> None:
    model, x = growing(frozen=True), noise(4, 1, 8, 8)
    grown_to(model.slots["r0c0"], SeedStage.FOSSILIZED, "lora_ladder")
    grown_to(model.slots["r0c2"], SeedStage.FOSSILIZED, "lora")

    model(x).square().mean().backward()
    plain = export(model, x)

    learned = {name for name, param in model.named_parameters() if param.grad is not None}
    assert learned
    assert all(".slot.seed." in name for name in learned)
    assert sum(param.numel() for param in plain.parameters()) == model.host_params
    torch.testing.assert_close(plain(x), probe_output(model, x), rtol=1e-5, atol=1e-5)
    # Under the names that the layers have in the host that is cut after its blocks.
    names = dict(host_cut("blocks").named_modules())
    factors = adapter_of(model)
    assert {path: tuple(down.shape) for path, (down, _) in factors.items()} == {
        "segments.0.0": (4, 1, 3, 3),
        "segments.2.0": (8, 6, 3, 3),
    }
    assert factors.keys() <= names.keys()


def test_a_topology_is_built_in_from_the_start_and_its_slots_are_empty() -> None:
    model = growing()
    grown_to(model.slots["r0c2"], SeedStage.FOSSILIZED, "lora_ladder", level=2)

    with seeded(3):
        fresh = with_seeds(sited(), topology_of(model))

    # Level 2 is rank 8: 8 x (9 x 6 + 8).
    assert sum(p.numel() for p in fresh.parameters()) - model.host_params == 8 * (9 * 6 + 8)
    assert torch.equal(fresh(noise(2, 1, 8, 8)), sited()(noise(2, 1, 8, 8)))  # maps are zero at birth
    assert all(slot.stage is SeedStage.DORMANT for slot in grow_from(fresh).slots.values())


@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED])
def test_it_comes_back_from_a_checkpoint(stage: SeedStage) -> None:
    model, other, x = growing(), growing(), noise(2, 1, 8, 8)
    grown_to(model.slots["r0c2"], stage, "lora_ladder", "GATE", level=2)

    other.load_state_dict(model.state_dict())

    assert torch.equal(other.eval()(x), model.eval()(x))
    assert other.slots["r0c2"].stage is stage
