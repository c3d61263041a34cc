"""A network for sequences that is no chain: a slot in a cut and slots around two of its Linears."""

from __future__ import annotations

import torch
from tests.support import PATIENT, find_healthy, noise, plant, seeded, stir
from torch import Tensor, nn

from esper.kasmina.model import SlottedModel
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite
from esper.leyline.reports import BlendName
from esper.leyline.stages import SeedStage

TOKENS = (3, 5, 16)


class SequenceNet(nn.Module):
    """[B, T, 16] -> [B, T, 10]; r0c0 is a cut of 48 channels, r0c1 stands around 48 -> 40, r0c2 around 40 -> 36."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.embed = nn.Linear(16, 48)
            self.cut = SeedSlot.at("r0c0", 48, "BTC")
            self.up = WeightSite(nn.Linear(48, 40), "r0c1", order=1)
            self.down = WeightSite(nn.Linear(40, 36, bias=False), "r0c2", order=2)
            self.head = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(self.embed(x))
        out: Tensor = self.head(torch.tanh(self.down(torch.relu(self.up(x)))))
        return out


def tokens(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(*TOKENS, seed=seed, dtype=dtype)


def sequence_model() -> SlottedModel:
    model = SlottedModel(SequenceNet())
    model.configure(PATIENT)
    return model


def grown_to(
    slot: SeedSlot, stage: SeedStage, blueprint: str, blend: BlendName = "ADD", level: int | None = None
) -> SeedSlot:
    """A stirred seed in `stage`, with as many rungs on as asked."""
    assert plant(slot, blueprint, blend, tempo=2).done
    assert slot.advance_stage().done
    stir(slot)
    while level is not None and slot.report().internal_level < level:
        assert slot.grow_internal().done
    while slot.stage is not stage:
        find_healthy(slot)
        slot.step_epoch()
        with seeded(5):
            slot.fossilize() if slot.stage is SeedStage.HOLDING else slot.advance_stage()
    return slot
