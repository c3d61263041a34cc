"""What a run takes from earlier ones: decisions, topologies, grown models and policies, found by run or by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper.kasmina.export import Graft
from esper.leyline.config import decode
from esper.leyline.errors import CheckpointError, ConfigError
from esper.leyline.factored_actions import HEADS
from esper.leyline.saved import load_plain
from esper.leyline.telemetry import EnvStepPayload
from esper.nissa.reader import live_events
from esper.nissa.run_folder import ARMS, arms, resolve
from esper.scripts.config import EsperConfig
from esper.tamiyo.config import HeuristicConfig

SCRIPT, POLICY, SCHEDULE, VARIANTS = "script:", "policy:", "schedule:", "variants:"
READ_FROM = {POLICY: "RUN", SCRIPT: "RUN", SCHEDULE: "RUN", VARIANTS: "FILE"}  # of each, what follows it
FINAL = "final.pt"
TOPOLOGY = "topology.json"
POLICY_FILE = "policy.pt"


def pinned(config: EsperConfig) -> EsperConfig:
    """The settings with every run called by its id: `latest` will be another run when the manifest is run again.

    Raises ConfigError for a folder that is of several runs: which of them is meant?
    """
    run, root = config.run, Path(config.run.root)

    def called(source: str | None) -> str | None:
        if source is None or _is_file(source):
            return source
        folder = resolve(root, source)
        names = arms(folder)
        if names:
            one = f"{source}/{ARMS}/{names[0]}"
            raise ConfigError(f"run {source!r}: holds {len(names)} runs: {', '.join(names)}; give one, such as {one}")
        place, home = folder.resolve(), root.resolve()
        return place.relative_to(home).as_posix() if place.is_relative_to(home) else source

    who = run.controller
    for prefix in (SCRIPT, POLICY, SCHEDULE):
        if who.startswith(prefix):
            who = f"{prefix}{called(who.removeprefix(prefix))}"
    start, topology = called(run.start_from), called(run.topology_from)
    return replace(config, run=replace(run, controller=who, start_from=start, topology_from=topology))


def load_script(root: Path, source: str) -> list[list[dict[str, str]]]:
    """Recorded decisions, [environment][step]: the last round of a run, or a JSON file of such lists."""
    if _is_file(source):
        return _script_in(source)
    rounds: dict[int, dict[int, list[dict[str, str]]]] = {}
    for envelope, payload in live_events(resolve(root, source)):
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


def load_variants(source: str) -> list[list[HeuristicConfig]]:
    """Settings of the heuristic, [environment][round], from a JSON file of such lists."""
    try:
        rows = json.loads(Path(source).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not readable as JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ConfigError(f"{source}: variants are a list per environment of lists of settings of the heuristic")
    return [[decode(HeuristicConfig, each, source) for each in row] for row in rows]


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
    saved: dict[str, Any] = load_plain(path, "a model that a run has saved", CheckpointError)
    try:
        _ = saved["task"], saved["environments"][0]["model"]
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model that a run has saved ({type(error).__name__})") from error
    return saved


def policy_file(root: Path, source: str) -> Path:
    """The policy that a run has learned, or the file itself."""
    return Path(source) if _is_file(source) else resolve(root, source) / "checkpoints" / POLICY_FILE


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # longer than any file's name
        return False
