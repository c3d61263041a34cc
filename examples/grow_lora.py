"""A trained network is frozen and adapted to other images: LoRA seeds grow around its Linears and are merged into them.

.venv/bin/python examples/grow_lora.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina.config import SlotSettings
from esper.kasmina.export import export
from esper.kasmina.groups import sync_groups
from esper.kasmina.model import SlottedModel
from esper.kasmina.own_loop import record_gradients, validate
from esper.kasmina.weight_site import WeightSite
from esper.leyline.factored_actions import STYLES
from esper.leyline.randomness import drawing_from, stream
from esper.leyline.stages import SeedStage
from esper.leyline.task import Split
from esper.runtime.data import digits

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Three Linears; slots stand around the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = WeightSite(nn.Linear(64, 64), "r0c0", "BC")
        self.second = WeightSite(nn.Linear(64, 32), "r0c1", "BC", order=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))
        return logits


def per_item(outputs: Tensor, targets: Tensor) -> Batch:
    """Loss in nats and score in percentage points of accuracy, both [N]."""
    return F.cross_entropy(outputs, targets, reduction="none"), 100.0 * (outputs.argmax(1) == targets)


def batches(split: Split, transposed: bool) -> Iterator[Batch]:
    """Images in random order, upright or with rows and columns exchanged."""
    for rows in torch.randperm(len(split)).split(64):
        images = split.inputs[rows]
        yield images.transpose(2, 3) if transposed else images, split.targets[rows]


def learn(model: SlottedModel, optimizer: torch.optim.Optimizer, data: Iterable[Batch]) -> None:
    model.train()
    for images, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        record_gradients(model)
        optimizer.step()


def main(epochs: int = 12, seed: int = 0) -> tuple[SlottedModel, nn.Module]:
    """Learns upright digits, freezes, grows on transposed ones; returns the grown model and the plain network."""
    splits, model = digits(seed), SlottedModel(Net())
    held_out = list(batches(splits.val, transposed=True))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        learn(model, optimizer, batches(splits.train, transposed=False))
    print(f"trained on upright digits: {validate(model, held_out, per_item)[1]:.1f} % of transposed ones")

    model.requires_grad_(False)
    model.configure(SlotSettings(auto_advance=("G1", "G2", "G3")))
    for slot in model.slots.values():
        slot.germinate("lora", STYLES["linear_add"], tempo=3, alpha_target=1.0)
    for _ in range(epochs):
        for slot in model.slots.values():
            slot.step_epoch()
        sync_groups(model, optimizer, lr_scale=0.1)
        learn(model, optimizer, batches(splits.train, transposed=True))
        accuracy = validate(model, held_out, per_item)[1]
        print(f"{accuracy:.1f} %  " + "  ".join(slot.stage.name for slot in model.slots.values()))
        for slot in model.slots.values():
            if slot.stage is SeedStage.HOLDING:
                slot.fossilize()

    plain = export(model, held_out[0][0])
    sizes = [sum(param.numel() for param in network.parameters()) for network in (model, plain)]
    print(f"with seeds {sizes[0]} parameters, merged {sizes[1]}")
    return model, plain


if __name__ == "__main__":
    torch.set_num_threads(1)
    with drawing_from(stream(0, "example")):
        main()
