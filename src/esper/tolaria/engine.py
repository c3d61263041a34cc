"""The engine: E hosts in lockstep, and the only place that iterates over them.

Batches are the outer loop and environments the inner one. What happens in one environment moves no number in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.kasmina.blueprints import BLUEPRINTS, standard_set
from esper.kasmina.export import Graft, topology_of
from esper.kasmina.model import Configuration, GrowingModel
from esper.leyline.decisions import Receipt
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import HostReport
from esper.leyline.stages import LIVE, SeedStage
from esper.leyline.telemetry import Payload
from esper.tolaria.costs import Costs
from esper.tolaria.environment import Environment
from esper.tolaria.ledger import Ledger
from esper.tolaria.measuring import measure
from esper.tolaria.setup import Setup


@dataclass(frozen=True)
class Outcome:
    """One host at the end of its episode. Test figures are of the exported network: host and fossilised seeds."""

    env: int
    val_loss: float | None
    val_metric: float | None
    test_loss: float | None
    test_metric: float | None
    host_params: int
    params: int  # of the exported network
    fossilized: int
    diverged: bool
    ledger: Ledger
    topology: tuple[Graft, ...]


class Engine:
    """Trains and measures the environments of a run, a round at a time."""

    def __init__(self, setup: Setup) -> None:
        self.setup = _on_device(setup)
        self.costs = Costs(self.setup.task)
        self.environments: list[Environment] = []
        model = Environment(0, 0, self.setup, self.costs).model  # raises here, before a run folder exists
        self.specs = tuple(slot.spec for slot in model.slots.values())
        self.space = self._make_space(model)
        count = min(setup.engine.probe_items, len(setup.task.splits.val))
        self.probe: Tensor = self.setup.task.splits.val.inputs[:count]
        self._told: list[Payload] = []

    def reset(self, round_: int) -> list[HostReport]:
        """New hosts for a round."""
        self.environments = [Environment(env, round_, self.setup, self.costs) for env in range(self.setup.envs)]
        return self.reports()

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]:
        """One action per environment."""
        pairs = zip(self.environments, actions, strict=True)
        return [environment.apply(action, self.probe) for environment, action in pairs]

    def train_epoch(self) -> None:
        """One host epoch of every environment that is still going."""
        going = [environment for environment in self.environments if not environment.finished]
        for environment in going:
            self._told += environment.begin_epoch()
        with _taking_turns() as lend_to:
            for index in range(self.setup.task.steps_per_epoch):
                for environment in going:
                    lend_to(environment.draws)
                    environment.train_batch(index)
        for environment in going:
            environment.end_epoch()

    def measure(self) -> list[HostReport]:
        """Validates every environment, contributions included."""
        for environment in self.environments:
            if not environment.finished:
                self._told += environment.measure()
        return self.reports()

    def reports(self) -> list[HostReport]:
        return [environment.report() for environment in self.environments]

    def events(self) -> list[Payload]:
        """What time and measurement brought about since the last call."""
        told, self._told = self._told, []
        return told

    def flops(self) -> list[int]:
        """Work of each environment so far."""
        return [environment.ledger.total for environment in self.environments]

    def outcomes(self) -> list[Outcome]:
        """Reads the test split, once per episode: the exported network of each environment is measured on it."""
        return [self._outcome(environment) for environment in self.environments]

    def _outcome(self, environment: Environment) -> Outcome:
        model, found, test = environment.model, environment.measurement, None
        report = environment.report()
        if not environment.finished:
            on_probation = frozenset(slot.slot_id for slot in report.slots if slot.stage in LIVE)
            base = Configuration(off=on_probation)
            test = measure(model, self.setup.task, self.setup.task.splits.test, environment.epoch, base=base)
        kept = sum(slot.params for slot in report.slots if slot.stage is SeedStage.FOSSILIZED)
        return Outcome(
            env=environment.env,
            val_loss=None if found is None else found.loss,
            val_metric=None if found is None else found.metric,
            test_loss=None if test is None else test.loss,
            test_metric=None if test is None else test.metric,
            host_params=report.host_params,
            params=report.host_params + kept,
            fossilized=environment.fossils,
            diverged=environment.finished,
            ledger=environment.ledger,
            topology=topology_of(model),
        )

    def _make_space(self, model: GrowingModel) -> ActionSpace:
        """The action space of this task's slots and blueprints; raises ConfigError for names that do not exist."""
        body = self.setup.body
        names = standard_set() if body.blueprints is None else body.blueprints
        if len(set(names)) != len(names):
            raise ConfigError(f"body.blueprints: {' '.join(names)}: name each blueprint once")
        layouts = [spec.layout for spec in self.specs]
        fits = tuple(tuple(BLUEPRINTS[name].fits(layout) for name in names) for layout in layouts)
        return ActionSpace(model.slot_config, names, fits)


@contextmanager
def _taking_turns() -> Iterator[Callable[[torch.Generator], None]]:
    """`drawing_from` for generators that take turns: each is lent until another's turn comes.

    A lone environment is so lent its generator once per epoch. Lending at every step, 5 KB moved eight times,
    costs more than 1 % of a step on digits (bench/run.py).
    """
    with ExitStack() as turn:
        lent: torch.Generator | None = None

        def lend_to(generator: torch.Generator) -> None:
            nonlocal lent
            if generator is not lent:
                turn.close()
                turn.enter_context(drawing_from(generator))
                lent = generator

        yield lend_to


def _on_device(setup: Setup) -> Setup:
    """The setup with its data on the device."""
    try:
        device = torch.device(setup.engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"engine.device: {setup.engine.device!r} cannot be used here: {reason}") from error
    return replace(setup, task=replace(setup.task, splits=setup.task.splits.to(device)))
