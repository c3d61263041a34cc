"""Adapters: what is in the files, read byte by byte, is what the kept seeds compute."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.kasmina.images import ImageNet, image_model, images
from tests.kasmina.sequences import SequenceNet, grown_to, sequence_model, tokens
from tests.support import PATIENT, bring, cnn, same, snapshot
from torch import Tensor, nn

from esper.kasmina.adapters import save_adapter
from esper.kasmina.model import MorphogeneticModel, SlottedModel, probe_output
from esper.kasmina.weight_site import WeightSite
from esper.leyline.errors import ConfigError
from esper.leyline.stages import SeedStage

S = SeedStage


def numbers_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as its specification describes it."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]  # no gap, no overlap
    assert ends[-1][1] == len(data)
    assert all(entry["dtype"] == "F32" for entry in header.values())
    return {
        name: torch.from_numpy(np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"]).copy())
        for name, entry in header.items()
    }


def adapted(folder: Path) -> nn.Module:
    """The network without slots, with the adapter's maps added to its Linears as LoRA's formula has it."""
    config, numbers = (
        json.loads((folder / "adapter_config.json").read_text()),
        numbers_in(folder / "adapter_model.safetensors"),
    )
    net = SequenceNet()
    net.cut = nn.Identity()
    for path in config["target_modules"]:
        rank = config["rank_pattern"].get(path, config["r"])
        alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
        down, up = (numbers.pop(f"base_model.model.{path}.lora_{side}.weight") for side in "AB")
        assert (down.shape[0], up.shape[1]) == (rank, rank)
        with torch.no_grad():
            net.get_submodule(path).layer.weight += alpha / rank * up @ down
    assert numbers == {}
    return net


def test_a_network_with_the_adapter_computes_what_the_grown_one_does(tmp_path: Path):
    model = sequence_model()
    grown_to(model.slots["r0c1"], S.FOSSILIZED, "lora_ladder", level=3)
    grown_to(model.slots["r0c2"], S.FOSSILIZED, "lora", "GATE")
    before = snapshot(model)

    save_adapter(model, tmp_path / "made" / "here")

    assert same(snapshot(model), before)
    config = json.loads((tmp_path / "made" / "here" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["target_modules"], config["r"]) == ("LORA", ["up", "down"], 16)
    assert config["rank_pattern"] == {"down": 8}
    found = probe_output(adapted(tmp_path / "made" / "here"), tokens())
    torch.testing.assert_close(found, probe_output(model, tokens()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, SequenceNet()(tokens()), atol=0.1)


def without_slots(net: nn.Module) -> nn.Module:
    """The network as it was before slots were placed in it."""
    net.cut = nn.Identity()
    net.up, net.down = net.up.layer, net.down.layer
    return net


@pytest.mark.parametrize(
    ("model", "net", "batch"), [(sequence_model, SequenceNet, tokens), (image_model, ImageNet, images)]
)
def test_peft_loads_the_files_and_its_network_computes_the_same_before_and_after_merging(model, net, batch, tmp_path):
    peft = pytest.importorskip("peft")
    grown, x = model(), batch()
    grown_to(grown.slots["r0c1"], S.FOSSILIZED, "lora_ladder", level=2)
    grown_to(grown.slots["r0c2"], S.FOSSILIZED, "lora", "GATE")
    save_adapter(grown, tmp_path)
    expected = probe_output(grown, x)

    adapted = peft.PeftModel.from_pretrained(without_slots(net()), str(tmp_path)).eval()

    torch.testing.assert_close(probe_output(adapted, x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probe_output(adapted.merge_and_unload(), x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(without_slots(net())(x), expected, atol=0.1)


@pytest.mark.parametrize("geometry", [{"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}])
def test_what_peft_leaves_out_of_a_convolution_is_refused_in_words(geometry: dict[str, Any], tmp_path: Path):
    model = SlottedModel(WeightSite(nn.Conv2d(9, 8, 3, **geometry), "r0c0"))
    model.configure(PATIENT)
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora")

    with pytest.raises(
        ConfigError, match=r"slot r0c0 stands around a convolution of dilation .+ which PEFT leaves out"
    ):
        save_adapter(model, tmp_path / "adapter")

    assert not (tmp_path / "adapter").exists()


def test_seeds_on_probation_are_left_out(tmp_path: Path):
    model = sequence_model()
    grown_to(model.slots["r0c1"], S.FOSSILIZED, "lora")
    grown_to(model.slots["r0c2"], S.HOLDING, "lora")

    save_adapter(model, tmp_path)

    assert set(numbers_in(tmp_path / "adapter_model.safetensors")) == {
        "base_model.model.up.lora_A.weight",
        "base_model.model.up.lora_B.weight",
    }


def test_other_precisions_are_saved_as_float32(tmp_path: Path):
    model = SlottedModel(WeightSiteInside()).to(torch.bfloat16)
    model.configure(PATIENT)
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora")

    save_adapter(model, tmp_path)

    numbers = numbers_in(tmp_path / "adapter_model.safetensors")
    assert torch.equal(numbers["base_model.model.body.0.lora_A.weight"], model.slots["r0c0"].seed.down.weight.float())


class WeightSiteInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(WeightSite(nn.Linear(12, 9), "r0c0", "BC"), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def nothing_kept() -> SlottedModel:
    model = sequence_model()
    grown_to(model.slots["r0c1"], S.HOLDING, "lora")
    return model


def kept_in_a_cut() -> SlottedModel:
    model = sequence_model()
    grown_to(model.slots["r0c0"], S.FOSSILIZED, "lora")
    return model


def kept_as_a_product() -> SlottedModel:
    model = sequence_model()
    grown_to(model.slots["r0c1"], S.FOSSILIZED, "lora", "MULTIPLY")
    return model


def chain() -> MorphogeneticModel:
    model = MorphogeneticModel(cnn())
    model.configure(PATIENT)
    bring(model.slots["r0c0"], S.FOSSILIZED)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nothing_kept, "no seed is kept around a weight; fossilise one first"),
        (kept_in_a_cut, "what slot r0c0 keeps is no map that is added to a weight; use export"),
        (kept_as_a_product, "what slot r0c1 keeps is no map that is added to a weight; use export"),
        (chain, "this host has slots in cuts alone"),
    ],
)
def test_what_is_no_adapter_is_refused_and_nothing_is_written(model, why, tmp_path: Path):
    with pytest.raises(ConfigError, match=why):
        save_adapter(model(), tmp_path / "adapter")

    assert not (tmp_path / "adapter").exists()
