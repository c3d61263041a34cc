"""What an experiment is made of: cohorts of runs, what is asked of them and what is shown. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb

from esper.karn.verdicts import Verdict
from esper.leyline.config import apply
from esper.leyline.task import Metric
from esper.scripts.config import EsperConfig
from esper.scripts.exam_arms import RunResult
from esper.scripts.teams import PPO_NAME

DOCUMENTED: Mapping[str, int] = {"rounds": 100, "envs": 8, "episode_length": 150}
"""As the documents have it; anything else is a stand-in."""

Found = dict[str, tuple[Verdict, ...]]
"""By what is judged: a cohort, learning or taking its likeliest choices."""
Names = Mapping[str, Sequence[str]]
"""The names of the runs of each cohort."""


@dataclass(frozen=True)
class Seen:
    """What a table of an experiment is made from."""

    con: duckdb.DuckDBPyConnection
    names: Names
    runs: Mapping[str, Sequence[RunResult]]
    metric: Metric
    steps: int  # training steps of a host in an episode


@dataclass(frozen=True)
class Experiment:
    """What sets one experiment apart from another.

    cohorts: the settings of each, by name, from the experiment's own and the numbers of the runs that were asked for.
    task: what hosts learn unless it is said, by those numbers. runs: the numbers that can be asked for; usual: those
    that run if none was. max_seeds: None where each cohort has its own. grows: whether what was learned then grows
    hosts that are new to it. controller: who decides; None where each cohort says so. show: a table, in Markdown.
    """

    cohorts: Callable[[EsperConfig, Sequence[int]], dict[str, EsperConfig]]
    judge: Callable[[duckdb.DuckDBPyConnection, Names], Found]
    task: Callable[[Sequence[int]], str]
    runs: tuple[int, ...] = ()
    usual: tuple[int, ...] = ()
    max_seeds: int | None = None
    grows: bool = False
    controller: str | None = PPO_NAME
    numbers: Mapping[str, int] = field(
        default_factory=lambda: DOCUMENTED
    )  # rounds, hosts and epochs; others are a stand-in
    show: Callable[[Seen], str] | None = None


def may_plant(config: EsperConfig, *blueprints: str) -> EsperConfig:
    """The same, where these blueprints are offered."""
    return replace(config, body=replace(config.body, blueprints=blueprints))


def cut_at(config: EsperConfig, cut: str, surfaces: tuple[str, ...] | None = None) -> EsperConfig:
    """The same on a host with slots elsewhere, of which those at some surfaces may be enabled alone."""
    task = apply(config.task, {"cut": cut})
    return replace(config, task=task, body=replace(config.body, surfaces=surfaces))


def against(pairs: Sequence[tuple[str, str]], names: Names, greedy: str = ", greedy") -> list[tuple[str, str, str]]:
    """(title, treatment, control) of all pairs of cohorts there are, learning and greedily."""
    found = []
    for ending in ("", greedy):
        for one, other in pairs:
            if {one + ending, other + ending} <= names.keys():
                found.append((f"{one}{ending} against {other}", one + ending, other + ending))
    return found
