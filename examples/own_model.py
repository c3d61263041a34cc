"""A network of your own that grows by hand: one slot, one seed, kept if it measurably helps.

.venv/bin/python examples/own_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from esper.kasmina.groups import HOST_GROUP, sync_groups
from esper.kasmina.model import SlottedModel
from esper.kasmina.optimiser import group_of
from esper.kasmina.slot import SeedSlot
from esper.leyline.factored_actions import STYLES
from esper.leyline.randomness import drawing_from, stream
from esper.leyline.stages import SeedStage
from esper.runtime.data import digits


class Net(nn.Module):
    """Two blocks and a classifier, with a slot between blocks and head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.slot = SeedSlot.at("r0c0", dim=8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.slot(self.blocks(x)).mean((2, 3)))


def validate(model: SlottedModel, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean loss in nats."""
    model.eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs), targets))


def main(epochs: int = 24, seed: int = 0) -> str:
    """Trains, grows, decides; returns the last stage of the slot's seed."""
    splits, net = digits(seed), Net()
    model, slot = SlottedModel(net), net.slot
    optimizer = torch.optim.SGD([{"params": model.parameters(), "name": HOST_GROUP}], lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        if epoch == epochs // 3:
            slot.germinate("conv_light", STYLES["linear_add"], tempo=3, alpha_target=1.0)
        receipt = slot.advance_stage() if slot.stage in (SeedStage.GERMINATED, SeedStage.TRAINING) else None
        if slot.stage is SeedStage.BLENDING and slot.report().alpha == 1.0:
            receipt = slot.advance_stage()
        slot.step_epoch()
        sync_groups(model, optimizer, lr_scale=1.0)
        model.train()
        for rows in torch.randperm(len(splits.train)).split(64):
            F.cross_entropy(model(splits.train.inputs[rows]), splits.train.targets[rows]).backward()
            if slot.seed is not None:
                slot.record_gradients(host_norm=1.0, host_params=1)
            optimizer.step()
            optimizer.zero_grad()
        loss = validate(model, splits.val.inputs, splits.val.targets)
        why = "" if receipt is None or receipt.done else f"  ({receipt.refused_by}: {receipt.why})"
        print(f"epoch {epoch:2}  {slot.stage.name:<11} alpha {float(slot.alpha):.2f}  loss {loss:.3f}{why}")
    assert group_of(optimizer, "r0c0.1")["params"], "the seed trains in a group of its own"
    return slot.stage.name


if __name__ == "__main__":
    torch.set_num_threads(1)
    with drawing_from(stream(0, "example")):
        main()
