"""From settings to a finished run: builds the parts, runs the main loop, and leaves a run folder behind."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from esper.kasmina.export import with_seeds
from esper.leyline.errors import WrongHostError
from esper.leyline.task import Metric, Task
from esper.leyline.telemetry import SCHEMA_VERSION, LogPayload, RunFinishedPayload, RunStartedPayload
from esper.nissa.progress import Progress
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter
from esper.runtime.tasks import make_task
from esper.scripts.config import EsperConfig
from esper.scripts.manifest import manifest_of
from esper.scripts.sources import FINAL, POLICY_FILE, SCHEDULE, SCRIPT, TOPOLOGY, load_final, load_topology, pinned
from esper.scripts.teams import Side, learns, shares_init, sides_of
from esper.simic.rewards.config import RewardConfig
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Round, Team
from esper.simic.training.vectorized import train
from esper.tamiyo.policy.learned import save_policy
from esper.tamiyo.rules import least_epochs, nearest_tempo
from esper.tolaria.digest import combined, digest_of_state
from esper.tolaria.protocol import EngineProtocol
from esper.tolaria.setup import Setup

NEVER = "static"  # the controller that never grows anything


@dataclass(frozen=True)
class Finished:
    """What a run came to."""

    folder: Path
    digest: str
    config: EsperConfig
    metric: Metric
    rounds: list[Round]  # of the first team
    others: list[list[Round]]  # of the other teams, in an A/B test
    seconds: float  # wall clock, training and measuring
    cpu_seconds: float


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked; no file has been written yet. `close` ends the processes of its engines."""

    config: EsperConfig
    sides: list[Side]
    warnings: tuple[str, ...]  # what the user had better know before it starts
    stack: ExitStack

    @property
    def engine(self) -> EngineProtocol:
        return self.sides[0].engine

    def close(self) -> None:
        self.stack.close()


def prepare(config: EsperConfig) -> Prepared:
    """Loads the data and builds the parts. Raises EsperError for settings that cannot be run."""
    torch.set_num_threads(1)
    config = pinned(config)
    with ExitStack() as stack:
        sides = sides_of(config, partial(setup_of, config), stack)
        return Prepared(config, sides, _warnings(config, sides[0].engine), stack.pop_all())


def run_training(prepared: Prepared, folder: RunFolder, progress: Progress) -> Finished:
    """Trains as the settings say and writes manifest, events and what was grown and learned into `folder`."""
    config, sides, engine = prepared.config, prepared.sides, prepared.sides[0].engine
    run, began, cpu_began = config.run, time.monotonic(), time.process_time()
    folder.write_manifest(manifest_of(config, engine))
    with EventWriter(folder.ev, folder.next_writer(), config.telemetry) as writer, prepared.stack:
        writer.emit(_started(config))
        for text in prepared.warnings:
            writer.emit(LogPayload(level="warning", text=text))
        who = run.controller.split(":")[0]  # without the name of a run or file
        progress.start(run.rounds * run.episode_length * len(sides), f"{config.task.name}, {who}")
        try:
            played = train(run, *(_team(side, config, writer, progress) for side in sides))
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
            reason = str(error) or type(error).__name__
            writer.emit(RunFinishedPayload(status=status, reason=reason, seconds=time.monotonic() - began))
            raise
        finally:
            progress.stop()
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
        final = _digest(sides, played)
        _save_final(engine, played[0][-1], folder.checkpoints)
        _save_policies(sides, folder.checkpoints)
        writer.emit(RunFinishedPayload(status="done", digest=final, seconds=seconds))
    metric = engine.setup.task.metric
    return Finished(folder.path, final, config, metric, played[0], played[1:], seconds, cpu_seconds)


def _team(side: Side, config: EsperConfig, writer: EventWriter, progress: Progress) -> Team:
    publisher = Publisher(config.run, side.engine, writer, progress, side.group)
    return Team(side.engine, side.governor, side.controller, side.learner, side.reward, publisher)


def _digest(sides: list[Side], played: list[list[Round]]) -> str:
    """sha256 over all teams' hosts, decisions and what was learned."""
    decisions = [round_.rollout.decisions() for rounds in played for round_ in rounds]
    hosts = [digest for side in sides for digest in side.engine.digests()]
    learned = [side.policy.network.state_dict() for side in sides if side.policy is not None]
    learners = [side.learner.state_dict() for side in sides]
    return combined([*hosts, digest_of_state([learned, learners])], decisions)


def _started(config: EsperConfig) -> RunStartedPayload:
    run = config.run
    return RunStartedPayload(
        schema_version=SCHEMA_VERSION,
        controller=run.controller,
        task=config.task.name,
        envs=run.envs,
        rounds=run.rounds,
        episode_length=run.episode_length,
    )


def _warnings(config: EsperConfig, engine: EngineProtocol) -> tuple[str, ...]:
    """Prices in another unit than the metric's; an episode too short to grow in, but not to who decides beforehand."""
    who, length, metric = config.run.controller, config.run.episode_length, engine.setup.task.metric
    told: tuple[str, ...] = ()
    if metric.unit != "%" and config.reward.rent == RewardConfig().rent:
        told = (
            f"reward.rent: {config.reward.rent:g} {metric.points} per doubling of the parameters is a price in points "
            f"of accuracy; start from --preset {config.task.name}",
        )
    if who == NEVER or who.startswith((SCRIPT, SCHEDULE)):
        return told
    rules = config.body.settings(config.gates, length, len(engine.specs), isolate_blending=True).rules
    needed = least_epochs(rules, nearest_tempo(0.0))
    steps = f"a look at the host and a seed's way from planting to keeping take {needed + 1} epochs here"
    return told if length > needed else (*told, f"run.episode_length: {length} is too short to grow in; {steps}")


def build_task(config: EsperConfig) -> Task:
    """The task, with a recorded topology built into its host if one is asked for."""
    task = make_task(config.task, config.run.seed)
    if config.run.topology_from is None:
        return task
    topology = load_topology(Path(config.run.root), config.run.topology_from)
    return task.with_hosts(lambda host: with_seeds(host, topology))


def setup_of(config: EsperConfig) -> Setup:
    """What every process that trains hosts builds its engine from. Raises EsperError for what cannot be run."""
    run, task = config.run, build_task(config)
    start, start_name = None, ""
    if run.start_from is not None:
        saved = load_final(Path(run.root), run.start_from)
        if saved["task"] != task.name:
            raise WrongHostError(
                f"run.start_from: {run.start_from} holds a model grown on {saved['task']!r}, this run is on "
                f"{task.name!r}; use --task {saved['task']}"
            )
        start, start_name = saved["environments"][0]["model"], run.start_from
    return Setup(
        task=task,
        envs=run.envs,
        episode_length=run.episode_length,
        seed=run.seed,
        shared_init=shares_init(config),
        apart=config.ppo.taught_rounds if learns(run.controller) else 0,
        body=config.body,
        gates=config.gates,
        engine=config.engine,
        governor=config.governor,
        start=start,
        start_name=start_name,
    )


def _save_final(engine: EngineProtocol, last: Round, folder: Path) -> None:
    """The grown models, and their topologies as JSON; each file is complete or absent."""
    topologies = [[graft.as_dict() for graft in outcome.topology] for outcome in last.outcomes]
    draft = folder / f".{TOPOLOGY}"
    draft.write_text(json.dumps({"task": engine.setup.task.name, "environments": topologies}, indent=2) + "\n")
    draft.rename(folder / TOPOLOGY)
    saved = {
        "format": 1,
        "task": engine.setup.task.name,
        "space": engine.space.names(),
        "environments": [{"model": model} for model in engine.models()],
    }
    draft = folder / f".{FINAL}"
    torch.save(saved, draft)
    draft.rename(folder / FINAL)


def _save_policies(sides: list[Side], folder: Path) -> None:
    """What was learned: policy.pt, in an A/B test one for each group."""
    for side in sides:
        if side.policy is not None:
            save_policy(side.policy, folder / (POLICY_FILE if side.group is None else f"{side.group}.{POLICY_FILE}"))
