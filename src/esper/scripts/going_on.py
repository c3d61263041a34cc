"""How a run that was begun is taken up again, by whatever command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from esper.leyline.config import read_json
from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import ARMS, RunFolder, arms
from esper.nissa.storage import storage_errors
from esper.scripts.config import EsperConfig
from esper.scripts.teams import Side
from esper.simic.training.checkpointing import Keeping
from esper.simic.training.team_keeper import TeamKeeper
from esper.tolaria.checkpoints.fingerprint import differences, fingerprint
from esper.tolaria.checkpoints.store import CheckpointStore, last_environment
from esper.tolaria.protocol import EngineProtocol
from esper.tolaria.ranks.leading import LeadingEngine
from esper.tolaria.workers import hosts_of


def _to_stderr(text: str) -> None:
    print(f"esper: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Resume:
    """How a run that was begun goes on."""

    strict: bool = False  # only where it comes to the same, bit for bit
    say: Callable[[str], None] = _to_stderr  # what is lost or not promised, however quiet the command


AS_BEST = Resume()


def keeping_of(config: EsperConfig, sides: Sequence[Side], folder: RunFolder) -> Keeping:
    """The checkpoints of the run in `folder`, and a keeper for each team."""
    run = read_json(folder.manifest).get("run")
    if not isinstance(run, str):
        raise ConfigError(
            f"{folder.path}: run.json names no run that could go on; use esper resume for a folder of several runs"
        )
    with storage_errors(folder.checkpoints):
        store = CheckpointStore(folder.checkpoints, run, config.run.checkpoint.keep)
    space = sides[0].engine.space
    keeping = Keeping(store, config.run.checkpoint, space.names(), _environment(config, sides[0].engine))
    for side in sides:
        hosts = hosts_of(side.engine, side.governor)
        keeper = TeamKeeper(hosts, space, side.controller, side.learner, side.policy, keeping.boundary)
        keeping.teams.append(keeper)
    return keeping


def _environment(config: EsperConfig, engine: EngineProtocol) -> dict[str, str]:
    """What bit-exact arithmetic depends on: sums over ranks round otherwise with another number of them."""
    ranks = {"ranks of each host": str(engine.ranks)} if isinstance(engine, LeadingEngine) else {}
    return fingerprint(config.engine.device) | ranks


def take_up(keeping: Keeping, resume: Resume) -> list[str]:
    """Puts everything where the newest good checkpoint has it; returns, and says, what is lost or not promised.

    Raises CheckpointError where there are checkpoints and none can be loaded, ConfigError where `strict` forbids.
    """
    with storage_errors(keeping.store.folder):
        found, complaints = keeping.store.newest()
    said = [f"{complaint}; going on from an older checkpoint" for complaint in complaints]
    if found is not None:
        changed = differences(found.manifest.environment, keeping.environment)
        if changed and resume.strict:
            raise ConfigError(
                f"--strict-resume: {found.path}: {'; '.join(changed)}; resume where it was, or without it"
            )
        said += [f"not bit for bit what it would have been: {change}" for change in changed]
        keeping.load(found.state, str(found.path))
    for text in said:
        resume.say(text)
    return said


def refuse_changes(top: Path, config: EsperConfig) -> None:
    """`strict` for a folder of several runs: raises ConfigError where one that has begun would go on elsewhere."""
    torch.set_num_threads(1)  # as in every process that trains
    for name in arms(top):
        before = last_environment(top / ARMS / name / "checkpoints")
        if before is not None:
            _refuse(differences(before, fingerprint(config.engine.device)), top / ARMS / name)


def _refuse(changed: Sequence[str], path: Path) -> None:
    if changed:
        raise ConfigError(f"--strict-resume: {path}: {'; '.join(changed)}; resume where it was, or without it")


def steps_done(config: EsperConfig, keeping: Keeping) -> Iterator[int]:
    """Of each team."""
    for team in keeping.teams:
        rounds, steps = team.place
        yield rounds * config.run.episode_length + steps
