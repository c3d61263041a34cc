"""Figures of a recorded run, and what tests look for in them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import plotly.graph_objects as go
import pytest
from tests.karn.recorded import Recorded

from esper.karn.figures import Host, Nothing, draw
from esper.leyline.telemetry import EnvStepPayload, EpisodeFinishedPayload


def drawn(recorded: Recorded, name: str, host: Host | None = None) -> go.Figure:
    figure = draw(name, recorded.con, [recorded.run], host)
    if isinstance(figure, Nothing):
        pytest.skip(figure.why)
    return figure


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.name is not None}


def points(trace: Any) -> dict[Any, Any]:
    return dict(zip(trace.x, trace.y, strict=True))


def best_host(recorded: Recorded) -> Host:
    """The one of the last round that is worth most, by hand."""
    finished = [(w.round or 0, p) for w, p in recorded.of(EpisodeFinishedPayload)]
    last = max(round_ for round_, _ in finished)

    def worth(told: EpisodeFinishedPayload) -> float:
        return (told.test_metric or 0.0) - recorded.rent * math.log2(told.params / told.host_params)

    best = max((told for round_, told in finished if round_ == last), key=lambda told: (worth(told), -told.env_id))
    return Host(last, best.env_id)


def steps_of(recorded: Recorded, host: Host) -> dict[int, EnvStepPayload]:
    return {
        step: told for (round_, env, step), told in recorded.steps().items() if (round_, env) == (host.round, host.env)
    }


def by_round(recorded: Recorded) -> dict[int, list[EnvStepPayload]]:
    found = defaultdict(list)
    for (round_, _, _), told in recorded.steps().items():
        found[round_].append(told)
    return found
