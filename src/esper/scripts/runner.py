"""From settings to a finished run: builds the parts, runs the main loop, and leaves a run folder behind."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import esper.tamiyo.baselines
import esper.tamiyo.heuristic
from esper.kasmina.export import Graft, with_seeds
from esper.kasmina.host import Host
from esper.leyline.errors import CheckpointError, ConfigError, WrongHostError
from esper.leyline.factored_actions import HEADS, ActionSpace
from esper.leyline.randomness import stream_seed
from esper.leyline.task import Metric, Task
from esper.leyline.telemetry import SCHEMA_VERSION, EnvStepPayload, RunFinishedPayload, RunStartedPayload
from esper.nissa.progress import Progress
from esper.nissa.reader import read_events
from esper.nissa.run_folder import RunFolder, resolve
from esper.nissa.writer import EventWriter
from esper.runtime.tasks import make_task
from esper.scripts.config import EsperConfig
from esper.scripts.manifest import manifest_of
from esper.simic.agent.learner import NoLearner
from esper.simic.rewards.rewards import no_reward
from esper.simic.training.publishing import Publisher
from esper.simic.training.vectorized import Round, Team, train
from esper.tamiyo.controller import CONTROLLERS, Build, Controller
from esper.tolaria.digest import digest
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

_ = (esper.tamiyo.baselines, esper.tamiyo.heuristic)  # importing them fills the registry
SCRIPT = "script:"
FINAL = "final.pt"
TOPOLOGY = "topology.json"
SAFE_LOADER = (2, 10)  # the first torch whose loader is safe with files from elsewhere


@dataclass(frozen=True)
class Finished:
    """What a run came to."""

    folder: Path
    digest: str
    config: EsperConfig
    metric: Metric
    rounds: list[Round]
    seconds: float  # wall clock, training and measuring
    cpu_seconds: float


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked; no file has been written yet."""

    config: EsperConfig
    engine: Engine
    controller: Controller


def prepare(config: EsperConfig) -> Prepared:
    """Loads the data and builds the parts. Raises EsperError for settings that cannot be run."""
    torch.set_num_threads(1)
    config = _pinned(config)
    engine = Engine(_setup(config, build_task(config)))
    return Prepared(config, engine, build_controller(config, engine.space))


def run_training(prepared: Prepared, folder: RunFolder, progress: Progress) -> Finished:
    """Trains as the settings say and writes manifest, events and the final model into `folder`."""
    config, engine = prepared.config, prepared.engine
    run, began, cpu_began = config.run, time.monotonic(), time.process_time()
    folder.write_manifest(manifest_of(config, engine))
    with EventWriter(folder.ev, folder.next_writer(), config.telemetry) as writer:
        writer.emit(_started(config))
        publisher = Publisher(run, engine, writer, progress)
        team = Team(engine, Governor(config.governor), prepared.controller, NoLearner(), no_reward, publisher)
        try:
            rounds = train(run, team)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
            reason = str(error) or type(error).__name__
            writer.emit(RunFinishedPayload(status=status, reason=reason, seconds=time.monotonic() - began))
            raise
        finally:
            publisher.close()
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
        final = digest(engine.environments, [round_.rollout.decisions() for round_ in rounds])
        _save_final(engine, rounds[-1], folder.checkpoints)
        writer.emit(RunFinishedPayload(status="done", digest=final, seconds=seconds))
    return Finished(folder.path, final, config, engine.setup.task.metric, rounds, seconds, cpu_seconds)


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


def build_task(config: EsperConfig) -> Task:
    """The task, with a recorded topology built into its host if one is asked for."""
    task = make_task(config.task, config.run.seed)
    if config.run.topology_from is None:
        return task
    topology = load_topology(Path(config.run.root), config.run.topology_from)
    make_host = task.make_host

    def extended() -> Host:
        host = make_host()
        assert isinstance(host, Host)
        return with_seeds(host, topology)

    return replace(task, make_host=extended)


def build_controller(config: EsperConfig, space: ActionSpace) -> Controller:
    """The controller that the settings name. Raises ConfigError for an unknown one or an unreadable script."""
    name = config.run.controller
    script: tuple[tuple[dict[str, str], ...], ...] = ()
    if name.startswith(SCRIPT):
        script = tuple(tuple(row) for row in load_script(Path(config.run.root), name.removeprefix(SCRIPT)))
        name = "scripted"
    seed = stream_seed(config.run.seed, "controller")
    return CONTROLLERS[name](Build(config.policy, space, seed, script))


def load_script(root: Path, source: str) -> list[list[dict[str, str]]]:
    """Recorded decisions, [environment][step]: the last round of a run, or a JSON file of such lists."""
    if _is_file(source):
        return _script_in(source)
    rounds: dict[int, dict[int, list[dict[str, str]]]] = {}
    for envelope, payload in read_events(resolve(root, source)):
        if isinstance(payload, EnvStepPayload) and envelope.round is not None:
            decided = {head: value for head, value in _chosen(payload).items() if value is not None}
            rounds.setdefault(envelope.round, {}).setdefault(payload.env_id, []).append(decided)
    if not rounds:
        raise ConfigError(f"{source}: this run holds no decisions to repeat")
    last = rounds[max(rounds)]
    return [last[env] for env in sorted(last)]


def _script_in(source: str) -> list[list[dict[str, str]]]:
    try:
        rows = json.loads(Path(source).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not readable as JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ConfigError(f"{source}: a script is a list per environment of lists of decisions")
    for line in (line for row in rows for line in row):
        is_named = isinstance(line, dict) and "op" in line and set(line) <= set(HEADS)
        if not is_named or not all(isinstance(name, str) for name in line.values()):
            raise ConfigError(f"{source}: {line!r:.80} is not a decision; write {{'op': 'WAIT'}} or more heads by name")
    return rows


def load_topology(root: Path, source: str) -> tuple[Graft, ...]:
    """The final topology of a run's first environment, or that in a JSON file."""
    path = Path(source) if _is_file(source) else resolve(root, source) / "checkpoints" / TOPOLOGY
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the run has not come to its end")
    try:
        grafts = json.loads(path.read_text())["environments"][0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a topology that a run has saved ({type(error).__name__})") from error
    return tuple(Graft.from_dict(graft) for graft in grafts)


def load_final(root: Path, source: str) -> dict[str, Any]:
    """What a run saved at its end; CheckpointError if there is nothing or it cannot be read."""
    path = Path(source) if _is_file(source) else resolve(root, source) / "checkpoints" / FINAL
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the run has not come to its end")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_LOADER:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} has a known hole in its loader (CVE-2026-24747) and this run did not "
            "write the file; install torch 2.10 or newer"
        )
    try:
        saved: dict[str, Any] = torch.load(path)
        _ = saved["task"], saved["environments"][0]["model"]
    except Exception as error:
        raise CheckpointError(f"{path}: not a model that a run has saved ({type(error).__name__})") from error
    return saved


def _pinned(config: EsperConfig) -> EsperConfig:
    """The settings with every run called by its id: `latest` will be another run when the manifest is run again."""
    run, root = config.run, Path(config.run.root)

    def called(source: str | None) -> str | None:
        if source is None or _is_file(source):
            return source
        folder = resolve(root, source)
        return folder.name if folder.parent == root else source

    who = run.controller
    if who.startswith(SCRIPT):
        who = f"{SCRIPT}{called(who.removeprefix(SCRIPT))}"
    start, topology = called(run.start_from), called(run.topology_from)
    return replace(config, run=replace(run, controller=who, start_from=start, topology_from=topology))


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # longer than any file's name
        return False


def _chosen(payload: EnvStepPayload) -> dict[str, str | None]:
    return {
        "op": payload.op,
        "slot": payload.slot,
        "blueprint": payload.blueprint,
        "style": payload.style,
        "tempo": payload.tempo,
        "alpha_target": payload.alpha_target,
        "alpha_speed": payload.alpha_speed,
        "alpha_curve": payload.alpha_curve,
    }


def _setup(config: EsperConfig, task: Task) -> Setup:
    run = config.run
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
        shared_init=bool(run.shared_init),
        body=config.body,
        gates=config.gates,
        engine=config.engine,
        governor=config.governor,
        start=start,
        start_name=start_name,
    )


def _save_final(engine: Engine, last: Round, folder: Path) -> None:
    """The grown models, and their topologies as JSON; each file is complete or absent."""
    topologies = [[graft.as_dict() for graft in outcome.topology] for outcome in last.outcomes]
    draft = folder / f".{TOPOLOGY}"
    draft.write_text(json.dumps({"task": engine.setup.task.name, "environments": topologies}, indent=2) + "\n")
    draft.rename(folder / TOPOLOGY)
    saved = {
        "format": 1,
        "task": engine.setup.task.name,
        "space": engine.space.names(),
        "environments": [{"model": environment.model.state_dict()} for environment in engine.environments],
    }
    draft = folder / f".{FINAL}"
    torch.save(saved, draft)
    draft.rename(folder / FINAL)
