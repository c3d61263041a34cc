"""The best way to grow by random search with successive halving (Jamieson and Talwalkar 2016). Read `search`.

Candidates that are compared are played on the same host: a group of them starts alike and sees the same data in the
same order, so that what tells them apart is their decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

import torch

from esper.leyline.randomness import stream

C = TypeVar("C")
"""A candidate; equal ones are the same."""
KEPT = 4  # of so many candidates one goes on to the next stage


@dataclass(frozen=True)
class Stage(Generic[C]):
    """Episodes to be played: [group][environment]. The environments of a group share a host of their own."""

    number: int  # from 1
    candidates: int
    groups: tuple[tuple[C, ...], ...]


@dataclass(frozen=True)
class Found(Generic[C]):
    """What the search came to."""

    best: C
    candidates: int
    episodes: int
    gain: float  # points over the mean of its groups in the last stage


def search(
    known: C, fresh: Callable[[torch.Generator], C], rounds: int, envs: int, seed: int, purpose: str
) -> Generator[Stage[C], Sequence[Sequence[float]], Found[C]]:
    """Yields stages and wants the scores of their episodes, [group][environment], more being better.

    Half of the rounds go to `fresh` candidates, a host each; every further stage takes half of what is left, on hosts
    of its own, until no more candidates are left than one group holds. `known` is among the first and among the last.
    purpose: names the random stream.
    """
    generator = stream(seed, purpose)
    left, number = rounds, 0
    candidates = [known, *(fresh(generator) for _ in range(-(-rounds // 2) * envs - 1))]
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
        if len(candidates) <= envs and known not in candidates:
            candidates[-1] = known


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
