"""What a finished run looks like in a terminal: lanes of stages over time, and a table of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

from esper.leyline.factored_actions import LifecycleOp
from esper.nissa.lanes import lanes as lanes_of
from esper.scripts.ab import ab_lines, untrained_hosts
from esper.scripts.runner import Finished
from esper.simic.agent.rollout_buffer import Rollout


def summary(finished: Finished) -> str:
    """Lanes of the first environment, then what came of every environment; of an A/B test, who did better."""
    last = finished.rounds[-1]
    lines = [*lanes(last.rollout, 0), "", *outcome_lines(finished)]
    if finished.others:
        lines += ["", *ab_lines(finished, partial(untrained_hosts, finished.config))]
    return "\n".join(lines)


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
            f"  env {outcome.env}: test {metric.name} {outcome.test_metric:.{metric.digits}f} {metric.unit}, "
            f"loss {outcome.test_loss:.3f}; {outcome.host_params} -> {outcome.params} parameters; "
            f"kept {kept}; {acted} decisions besides WAIT"
        )
    return lines
