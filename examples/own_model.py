"""A network of your own that grows by hand: one slot, one seed, kept for good if it measurably helps.

.venv/bin/python examples/own_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from esper.kasmina.config import SlotSettings
from esper.kasmina.groups import sync_groups
from esper.kasmina.model import SlottedModel
from esper.kasmina.own_loop import record_gradients, validate
from esper.kasmina.slot import SeedSlot
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import CURVES, STYLES
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


def per_item(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss in nats and score in percentage points of accuracy, both [N]."""
    return F.cross_entropy(outputs, targets, reduction="none"), 100.0 * (outputs.argmax(1) == targets)


def verdict(slot: SeedSlot) -> Receipt:
    """A held seed that lowers the validation loss by more than twice the error of its measurement stays for good."""
    found = slot.report().contribution
    assert found is not None, "validate() measures every seed that is held"
    return slot.fossilize() if found.loss > 2 * found.loss_sem else slot.prune(0, CURVES["linear"])


def main(epochs: int = 24, seed: int = 0) -> SlottedModel:
    """Trains, plants after a third of the time, decides; returns the grown model."""
    splits, model = digits(seed), SlottedModel(Net())
    model.configure(SlotSettings(auto_advance=("G1", "G2", "G3")))
    slot = model.slots["r0c0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        if epoch == epochs // 3:
            slot.germinate("conv_light", STYLES["linear_add"], tempo=3, alpha_target=1.0)
        slot.step_epoch()
        sync_groups(model, optimizer, lr_scale=1.0)
        model.train()
        for rows in torch.randperm(len(splits.train)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(splits.train.inputs[rows]), splits.train.targets[rows]).backward()
            record_gradients(model)
            optimizer.step()
        loss, accuracy = validate(model, [(splits.val.inputs, splits.val.targets)], per_item)
        print(
            f"epoch {epoch:2}  {slot.stage.name:<11} alpha {float(slot.alpha):.2f}  {loss:.3f} nats  {accuracy:.1f} %"
        )
        if slot.stage is SeedStage.HOLDING:
            receipt = verdict(slot)
            print(f"{receipt.op.name}: {'done' if receipt.done else receipt.why}")
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    with drawing_from(stream(0, "example")):
        main()
