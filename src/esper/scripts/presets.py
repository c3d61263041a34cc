"""Presets: named settings to start from. To add one, register it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.kasmina.gates import LIMITS, GatesConfig
from esper.leyline.registry import Registry
from esper.leyline.statistics import point_in
from esper.simic.rewards.config import PRICES, RewardConfig


@dataclass(frozen=True)
class Preset:
    summary: str
    settings: Mapping[str, Any]


PRESETS: Registry[Preset] = Registry("preset")


def _preset(name: str, summary: str, **settings: Mapping[str, Any]) -> None:
    PRESETS.register(name)(Preset(summary, settings))


# A policy of the size that a CPU can afford, and steps of Adam to match.
_SMALL: Mapping[str, Any] = {"policy": {"network": {"size": 64, "slot_size": 32}}, "ppo": {"lr": 1e-3}}
# For few episodes on hosts that differ more than decisions do: an episode is worth what it ended at, compared with the
# other hosts of its round, and the critic, which learns slowly, is not asked to guess the end (dev/LOG.md).
_FEW: Mapping[str, Any] = {**_SMALL, "ppo": {"lr": 1e-3, "entropy": [0.02]}, "reward": {"mode": "sparse"}}
_preset(
    "demo",
    "a small host on real digits, about a minute",
    run={"episode_length": 24, "envs": 4, "rounds": 8},
    task={"name": "digits", "widths": [4, 4, 8], "schedule": "cosine"},
    **_SMALL,
)
_preset("digits", "digits, 12 epochs", run={"episode_length": 12}, task={"name": "digits"}, **_SMALL)
_preset(
    "digits_scale",
    "five slots on digits, 24 epochs",
    run={"episode_length": 24},
    task={"name": "digits_scale"},
    **_FEW,
)
_preset("digits_clutter", "30 epochs", run={"episode_length": 30}, task={"name": "digits_clutter"})
_preset("digit_pairs", "30 epochs", run={"episode_length": 30}, task={"name": "digit_pairs"})
_preset("teacher", "30 epochs", run={"episode_length": 30}, task={"name": "teacher"})
_preset("digits_mix", "a family of tasks, 30 epochs", run={"episode_length": 30}, task={"name": "digits_mix"}, **_FEW)
_preset("teacher_mix", "a family of tasks, 30 epochs", run={"episode_length": 30}, task={"name": "teacher_mix"}, **_FEW)
_preset("cifar_baseline", "150 epochs", run={"episode_length": 150}, task={"name": "cifar_baseline"})
_preset("cifar_scale", "five slots, 150 epochs", run={"episode_length": 150}, task={"name": "cifar_scale"})
_preset("cifar_impaired", "150 epochs", run={"episode_length": 150}, task={"name": "cifar_impaired"})
_preset("cifar_minimal", "150 epochs", run={"episode_length": 150}, task={"name": "cifar_minimal"})
_preset(
    "digits_pool", "slots around pools, 12 epochs", run={"episode_length": 12}, task={"name": "digits_pool"}, **_SMALL
)
_preset("cifar_baseline_pool", "150 epochs", run={"episode_length": 150}, task={"name": "cifar_baseline_pool"})
_preset("cifar_scale_pool", "ten slots, 150 epochs", run={"episode_length": 150}, task={"name": "cifar_scale_pool"})

_POINT = point_in("bits")
_REWARD, _GATES = RewardConfig().counted_in(_POINT), GatesConfig().counted_in(_POINT)
_BITS: Mapping[str, Any] = {
    "reward": {name: vars(_REWARD)[name] for name in PRICES},
    "gates": {name: vars(_GATES)[name] for name in LIMITS},
}


def _language(name: str, summary: str) -> None:
    _preset(name, f"{summary}; rent in bits", run={"episode_length": 24}, task={"name": name}, **_SMALL, **_BITS)


_language("stdlib_lm", "24 epochs of 512 contexts")
_language("stdlib_adapt", "24 epochs of 512 contexts beside a frozen host")
_language("tinystories", "24 epochs of 512 contexts, slots after segments")
_language("tinystories_layerwise", "24 epochs of 512 contexts, slots after layers")
_language("tinystories_lattice", "24 epochs of 512 contexts, a lattice of slots")
