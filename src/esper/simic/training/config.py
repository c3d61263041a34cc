"""Settings of a run as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.leyline.config import check_ranges, setting
from esper.tolaria.checkpoints.config import CheckpointConfig
from esper.tolaria.ranks.config import RanksConfig


@dataclass(frozen=True)
class RunConfig:
    """Who decides, for how long, how often."""

    controller: str = setting(
        "heuristic", help="ppo, a rule (esper list controllers), policy:RUN, script:RUN, schedule:RUN or variants:FILE"
    )
    seed: int = setting(0, low=0, help="every random stream of the run follows from it")
    envs: int = setting(1, low=1, help="hosts trained in lockstep")
    rounds: int = setting(1, low=1, help="times that all hosts are trained from the start")
    episode_length: int = setting(30, low=1, help="host epochs of one training, with one decision each")
    workers: int | None = setting(None, low=1, help="processes for the hosts; by default as many as cores divide them")
    ab_test: str | None = setting(None, help="two reward modes, such as shaped-vs-simplified, learned from in turn")
    shared_init: bool | None = setting(None, help="hosts of a round start alike; on for learners, off for rules")
    root: str = setting("runs", help="folder in which run folders are made")
    start_from: str | None = setting(None, help="run whose grown model every host starts from")
    topology_from: str | None = setting(None, help="run whose final topology is built into every host, weights fresh")
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
