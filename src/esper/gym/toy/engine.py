"""The toy world behind the interface of `tolaria/engine.py`, so that the main loop and gymnasium play it alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.gym.toy.reports import exported_metric, loss_at
from esper.gym.toy.rules import ToyRules
from esper.gym.toy.world import EPISODE_LENGTH, HOST_PARAMS, PARAMS, SPECS, WORLDS, ToyState, World
from esper.kasmina.config import BodyConfig
from esper.kasmina.export import Graft
from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.errors import ConfigError, did_you_mean
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.reports import HostReport
from esper.leyline.slot_config import SlotConfig, enabled_slots
from esper.leyline.stages import SeedStage
from esper.leyline.task import Metric, Recipe, Split, Splits, Task
from esper.leyline.telemetry import Payload
from esper.tolaria.engine import Outcome
from esper.tolaria.ledger import Ledger
from esper.tolaria.protocol import EngineProtocol
from esper.tolaria.setup import Setup, Streams

TOY_BODY = BodyConfig(max_seeds=1, auto_advance=("G1", "G2", "G3"), min_prune_age=0.34)
"""The body for which `world.best` is best. Seeds cannot be pruned young, or random decisions would hardly keep any."""


def toy_task() -> Task:
    """A task that is never trained: one item in each split, so that there is something to hold."""

    def none_of(outputs: Tensor, _targets: Tensor) -> Tensor:
        return torch.zeros(len(outputs))

    item = Split(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    metric = Metric("accuracy", "%", higher_is_better=True, per_item=none_of, scale=100.0)
    recipe = Recipe(batch_size=1, eval_batch_size=1)
    return Task("toy", nn.Identity, Splits(item, item, item), none_of, metric, recipe, epoch_items=1)


def toy_setup(envs: int, seed: int = 0, episode_length: int = EPISODE_LENGTH, body: BodyConfig = TOY_BODY) -> Setup:
    """What a `ToyEngine` is made from."""
    return Setup(toy_task(), envs, episode_length, seed, body=body)


class ToyEngine:
    """An `EngineProtocol`: every environment is a `ToyState`."""

    def __init__(self, setup: Setup) -> None:
        """Raises ConfigError for slots or blueprints that the toy world does not have."""
        self.setup, self.specs = setup, SPECS
        slot_config = SlotConfig.from_specs(SPECS, enabled_slots(SPECS, setup.body.slots, setup.body.surfaces))
        names = tuple(PARAMS) if setup.body.blueprints is None else setup.body.blueprints
        for name in names:
            if name not in PARAMS:
                raise ConfigError(
                    f"body.blueprints: {name!r} is not in the toy world; it has {', '.join(PARAMS)}"
                    f"{did_you_mean(name, PARAMS)}"
                )
        everywhere = slot_config.num_slots
        params = (tuple(PARAMS[name][0] for name in names),) * everywhere
        self.space = ActionSpace(slot_config, names, ((True,) * len(names),) * everywhere, params)
        length = setup.episode_length
        self.rules = ToyRules(setup.body.settings(setup.gates, length, slot_config.num_slots, True), length, self.space)
        self.round, self.states = 0, [self.rules.start(World(plenty=False, weedy=False))] * setup.envs

    def reset(self, round_: int) -> list[HostReport]:
        """New hosts for a round, each in a world of its own draw."""
        self.round = round_
        self.states = [self.rules.start(self._draw(env)) for env in range(self.setup.envs)]
        return self.reports()

    def _draw(self, env: int) -> World:
        generator = Streams(self.setup, self.round, env).of("draw")
        return WORLDS[int(torch.randint(len(WORLDS), (1,), generator=generator))]

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]:
        """One action per environment."""
        done = [self.rules.act(state, action) for state, action in zip(self.states, actions, strict=True)]
        self.states = [state for state, _ in done]
        return [receipt for _, receipt in done]

    def train_epoch(self) -> None:
        """One epoch of every environment, measured."""
        self.states = [self.rules.live(state) for state in self.states]

    def measure(self) -> list[HostReport]:
        return self.reports()

    def reports(self) -> list[HostReport]:
        found = (self.rules.report(state) for state in self.states)
        return [replace(report, env=env, round=self.round) for env, report in enumerate(found)]

    def events(self) -> list[Payload]:
        """Nothing is told of a toy."""
        return []

    def flops(self) -> list[int]:
        """Nothing is computed."""
        return [0] * len(self.states)

    def outcomes(self) -> list[Outcome]:
        """There is no other data to test on: the test figures are those of validation, of host and fossils."""
        return [self._outcome(env, state) for env, state in enumerate(self.states)]

    def _outcome(self, env: int, state: ToyState) -> Outcome:
        report, exported = self.rules.report(state), exported_metric(state)
        kept = [slot for slot in report.slots if slot.stage is SeedStage.FOSSILIZED]
        grafts = ((slot.slot_id, slot.blueprint_id, slot.blend, slot.rungs) for slot in kept)
        return Outcome(
            env=env,
            val_loss=report.val_loss,
            val_metric=report.val_metric,
            test_loss=loss_at(exported),
            test_metric=exported,
            host_params=HOST_PARAMS,
            params=report.exported_params,
            fossilized=len(kept),
            diverged=False,
            ledger=Ledger(),
            topology=tuple(Graft(place, name, blend, rungs) for place, name, blend, rungs in grafts if name and blend),
            drawn=tuple((name, str(value)) for name, value in state.world._asdict().items()),
        )

    def digests(self) -> list[str]:
        return [hashlib.sha256(repr(state).encode()).hexdigest() for state in self.states]

    def models(self) -> list[dict[str, Any]]:
        """There are no weights."""
        return [{} for _ in self.states]

    def close(self) -> None:
        """Nothing to end."""


class CalmGovernor:
    """A `GovernorProtocol` for hosts that cannot fall ill: it never intervenes."""

    def begin(self, engine: EngineProtocol) -> None:
        """Nothing to remember."""

    def review(self, engine: EngineProtocol, after: Sequence[HostReport]) -> tuple[list[Verdict], list[HostReport]]:
        """Everybody is well."""
        assert len(after) == engine.setup.envs
        return [Verdict(healthy=True)] * len(after), list(after)
