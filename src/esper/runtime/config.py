"""Settings of a task. None stands for the task's own default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.kasmina.cnn_host import CNNCut
from esper.kasmina.transformer_host import Cut, Positions
from esper.leyline.config import check_ranges, setting
from esper.leyline.task import OptimiserName, ScheduleName
from esper.runtime.data.python_help import Pin

AnyCut = Literal[Cut, CNNCut]
DataName = Literal["cifar10", "hub", "synthetic"]


@dataclass(frozen=True)
class TaskConfig:
    """Which task, on which data, trained how."""

    name: str = setting("digits", help="a task of `esper list tasks`")
    data: DataName | None = setting(None, help="cifar and tinystories tasks: real data or procedural ones")
    data_dir: str | None = setting(None, help="folder with downloaded data")
    download: bool = setting(False, help="download missing data")
    text: Pin = setting("pinned", help="stdlib tasks: a known Python's text, or any")
    cache_dir: str | None = setting(None, help="folder for pre-trained hosts; ~/.cache/esper if not given")
    pretrain_steps: int = setting(800, low=1, help="stdlib_adapt: optimiser steps before the host is frozen")
    widths: tuple[int, ...] | None = setting(None, help="convolutional hosts: channels of the blocks")
    width: int | None = setting(None, low=1, help="language hosts: channels")
    layers: int | None = setting(None, low=1, help="language hosts: layers")
    heads: int | None = setting(None, low=1, help="language hosts: heads of attention")
    cut: AnyCut | None = setting(None, help="weights; or language: segments, layers, lattice; or images: blocks, pools")
    num_segments: int | None = setting(None, low=1, help="language hosts cut in segments: how many")
    context: int | None = setting(None, low=1, help="language hosts: tokens of a sequence")
    positions: Positions | None = setting(None, help="language hosts: learned or sinusoidal")
    dropout: float | None = setting(None, low=0.0, below=1.0, help="language hosts")
    epoch_items: int | None = setting(None, low=1, help="training items per host epoch; the whole split if not given")
    batch_size: int | None = setting(None, low=1, help="items per optimiser step")
    eval_batch_size: int | None = setting(None, low=1, help="items per validation pass")
    optimiser: OptimiserName | None = setting(None, help="sgd, adam, adamw or rmsprop")
    lr: float | None = setting(None, above=0.0, help="learning rate of the host")
    momentum: float | None = setting(None, low=0.0, below=1.0, help="of sgd and rmsprop")
    weight_decay: float | None = setting(None, low=0.0, help="per step and unit of learning rate")
    schedule: ScheduleName | None = setting(None, help="constant, or falling over the episode, perhaps after a rise")
    warmup: float | None = setting(None, low=0.0, high=1.0, help="of warmup_cosine: share of the episode that rises")
    teacher_width: int = setting(6, low=1, help="task teacher: the width to be found")
    channels_last: bool = setting(False, help="convolutional hosts: memory format")

    def __post_init__(self) -> None:
        check_ranges(self)
