"""Settings of the engine and of the governor."""

from __future__ import annotations

from dataclasses import dataclass

from esper.leyline.config import check_ranges, setting


@dataclass(frozen=True)
class EngineConfig:
    """How hosts are trained and measured."""

    device: str = setting("cpu", help="cpu, cuda or cuda:N")
    compile: bool = setting(False, help="torch.compile host segments and seeds, each by itself")
    gradient_samples: int = setting(2, low=1, help="batches per epoch at which gradient norms are read")
    probe_items: int = setting(64, low=1, help="validation items on which an operation's effect is measured")
    measure_fossils: bool = setting(False, help="leave-one-out for fossilised seeds too")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class GovernorConfig:
    """When a host is taken back. Scale-free: losses are compared with the run's own past."""

    window: int = setting(8, low=3, help="healthy epochs whose median loss is the measure")
    panic_ratio: float = setting(3.0, above=1.0, help="loss over median loss that counts as diverging")
    max_rollbacks: int = setting(3, low=1, help="rollbacks of one episode after which it ends")
    snapshot_epochs: int = setting(2, low=1, help="epochs between snapshots")

    def __post_init__(self) -> None:
        check_ranges(self)
