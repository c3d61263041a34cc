"""From settings to a finished run: builds the parts, runs the main loop, and leaves a run folder behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from esper.kasmina.export import with_seeds
from esper.kasmina.gates import LIMITS, GatesConfig
from esper.leyline.errors import LifecycleDivergence, RanksError, StorageError, WrongHostError
from esper.leyline.faults import fault
from esper.leyline.files import write_whole
from esper.leyline.task import Metric, Task
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    LogPayload,
    Payload,
    RanksTroubledPayload,
    RunFinishedPayload,
    RunResumedPayload,
    RunStartedPayload,
)
from esper.nissa.progress import Progress
from esper.nissa.reader import read_events
from esper.nissa.run_folder import RunFolder
from esper.nissa.storage import storage_errors
from esper.nissa.writer import EventWriter
from esper.runtime.tasks import make_task
from esper.scripts.config import EsperConfig
from esper.scripts.going_on import AS_BEST, Resume, keeping_of, steps_done, take_up
from esper.scripts.manifest import manifest_of
from esper.scripts.sources import FINAL, POLICY_FILE, SCHEDULE, SCRIPT, TOPOLOGY, load_final, load_topology, pinned
from esper.scripts.teams import Side, Trainers, learns, shares_init, sides_of
from esper.simic.rewards.config import PRICES, RewardConfig
from esper.simic.training.checkpointing import Keeping, Telling
from esper.simic.training.keeping import Round
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.team_keeper import TeamKeeper
from esper.simic.training.vectorized import train
from esper.tamiyo.policy.learned import save_policy
from esper.tamiyo.rules import least_epochs, nearest_tempo
from esper.tolaria.digest import combined, digest_of_state
from esper.tolaria.protocol import EngineProtocol
from esper.tolaria.setup import Setup
from esper.tolaria.workers import default_workers, engine_and_governor

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


def prepare(config: EsperConfig, trainers: Callable[[EsperConfig], Trainers] | None = None) -> Prepared:
    """Loads the data and builds the parts. Raises EsperError for settings that cannot be run.

    trainers: who trains the hosts; by default this process, or as many workers as the settings say.
    """
    torch.set_num_threads(1)
    config = pinned(config)
    with ExitStack() as stack:
        sides = sides_of(config, (trainers or local_trainers)(config), stack)
        return Prepared(config, sides, _warnings(config, sides[0].engine), stack.pop_all())


def local_trainers(config: EsperConfig) -> Trainers:
    """This process, or its workers."""
    workers = default_workers(config.run.envs) if config.run.workers is None else config.run.workers
    return partial(engine_and_governor, partial(setup_of, config), workers)


def run_training(prepared: Prepared, folder: RunFolder, progress: Progress, resume: Resume = AS_BEST) -> Finished:
    """Trains as the settings say and writes manifest, events and what was grown and learned into `folder`.

    Where a process before this one has begun the run, it goes on from the newest checkpoint, and a run that is done is
    only read. Raises CheckpointError where there are checkpoints and none can be loaded.
    """
    config, sides = prepared.config, prepared.sides
    with prepared.stack:
        begun = folder.manifest.is_file()
        if not begun:
            folder.write_manifest(manifest_of(config, prepared.engine))
        keeping = keeping_of(config, sides, folder)
        warnings = (*prepared.warnings, *(take_up(keeping, resume) if begun else ()))
        if keeping.before.digest is None:
            with EventWriter(folder.ev, folder.next_writer(), config.telemetry) as writer:
                keeping.tell(Telling(partial(_settled, writer), partial(_warn, writer)))
                for event, group in _opening(config, sides, keeping, folder, begun):
                    writer.emit(event, group=group)
                for text in warnings:
                    _warn(writer, text)
                _train(prepared, folder, keeping, writer, progress)
        metric = prepared.engine.setup.task.metric
    played, before = [team.played for team in keeping.teams], keeping.before
    assert before.digest is not None, "a run that is over has a digest"
    digest, seconds, cpu_seconds = before.digest, before.seconds, before.cpu_seconds
    return Finished(folder.path, digest, config, metric, played[0], played[1:], seconds, cpu_seconds)


def _train(prepared: Prepared, folder: RunFolder, keeping: Keeping, writer: EventWriter, progress: Progress) -> None:
    """From where the teams are to the end of the run."""
    config, sides = prepared.config, prepared.sides
    run = config.run
    who = run.controller.split(":")[0]  # without the name of a run or file
    total, done = run.rounds * run.episode_length * len(sides), sum(steps_done(config, keeping))
    progress.start(total, f"{config.task.name}, {who}", done)
    try:
        pairs = zip(sides, keeping.teams, strict=True)
        played = train(run, *(_team(side, keeper, config, writer, progress) for side, keeper in pairs))
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        reason = str(error) or type(error).__name__
        if isinstance(error, RanksError):
            writer.emit(_told_of(error), round=len(keeping.teams[0].played))
        writer.emit(RunFinishedPayload(status=status, reason=reason, seconds=keeping.seconds))
        if not isinstance(error, StorageError):
            keeping.save_held()
        raise
    finally:
        progress.stop()
    fault("run.grown")
    final = _digest(sides, played)
    with storage_errors(folder.checkpoints):
        _save_final(prepared.engine, played[0][-1], folder.checkpoints)
        _save_policies(sides, folder.checkpoints)
    writer.emit(RunFinishedPayload(status="done", digest=final, seconds=keeping.seconds))
    fault("run.finished")
    keeping.finish(final)


def _told_of(error: RanksError) -> RanksTroubledPayload:
    told = RanksTroubledPayload(kind=error.kind, ranks=error.ranks, text=str(error))
    if not isinstance(error, LifecycleDivergence):
        return told
    return msgspec.structs.replace(told, steps=error.step, field=error.field, values=error.values)


def _opening(
    config: EsperConfig, sides: Sequence[Side], keeping: Keeping, folder: RunFolder, begun: bool
) -> Iterator[tuple[Payload, str | None]]:
    """That the run begins, or from where each team goes on."""
    told = begun and next(iter(read_events(folder.path)), None) is not None
    if not told:
        yield _started(config), None
        return
    for side, keeper in zip(sides, keeping.teams, strict=True):
        round_, step = keeper.place
        yield RunResumedPayload(from_round=round_, from_step=step), side.group


def _settled(writer: EventWriter) -> dict[str, Any]:
    return {"writer": writer.writer, "events": writer.settle()}


def _warn(writer: EventWriter, text: str) -> None:
    writer.emit(LogPayload(level="warning", text=text))


def _team(side: Side, keeper: TeamKeeper, config: EsperConfig, writer: EventWriter, progress: Progress) -> Team:
    publisher = Publisher(config.run, side.engine, writer, progress, side.group)
    return Team(side.engine, side.governor, side.controller, side.learner, side.reward, publisher, keeper)


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
    priced = {f"reward.{name}": vars(config.reward)[name] == vars(RewardConfig())[name] for name in PRICES}
    limits = {f"gates.{name}": vars(config.gates)[name] == vars(GatesConfig())[name] for name in LIMITS}
    stale = [name for name, is_default in (priced | limits).items() if is_default]
    told: tuple[str, ...] = ()
    if metric.point != 1.0 and stale:
        told = (
            f"{', '.join(stale)}: by default in points of accuracy, and one counts like {metric.point:g} "
            f"{metric.points} here; start from --preset {config.task.name}",
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
    text = json.dumps({"task": engine.setup.task.name, "environments": topologies}, indent=2) + "\n"
    write_whole(folder / TOPOLOGY, text.encode())
    saved = {
        "format": 1,
        "task": engine.setup.task.name,
        "space": engine.space.names(),
        "environments": [{"model": model} for model in engine.models()],
    }
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    write_whole(folder / FINAL, buffer.getvalue())


def _save_policies(sides: list[Side], folder: Path) -> None:
    """What was learned: policy.pt, in an A/B test one for each group."""
    for side in sides:
        if side.policy is not None:
            save_policy(side.policy, folder / (POLICY_FILE if side.group is None else f"{side.group}.{POLICY_FILE}"))
