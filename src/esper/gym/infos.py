"""What `info` tells: the same keys at every step and at a reset, and `outcome` when an episode ends.

    action_mask                                 one mask per head
    action_valid, executed_action               whether what was asked for is possible together; what was done instead
    op_done, refused_by, why                    the receipt of the operation
    rolled_back                                 the governor took the host back
    reward_terms                                by name; the reward is their sum, less the penalty for the impossible
    op_counts [operations]                      done in this episode so far, WAIT among them
    events                                      structs of `leyline/telemetry.py`, what happened in this step
    metric, epoch, horizon_end                  of validation; host epochs so far; whether they were the last
    params, effective_params, exported_params   in all; of active rungs; of host and fossils

`outcome` is not called `episode`: gymnasium's RecordEpisodeStatistics refuses an environment that uses that key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper.gym.core import GrowthCore, Scene, Turn
from esper.gym.dialects import by_head
from esper.leyline.factored_actions import HEADS
from esper.simic.rewards.modes import MODES


def info_of(core: GrowthCore, scene: Scene, env: int, turn: Turn | None) -> dict[str, Any]:
    """Of one environment; turn: the step that led here, None at a reset. What was not measured is NaN."""
    report = scene.reports[env]
    return {
        "action_mask": by_head(scene.mask[env], core.sizes),
        **(_untouched(core) if turn is None else _of_turn(turn)),
        "op_counts": np.array(core.episodes[env].op_counts, dtype=np.int64),
        "metric": math.nan if report.val_metric is None else report.val_metric,
        "epoch": report.epoch,
        "horizon_end": report.epoch >= report.episode_length,
        "params": report.total_params,
        "effective_params": report.effective_params,
        "exported_params": report.exported_params,
    }


def _of_turn(turn: Turn) -> dict[str, Any]:
    receipt = turn.receipt
    return {
        "action_valid": turn.valid,
        "executed_action": np.array(turn.action.indices, dtype=np.int64),
        "op_done": receipt.done,
        "refused_by": "" if receipt.refused_by is None else receipt.refused_by,
        "why": receipt.why,
        "rolled_back": not turn.verdict.healthy,
        "reward_terms": dict(turn.score.terms),
        "events": turn.events,
    }


def _untouched(core: GrowthCore) -> dict[str, Any]:
    """The same keys before the first step."""
    return {
        "action_valid": True,
        "executed_action": np.zeros(len(HEADS), dtype=np.int64),
        "op_done": True,
        "refused_by": "",
        "why": "",
        "rolled_back": False,
        "reward_terms": dict.fromkeys(MODES[core.config.reward.mode].weights, 0.0),
        "events": (),
    }


def outcome_of(core: GrowthCore, scene: Scene, env: int) -> dict[str, float | int]:
    """Of an episode that has ended: return, steps, and what would be exported."""
    report, episode = scene.reports[env], core.episodes[env]
    exported = math.nan if report.exported_metric is None else report.exported_metric
    return {
        "return": episode.total,
        "length": episode.length,
        "exported_metric": exported,
        "exported_params": report.exported_params,
    }


def side_by_side(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Infos of all environments as one, in the layout of gymnasium's vector environments: an array and a mask per key.

    Like `VectorEnv._add_info` one by one, but for all at once.
    """
    present = np.ones(len(infos), dtype=np.bool_)
    joined: dict[str, Any] = {}
    for key, first in infos[0].items():
        column = [info[key] for info in infos]
        joined[key] = side_by_side(column) if isinstance(first, dict) else _array(column)
        joined[f"_{key}"] = present.copy()
    return joined


def _array(column: list[Any]) -> NDArray[Any]:
    if isinstance(column[0], bool | int | float | np.ndarray):
        return np.array(column)
    objects = np.empty(len(column), dtype=object)
    objects[:] = column
    return objects
