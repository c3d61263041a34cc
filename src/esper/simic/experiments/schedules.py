"""Fixed schedules: decisions by epoch, the same for every host. Read `drawn` for what a random one is.

A schedule is made from plantings. What follows on a planting follows as soon as it is possible, one decision per epoch,
the seed that is furthest along first. The controller `schedule` carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from esper.leyline.factored_actions import CHOICES, TEMPOS, ActionSpace, LifecycleOp
from esper.leyline.reports import Rules
from esper.leyline.stages import ADVANCES
from esper.tamiyo.rules import least_epochs

Schedule = tuple[Mapping[str, str], ...]
"""A decision by names for every epoch of an episode."""

_WAIT = {"op": LifecycleOp.WAIT.name}


@dataclass(frozen=True)
class Menu:
    """What schedules can be made of."""

    space: ActionSpace
    rules: Rules
    episode_length: int
    rungs: Mapping[str, int]  # of each blueprint that is a ladder

    @property
    def never(self) -> Schedule:
        """Nothing is ever grown."""
        return (_WAIT,) * self.episode_length


@dataclass(frozen=True)
class Planting:
    """One seed that is to be kept, and when it is due."""

    epoch: int
    slot: str
    blueprint: str
    style: str
    tempo: str
    grows: int = 0  # rungs switched on after the first


@dataclass(frozen=True)
class _Step:
    """A decision on a seed, possible from `wait` epochs after the decision number `after` on the same seed."""

    decision: Mapping[str, str]
    wait: int
    after: int


def drawn(menu: Menu, generator: torch.Generator) -> Schedule:
    """A random schedule of one seed or more, as many as may live at once at most; each could be kept in time.

    Uniform: the number of seeds, their slots, and for each blueprint, style, tempo, level and the epoch of planting.
    """
    space = menu.space
    open_slots = [slot for slot, fits in zip(space.slot_config.slot_ids, space.fits, strict=True) if any(fits)]
    count = 1 + _below(min(len(open_slots), menu.rules.max_seeds), generator)
    chosen = torch.randperm(len(open_slots), generator=generator)[:count].tolist()
    plantings = [_planting(open_slots[index], menu, generator) for index in chosen]
    return compiled([planting for planting in plantings if planting is not None], menu)


def _planting(slot: str, menu: Menu, generator: torch.Generator) -> Planting | None:
    """None where the episode is too short for it."""
    fits = menu.space.fits[menu.space.slot_config.index_of(slot)]
    names = [name for name, is_fit in zip(menu.space.blueprints, fits, strict=True) if is_fit]
    blueprint, tempo = _one_of(names, generator), _one_of(CHOICES["tempo"], generator)
    style = _one_of(CHOICES["style"], generator)
    grows = _below(menu.rungs.get(blueprint, 1), generator)
    latest = menu.episode_length - least_epochs(menu.rules, tempo)
    if latest < 0:
        return None
    return Planting(_below(latest + 1, generator), slot, blueprint, style, tempo, grows)


def compiled(plantings: Sequence[Planting], menu: Menu) -> Schedule:
    """The plantings with all that follows on them, a decision per epoch; what comes too late is lost."""
    courses = [_course(planting, menu) for planting in plantings]
    done: list[list[int]] = [[] for _ in courses]  # epochs of the decisions taken
    schedule: list[Mapping[str, str]] = []
    for epoch in range(menu.episode_length):
        due = [
            index
            for index, (planting, course) in enumerate(zip(plantings, courses, strict=True))
            if _is_due(course, done[index], planting.epoch, epoch)
        ]
        if not due:
            schedule.append(_WAIT)
            continue
        first = max(due, key=lambda index: (len(done[index]) - len(courses[index]), -plantings[index].epoch))
        schedule.append(courses[first][len(done[first])].decision)
        done[first].append(epoch)
    return tuple(schedule)


def _is_due(course: Sequence[_Step], done: Sequence[int], planted: int, epoch: int) -> bool:
    if len(done) == len(course):
        return False
    step = course[len(done)]
    return epoch >= (done[step.after] + step.wait if done else planted)


def _course(planting: Planting, menu: Menu) -> list[_Step]:
    """A seed's life from planting to keeping."""
    rules = menu.rules

    def on(op: LifecycleOp, **choices: str) -> Mapping[str, str]:
        return {"op": op.name, "slot": planting.slot, **choices}

    plant = on(LifecycleOp.GERMINATE, blueprint=planting.blueprint, style=planting.style, tempo=planting.tempo)
    steps = [
        _Step(plant, 0, 0),
        _Step(on(LifecycleOp.ADVANCE), 1, 0),  # to TRAINING
        _Step(on(LifecycleOp.ADVANCE), rules.min_training, 1),  # to BLENDING
    ]
    grows = [_Step(on(LifecycleOp.GROW_INTERNAL), 1, 2)] * planting.grows
    hold = [_Step(on(LifecycleOp.ADVANCE), TEMPOS[planting.tempo], 2)]
    steps += hold + grows if rules.internal_needs_hold else grows + hold
    held = len(ADVANCES) + (0 if rules.internal_needs_hold else planting.grows)
    return [*steps, _Step(on(LifecycleOp.FOSSILIZE), rules.min_holding, held)]


def _one_of(names: Sequence[str], generator: torch.Generator) -> str:
    return names[_below(len(names), generator)]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
