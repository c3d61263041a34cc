"""What an A/B test came to: two learners of one run, each taught by its own reward, held against each other.

Both grew the same hosts, drawn from the same seeds. What is compared is J (`simic/experiments/objective.py`) of the
exported networks of the last fifth of the rounds, host by host: what a learner did before it had learned is no news.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from math import floor

from esper.leyline.statistics import Estimate, estimate, seed_means
from esper.scripts.config import EsperConfig
from esper.scripts.runner import Finished, prepare
from esper.scripts.teams import VERSUS, shares_init
from esper.simic.experiments.objective import judged
from esper.simic.rewards.terms import usable
from esper.simic.training.keeping import Round
from esper.tolaria.engine import Outcome

LATE = 0.8  # of the rounds, as for the gates: what a policy does after them counts as trained
_CAVEAT = "One training each, on one split of the data: this is about these two learners, not about the rewards."

Untrained = Callable[[int], Sequence[Outcome]]
"""The hosts of a round before their first step."""


def ab_lines(finished: Finished, untrained: Untrained) -> list[str]:
    """Which of the two learners grew better networks, with a 95 % interval over hosts; and what that does not say."""
    (theirs,) = finished.others
    first = floor(LATE * len(finished.rounds))
    gains: list[tuple[int, float]] = []
    lost = [0, 0]
    shared, unlike = shares_init(finished.config), count()
    for number, pair in enumerate(zip(finished.rounds[first:], theirs[first:], strict=True), first):
        mine, yours = (_judged(round_, number, finished, untrained) for round_ in pair)
        # Hosts of a round that start alike see the same data in the same order; they are one draw of a host.
        gains += [(number if shared else next(unlike), one - other) for one, other in zip(mine, yours, strict=True)]
        lost = [so_far + _lost(round_) for so_far, round_ in zip(lost, pair, strict=True)]
    lines = [_verdict(estimate(seed_means(gains)), len(gains), finished), _CAVEAT]
    if any(lost):
        a, b = _names(finished.config)
        lines.append(f"Diverged, and counted as if never trained: {a} {lost[0]}, {b} {lost[1]} of {len(gains)} hosts.")
    return lines


def untrained_hosts(config: EsperConfig, round_: int) -> Sequence[Outcome]:
    """Of an A/B test, both of whose learners begin with the same hosts."""
    alone = replace(config, run=replace(config.run, ab_test=None, workers=1))
    with closing(prepare(alone)) as prepared:
        prepared.engine.reset(round_)
        return prepared.engine.outcomes()


def _judged(round_: Round, number: int, finished: Finished, untrained: Untrained) -> list[float]:
    """J of every host of a round."""
    before = untrained(number) if _lost(round_) else round_.outcomes
    rent = finished.config.reward.rent
    pairs = zip(round_.outcomes, before, strict=True)
    return [judged(outcome, start, finished.metric, rent) for outcome, start in pairs]


def _lost(round_: Round) -> int:
    """How many hosts diverged, or ended with a metric that is no number that counts."""
    return sum(outcome.diverged or usable(outcome.test_metric) is None for outcome in round_.outcomes)


def _verdict(gain: Estimate, hosts: int, finished: Finished) -> str:
    metric, digits = finished.metric, finished.metric.digits
    ours, theirs = _names(finished.config)
    found = f"{ours} - {theirs} = {gain.mean:+.{digits}f} {metric.points} of the objective"
    over = f"{hosts} pair{'' if hosts == 1 else 's'} of hosts"
    if gain.low is None or gain.high is None:
        return f"no verdict: {found}, {over} that began alike; more rounds would give an interval."
    said = {1: f"the learner of {ours} is better", -1: f"the learner of {theirs} is better", 0: "no clear difference"}
    interval = f"[{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
    return f"{said[gain.says]}: {found} {interval}, {over}, {gain.n} draws of a host."


def _names(config: EsperConfig) -> list[str]:
    """The rewards that taught the first learner and the second."""
    return str(config.run.ab_test).split(VERSUS)
