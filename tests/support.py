"""What many tests need: small hosts, slots brought to a stage, reports and action spaces. Read `bring` first."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.kasmina.config import SlotSettings
from esper.kasmina.host import Host
from esper.kasmina.model import GrowingModel
from esper.kasmina.slot import SeedSlot
from esper.kasmina.transformer_host import TransformerConfig, TransformerHost
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import CURVES, ActionSpace, Style
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, Layout
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import BlendName, Contribution, HostReport, Rules
from esper.leyline.stages import SeedStage
from esper.runtime.config import TaskConfig
from esper.runtime.tasks import TASKS

LINEAR = CURVES["linear"]
BLENDS: tuple[BlendName, ...] = ("ADD", "MULTIPLY", "GATE")
SHAPES: dict[Layout, tuple[int, ...]] = {"NCHW": (3, -1, 4, 4), "BTC": (3, 5, -1), "BC": (3, -1)}
USEFUL = Contribution(metric=2.0, metric_sem=0.1, loss=0.05, loss_sem=0.01, epoch=1)
# Without a leash, since seeds that are stirred by hand stray further than any would by training.
PATIENT = SlotSettings(rules=Rules(max_seeds=99), embargo=2, leash=math.inf)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Torch's global generator starts at `seed` inside the block."""
    with drawing_from(torch.Generator().manual_seed(seed)):
        yield


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def activation(layout: Layout, dim: int, seed: int = 0) -> Tensor:
    """A small batch as it would arrive at a slot."""
    return noise(*(dim if size == -1 else size for size in SHAPES[layout]), seed=seed)


# --- hosts ------------------------------------------------------------------------------------------------------


def cnn(widths: Sequence[int] = (8, 12, 8), seed: int = 0, **options: Any) -> CNNHost:
    """A host for images [N, 1, 8, 8] that pools after its first block alone, so that many blocks fit."""
    pools = (True, *(False for _ in widths[1:]))
    with seeded(seed):
        return CNNHost(CNNConfig(widths=tuple(widths), pools=pools, **options))


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(dim, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attend(x, x, x, need_weights=False)[0]
        return x + attended


def sequence_host() -> Host:
    """Vectors in, a lattice of POST_ATTN and POST_MLP slots [B, T, C], a slot [B, C] before the last layer."""

    def spec(row: int, col: int, layout: Layout, surface: InjectionSurface, order: int) -> InjectionSpec:
        return InjectionSpec(f"r{row}c{col}", 8, layout, surface, order, row, order)

    with seeded():
        segments = [
            nn.Sequential(nn.Unflatten(1, (4, 16)), nn.Linear(16, 8), _Attention(8)),
            nn.Sequential(nn.Linear(8, 8), nn.GELU()),
            _Attention(8),
            nn.Sequential(nn.Linear(8, 8), nn.GELU()),
            nn.Sequential(nn.Flatten(), nn.Linear(32, 8)),
            nn.Linear(8, 10),
        ]
    surfaces = InjectionSurface
    specs = [
        spec(0, 0, "BTC", surfaces.POST_ATTN, 0),
        spec(0, 1, "BTC", surfaces.POST_MLP, 1),
        spec(1, 0, "BTC", surfaces.POST_ATTN, 2),
        spec(1, 1, "BTC", surfaces.POST_MLP, 3),
        spec(2, 0, "BC", surfaces.BLOCK_END, 4),
    ]
    return Host(segments, specs, isolate_blending=False)


def in_place_host() -> Host:
    """A pre-activation network: every segment begins by overwriting its input, as many public ones do."""
    with seeded():
        segments = [nn.Conv2d(1, 8, 3, padding=1)]
        segments += [nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2)]
        segments.append(nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Flatten(), nn.Linear(8 * 64, 10)))
    specs = [InjectionSpec(f"r0c{i}", 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(3)]
    return Host(segments, specs, isolate_blending=True)


def transformer(seed: int = 0, **options: Any) -> TransformerHost:
    """A small decoder for tokens [N, 6] of 11 symbols; two layers unless told otherwise."""
    sizes = {"vocabulary": 11, "context": 6, "layers": 2, "width": 8, "heads": 2, "num_segments": 2}
    with seeded(seed):
        return TransformerConfig(**sizes | options).build()


def tokens(*shape: int, seed: int = 0, symbols: int = 11) -> Tensor:
    return torch.randint(symbols, shape, generator=torch.Generator().manual_seed(seed))


def _tokens() -> Tensor:
    return tokens(4, 6)


HOSTS: dict[str, tuple[Callable[[], Host], Callable[[], Tensor]]] = {
    "cnn of two blocks": (lambda: cnn((8, 8)), lambda: noise(4, 1, 8, 8)),
    "cnn of three widths": (cnn, lambda: noise(4, 1, 8, 8)),
    "cnn of twelve blocks": (lambda: cnn((4,) * 12), lambda: noise(4, 1, 8, 8)),
    "cnn of 1x1 kernels": (lambda: cnn((8, 8), kernel=1), lambda: noise(4, 1, 8, 8)),
    "cnn in channels_last": (lambda: cnn(in_channels=3, channels_last=True), lambda: noise(4, 3, 8, 8)),
    "cnn cut at its pools": (lambda: cnn(cut="pools"), lambda: noise(4, 1, 8, 8)),
    "attention lattice": (sequence_host, lambda: noise(4, 64)),
    "transformer in segments": (lambda: transformer(layers=4), _tokens),
    "transformer in layers": (lambda: transformer(cut="layers", positions="sinusoidal"), _tokens),
    "transformer lattice": (lambda: transformer(cut="lattice"), _tokens),
}
"""Every family of hosts, with a batch of its inputs."""


def small_task(name: str, **settings: Any) -> TaskConfig:
    """The task on data that is made here, after few lessons where there are any, which are not kept on disk."""
    source = "synthetic" if "synthetic" in TASKS[name].sources else None
    return TaskConfig(name=name, data=source, pretrain_steps=2, cache_dir=os.devnull, **settings)


# --- slots ------------------------------------------------------------------------------------------------------


def empty_slot(dim: int = 8, layout: Layout = "NCHW", settings: SlotSettings = PATIENT) -> SeedSlot:
    slot = SeedSlot.at("r0c0", dim, layout)
    slot.settings = settings
    return slot


def plant(
    slot: SeedSlot,
    blueprint: str = "conv_light",
    blend: BlendName = "ADD",
    tempo: int = 4,
    target: float = 1.0,
    seed: int = 0,
) -> Receipt:
    with seeded(seed):
        return slot.germinate(blueprint, Style(blend, LINEAR), tempo, target)


def stir(slot: SeedSlot, seed: int = 1) -> None:
    """Moves every weight of the seed and of the gate, so that the seed is the identity no longer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in slot.parameters():
            param += 0.3 * torch.randn(param.shape, generator=generator, dtype=param.dtype)


def find_healthy(slot: SeedSlot) -> None:
    """All that the permissive gates want to have been measured."""
    assert slot.state is not None
    slot.state.health.record(seed_norm=1.0, host_norm=1.0, seed_params=100, host_params=100)
    slot.record_contribution(USEFUL)


PATH = (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)
DOWNFALL = (SeedStage.PRUNED, SeedStage.EMBARGOED, SeedStage.RESETTING)


def bring(slot: SeedSlot, stage: SeedStage, **planting: Any) -> SeedSlot:
    """Takes an empty slot to `stage` by legal operations. Seeds are stirred as soon as they are in TRAINING."""
    if stage is SeedStage.DORMANT:
        return slot
    if stage in DOWNFALL:
        bring(slot, SeedStage.TRAINING, **planting)
        slot.step_epoch()
        assert slot.prune(0, LINEAR).done
        while slot.stage is not stage:
            slot.step_epoch()
        return slot
    assert plant(slot, **planting).done
    while slot.stage is not stage:
        _onward(slot)
    return slot


def _onward(slot: SeedSlot) -> None:
    """To the next stage, whatever that takes."""
    find_healthy(slot)
    if slot.stage is SeedStage.HOLDING:
        slot.step_epoch()
        assert slot.fossilize().done
        return
    with seeded(5):
        while not (receipt := slot.advance_stage()).done:
            assert slot.report().epochs_in_stage < 50, receipt.why
            slot.step_epoch()
    if slot.stage in (SeedStage.TRAINING, SeedStage.BLENDING):
        stir(slot)


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything a checkpoint would hold, copied."""
    state = module.state_dict()
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two snapshots agree bit for bit, NaN being equal to itself."""
    return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


# --- models -----------------------------------------------------------------------------------------------------


def report_on(model: GrowingModel, settings: SlotSettings, env: int = 0) -> HostReport:
    slots = tuple(slot.report() for slot in model.slots.values())
    return HostReport(env, 0, 50, settings.rules, slots, model.host_params, model.host_params, model.host_params)


def space_of(model: GrowingModel, blueprints: Sequence[str]) -> ActionSpace:
    fits = tuple(tuple(BLUEPRINTS[name].fits(slot.spec) for name in blueprints) for slot in model.slots.values())
    return ActionSpace(model.slot_config, tuple(blueprints), fits)
