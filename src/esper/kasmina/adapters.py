"""Seeds kept around weights as a LoRA adapter in the files that PEFT reads: `save_adapter`.

The folder gets `adapter_config.json` and `adapter_model.safetensors`. The latter's format is a length, a header in JSON
and the numbers, so it is written here and needs no other package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.blueprints.lora import LORA_SCALE, low_rank_parts
from esper.kasmina.model import GrowingModel, SlottedModel
from esper.kasmina.weight_site import WeightSite
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.stages import SeedStage


def save_adapter(model: GrowingModel, folder: Path) -> None:
    """Writes the kept seeds as an adapter for the network as it was before slots were placed around its weights.

    An adapter is of use beside the weights that it was trained with: those of a frozen host, or the host's own as they
    are now. A ladder is one map of the rank that it has. Numbers are float32. Makes the folder where there is none.
    Raises ConfigError where nothing is kept, where a kept seed is no map that is added to a weight, and around a
    convolution that PEFT would read another image with.
    """
    factors = adapter_of(model)
    config = _config_of({path: down.shape[0] for path, (down, _) in factors.items()})
    tensors = {}
    for path, (down, up) in factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = down
        tensors[f"base_model.model.{path}.lora_B.weight"] = up
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "adapter_model.safetensors").write_bytes(_as_safetensors(tensors))


def adapter_of(model: GrowingModel) -> dict[str, tuple[Tensor, Tensor]]:
    """By the path of each layer in the user's network: A [r, inputs] and B [outputs, r]; the map is scale * B A.

    Of a convolution A is [r, inputs, rows, columns] and B [outputs, r, 1, 1].
    """
    if not isinstance(model, SlottedModel):
        raise ConfigError("an adapter: this host has slots in cuts alone; it takes slots around weights (WeightSite)")
    sites = {part.slot: (path, part) for path, part in model.module.named_modules() if isinstance(part, WeightSite)}
    factors = {}
    for slot_id, slot in model.slots.items():
        if slot.stage is not SeedStage.FOSSILIZED or slot.seed is None:
            continue
        if slot not in sites or not sites[slot][1].mergeable:
            raise ConfigError(f"an adapter: what slot {slot_id} keeps is no map that is added to a weight; use export")
        _refuse_what_peft_drops(slot.spec)
        maps = low_rank_parts(slot.seed)
        down = torch.cat([part.down.weight.detach() for part in maps])
        factors[sites[slot][0]] = (down, torch.cat([part.up.weight.detach() for part in maps], 1))
    if not factors:
        raise ConfigError("an adapter: no seed is kept around a weight; fossilise one first")
    return factors


def _refuse_what_peft_drops(spec: InjectionSpec) -> None:
    """PEFT makes A with the kernel, stride and padding of the convolution and with nothing else of it."""
    around = spec.convolution
    if around is not None and (around.dilation != (1, 1) or around.padding_mode != "zeros"):
        raise ConfigError(
            f"an adapter: slot {spec.slot_id} stands around a convolution of dilation {around.dilation} and padding "
            f"mode {around.padding_mode!r}, which PEFT leaves out of its maps; use export"
        )


def _config_of(ranks: Mapping[str, int]) -> dict[str, Any]:
    """What PEFT's LoraConfig has to be told; its scale is alpha over rank."""
    rank = max(ranks.values())
    other = {path: its for path, its in ranks.items() if its != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": list(ranks),
        "r": rank,
        "lora_alpha": LORA_SCALE * rank,
        "rank_pattern": other,
        "alpha_pattern": {path: LORA_SCALE * its for path, its in other.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Eight bytes of length, little-endian; a header that says type, shape and place of each tensor; the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, end = [], 0
    for name, tensor in tensors.items():
        blob = tensor.cpu().float().numpy().astype(np.dtype("<f4")).tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blobs)
