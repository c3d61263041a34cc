"""The decoder with slots around its weights: the same network, seeds of low rank, and a topology from the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kasmina.sequences import grown_to, sequence_model
from tests.support import PATIENT, noise, seeded, tokens, transformer
from torch import nn

from esper.kasmina.adapters import save_adapter
from esper.kasmina.export import Graft, export, topology_of, with_seeds
from esper.kasmina.model import SlottedModel, grow_from
from esper.kasmina.sited_host import SitedHost
from esper.kasmina.transformer_host import TransformerConfig
from esper.kasmina.weight_site import Grafted
from esper.leyline.errors import ConfigError, WrongHostError
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.stages import SeedStage

WIDE: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2}


def sited(**options: Any) -> SitedHost:
    sizes = {"vocabulary": 11, "context": 6, "cut": "weights"} | WIDE
    with seeded():
        host = TransformerConfig(**sizes | options).build()
    assert isinstance(host, SitedHost)
    return host


def grown(*slots: str, blend: Any = "ADD", level: int = 2) -> SlottedModel:
    """Stirred ladders of that level, kept in these slots."""
    model = grow_from(sited())
    assert isinstance(model, SlottedModel)
    model.configure(PATIENT)
    for slot_id in slots:
        grown_to(model.slots[slot_id], SeedStage.FOSSILIZED, "lora_ladder", blend, level)
    return model


def size(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize("cut", ["segments", "layers", "lattice"])
def test_it_is_the_network_that_other_cuts_make_to_the_last_bit(cut: str) -> None:
    chain, host = transformer(cut=cut, **WIDE), sited()

    pairs = zip(chain.parameters(), host.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(chain(tokens(3, 6)), host(tokens(3, 6)))


def test_slots_stand_around_the_way_out_of_attention_and_mlp() -> None:
    specs = grow_from(sited()).specs

    attention, mlp = InjectionSurface.POST_ATTN, InjectionSurface.POST_MLP
    assert [(s.slot_id, s.surface, s.order, s.host_layer, s.in_dim, s.dim) for s in specs] == [
        ("r0c0", attention, 0, 0, 32, 32),
        ("r0c1", mlp, 1, 0, 128, 32),
        ("r1c0", attention, 2, 1, 32, 32),
        ("r1c1", mlp, 3, 1, 128, 32),
    ]


def test_the_family_says_how_blending_seeds_are_isolated_under_every_cut() -> None:
    assert grow_from(sited()).isolate_blending is transformer().isolate_blending is False


def test_a_frozen_one_has_seeds_that_learn_alone() -> None:
    model = grow_from(sited(frozen=True))
    model.configure(PATIENT)
    grown_to(model.slots["r1c1"], SeedStage.BLENDING, "lora")

    model(tokens(2, 6)).square().mean().backward()

    learned = {name for name, param in model.named_parameters() if param.grad is not None}
    assert learned
    assert all(".slot.seed." in name for name in learned)


@pytest.mark.parametrize("blend", ["ADD", "GATE"])
def test_kept_seeds_are_merged_on_export_and_the_network_is_as_large_as_before(blend: str) -> None:
    model = grown("r0c0", "r1c1", blend=blend)

    plain = export(model, tokens(4, 6))

    assert size(plain) == size(sited())
    torch.testing.assert_close(plain(tokens(4, 6)), model(tokens(4, 6)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(tokens(4, 6)), sited()(tokens(4, 6)), atol=1e-2)


def test_a_topology_is_built_in_from_the_start_and_its_slots_are_empty() -> None:
    model = grown("r0c0", "r1c1")
    kept = sum(size(slot) for slot in model.slots.values())

    with seeded(3):
        fresh = with_seeds(sited(), topology_of(model))

    # Levels 2 are rank 8: 8 x (32 + 32) around attention's, 8 x (128 + 32) around the MLP's.
    assert size(fresh) - size(sited()) == kept == 8 * 64 + 8 * 160
    assert torch.equal(fresh(tokens(2, 6)), sited()(tokens(2, 6)))  # maps are zero at birth
    assert all(slot.stage is SeedStage.DORMANT for slot in grow_from(fresh).slots.values())


@pytest.mark.parametrize("first", ["ADD", "MULTIPLY"])
@pytest.mark.parametrize("second", ["ADD", "MULTIPLY"])
def test_a_seed_can_grow_beside_one_that_was_there_from_the_start(first: Any, second: Any) -> None:
    topology = [Graft("r0c1", "lora", first, (True,))]
    model = grow_from(with_seeds(sited(), topology))
    model.configure(PATIENT)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".layer.seed." in name:
                param += 0.2 * noise(*param.shape)
    grown_to(model.slots["r0c1"], SeedStage.FOSSILIZED, "lora", second)

    plain = export(model, tokens(4, 6))

    torch.testing.assert_close(plain(tokens(4, 6)), model(tokens(4, 6)), rtol=1e-5, atol=1e-5)
    is_merged = (first, second) == ("ADD", "ADD")
    assert any(isinstance(part, Grafted) for part in plain.modules()) is not is_merged


def test_a_seed_beside_another_one_is_no_adapter_of_the_weight_alone(tmp_path: Any) -> None:
    model = grow_from(with_seeds(sited(), [Graft("r0c1", "lora", "ADD", (True,))]))
    model.configure(PATIENT)
    grown_to(model.slots["r0c1"], SeedStage.FOSSILIZED, "lora")

    with pytest.raises(ConfigError, match="r0c1 keeps is no map that is added to a weight"):
        save_adapter(model, tmp_path)


def test_a_topology_of_another_host_is_refused() -> None:
    with pytest.raises(WrongHostError, match="'r7c0' is not in this host; it has r0c0, r0c1, r1c0, r1c1"):
        with_seeds(sited(), [Graft("r7c0", "lora", "ADD", (True,))])
    with pytest.raises(ConfigError, match="SequenceNet has slots that stand around no weight"):
        with_seeds(sequence_model().module, [])


@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.FOSSILIZED])
def test_it_comes_back_from_a_checkpoint(stage: SeedStage) -> None:
    model = grow_from(sited())
    model.configure(PATIENT)
    grown_to(model.slots["r0c1"], stage, "lora_ladder", "GATE", level=3)
    other = grow_from(sited())
    other.configure(PATIENT)

    other.load_state_dict(model.state_dict())

    assert torch.equal(other.eval()(tokens(2, 6)), model.eval()(tokens(2, 6)))
    assert other.slots["r0c1"].stage is stage
