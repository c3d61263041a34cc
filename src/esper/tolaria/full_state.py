"""All that environments and their governor need to go on, bit for bit, as if they had never been put away.

Read `state_of` first. Everything is written between two steps and made of tensors and primitives, so that plain
`torch.load` reads it back. It is loaded into an environment of the same setup, round and number.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from dataclasses import asdict
from typing import Any

from esper.leyline.factored_actions import LifecycleOp
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment, Snapshot
from esper.tolaria.governor import Governor, Watch
from esper.tolaria.ledger import Ledger, Mark
from esper.tolaria.measuring import Measurement
from esper.tolaria.snapshots import Ring

_COUNTERS = (
    *("epoch", "finished", "rollbacks", "last_action_success", "previous_metric", "train_loss"),
    *("cooling", "skipped", "seed_streaks", "mutated", "shape"),
)


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
        "vitals": environment.vitals.state_dict(),
        "seed_skips": dict(environment.seed_skips),
        "measured": None if found is None else [found.loss, found.metric, found.exported],
        **copy.deepcopy({name: getattr(environment, name) for name in _COUNTERS}),
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
    environment.vitals.load_state_dict(saved["vitals"])
    environment.seed_skips = Counter(saved["seed_skips"])
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
            "good": [_packed(snapshot) for snapshot in watch.ring.good],
            "candidates": [_packed(snapshot) for snapshot in watch.ring.candidates],
            "suspected": watch.suspected,
            "taken_back": watch.taken_back,
        }
        for env, watch in governor.watches.items()
    }


def load_governor_state(governor: Governor, saved: dict[int, dict[str, Any]]) -> None:
    """Makes a governor of the same settings what `state_of_governor` saw."""
    governor.watches = {
        env: Watch(
            ring=Ring(
                governor.config,
                good=deque(map(_unpacked, watch["good"]), maxlen=governor.config.ring),
                candidates=[_unpacked(snapshot) for snapshot in watch["candidates"]],
            ),
            suspected=watch["suspected"],
            taken_back=watch["taken_back"],
        )
        for env, watch in saved.items()
    }


def _packed(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "epoch": snapshot.epoch,
        "model": snapshot.model,
        "optimiser": snapshot.optimiser,
        "mark": asdict(snapshot.mark),
        "steps": snapshot.steps,
        "seeds": dict(snapshot.seeds),
        "baseline": dict(snapshot.baseline),
        "digest": snapshot.digest,
    }


def _unpacked(saved: dict[str, Any]) -> Snapshot:
    return Snapshot(**{**saved, "mark": Mark(**saved["mark"])})
