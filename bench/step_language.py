"""What do empty slots add to a training step of a transformer, after segments, after layers or as a lattice?"""

from __future__ import annotations

from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measuring import Effort, Finding, Work, compare
from bench.subjects import SEED, batches, setup_for
from esper.kasmina.model import GrowingModel, MorphogeneticModel
from esper.kasmina.transformer_host import Cut, TransformerConfig, TransformerHost
from esper.leyline.task import Task
from esper.runtime.config import TaskConfig
from esper.runtime.tasks import make_task
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment
from esper.tolaria.recipes import make_optimiser

BOUNDS: dict[Cut, float] = {"segments": 1.02, "layers": 1.02, "lattice": 1.03}


def answer(effort: Effort) -> list[Finding]:
    return [_compare(cut, bound, effort) for cut, bound in BOUNDS.items()]


def language_task(cut: Cut) -> Task:
    """The host of `stdlib_lm`, cut as asked, on whatever text this Python has: it is as long everywhere."""
    return make_task(TaskConfig(name="stdlib_lm", cut=cut, text="any"), SEED)


def _compare(cut: Cut, bound: float, effort: Effort) -> Finding:
    task = language_task(cut)
    environment = Environment(0, 0, setup_for(task), Costs(task))
    twin = plain_decoder(environment.model)
    plain = _step_of(twin, make_optimiser(task.recipe, list(twin.parameters())), task)
    ours = _step_of(environment.model, environment.optimiser, task)
    slots = len(environment.model.slots)
    return compare(f"stdlib_lm, {slots} empty slots ({cut})", plain, ours, bound, effort.pairs)


def _step_of(model: nn.Module, optimiser: torch.optim.Optimizer, task: Task) -> Work:
    data = cycle(batches(task, 8))
    model.train()

    def step() -> None:
        inputs, targets = next(data)
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimiser.step()

    return step


class PlainLayer(nn.Module):
    """Causal attention and an MLP, pre-norm, by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, c)
        x = x + self.proj(mixed)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class PlainDecoder(nn.Module):
    """The transformer as one would write it who does not want it to grow."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(config.context, config.width))
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(PlainLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


def plain_decoder(model: GrowingModel) -> PlainDecoder:
    """The plain network with the model's weights; the parameters of both come in the same order."""
    assert isinstance(model, MorphogeneticModel)
    assert isinstance(model.host, TransformerHost)
    twin = PlainDecoder(model.host.config)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.host.parameters(), strict=True):
            mine.copy_(theirs)
    return twin
