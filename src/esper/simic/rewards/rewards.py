"""What a step was worth, and which environments' sequences end with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import FactoredAction
from esper.leyline.reports import HostReport

Reward = Callable[
    [
        Sequence[HostReport],  # before
        Sequence[FactoredAction],
        Sequence[Receipt],
        Sequence[HostReport],  # after
        Sequence[HostReport],  # settled: after the governor was obeyed
        Sequence[Verdict],
    ],
    tuple[list[float], list[bool]],
]
"""Scores and ends, one each per environment. A rollback ends the sequence of the step that caused it."""


def no_reward(
    before: Sequence[HostReport],
    actions: Sequence[FactoredAction],
    receipts: Sequence[Receipt],
    after: Sequence[HostReport],
    settled: Sequence[HostReport],
    verdicts: Sequence[Verdict],
) -> tuple[list[float], list[bool]]:
    """For controllers that learn nothing: 0 everywhere."""
    assert len(before) == len(actions) == len(receipts) == len(after) == len(settled) == len(verdicts)
    return [0.0] * len(verdicts), [not verdict.healthy or verdict.ended for verdict in verdicts]
