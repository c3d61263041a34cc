"""From a task's own host and the settings to the host that is built: of which family, how large, cut where.

Read `host_of` first. `widened` is for comparisons with hosts that had more parameters from the start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import torch
from torch import nn

from esper.kasmina.cnn_host import CNNConfig, CNNCut
from esper.kasmina.transformer_host import Cut, TransformerConfig
from esper.leyline.errors import ConfigError
from esper.runtime.config import TaskConfig
from esper.runtime.pretraining import Lessons, pretrained

T = TypeVar("T")
HostConfig = CNNConfig | TransformerConfig


@dataclass(frozen=True)
class MakeHost:
    """Makes the host of a task; compares equal where the hosts do (`Task.host_key`)."""

    config: HostConfig
    lessons: Lessons | None = None  # of a pre-trained host
    cache_dir: str | None = None

    def __call__(self) -> nn.Module:
        host = self.config.build()
        if self.lessons is not None:
            learned = pretrained(self.lessons, self.cache_dir)
            # By order, not by name: cut elsewhere, the same weights have other names. Tied ones come twice in both.
            params = [param for _, param in host.named_parameters(remove_duplicate=False)]
            with torch.no_grad():
                for param, value in zip(params, learned.values(), strict=True):
                    param.copy_(value)
        return host


def or_default(chosen: T | None, default: T) -> T:
    return default if chosen is None else chosen


def host_of(base: HostConfig, config: TaskConfig) -> HostConfig:
    """The task's own host with what the settings change in it.

    Raises ConfigError for settings of another family of hosts and for hosts that cannot be.
    """
    _refuse_strangers(base, config)
    if isinstance(base, CNNConfig):
        cut = _cut_among(get_args(CNNCut), base.cut, config)
        host = replace(base, channels_last=config.channels_last, cut=cut)
        if config.widths is None:
            return host
        return replace(host, widths=config.widths, pools=_pools_for(base.pools, config.widths, config.name))
    cut = _cut_among(get_args(Cut), base.cut, config)
    if cut != "segments" and config.num_segments is not None:
        raise ConfigError(f"task.num_segments: the host is cut by task.cut={cut}; leave one of the two out")
    return replace(
        base,
        width=or_default(config.width, base.width),
        layers=or_default(config.layers, base.layers),
        heads=or_default(config.heads, base.heads),
        cut=cut,
        num_segments=or_default(config.num_segments, base.num_segments),
        context=or_default(config.context, base.context),
        positions=or_default(config.positions, base.positions),
        dropout=or_default(config.dropout, base.dropout),
    )


def _cut_among(names: Sequence[T], default: T, config: TaskConfig) -> T:
    """The cut that the settings ask for. Raises ConfigError for one of another family of hosts."""
    if config.cut is None:
        return default
    for name in names:
        if name == config.cut:
            return name
    kind = "convolutional" if names == get_args(CNNCut) else "language"
    there = " or ".join(map(str, names))
    raise ConfigError(f"task.cut: {config.name!r} has a {kind} host, which is cut by {there}, not {config.cut}")


def _refuse_strangers(base: HostConfig, config: TaskConfig) -> None:
    of_cnn = {"widths": config.widths is not None, "channels_last": config.channels_last}
    of_language = {
        "width": config.width is not None,
        "layers": config.layers is not None,
        "heads": config.heads is not None,
        "num_segments": config.num_segments is not None,
        "context": config.context is not None,
        "positions": config.positions is not None,
        "dropout": config.dropout is not None,
    }
    is_cnn = isinstance(base, CNNConfig)
    kind, other = ("convolutional", "language") if is_cnn else ("language", "convolutional")
    for name, is_given in (of_language if is_cnn else of_cnn).items():
        if is_given:
            raise ConfigError(f"task.{name}: {config.name!r} has a {kind} host; this is a setting of {other} hosts")


def _pools_for(pools: tuple[bool, ...], widths: tuple[int, ...], name: str) -> tuple[bool, ...]:
    if len(widths) < 2:
        raise ConfigError(f"task.widths: {list(widths)}: a host needs two blocks or more to have a slot")
    if len(widths) > len(pools):
        raise ConfigError(f"task.widths: {len(widths)} blocks, but {name!r} has images for {len(pools)} at most")
    return pools[: len(widths)]


# --- sizes ------------------------------------------------------------------------------------------------------


def params_of(host: HostConfig) -> int:
    with torch.device("meta"):
        return sum(param.numel() for param in host.build().parameters())


def refuse_giants(host: HostConfig) -> None:
    """Raises ConfigError for a host whose float32 parameters alone are more than the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        params = params_of(host)
    except RuntimeError:  # a tensor whose size does not fit in 64 bits
        raise ConfigError(f"{host.described} make more parameters than can be counted; make it smaller") from None
    if 4 * params > memory:
        raise ConfigError(
            f"{host.described} make {params:,} parameters, {4 * params / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory; make it smaller"
        )


def widened(base: HostConfig, config: TaskConfig, params: int) -> tuple[TaskConfig, TaskConfig]:
    """The settings of the task's host at other widths, with the parameter counts nearest to `params`.

    All blocks are scaled alike. Returns the nearest from below and the nearest from above; both are the same where one
    fits exactly.
    """
    host = host_of(base, config)
    sizes: dict[HostConfig, int] = {}
    factor = 1.0
    while True:
        wider = host.scaled(factor)
        if wider not in sizes:
            sizes[wider] = params_of(wider)
            if sizes[wider] >= params:
                break
        factor += 0.5 / max(host.scale)
    below = max((each for each, size in sizes.items() if size <= params), key=lambda each: sizes[each], default=wider)
    return _with_widths(config, below), _with_widths(config, wider)


def _with_widths(config: TaskConfig, host: HostConfig) -> TaskConfig:
    if isinstance(host, CNNConfig):
        return replace(config, widths=host.widths)
    return replace(config, width=host.width)
