"""What is measured: growing hosts with seeds that rest half blended in, and the same networks written plainly."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.kasmina.config import BodyConfig
from esper.kasmina.model import GrowingModel, MorphogeneticModel
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.reports import AlphaMode
from esper.leyline.stages import SeedStage
from esper.leyline.task import Recipe, Split, Task
from esper.runtime.config import TaskConfig
from esper.runtime.tasks import make_task
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.recipes import make_optimiser
from esper.tolaria.setup import Setup

SEED = 7  # of every random stream
HALF = 0.5  # where alpha rests


def task_named(name: str) -> Task:
    """The task with its own recipe; CIFAR tasks on procedural images."""
    return make_task(TaskConfig(name=name, data="synthetic" if name.startswith("cifar") else None), SEED)


def setup_for(task: Task, start: Mapping[str, object] | None = None, episode_length: int = 12) -> Setup:
    return Setup(task, envs=1, episode_length=episode_length, seed=SEED, start=start)


def grown_state(task: Task, seeds: int, isolate_blending: bool | None = None) -> dict[str, object]:
    """The state_dict of a model with conv_light seeds in its first slots, BLENDING, alpha at rest at a half.

    The engine plants them by the ordinary operations, in epochs of two batches.
    """
    short = replace(task, epoch_items=2 * task.recipe.batch_size)
    engine = Engine(replace(setup_for(short), body=BodyConfig(isolate_blending=isolate_blending)))
    engine.reset(0)
    slot_ids = engine.space.slot_config.slot_ids[:seeds]
    for slot_id in slot_ids:
        engine.apply([engine.space.action("GERMINATE", slot=slot_id, blueprint="conv_light", alpha_target="half")])
    while not all(_rests(engine.environments[0], slot_id) for slot_id in slot_ids):
        for slot_id in slot_ids:
            if engine.environments[0].model.slots[slot_id].stage is not SeedStage.BLENDING:
                engine.apply([engine.space.action(LifecycleOp.ADVANCE, slot=slot_id)])
        engine.train_epoch()
        engine.measure()
    return copy.deepcopy(engine.environments[0].model.state_dict())


def _rests(environment: Environment, slot_id: str) -> bool:
    report = environment.model.slots[slot_id].report()
    return report.stage is SeedStage.BLENDING and report.alpha_mode is AlphaMode.HOLD and report.alpha == HALF


class PlainSeed(nn.Module):
    """conv_light by hand."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.relu(self.norm(x)))


class PlainNet(nn.Module):
    """The convolutional host by hand, with a seed blended in after each of the first `seeds` blocks."""

    def __init__(self, config: CNNConfig, seeds: int, isolated: bool) -> None:
        super().__init__()
        widths, blocks = [config.in_channels, *config.widths], []
        for before, width, pool in zip(widths, config.widths, config.pools, strict=False):
            conv = nn.Conv2d(before, width, config.kernel, padding=config.kernel // 2, bias=False)
            layers = [conv, nn.GroupNorm(_groups(width), width), nn.ReLU()]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.seeds = nn.ModuleList(PlainSeed(width, _groups(width)) for width in config.widths[:seeds])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], config.classes))
        self.isolated = isolated
        self.register_buffer("alpha", torch.tensor(HALF))

    def forward(self, x: Tensor) -> Tensor:
        for block, seed in zip_longest(self.blocks, self.seeds):
            x = block(x)
            if seed is not None:
                x = torch.lerp(x, seed(x.detach() if self.isolated else x), self.alpha)
        return self.head(x)


def _groups(width: int) -> int:
    return max(1, min(8, width // 4))


def plain_twin(model: GrowingModel) -> PlainNet:
    """The plain network with the model's weights."""
    assert isinstance(model, MorphogeneticModel)
    assert isinstance(model.host, CNNHost)
    seeded = model.fossil_and_live
    twin = PlainNet(model.host.config, len(seeded), all(slot.isolate_gradients for slot in seeded))
    host = list(model.host.parameters())
    grown = [param for slot in seeded for param in slot.parameters()]
    with torch.no_grad():
        for mine, theirs in zip([*twin.blocks.parameters(), *twin.head.parameters()], host, strict=True):
            mine.copy_(theirs)
        for mine, theirs in zip(twin.seeds.parameters(), grown, strict=True):
            mine.copy_(theirs)
    return twin


def plain_optimiser(net: PlainNet, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser; seeds are a second group, with their own learning rate."""
    grown = list(net.seeds.parameters())
    optimiser = make_optimiser(recipe, [*net.blocks.parameters(), *net.head.parameters()])
    if grown:
        optimiser.add_param_group({"params": grown, "lr": BodyConfig().lr_scale() * recipe.lr})
    return optimiser


def batches(task: Task, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    """The first `count` training batches."""
    size, train = task.recipe.batch_size, task.splits.train
    return list(zip(train.inputs.split(size), train.targets.split(size), strict=True))[:count]


@torch.inference_mode()
def evaluate(net: nn.Module, split: Split, size: int) -> tuple[float, float]:
    """Mean loss and accuracy."""
    net.eval()
    loss, right = 0.0, 0
    for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
        outputs: Tensor = net(inputs)
        loss += F.cross_entropy(outputs, targets, reduction="sum").item()
        right += int((outputs.argmax(1) == targets).sum())
    return loss / len(split), right / len(split)
