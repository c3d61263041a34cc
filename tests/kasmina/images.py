"""A network for images that is no chain: a slot in a cut and slots around two of its convolutions."""

from __future__ import annotations

import torch
from tests.support import PATIENT, noise, seeded
from torch import Tensor, nn

from esper.kasmina.model import SlottedModel
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite


class ImageNet(nn.Module):
    """[B, 3, 9, 8] -> [B, 5]; r0c0 is a cut of 12 channels, r0c1 stands around 12 -> 10, r0c2 around 10 -> 9."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.embed = nn.Conv2d(3, 12, 3)
            self.cut = SeedSlot.at("r0c0", 12)
            self.up = WeightSite(nn.Conv2d(12, 10, 3, stride=(2, 1), padding="valid"), "r0c1", order=1)
            self.down = WeightSite(nn.Conv2d(10, 9, (1, 3), padding="same", bias=False), "r0c2", order=2)
            self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(self.embed(x))
        out: Tensor = self.head(torch.tanh(self.down(torch.relu(self.up(x)))).mean((2, 3)))
        return out


def images(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(4, 3, 9, 8, seed=seed, dtype=dtype)


def image_model() -> SlottedModel:
    model = SlottedModel(ImageNet())
    model.configure(PATIENT)
    return model
