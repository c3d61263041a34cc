"""What a controller sees of the environments: reports for rules."""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.decisions import Sight
from esper.leyline.reports import HostReport


def observe(reports: Sequence[HostReport]) -> Sight:
    """The sight of all environments at one step."""
    return Sight(reports)
