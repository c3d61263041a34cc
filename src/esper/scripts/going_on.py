"""How a run that was begun is taken up again, by whatever command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from esper.leyline.config import read_json
from esper.leyline.errors import ConfigError
from esper.nissa.run_folder import RunFolder
from esper.nissa.storage import storage_errors
from esper.scripts.config import EsperConfig
from esper.scripts.teams import Side
from esper.simic.training.checkpointing import Keeping
from esper.simic.training.team_keeper import TeamKeeper
from esper.tolaria.checkpoints.fingerprint import differences, fingerprint
from esper.tolaria.checkpoints.store import CheckpointStore
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
        raise ConfigError(f"{folder.path}: began with a version of esper whose runs cannot go on; start it again")
    with storage_errors(folder.checkpoints):
        store = CheckpointStore(folder.checkpoints, run, config.run.checkpoint.keep)
    space = sides[0].engine.space
    keeping = Keeping(store, config.run.checkpoint, space.names(), fingerprint(config.engine.device))
    for side in sides:
        hosts = hosts_of(side.engine, side.governor)
        keeper = TeamKeeper(hosts, space, side.controller, side.learner, side.policy, keeping.boundary)
        keeping.teams.append(keeper)
    return keeping


def take_up(keeping: Keeping, config: EsperConfig, resume: Resume) -> list[str]:
    """Puts everything where the newest good checkpoint has it; returns, and says, what is lost or not promised.

    Raises CheckpointError where there are checkpoints and none can be loaded, ConfigError where `strict` forbids.
    """
    with storage_errors(keeping.store.folder):
        found, complaints = keeping.store.newest()
    said = [f"{complaint}; going on from an older checkpoint" for complaint in complaints]
    if found is not None:
        changed = differences(found.manifest.environment, fingerprint(config.engine.device))
        if changed and resume.strict:
            raise ConfigError(
                f"--strict-resume: {found.path}: {'; '.join(changed)}; resume where it was, or without it"
            )
        said += [f"not bit for bit what it would have been: {change}" for change in changed]
        keeping.load(found.state, str(found.path))
    for text in said:
        resume.say(text)
    return said


def steps_done(config: EsperConfig, keeping: Keeping) -> Iterator[int]:
    """Of each team."""
    for team in keeping.teams:
        rounds, steps = team.place
        yield rounds * config.run.episode_length + steps
