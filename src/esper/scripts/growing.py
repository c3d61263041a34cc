"""What is compared on a task whose host learns: growing under rules, and as many parameters in other ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from esper.runtime.tasks import widened_tasks
from esper.scripts.arms import Arm, ArmResult, by_seed, make_arm, under
from esper.scripts.config import EsperConfig
from esper.scripts.contest import Contest, Played, Stage
from esper.scripts.tables import BASE, GROWN, columns_of, verdicts

RULES = (BASE, GROWN, "periodic", "random")


def _play(config: EsperConfig, stage: Stage) -> Played:
    """All arms on all seeds, at the learning rate in `config`."""
    results = stage.run_all(
        [make_arm(rule, seed, under(config, rule), stage.top) for seed in stage.seeds for rule in RULES]
    )
    later = [arm for grown in by_seed(results, GROWN) for arm in _after_growing(config, grown, stage.top)]
    return Played(results + stage.run_all(later))


def _after_growing(config: EsperConfig, grown: ArmResult, top: Path) -> list[Arm]:
    """The arms that need to know what was grown: its topology from scratch, and as many parameters by width."""
    static = under(config, BASE)
    scratch = replace(static, run=replace(static.run, topology_from=grown.run))
    wider = widened_tasks(config.task, grown.params) or ()
    return [
        make_arm("scratch", grown.seed, scratch, top),
        *(
            make_arm(name, grown.seed, replace(static, task=task), top)
            for name, task in zip(("uniform_below", "uniform_above"), wider, strict=False)
        ),
    ]


GROWING = Contest(
    settle=lambda config: config,
    tunes=True,
    has_policy=False,
    play=_play,
    columns=lambda metric, _rent: columns_of(metric),
    judge=lambda results, metric, _rent: verdicts(results, metric),
)
