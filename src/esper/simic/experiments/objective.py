"""What the arms of an exam are judged by, the same number for all of them.

J = test metric in points, more being better, - rent * log2(exported / host parameters), of the exported network.
"""

from __future__ import annotations

from esper.leyline.task import Metric
from esper.simic.rewards.terms import usable, worth
from esper.tolaria.engine import Outcome


def judged(outcome: Outcome, untrained: Outcome, metric: Metric, rent: float) -> float:
    """J of one host at the end of its episode, in points.

    A host that diverged, or whose metric is no number that counts, is worth what it was before its first step, as if
    neither training nor growing had been tried. untrained: the outcome of that same host after no epoch at all.
    """
    found = usable(None if outcome.diverged else outcome.test_metric)
    if found is not None:
        return worth(metric.sign, found, outcome.host_params, outcome.params, rent)
    assert untrained.test_metric is not None, "a host that has not been trained can be measured"
    return worth(metric.sign, untrained.test_metric, untrained.host_params, untrained.host_params, rent)
