"""Settings of a task. None stands for the task's own default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.leyline.config import check_ranges, setting
from esper.leyline.task import OptimiserName, ScheduleName


@dataclass(frozen=True)
class TaskConfig:
    """Which task, on which data, trained how."""

    name: str = setting("digits", help="a task of `esper list tasks`")
    data: Literal["cifar10", "synthetic"] | None = setting(None, help="cifar tasks: real images or procedural ones")
    data_dir: str | None = setting(None, help="folder with downloaded data")
    download: bool = setting(False, help="download missing data")
    widths: tuple[int, ...] | None = setting(None, help="channels of the host's blocks")
    epoch_items: int | None = setting(None, low=1, help="training items per host epoch; the whole split if not given")
    batch_size: int | None = setting(None, low=1, help="items per optimiser step")
    eval_batch_size: int | None = setting(None, low=1, help="items per validation pass")
    optimiser: OptimiserName | None = setting(None, help="sgd, adam, adamw or rmsprop")
    lr: float | None = setting(None, above=0.0, help="learning rate of the host")
    momentum: float | None = setting(None, low=0.0, below=1.0, help="of sgd and rmsprop")
    weight_decay: float | None = setting(None, low=0.0, help="per step and unit of learning rate")
    schedule: ScheduleName | None = setting(None, help="constant, or cosine over the episode")
    teacher_width: int = setting(6, low=1, help="task teacher: the width to be found")
    channels_last: bool = setting(False, help="memory format of the host")

    def __post_init__(self) -> None:
        check_ranges(self)
