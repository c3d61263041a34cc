"""What is compared beside a frozen host: maps of low rank that are grown, ranks fixed from the start, and AdaLoRA.

All stand at the same places, see the same batches under the same recipe, and learn nothing else. A policy is trained
for the table, on other seeds than those compared, as part of the command.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from esper.kasmina.blueprints.lora import LADDER_BLOCKS
from esper.kasmina.export import Graft
from esper.scripts.adalora import MISSING, adalora, is_installed
from esper.scripts.adapting_tables import columns, judged
from esper.scripts.arms import Arm, ArmResult, by_seed, make_arm, under
from esper.scripts.config import EsperConfig
from esper.scripts.contest import Contest, Played, Stage
from esper.scripts.sources import POLICY, POLICY_FILE
from esper.scripts.tables import BASE, GROWN
from esper.scripts.teams import PPO_NAME

LADDER = "lora_ladder"
RANKS = tuple(accumulate(LADDER_BLOCKS))  # of the ladder's levels
POLICY_ROUNDS, POLICY_ENVS = 8, 4
POLICY_SEED = 2_000_001  # never among the compared ones
LEARNER = "policy-training"


def _settled(config: EsperConfig) -> EsperConfig:
    """Ladders around weights, which is where AdaLoRA stands too."""
    task, body = config.task, config.body
    return replace(
        config,
        task=replace(task, cut="weights") if task.cut is None else task,
        body=replace(body, blueprints=(LADDER,)) if body.blueprints is None else body,
    )


def _play(config: EsperConfig, stage: Stage) -> Played:
    """The policy learns beside the arms that need no other one; then what needs to know what came out."""
    rounds = POLICY_ROUNDS if stage.policy_rounds is None else stage.policy_rounds
    learners = [_learner(config, stage.top, rounds)] if rounds else []
    first = [make_arm(rule, seed, under(config, rule), stage.top) for seed in stage.seeds for rule in (GROWN, BASE)]
    fixed = [arm for level in range(1, len(RANKS) + 1) for arm in _fixed(config, stage, level)]
    trained, results = _parted(stage.run_all([*learners, *first, *fixed]))
    later = [arm for learned in trained for arm in _policies(config, learned, stage)]
    grown = [row for row in by_seed(results, GROWN) if row.params > row.host_params]
    rivals = [_rival(config, row, stage.top) for row in grown] if is_installed() else []
    results += stage.run_all([*later, *rivals])
    return Played(results, (*_told(trained, rounds), *_why_no_rival(len(grown), len(stage.seeds))))


def _parted(results: Sequence[ArmResult]) -> tuple[list[ArmResult], list[ArmResult]]:
    """Those that were run to learn, and those that are compared."""
    learners = [row for row in results if row.name == LEARNER]
    return learners, [row for row in results if row.name != LEARNER]


def _learner(config: EsperConfig, top: Path, rounds: int) -> Arm:
    arm = make_arm(LEARNER, POLICY_SEED, under(config, PPO_NAME), top)
    run = replace(arm.config.run, envs=POLICY_ENVS, rounds=rounds, workers=1)
    return replace(arm, config=replace(arm.config, run=run))


def _policies(config: EsperConfig, learned: ArmResult, stage: Stage) -> list[Arm]:
    policy = Path(learned.run) / "checkpoints" / POLICY_FILE
    return [make_arm("policy", seed, under(config, f"{POLICY}{policy}"), stage.top) for seed in stage.seeds]


def _fixed(config: EsperConfig, stage: Stage, level: int) -> list[Arm]:
    """A ladder of that level at every slot from the first epoch on."""
    rungs = (True,) * level + (False,) * (len(RANKS) - level)
    grafts = [Graft(slot_id, LADDER, "ADD", rungs).as_dict() for slot_id in stage.slots]
    path = stage.top / f"rank-{RANKS[level - 1]}.json"
    path.write_text(json.dumps({"task": config.task.name, "environments": [grafts]}, indent=2) + "\n")
    static = under(config, BASE)
    built = replace(static, run=replace(static.run, topology_from=str(path)))
    return [make_arm(f"rank_{RANKS[level - 1]}", seed, built, stage.top) for seed in stage.seeds]


def _rival(config: EsperConfig, grown: ArmResult, top: Path) -> Arm:
    """AdaLoRA, with as many parameters in the end as the heuristic's run on that seed."""
    arm = make_arm("adalora", grown.seed, under(config, BASE), top)
    return replace(arm, train=partial(adalora, params=grown.params))


def _told(trained: Sequence[ArmResult], rounds: int) -> list[str]:
    episodes = rounds * POLICY_ENVS
    return [
        f"The policy trained on {episodes} episodes of another seed, {row.cpu_seconds / 60:.1f} CPU minutes."
        for row in trained
    ]


def _why_no_rival(grown: int, seeds: int) -> list[str]:
    if not is_installed():
        return [MISSING]
    kept_nothing = f"AdaLoRA ran on {grown} of {seeds} seeds: on the others the heuristic kept nothing to be equal to."
    return [kept_nothing] if grown < seeds else []


ADAPTING = Contest(settle=_settled, tunes=False, has_policy=True, play=_play, columns=columns, judge=judged)
