"""What a finished run looks like in a terminal: lanes of stages over time, and a table of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.statistics import paired_difference
from esper.nissa.lanes import lanes as lanes_of
from esper.scripts.runner import Finished
from esper.scripts.teams import VERSUS
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.terms import worth
from esper.simic.training.team import Round


def summary(finished: Finished) -> str:
    """Lanes of the first environment, then what came of every environment."""
    last = finished.rounds[-1]
    lines = [*lanes(last.rollout, 0), "", *outcome_lines(finished)]
    if finished.others:
        lines += ["", ab_line(finished)]
    return "\n".join(lines)


def ab_line(finished: Finished) -> str:
    """How much better the first of two rewards taught, by the objective of the exported networks.

    Hosts of a round are alike for both teams and for each other, so the rounds are what is independent.
    """
    first, second = (_objective_by_round(rounds, finished) for rounds in (finished.rounds, *finished.others))
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    ours, theirs = str(finished.config.run.ab_test).split(VERSUS)
    if not pairs:
        return f"{ours} against {theirs}: no round in which both had a host left."
    gain = paired_difference([one for one, _ in pairs], [two for _, two in pairs])
    rounds = f"{len(pairs)} round{'' if len(pairs) == 1 else 's'}"
    if gain.low is None or gain.high is None:
        return f"{ours} against {theirs}: {gain.mean:+.1f} points of the objective in {rounds}, which is no verdict."
    won = {1: f"{ours} taught better", -1: f"{theirs} taught better", 0: "no clear difference"}[gain.says]
    interval = f"{gain.mean:+.1f} points of the objective [{gain.low:+.1f}, {gain.high:+.1f}]"
    return f"{won}: {ours} - {theirs} = {interval}, {rounds}."


def _objective_by_round(rounds: Sequence[Round], finished: Finished) -> list[float | None]:
    """The mean objective of each round's surviving hosts."""
    sign, rent = finished.metric.sign, finished.config.reward.rent
    found: list[float | None] = []
    for round_ in rounds:
        known = [
            worth(sign, outcome.test_metric, outcome.host_params, outcome.params, rent)
            for outcome in round_.outcomes
            if outcome.test_metric is not None
        ]
        found.append(fmean(known) if known else None)
    return found


def lanes(rollout: Rollout, env: int) -> list[str]:
    """One environment's episode: see `nissa/lanes.py`."""
    return lanes_of([step.sight.reports[env] for step in rollout.steps])


def chosen(rollout: Rollout, env: int) -> str:
    """How often one environment's controller chose what, most frequent first: `WAIT 12 times, ADVANCE 5 times`."""
    counts = Counter(_named(decision) for decision in rollout.decisions()[env])
    return ", ".join(f"{what} {count} time{'' if count == 1 else 's'}" for what, count in counts.most_common())


def _named(decision: Mapping[str, str]) -> str:
    return f"{decision['op']} {decision['blueprint']}" if "blueprint" in decision else decision["op"]


def outcome_lines(finished: Finished) -> list[str]:
    """One line per environment of the last round."""
    last, metric = finished.rounds[-1], finished.metric
    lines = []
    for outcome, decisions in zip(last.outcomes, last.rollout.decisions(), strict=True):
        acted = sum(decision["op"] != LifecycleOp.WAIT.name for decision in decisions)
        if outcome.test_metric is None:
            lines.append(f"  env {outcome.env}: diverged, the governor gave it up; {acted} decisions")
            continue
        kept = ", ".join(f"{graft.blueprint_id} in {graft.slot_id}" for graft in outcome.topology) or "nothing"
        lines.append(
            f"  env {outcome.env}: test {metric.name} {outcome.test_metric:.1f} {metric.unit}, "
            f"loss {outcome.test_loss:.3f}; {outcome.host_params} -> {outcome.params} parameters; "
            f"kept {kept}; {acted} decisions besides WAIT"
        )
    return lines
