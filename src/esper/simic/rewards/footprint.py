"""What reports say about growth as a whole: parameters that seeds add, and how suddenly their weight changes.

Logged at every step by these names, whatever the reward, and what rent and shock are charged on.
"""

from __future__ import annotations

import math

from esper.leyline.reports import HostReport, SeedStateReport


def effective_seed_params(report: HostReport) -> int:
    """Active rungs of all seeds, in parameters; also of one that is not heard yet, for it computes all the same."""
    return sum(slot.internal_effective_params for slot in report.slots)


def effective_seed_params_alpha(report: HostReport) -> float:
    """The same, each seed times its alpha."""
    return sum((_alpha(slot) * slot.internal_effective_params for slot in report.slots), 0.0)


def alpha_delta_sq_sum(before: HostReport, after: HostReport) -> float:
    """Sum over seeds of (change of alpha)^2 x parameters / host parameters.

    A seed counts with all its rungs, so that a change of level does not enter. One that is gone went to alpha 0.
    """
    moved = 0.0
    for was, now in zip(before.slots, after.slots, strict=True):
        if was.seed_id == now.seed_id:
            moved += (_alpha(now) - _alpha(was)) ** 2 * was.params
        else:
            moved += _alpha(was) ** 2 * was.params + _alpha(now) ** 2 * now.params
    return moved / before.host_params


def _alpha(slot: SeedStateReport) -> float:
    """Within [0, 1]; 0 where a broken gate gave no number."""
    return max(0.0, min(1.0, slot.alpha)) if math.isfinite(slot.alpha) else 0.0
