"""A task on which an epoch takes milliseconds, and short ways to live through an episode of it. Read `live` first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from tests.support import same, snapshot
from torch import Tensor, nn

from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.kasmina.config import BodyConfig
from esper.kasmina.host import Host
from esper.kasmina.optimiser import state_by_name
from esper.kasmina.slot import SeedSlot
from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.leyline.task import Metric, Recipe, Split, Splits, Task
from esper.leyline.telemetry import Payload
from esper.nissa.progress import Progress
from esper.tamiyo.baselines import draw
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

CLASSES = 4
RECIPE = Recipe(batch_size=16, eval_batch_size=24, lr=0.05)
# One epoch for every duration, so that a seed's whole life fits into a short episode.
QUICK = BodyConfig(min_training=0.0, min_holding=0.0, embargo=0.0, min_prune_age=0.0, seed_lr_scale=1.0)
Decide = Callable[[HostReport, Any], FactoredAction]


def images(count: int, seed: int) -> Split:
    """8x8 noise with a bright corner; which corner is the label."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    inputs = torch.randn((count, 1, 8, 8), generator=generator)
    for corner in range(CLASSES):
        rows, cols = 4 * (corner // 2), 4 * (corner % 2)
        inputs[targets == corner, :, rows : rows + 4, cols : cols + 4] += 0.7
    return Split(inputs, targets)


def item_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float()


ACCURACY = Metric("accuracy", "%", higher_is_better=True, per_item=is_right, scale=100.0)
ERRORS = Metric("errors", "%", higher_is_better=False, per_item=lambda out, want: 1 - is_right(out, want), scale=100.0)


def cnn_host(widths: Sequence[int] = (4, 6)) -> nn.Module:
    """Pools after its first block alone, so that many blocks fit on 8x8."""
    pools = (True, *(False for _ in widths[1:]))
    return CNNHost(CNNConfig(tuple(widths), pools, classes=CLASSES))


def toy(
    widths: Sequence[int] = (4, 6), items: int = 64, make_host: Callable[[], nn.Module] | None = None, **recipe: Any
) -> Task:
    """64 training items in 4 batches, 40 to validate (in batches of 24 and 16), 40 to test."""
    return Task(
        name="toy",
        make_host=(lambda: cnn_host(widths)) if make_host is None else make_host,
        splits=Splits(images(64, 1), images(40, 2), images(40, 3)),
        loss=item_loss,
        metric=ACCURACY,
        recipe=replace(RECIPE, **recipe),
        epoch_items=items,
    )


def engine_on(task: Task, envs: int = 1, length: int = 12, seed: int = 0, **setup: Any) -> Engine:
    """An engine whose first round has begun."""
    engine = Engine(Setup(task, envs, length, seed, **{"body": QUICK} | setup))
    engine.reset(0)
    return engine


@dataclass(frozen=True)
class Step:
    """What one step of `live` came to."""

    receipts: list[Receipt]
    events: list[Payload]
    verdicts: list[Verdict]
    after: list[HostReport]
    settled: list[HostReport]


def live(engine: Engine, decide: Decide, steps: int, governor: Governor | None = None) -> list[Step]:
    """`steps` of the main loop without anyone to tell: decide, act, train, measure, guard."""
    taken = []
    if governor is not None and not governor.watches:
        governor.begin(engine)
    reports = engine.reports()
    for _ in range(steps):
        legal = possible(reports, engine.space)
        receipts = engine.apply([decide(report, masks) for report, masks in zip(reports, legal, strict=True)])
        engine.train_epoch()
        after = engine.measure()
        verdicts, reports = ([], after) if governor is None else governor.review(engine, after)
        taken.append(Step(receipts, engine.events(), verdicts, after, reports))
    return taken


def waiting(report: HostReport, legal: Any) -> FactoredAction:
    return legal.space.action(LifecycleOp.WAIT)


def at_random(seed: int) -> Decide:
    """Each environment by a lot of its own, as the random controller does it."""
    lots: dict[int, torch.Generator] = {}

    def decide(report: HostReport, legal: Any) -> FactoredAction:
        return draw(legal, lots.setdefault(report.env, stream(seed, "lot", report.env)))

    return decide


def by_plan(*plan: dict[str, str] | None) -> Decide:
    """The first of these at epoch 0, the next at epoch 1 and so on, in every environment; None waits."""

    def decide(report: HostReport, legal: Any) -> FactoredAction:
        step = plan[report.epoch] if report.epoch < len(plan) else None
        return legal.space.action(**({"op": "WAIT"} if step is None else step))

    return decide


def do(op: str, slot: str = "r0c0", **heads: str) -> dict[str, str]:
    """One decision by names."""
    return {"op": op, "slot": slot, **heads}


def perform(engine: Engine, op: str, slot: str = "r0c0", **heads: str) -> Receipt:
    """One operation in the first environment, at once."""
    waits = [engine.space.action(LifecycleOp.WAIT)] * (len(engine.environments) - 1)
    return engine.apply([engine.space.action(**do(op, slot, **heads)), *waits])[0]


def state_of(environment: Environment) -> dict[str, Any]:
    """Everything that training changes, copied: weights, seeds, moments, generators."""
    return {
        **snapshot(environment.model),
        **{f"optimiser {name}": value for name, value in flat(state_by_name(environment.model, environment.optimiser))},
        "draws": environment.draws.get_state().clone(),
        "growth": environment.growth.get_state().clone(),
    }


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dicts, each with its path."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in flat(item, f"{path}/{key}")]
    return [(path, value)]


def alike(one: Environment, other: Environment) -> bool:
    """Whether two environments agree bit for bit."""
    return same(state_of(one), state_of(other))


def dropout_host() -> nn.Module:
    """A chain that draws random numbers whenever it trains."""
    specs = [InjectionSpec(f"r0c{i}", 4, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(2)]
    blocks = [nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.Dropout(0.2), nn.ReLU()) for inputs in (1, 4)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return Host([*blocks, head], specs, isolate_blending=True)


class Chainless(nn.Module):
    """A network of somebody's own, with a skip that no chain of segments can express."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grow_here, self.grow_there = SeedSlot.at("r0c0", 4), SeedSlot.at("r0c1", 4, order=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow_here(self.first(x).relu())
        x = x + self.grow_there(self.second(x).relu())
        return self.head(x.mean((2, 3)))


def silent() -> Progress:
    """A progress line that has begun and shows nothing."""
    progress = Progress(quiet=True)
    progress.start(1, "a run")
    return progress
