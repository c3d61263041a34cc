"""The best fixed schedule by random search with successive halving (Jamieson and Talwalkar 2016). Read `search`.

Schedules that are compared are played on the same host: a group of them starts alike and sees the same data in the same
order, so that what tells them apart is their decisions.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from esper.leyline.randomness import stream
from esper.simic.experiments.schedules import Menu, Schedule, drawn

KEPT = 4  # of so many candidates one goes on to the next stage


@dataclass(frozen=True)
class Stage:
    """Episodes to be played: [group][environment]. The environments of a group share a host of their own."""

    number: int  # from 1
    candidates: int
    groups: tuple[tuple[Schedule, ...], ...]


@dataclass(frozen=True)
class Found:
    """What the search came to."""

    schedule: Schedule
    candidates: int
    episodes: int
    gain: float  # points over the mean of its groups in the last stage


def search(menu: Menu, rounds: int, envs: int, seed: int) -> Generator[Stage, Sequence[Sequence[float]], Found]:
    """Yields stages and wants the scores of their episodes, [group][environment], more being better.

    Half of the rounds go to fresh schedules, a host each; every further stage takes half of what is left, on hosts of
    its own, until no more candidates are left than one group holds. `never` is among the first and among the last.
    """
    generator = stream(seed, "schedules")
    left, number = rounds, 0
    candidates = [menu.never, *(drawn(menu, generator) for _ in range(-(-rounds // 2) * envs - 1))]
    tried = len(candidates)
    while True:
        number += 1
        groups = left if number > 1 and len(candidates) <= envs else -(-left // 2)
        turns = _turns(len(candidates), groups * envs, generator)
        dealt = [turns[first : first + envs] for first in range(0, len(turns), envs)]
        played = tuple(tuple(candidates[index] for index in group) for group in dealt)
        scores = yield Stage(number, len(candidates), played)
        gains = _gains(dealt, scores)
        left -= groups
        ranked = sorted(gains, key=lambda index: gains[index], reverse=True)
        if left == 0:
            best = ranked[0]
            return Found(candidates[best], tried, rounds * envs, gains[best])
        candidates = [candidates[index] for index in ranked[: max(envs, len(candidates) // KEPT)]]
        if len(candidates) <= envs and menu.never not in candidates:
            candidates[-1] = menu.never


def _turns(count: int, episodes: int, generator: torch.Generator) -> list[int]:
    """Whose turn it is: all candidates in random order, over and over."""
    turns: list[int] = []
    while len(turns) < episodes:
        turns += torch.randperm(count, generator=generator).tolist()
    return turns[:episodes]


def _gains(dealt: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> dict[int, float]:
    """Of each candidate, the mean over its episodes of the score above its group's mean."""
    gains: dict[int, list[float]] = {}
    for group, points in zip(dealt, scores, strict=True):
        mean = fmean(points)
        for index, score in zip(group, points, strict=True):
            gains.setdefault(index, []).append(score - mean)
    return {index: fmean(values) for index, values in gains.items()}
