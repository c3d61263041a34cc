"""AdaLoRA (Zhang et al. 2023) as the PEFT library has it, beside a frozen host: a rival of seeds that grow.

It begins with half as many ranks again as it may keep, spread evenly over the output Linears of attention and MLP, and
takes back those that matter least. Data, batches, recipe and epochs are those of every other arm.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.lora import LORA_SCALE
from esper.kasmina.config import BodyConfig
from esper.kasmina.ladder import count_params
from esper.leyline.randomness import drawing_from
from esper.leyline.task import Split, Task
from esper.scripts.arms import Arm, ArmResult
from esper.scripts.runner import setup_of
from esper.tolaria.digest import digest_of_state
from esper.tolaria.flops import count_eval, count_step
from esper.tolaria.recipes import make_optimiser, make_scheduler
from esper.tolaria.setup import Setup, Streams

MISSING = "AdaLoRA is left out: PEFT is not installed; pip install 'esper[bench]'."
TARGET = "out"  # the last name in the path of the Linears that are adapted
WARM_UP, FINAL, EVERY = 0.1, 0.5, 10
"""Shares of the steps before ranks are taken back and after the last is; steps between. The paper's, for GLUE."""
SPARE = 1.5  # ranks at first over ranks at last; the paper's
TRIES, CLOSE = 3, 0.02
"""How often the number of ranks is corrected, since a rank costs more around an MLP than around attention."""


def is_installed() -> bool:
    return find_spec("peft") is not None


@dataclass(frozen=True)
class Adapted:
    """A host and its adapter after training."""

    model: nn.Module
    added: int  # parameters of the ranks that are left, singular values counted into one of the two factors
    flops: int


def adalora(arm: Arm, params: int) -> ArmResult:
    """Trains it until the host with the ranks that are left has about `params` parameters, and reads the test split."""
    torch.set_num_threads(1)
    began = time.process_time()
    # Cut in layers, the network is made of plain modules with a Linear at each of the places.
    config = replace(arm.config, task=replace(arm.config.task, cut="layers", num_segments=None), body=BodyConfig())
    setup = setup_of(config)
    with drawing_from(Streams(setup, 0, 0).of("init")):
        host_params = count_params(setup.task.make_host())
    found = _nearest(setup, params - host_params)
    val, test = (_measured(found.model, setup.task, split) for split in (setup.task.splits.val, setup.task.splits.test))
    return ArmResult(
        name=arm.name,
        seed=arm.seed,
        run="",
        digest=digest_of_state(found.model.state_dict()),
        val_metric=val[1],
        test_metric=test[1],
        test_loss=test[0],
        host_params=host_params,
        params=host_params + found.added,
        fossilized=0,
        flops=found.flops,
        flops_wasted=0,
        cpu_seconds=time.process_time() - began,
    )


def _nearest(setup: Setup, wanted: int) -> Adapted:
    """The number of ranks is corrected by what came out, never by how well it did."""
    found: list[Adapted] = []
    per_rank, ranks = _mean_cost(setup), 0
    for _ in range(TRIES):
        again = max(1, round(wanted / per_rank))
        if again == ranks:
            break
        ranks = again
        found.append(train(setup, ranks))
        if abs(found[-1].added - wanted) <= CLOSE * wanted:
            break
        per_rank = found[-1].added / ranks
    return min(found, key=lambda each: abs(each.added - wanted))


def _mean_cost(setup: Setup) -> float:
    """Parameters of a rank, on average over the places."""
    places = _linears(setup.task.make_host())
    return sum(place.in_features + place.out_features for place in places) / len(places)


def _linears(network: nn.Module) -> list[nn.Linear]:
    named = network.named_modules()
    return [module for name, module in named if isinstance(module, nn.Linear) and name.endswith(f".{TARGET}")]


class _Losing(nn.Module):
    """A network that also says its loss, to which PEFT adds the penalty on factors that are not orthogonal."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self._task = task

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Any:
        outputs = self.network(inputs)
        return outputs if targets is None else _Loss(self._task.loss(outputs, targets).mean())


@dataclass
class _Loss:
    loss: Tensor


def train(setup: Setup, ranks: int) -> Adapted:
    """AdaLoRA with so many ranks in the end, over all places together."""
    from peft import AdaLoraConfig, get_peft_model

    task, streams, steps = setup.task, Streams(setup, 0, 0), setup.episode_length * setup.task.steps_per_epoch
    with drawing_from(streams.of("init")):
        host = task.make_host()
    places = len(_linears(host))
    first = max(ceil(SPARE * ranks / places), ranks // places + 1)
    adaptive: Any = AdaLoraConfig(
        target_modules=[TARGET],
        init_r=first,
        target_r=max(1, ranks // places),
        tinit=round(WARM_UP * steps),
        tfinal=round(FINAL * steps),
        deltaT=EVERY,
        total_step=steps,
        lora_alpha=round(
            LORA_SCALE * first
        ),  # PEFT divides it by the ranks at first, so that the scale is that of our seeds
    )
    with drawing_from(streams.of("growth")):
        model = get_peft_model(_Losing(host, task), adaptive)
    base: Any = model.base_model
    base.rankallocator.target_bgt = ranks  # the settings know multiples of the number of places alone
    optimiser = make_optimiser(task.recipe, [param for param in model.parameters() if param.requires_grad])
    scheduler = make_scheduler(task.recipe, optimiser, setup.episode_length)
    size, done = task.recipe.batch_size, 0
    for epoch in range(setup.episode_length):
        model.train()
        for rows in streams.order(epoch, task.steps_per_epoch * size).split(size):
            model(task.splits.train.inputs[rows], task.splits.train.targets[rows]).loss.backward()
            optimiser.step()
            base.update_and_allocate(done)
            optimiser.zero_grad(set_to_none=True)
            done += 1
        if scheduler is not None:
            scheduler.step()
    left = [sum(flags) for flags in adaptive.rank_pattern.values()]
    sizes = [place.in_features + place.out_features for place in _adapted_places(base)]
    return Adapted(model, sum(rank * cost for rank, cost in zip(left, sizes, strict=True)), _cost(model, task, steps))


def _adapted_places(base: nn.Module) -> list[nn.Linear]:
    """The Linears in the order in which ranks are listed."""
    from peft.tuners.adalora import SVDLinear

    adapted = [module.base_layer for module in base.modules() if isinstance(module, SVDLinear)]
    return [place for place in adapted if isinstance(place, nn.Linear)]


def _cost(model: nn.Module, task: Task, steps: int) -> int:
    """FLOPs of all steps, and of reading validation and test once; ranks that are masked are computed all the same."""
    train, size = task.splits.train, task.recipe.batch_size
    step = count_step(model, train.inputs[:size], lambda out, want: task.loss(out, want).mean(), train.targets[:size])
    read = (
        count_eval(model, task.splits.val.inputs[:size]).total * (len(task.splits.val) + len(task.splits.test)) // size
    )
    return step.total * steps + read


@torch.inference_mode()
def _measured(model: nn.Module, task: Task, split: Split) -> tuple[float, float]:
    """Mean loss in nats and the metric, over all items."""
    model.eval()
    size = task.recipe.eval_batch_size
    losses, scores = [], []
    for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
        outputs = model(inputs)
        losses.append(task.loss(outputs, targets))
        scores.append(task.metric.per_item(outputs, targets))
    return float(torch.cat(losses).double().mean()), task.metric.scale * float(torch.cat(scores).double().mean())
