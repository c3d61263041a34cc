"""A host and its slots as one module, for chains of segments and for networks that place slots themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from esper.kasmina.compiling import Backend, compile_region
from esper.kasmina.config import SlotSettings
from esper.kasmina.host import Host
from esper.kasmina.ladder import count_params
from esper.kasmina.protocol import HostProtocol, OwnIsolation
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError, WrongHostError
from esper.leyline.injection_spec import InjectionSpec, in_order
from esper.leyline.slot_config import SlotConfig, enabled_slots
from esper.leyline.stages import SEEDED


@dataclass(frozen=True)
class Configuration:
    """Which seeds run how in a counterfactual pass: slots that stand aside, and other rungs for some.

    The empty configuration is the model as it is.
    """

    off: frozenset[str] = frozenset()
    rungs: tuple[tuple[str, tuple[bool, ...]], ...] = ()

    @property
    def touched(self) -> frozenset[str]:
        return self.off | {slot_id for slot_id, _ in self.rungs}


class _Growing(nn.Module):
    """What both kinds of model share: everything that needs only the slots."""

    slot_config: SlotConfig
    slots: Mapping[str, SeedSlot]  # in execution order
    isolate_blending: bool

    def configure(self, settings: SlotSettings) -> None:
        for slot in self.slots.values():
            slot.settings = settings

    @property
    def fossil_and_live(self) -> list[SeedSlot]:
        """Slots with a seed in them."""
        return [slot for slot in self.slots.values() if slot.stage in SEEDED]

    @property
    def host_params(self) -> int:
        grown = sum(count_params(slot) for slot in self.slots.values())
        return count_params(self) - grown

    @contextmanager
    def configured(self, configuration: Configuration) -> Iterator[None]:
        """The model under a configuration, for passes inside the block."""
        with ExitStack() as stack:
            for slot in self.slots.values() if configuration.touched else ():
                stack.enter_context(slot.unwatched())
            for slot_id, rungs in configuration.rungs:
                stack.enter_context(self.slots[slot_id].rungs_set(rungs))
            muted = [self.slots[slot_id] for slot_id in configuration.off]
            for slot in muted:
                slot.muted = True
            try:
                yield
            finally:
                for slot in muted:
                    slot.muted = False

    def load_grown(self, state: Mapping[str, object], owner: str) -> None:
        """Loads a grown model's `state_dict`, seeds included.

        Raises WrongHostError, and changes nothing, if it is another host's.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self.load_state_dict(state)
        except (RuntimeError, KeyError, ConfigError) as error:
            self.load_state_dict(before)
            what = str(error).splitlines()
            reason = what[1].strip() if len(what) > 1 else what[0]
            raise WrongHostError(
                f"{owner} holds a model of another host: {reason} Use the task and slots it was grown with."
            ) from error


class MorphogeneticModel(_Growing):
    """A `Host` with slots in its cuts.

    For every slot s: `model.forward_from(s, model.slots[s](model.forward_to(s, x))) == model(x)`.
    """

    def __init__(
        self, host: HostProtocol, slots: Sequence[str] | None = None, settings: SlotSettings | None = None
    ) -> None:
        """Raises ConfigError for a module that is no host, or slots that it does not offer."""
        super().__init__()
        if not (isinstance(host, nn.Module) and isinstance(host, HostProtocol)):
            raise ConfigError(
                f"{type(host).__name__} is no host: it needs injection_specs, forward_to and forward_from "
                "(kasmina/protocol.py), or slots in its own forward and SlottedModel"
            )
        self.slot_config = SlotConfig.from_specs(host.injection_specs, slots)
        self.host: HostProtocol = host
        self.isolate_blending = host.isolate_blending
        specs = {spec.slot_id: spec for spec in host.injection_specs}
        planted = {slot_id: SeedSlot(specs[slot_id], settings) for slot_id in self.slot_config.slot_ids}
        self.slots = cast(Mapping[str, SeedSlot], nn.ModuleDict(planted))
        self._chain: list[tuple[str, SeedSlot]] = list(planted.items())

    @property
    def specs(self) -> tuple[InjectionSpec, ...]:
        return self.host.injection_specs

    def forward(self, x: Tensor) -> Tensor:
        return self._walk(x, None, 0)

    def forward_to(self, slot_id: str, x: Tensor, from_slot_id: str | None = None) -> Tensor:
        """From the input, or from just after `from_slot_id`, to the input of `slot_id`, through slots between."""
        first = 0 if from_slot_id is None else self._place(from_slot_id) + 1
        previous = from_slot_id
        for between, slot in self._chain[first : self._place(slot_id)]:
            if slot.is_active:
                x, previous = slot(self.host.forward_to(between, x, previous)), between
        return self.host.forward_to(slot_id, x, previous)

    def forward_from(self, slot_id: str, x: Tensor) -> Tensor:
        """From just after `slot_id` to the output, through the slots that follow."""
        return self._walk(x, slot_id, self._place(slot_id) + 1)

    def outputs(self, x: Tensor, configurations: Sequence[Configuration]) -> list[Tensor]:
        """The output under each configuration; each starts at the input of the first slot it touches."""
        cache: dict[str, Tensor] = {}
        wanted = {self._first_touched(configuration) for configuration in configurations}
        plain = self._walk_caching(x, wanted, cache)
        results = []
        for configuration in configurations:
            first = self._first_touched(configuration)
            if first is None:
                results.append(plain)
                continue
            with self.configured(configuration):
                entered = self.slots[first](cache[first].clone())
                results.append(self.forward_from(first, entered))
        return results

    def compile_regions(self, backend: Backend = "inductor") -> None:
        """Compiles each host segment by itself, and every seed or rung, also those planted later.

        Planting or pruning then compiles no segment again.
        """
        for segment in self.host.segments if isinstance(self.host, Host) else ():
            compile_region(segment, backend)
        for slot in self.slots.values():
            slot.compile_seeds(backend)

    def _place(self, slot_id: str) -> int:
        return self.slot_config.index_of(slot_id)

    def _first_touched(self, configuration: Configuration) -> str | None:
        return min(configuration.touched, key=self._place, default=None)

    def _walk(self, x: Tensor, previous: str | None, first: int) -> Tensor:
        """From just after `previous` (None: from the input) through the slots from place `first` on to the output."""
        for slot_id, slot in self._chain[first:]:
            if slot.is_active:  # calling an empty module costs as much as a small kernel
                x, previous = slot(self.host.forward_to(slot_id, x, previous)), slot_id
        return self.host(x) if previous is None else self.host.forward_from(previous, x)

    def _walk_caching(self, x: Tensor, wanted: set[str | None], cache: dict[str, Tensor]) -> Tensor:
        previous: str | None = None
        for slot_id, slot in self._chain:
            if slot_id in wanted or slot.is_active:
                x, previous = self.host.forward_to(slot_id, x, previous), slot_id
                if slot_id in wanted:
                    cache[slot_id] = x.clone()  # a copy: the next segment may begin with an in-place operation
                x = slot(x)
        return self.host(x) if previous is None else self.host.forward_from(previous, x)


class SlottedModel(_Growing):
    """Any module with `SeedSlot`s placed in its own forward. Counterfactuals are full passes."""

    def __init__(self, module: nn.Module, slots: Sequence[str] | None = None, isolate_blending: bool = True) -> None:
        super().__init__()
        placed = [part for part in module.modules() if isinstance(part, SeedSlot)]
        if not placed:
            raise ConfigError(f"{type(module).__name__} has no slot; place SeedSlot.at(...) modules in its forward")
        self.specs = in_order(slot.spec for slot in placed)
        self.slot_config = SlotConfig.from_specs(self.specs, slots)
        self.module = module
        self.isolate_blending = isolate_blending
        found = {slot.spec.slot_id: slot for slot in placed}
        self.slots = {slot_id: found[slot_id] for slot_id in self.slot_config.slot_ids}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out

    def outputs(self, x: Tensor, configurations: Sequence[Configuration]) -> list[Tensor]:
        """The output under each configuration, each from the input."""
        results = []
        for configuration in configurations:
            with self.configured(configuration):
                results.append(self(x))
        return results

    def compile_regions(self, backend: Backend = "inductor") -> None:
        """Compiles every seed or rung, also those planted later; the module around them is its owner's to compile."""
        for slot in self.slots.values():
            slot.compile_seeds(backend)


GrowingModel = MorphogeneticModel | SlottedModel
"""What the engine trains: a module with `slots` and `outputs(x, configurations)`."""


def grow_from(
    module: nn.Module, slots: Sequence[str] | None = None, surfaces: Sequence[str] | None = None
) -> GrowingModel:
    """The module as a growing model, by what it can do: a chain can be cut, anything else is run whole.

    slots, surfaces: which of its slots are enabled, by id and by what they stand after (`enabled_slots`).
    """
    if isinstance(module, HostProtocol):
        return MorphogeneticModel(module, enabled_slots(module.injection_specs, slots, surfaces))
    specs = [part.spec for part in module.modules() if isinstance(part, SeedSlot)]
    isolate_blending = module.isolate_blending if isinstance(module, OwnIsolation) else True
    return SlottedModel(module, enabled_slots(specs, slots, surfaces), isolate_blending)


def probe_output(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output in evaluation mode, without gradients; leaves every module's mode as it was."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    # Not no_grad: measurements run in inference mode, and compiled regions would need a graph for either.
    with torch.inference_mode():
        out: Tensor = model(x)
    for module, training in was_training.items():
        module.training = training
    return out
