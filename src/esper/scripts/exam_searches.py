"""What an exam searches for beside PPO's training, with as many episodes: a schedule, and settings of the heuristic."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.planting import max_level_of
from esper.leyline.config import encode
from esper.leyline.injection_spec import InjectionSpec
from esper.scripts.arms import Arm, save
from esper.scripts.config import EsperConfig
from esper.scripts.exam_arms import Arms, RunResult, make_arm, seed_for, under
from esper.scripts.sources import SCHEDULE, VARIANTS
from esper.simic.experiments.halving import Found, Stage, search
from esper.simic.experiments.rules import drawn_settings
from esper.simic.experiments.schedules import Menu, Schedule, drawn
from esper.tamiyo.config import HeuristicConfig
from esper.tolaria.protocol import EngineProtocol

C = TypeVar("C")


@dataclass(frozen=True)
class Searched(Generic[C]):
    """What a search found, and the runs of its stages."""

    found: Found[C]
    stages: Sequence[RunResult]

    @property
    def cpu_minutes(self) -> float:
        return sum(stage.cpu_seconds for stage in self.stages) / 60


def search_schedule(config: EsperConfig, menu: Menu, top: Path, arms: Arms) -> Searched[Schedule]:
    """The best fixed schedule by its return on validation."""
    run = config.run
    searching = search(
        menu.never, lambda generator: drawn(menu, generator), run.rounds, run.envs, run.seed, "schedules"
    )

    def played(row: Sequence[Schedule]) -> list[Mapping[str, str]]:
        return [line for schedule in row for line in schedule]

    return _searched(searching, lambda stage: _stage_arm("search", SCHEDULE, stage, played, config, top), arms)


def tune_heuristic(config: EsperConfig, menu: Menu, top: Path, arms: Arms) -> Searched[HeuristicConfig]:
    """The best settings of the heuristic likewise; those it has without tuning are among the candidates."""
    run, blueprints = config.run, menu.space.blueprints
    searching = search(
        config.policy.heuristic,
        lambda generator: drawn_settings(blueprints, generator),
        run.rounds,
        run.envs,
        run.seed,
        "settings of the heuristic",
    )

    def played(row: Sequence[HeuristicConfig]) -> list[object]:
        return [encode(settings) for settings in row]

    return _searched(searching, lambda stage: _stage_arm("tuning", VARIANTS, stage, played, config, top), arms)


def _searched(
    searching: Generator[Stage[C], Sequence[Sequence[float]], Found[C]], arm: Callable[[Stage[C]], Arm], arms: Arms
) -> Searched[C]:
    stages: list[RunResult] = []
    try:
        stage = next(searching)
        while True:
            (result,) = arms.run([arm(stage)])
            stages.append(result)
            stage = searching.send(result.returns)
    except StopIteration as over:
        return Searched(over.value, stages)


def _stage_arm(
    purpose: str,
    source: str,
    stage: Stage[C],
    played: Callable[[Sequence[C]], object],
    config: EsperConfig,
    top: Path,
) -> Arm:
    """Groups are rounds, and the environments of a round start alike; each stage has a seed of its own."""
    name, seed = f"{purpose}-{stage.number}", seed_for(config, purpose, stage.number)
    path = top / f"{name}.json"
    save(path, json.dumps([played(row) for row in zip(*stage.groups, strict=True)]) + "\n")  # [environment][group]
    alone = under(config, f"{source}{path}")
    alike = replace(alone, run=replace(alone.run, rounds=len(stage.groups), shared_init=True))
    return make_arm(name, seed, replace(alike, reward=replace(alike.reward, mode="sparse")), top)


def menu_of(config: EsperConfig, engine: EngineProtocol) -> Menu:
    """What schedules can be made of here."""
    space, setup = engine.space, engine.setup
    settings = config.body.settings(setup.gates, setup.episode_length, space.slot_config.num_slots, True)
    rungs = {name: _rungs(name, engine.specs) for name in space.blueprints if BLUEPRINTS[name].kind}
    return Menu(space, settings.rules, setup.episode_length, rungs)


def _rungs(name: str, specs: Sequence[InjectionSpec]) -> int:
    """Of a ladder in the slot where it has fewest, so that a schedule can be followed in each."""
    with torch.device("meta"):
        seeds = [BLUEPRINTS[name].build(spec) for spec in specs if BLUEPRINTS[name].fits(spec)]
    return min(map(max_level_of, seeds))
