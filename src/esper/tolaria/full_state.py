"""All that environments and their governor need to go on, bit for bit, as if they had never been put away.

Read `state_of` first. Everything is written between two steps and made of tensors and primitives, so that plain
`torch.load` reads it back. It is loaded into an environment of the same setup, round and number.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import asdict
from typing import Any

from esper.leyline.factored_actions import LifecycleOp
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment, Snapshot
from esper.tolaria.governor import Governor, Watch
from esper.tolaria.ledger import Ledger, Mark
from esper.tolaria.measuring import Measurement

_COUNTERS = ("epoch", "finished", "finite", "rollbacks", "last_action_success", "previous_metric", "train_loss")


def state_of(environment: Environment) -> dict[str, Any]:
    """A copy of all that changes in one environment: weights, seeds, moments, generators, account and counters."""
    snapshot, found, scheduler = environment.snapshot(), environment.measurement, environment.scheduler
    return {
        "model": snapshot.model,
        "optimiser": snapshot.optimiser,
        "scheduler": None if scheduler is None else copy.deepcopy(scheduler.state_dict()),
        "draws": environment.draws.get_state(),
        "growth": environment.growth.get_state(),
        "ledger": environment.ledger.as_dict(),
        "last_op": int(environment.last_op),
        "measured": None if found is None else [found.loss, found.metric, found.exported],
        **{name: getattr(environment, name) for name in _COUNTERS},
    }


def load_state(environment: Environment, saved: dict[str, Any]) -> None:
    """Makes the environment what `state_of` saw. Raises CheckpointError where the saved optimiser does not fit it."""
    environment.load_trained(saved["model"], saved["optimiser"])
    if environment.scheduler is not None:
        environment.scheduler.load_state_dict(saved["scheduler"])
    environment.draws.set_state(saved["draws"])
    environment.growth.set_state(saved["growth"])
    environment.ledger = Ledger.from_dict(saved["ledger"])
    environment.last_op = LifecycleOp(saved["last_op"])
    environment.measurement = None
    if saved["measured"] is not None:
        loss, metric, exported = saved["measured"]
        environment.measurement = Measurement(loss, metric, (), (), exported)
    for name in _COUNTERS:
        setattr(environment, name, saved[name])


def state_of_engine(engine: Engine) -> dict[str, Any]:
    """The round that is being played, and every environment in it by its number."""
    return {
        "round": engine.environments[0].round,
        "environments": {environment.env: state_of(environment) for environment in engine.environments},
    }


def load_engine_state(engine: Engine, saved: dict[str, Any]) -> None:
    """Makes an engine of the same setup what `state_of_engine` saw; environments that it has not are passed over."""
    engine.reset(saved["round"])
    for environment in engine.environments:
        load_state(environment, saved["environments"][environment.env])


def state_of_governor(governor: Governor) -> dict[int, dict[str, Any]]:
    """What it remembers of each environment, by number. Snapshots are never written into, so they are not copied."""
    return {
        env: {
            "past": list(watch.past),
            "first": watch.first,
            "good": _packed(watch.good),
            "candidate": _packed(watch.candidate),
        }
        for env, watch in governor.watches.items()
    }


def load_governor_state(governor: Governor, saved: dict[int, dict[str, Any]]) -> None:
    """Makes a governor of the same settings what `state_of_governor` saw."""
    governor.watches = {
        env: Watch(
            past=deque(watch["past"], maxlen=governor.config.window),
            first=watch["first"],
            good=_unpacked(watch["good"]),
            candidate=_unpacked(watch["candidate"]),
        )
        for env, watch in saved.items()
    }


def _packed(snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {
        "epoch": snapshot.epoch,
        "model": snapshot.model,
        "optimiser": snapshot.optimiser,
        "mark": asdict(snapshot.mark),
    }


def _unpacked(saved: dict[str, Any] | None) -> Snapshot | None:
    if saved is None:
        return None
    return Snapshot(saved["epoch"], saved["model"], saved["optimiser"], Mark(**saved["mark"]))
