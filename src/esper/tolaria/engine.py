"""The engine: E hosts in lockstep, and the only place that iterates over them.

Batches are the outer loop and environments the inner one. What happens in one environment moves no number in another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from esper.kasmina.blueprints import BLUEPRINTS, standard_set
from esper.kasmina.blueprints.registry import named
from esper.kasmina.export import Graft, topology_of
from esper.kasmina.model import GrowingModel
from esper.kasmina.planting import planted_params
from esper.leyline.decisions import Receipt
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.injection_spec import InjectionSpec
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import Payload
from esper.tolaria.costs import Costs
from esper.tolaria.digest import digest_of
from esper.tolaria.environment import Environment
from esper.tolaria.ledger import Ledger
from esper.tolaria.measuring import exported, measure
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
    drawn: tuple[tuple[str, str], ...] = ()  # which member of a family of tasks it was

    def as_dict(self) -> dict[str, Any]:
        """Primitives; `from_dict` is the exact inverse."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        topology = [graft.as_dict() for graft in self.topology]
        return {
            **own,
            "ledger": self.ledger.as_dict(),
            "topology": topology,
            "drawn": [list(row) for row in self.drawn],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Outcome:
        topology = tuple(Graft.from_dict(graft) for graft in saved["topology"])
        drawn = tuple((name, value) for name, value in saved["drawn"])
        return cls(**{**saved, "ledger": Ledger.from_dict(saved["ledger"]), "topology": topology, "drawn": drawn})


class Engine:
    """Trains and measures the environments of a run, a round at a time."""

    def __init__(self, setup: Setup, numbers: Sequence[int] | None = None) -> None:
        """numbers: which of the run's environments it has; all of them where it is None (`workers.py`)."""
        self.setup = _on_device(setup)
        self.numbers = range(setup.envs) if numbers is None else numbers
        self._costs: dict[Hashable, Costs] = {}  # by what is counted alike
        self.environments: list[Environment] = []
        model = self._begin(self.setup, 0, 0).model  # raises here, before a run folder exists
        self.specs = tuple(slot.spec for slot in model.slots.values())
        self.space = self._make_space(model)
        self._told: list[Payload] = []

    def reset(self, round_: int) -> list[HostReport]:
        """New hosts for a round."""
        self.environments = [self._begin(self.setup.of_episode(round_, env), round_, env) for env in self.numbers]
        return self.reports()

    def _begin(self, setup: Setup, round_: int, env: int) -> Environment:
        costs = self._costs.setdefault(setup.task.host_key, Costs(setup.task))
        return Environment(env, round_, setup, costs)

    def apply(self, actions: Sequence[FactoredAction]) -> list[Receipt]:
        """One action per environment."""
        if self.setup.crew is not None:
            self.setup.crew.agree(self.environments, actions)
        pairs = zip(self.environments, actions, strict=True)
        return [environment.apply(action) for environment, action in pairs]

    def train_epoch(self) -> None:
        """One host epoch of every environment that is still going."""
        going, crew = [environment for environment in self.environments if not environment.finished], self.setup.crew
        if crew is not None:
            crew.agree(self.environments)
        for environment in going:
            self._told += environment.begin_epoch()
        with _taking_turns() as lend_to:
            for index in range(self.setup.task.steps_per_epoch):
                for environment in going:
                    lend_to(environment.draws)
                    environment.train_batch(index)
                if crew is not None:
                    crew.stepped(going)
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

    def digests(self) -> list[str]:
        """One per environment, for `digest.combined`."""
        return [digest_of(environment) for environment in self.environments]

    def models(self) -> list[dict[str, Any]]:
        """The state_dict of each environment's model."""
        return [environment.model.state_dict() for environment in self.environments]

    def close(self) -> None:
        """Nothing to end: all hosts live in this process."""

    def _outcome(self, environment: Environment) -> Outcome:
        model, found, test = environment.model, environment.measurement, None
        report = environment.report()
        if not environment.finished:
            split = environment.task.splits.test
            test = measure(model, environment.task, split, environment.epoch, base=exported(model))
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
            drawn=environment.task.drawn,
        )

    def _make_space(self, model: GrowingModel) -> ActionSpace:
        """The action space of this task's slots and blueprints; raises ConfigError for names that do not exist."""
        body = self.setup.body
        names = _offered(body.blueprints, self.specs)
        fits = tuple(tuple(BLUEPRINTS[name].fits(spec) for name in names) for spec in self.specs)
        params = tuple(tuple(planted_params(name, spec, body.ladder_start) for name in names) for spec in self.specs)
        return ActionSpace(model.slot_config, names, fits, params)


def _offered(asked: Sequence[str] | None, specs: Sequence[InjectionSpec]) -> tuple[str, ...]:
    """Those of the blueprints asked for, or of the standard set, that fit one of the slots at least.

    Raises ConfigError for a name that does not exist or comes twice, where none fits, and for one asked for that is
    made for such slots but not for such narrow ones.
    """
    places = dict.fromkeys(spec.place for spec in specs)
    names = standard_set(*places) if asked is None else asked
    if len(set(names)) != len(names):
        raise ConfigError(f"body.blueprints: {' '.join(names)}: name each blueprint once")
    offered = tuple(name for name in names if _fits_one(name, specs))
    for name in () if asked is None else names:
        here = [spec for spec in specs if spec.place in BLUEPRINTS[name].forms]
        if here and name not in offered:
            raise ConfigError(f"body.blueprints: {BLUEPRINTS[name].why_not(here[-1])}; no slot is wide enough")
    if not offered:
        shelf = [name for name in BLUEPRINTS if _fits_one(name, specs)]
        carried = " and ".join(map(named, places))
        raise ConfigError(
            f"body.blueprints: {' '.join(names) or 'nothing'}: none fits a slot of this host, which carry {carried}; "
            f"those on the shelf that do: {' '.join(shelf) or 'none'}"
        )
    return offered


def _fits_one(name: str, specs: Sequence[InjectionSpec]) -> bool:
    return any(BLUEPRINTS[name].fits(spec) for spec in specs)


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
