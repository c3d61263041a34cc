"""Rounds and rollouts as tensors and primitives, and back.

Reports are written in full, bit for bit; what follows from them, sensors and masks, is read from them again. Of rounds
that are over, what was decided and what it was worth is enough, but for the last one, which the terminal shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from esper.leyline.decisions import Choice, Sight
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.reports import HostReport
from esper.simic.agent.rollout_buffer import Rollout, Step
from esper.simic.rewards.rewards import StepScore
from esper.simic.training.keeping import Round
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tolaria.engine import Outcome

_encode = msgspec.msgpack.encode
_reports = msgspec.msgpack.Decoder(tuple[HostReport, ...])
_scores = msgspec.msgpack.Decoder(list[StepScore])


def packed_reports(reports: Sequence[HostReport]) -> bytes:
    """Also values that are not finite, which JSON could not hold."""
    return _encode(tuple(reports))


def unpacked_reports(packed: bytes) -> tuple[HostReport, ...]:
    return _reports.decode(packed)


def packed_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Oldest first."""
    return [
        {
            "reports": packed_reports(step.sight.reports),
            "actions": [list(action.indices) for action in step.choice.actions],
            "log_prob": step.choice.log_prob,
            "value": step.choice.value,
            "executed": step.choice.executed,
            "scores": _encode(list(step.scores)),
            "ended": list(step.ended),
        }
        for step in steps
    ]


def unpacked_steps(packed: Sequence[dict[str, Any]], space: ActionSpace, reads: ActionSpace | None) -> list[Step]:
    """reads: in whose terms the controller reads sensors, None where it reads reports alone."""
    return [_unpacked_step(step, space, reads) for step in packed]


def _unpacked_step(packed: dict[str, Any], space: ActionSpace, reads: ActionSpace | None) -> Step:
    reports = unpacked_reports(packed["reports"])
    sight = observe(reports, reads) if reports else Sight(())
    choice = Choice(
        actions=_actions(packed["actions"], space),
        log_prob=_own(packed["log_prob"]),
        value=_own(packed["value"]),
        executed=_own(packed["executed"]),
    )
    return Step(sight, possible(reports, space), choice, _scores.decode(packed["scores"]), packed["ended"])


def packed_round(played: Round) -> dict[str, Any]:
    """In full."""
    outcomes = [outcome.as_dict() for outcome in played.outcomes]
    return {"outcomes": outcomes, "steps": packed_steps(played.rollout.steps)}


def packed_brief(played: Round) -> dict[str, Any]:
    """Decisions [T, E, H] and what they were worth [T, E], alone."""
    steps = played.rollout.steps
    return {
        "outcomes": [outcome.as_dict() for outcome in played.outcomes],
        "actions": torch.tensor([[action.indices for action in step.choice.actions] for step in steps]).short(),
        "scores": torch.tensor([[score.total for score in step.scores] for step in steps], dtype=torch.float64),
        "ended": torch.tensor([list(step.ended) for step in steps]),
    }


def unpacked_round(packed: dict[str, Any], space: ActionSpace, reads: ActionSpace | None) -> Round:
    """Of either form."""
    outcomes = [Outcome.from_dict(outcome) for outcome in packed["outcomes"]]
    if "steps" in packed:
        return Round(outcomes, Rollout(unpacked_steps(packed["steps"], space, reads)))
    rows = zip(packed["actions"].tolist(), packed["scores"].tolist(), packed["ended"].tolist(), strict=True)
    steps = [
        Step(Sight(()), (), Choice(_actions(actions, space)), [StepScore(total) for total in scores], ended)
        for actions, scores, ended in rows
    ]
    return Round(outcomes, Rollout(steps))


def _actions(indices: Sequence[Sequence[int]], space: ActionSpace) -> tuple[FactoredAction, ...]:
    return tuple(space.from_indices(row) for row in indices)


def _own(value: Tensor | None) -> Tensor | None:
    """Apart from the file that it was read from."""
    return None if value is None else value.clone()
