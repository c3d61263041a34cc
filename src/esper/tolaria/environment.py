"""One host run: a growing model, its optimiser, its streams of randomness and its account of work.

The engine drives it: `apply` a decision, `begin_epoch`, `train_batch` for every batch, `measure`, `report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.groups import host_parameters, sync_groups
from esper.kasmina.ladder import count_params
from esper.kasmina.model import GrowingModel, grow_from
from esper.kasmina.operations import apply
from esper.kasmina.optimiser import load_state_by_name, state_by_name
from esper.kasmina.own_loop import record_gradients
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.randomness import drawing_from
from esper.leyline.reports import HostReport
from esper.leyline.stages import LIVE, SEEDED, SeedStage
from esper.leyline.task import Split
from esper.leyline.telemetry import EnvPayload, Payload, SeedContributionMeasuredPayload, SeedPrunedPayload
from esper.tolaria.costs import Costs
from esper.tolaria.detector import Detector
from esper.tolaria.ledger import Category, Ledger, Mark
from esper.tolaria.measuring import AS_IS, Measurement, exported, measure, questions
from esper.tolaria.recipes import make_optimiser, make_scheduler, set_clock
from esper.tolaria.setup import Setup, Streams
from esper.tolaria.step_gate import StepGate

VETO = "veto"
"""What an operation is refused by while the governor suspects the host, or lets it recover."""


Shape = tuple[str | None, float, tuple[bool, ...]]
"""Of a slot: its seed, how much of it is heard, and its active rungs."""


@dataclass(frozen=True)
class Snapshot:
    """A host as it was after an epoch."""

    epoch: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    mark: Mark
    steps: int = 0  # optimiser steps of the episode until then
    seeds: Mapping[str, str] = field(default_factory=dict)  # slot -> id of the seed on probation in it
    baseline: Mapping[str, Any] = field(default_factory=dict)  # what the detector compared steps with
    digest: str = ""  # of model and optimiser, where somebody keeps it for long


class Environment:
    """One host from its first epoch to its last."""

    def __init__(self, env: int, round_: int, setup: Setup, costs: Costs) -> None:
        self.env, self.round = env, round_
        self.setup, self.task, self.costs = setup, setup.task, costs
        self.streams = Streams(setup, round_, env)
        self.probe = self.task.splits.val.inputs[: setup.engine.probe_items]
        # Apart from each other, so that planting a seed moves no dropout mask of its host.
        self.draws, self.growth = self.streams.of("training"), self.streams.of("growth")
        with drawing_from(self.streams.of("init")):
            self.model: GrowingModel = grow_from(self.task.make_host(), setup.body.slots, setup.body.surfaces)
        self.settings = setup.body.settings(
            setup.gates, setup.episode_length, self.model.slot_config.num_slots, self.model.isolate_blending
        )
        self.model.configure(self.settings)
        if setup.start is not None:
            self.model.load_grown(setup.start, setup.start_name)
        self.model.to(setup.engine.device)
        if setup.engine.compile:
            self.model.compile_regions()
        self.optimiser, self.scheduler = self._make_optimiser()
        self.ledger = Ledger()
        self.epoch = 0
        self.finished = False  # diverged for good; nothing happens to it any more
        self.rollbacks = 0
        self.cooling = 0  # steps until the learning rate is whole again
        self.vitals = Detector(setup.governor)
        self.skipped = 0  # steps of the last epoch that were not taken
        self.seed_skips: Counter[str] = Counter()  # slot -> steps of the last epoch that its seed alone did not take
        self.seed_streaks: dict[str, int] = {}  # slot -> how many of those in a row until now
        self.mutated: dict[str, int] = {}  # slot -> optimiser steps when it changed last, of this probation
        self.shape = self._shape_now()
        self._gate: StepGate | None = None  # None where structure has changed since
        self.last_op = LifecycleOp.WAIT
        self.last_action_success = True
        self.previous_metric: float | None = None
        self.train_loss: float | None = None
        self.measurement: Measurement | None = None
        self._losses: list[float] = []
        self._order = torch.empty(0, dtype=torch.long)
        self._augment = self.draws
        self._sampled: frozenset[int] = frozenset()
        size, crew = self.task.recipe.batch_size, setup.crew
        own = size if crew is None else crew.part_of(size)
        for slot in self.model.slots.values():
            slot.in_parts = crew is not None
        self._shares = torch.full((own,), 1 / size, device=setup.engine.device)  # of each item in a batch's loss
        self._step_cost: tuple[int, dict[str, int]] | None = None  # None where structure has changed since
        self._host_size = self.model.host_params

    # --- decisions ----------------------------------------------------------------------------------------------

    def apply(self, action: FactoredAction) -> Receipt:
        """Does one action; structure, optimiser and account change together."""
        self.last_op, self.last_action_success = action.op, True
        if self.finished or action.slot_id is None:
            return Receipt(action.op, action.slot_id, True)
        veto = self._veto()
        if veto:
            self.last_action_success = False
            return Receipt(action.op, action.slot_id, False, veto, VETO)
        with drawing_from(self.growth):
            receipt = apply(self.model, action, self.report(), self.probe)
        self.last_action_success = receipt.done
        if receipt.refused_by != "illegal":
            self.ledger.charge(Category.STATISTICS, 2 * self.costs.evaluation(self.model, self.probe, [AS_IS]))
        if receipt.done:
            self._structure_changed(receipt.events)
        return replace(receipt, events=self.stamp(receipt.events))

    def _veto(self) -> str:
        """Why the governor lets no operation through now; empty where it does."""
        if self.vitals.suspicious:
            return "the host's losses look suspicious"
        return f"the host was taken back and recovers for {self.cooling} more steps" if self.cooling else ""

    def stamp(self, events: tuple[Payload, ...]) -> tuple[Payload, ...]:
        """The events with this environment's number on them."""
        return tuple(
            msgspec.structs.replace(event, env_id=self.env) if isinstance(event, EnvPayload) else event
            for event in events
        )

    def _structure_changed(self, events: tuple[Payload, ...]) -> None:
        schedulers = [] if self.scheduler is None else [self.scheduler]
        sync_groups(self.model, self.optimiser, self._lr_scale, schedulers)
        self._step_cost = self._gate = None
        for event in events:
            if isinstance(event, SeedPrunedPayload):
                self.ledger.write_off(event.seed_id)

    # --- training -----------------------------------------------------------------------------------------------

    def begin_epoch(self) -> tuple[Payload, ...]:
        """Time passes in the slots, and the epoch's data order is drawn. Returns what time brought about."""
        events: tuple[Payload, ...] = ()
        with drawing_from(self.growth):
            for slot in self.model.slots.values():
                events += slot.step_epoch()
        if events:
            self._structure_changed(events)
        self._note_mutations()
        steps = self.task.steps_per_epoch
        samples = min(self.setup.engine.gradient_samples, steps)
        self._sampled = frozenset((index + 1) * steps // samples - 1 for index in range(samples))
        self._order = self.streams.order(self.epoch, steps * self.task.recipe.batch_size, self.rollbacks)
        self._augment = self.streams.of("augment", self.epoch, self.rollbacks)
        self._losses, self.skipped, self.seed_skips = [], 0, Counter()
        self.model.train()
        return self.stamp(events)

    def train_batch(self, index: int) -> None:
        """One optimiser step. Where loss or gradient is not finite it is not taken, and leaves nothing behind.

        The model draws from torch's global generator; the caller lends it `draws`.
        """
        if self._gate is None:
            self._gate = StepGate(self.model)
        gate = self._gate
        gate.keep()
        size, train = self.task.recipe.batch_size, self.task.splits.train
        chosen = self._order[index * size : (index + 1) * size]
        inputs, targets = train.inputs[chosen], train.targets[chosen]
        augment = self.task.augment
        if augment is not None:
            inputs = augment(inputs, self._augment)
        crew = self.setup.crew
        if crew is not None:
            inputs, targets = crew.part(inputs), crew.part(targets)
        losses = self.task.loss(self.model(inputs), targets)
        if losses.requires_grad:  # nothing learns in a frozen host without seeds
            losses.backward(self._shares)  # the gradient of the mean
        mean = losses.detach().mean() if crew is None else crew.together(self.model, losses.detach(), size)
        reading = gate.read(mean)
        if self.vitals.take(reading.loss, reading.host_norm):
            self._losses.append(reading.loss)
            if index in self._sampled:
                record_gradients(self.model)
            self._drop_broken(gate, reading.broken)
            self._step_optimiser()
        else:
            self.skipped += 1
            gate.undo()
        self.optimiser.zero_grad(set_to_none=True)

    def _drop_broken(self, gate: StepGate, broken: tuple[str, ...]) -> None:
        """Seeds whose gradient is not finite do not take part in the step."""
        for slot_id in broken:
            gate.drop(slot_id)
        self.seed_skips.update(broken)
        self.seed_streaks = {slot_id: self.seed_streaks.get(slot_id, 0) + 1 for slot_id in broken}

    def _step_optimiser(self) -> None:
        """With less of the learning rate while it recovers from a rollback."""
        if self.cooling == 0:
            self.optimiser.step()
            return
        governor, groups = self.setup.governor, self.optimiser.param_groups
        share = 1.0 - (1.0 - governor.cool_down_lr) * self.cooling / governor.cool_down_steps
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * share
        self.optimiser.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.cooling -= 1

    def _note_mutations(self) -> None:
        """A slot whose seed came, went, or is heard or built otherwise than an epoch ago puts the host on probation."""
        if self.vitals.probation == 0:
            self.mutated = {}
        shape = self._shape_now()
        before, self.shape = self.shape, shape
        changed = [slot_id for slot_id, now in shape.items() if now != before[slot_id]]
        if changed:
            self.mutated |= dict.fromkeys(changed, self.vitals.steps)
            self.vitals.mutated(cut=any(_less(shape[slot_id], before[slot_id]) for slot_id in changed))

    def _shape_now(self) -> dict[str, Shape]:
        """Of each slot its seed, how much of it is heard, and its active rungs."""
        reports = [slot.report() for slot in self.model.slots.values()]
        return {report.slot_id: (report.seed_id, report.alpha, report.rungs) for report in reports}

    def end_epoch(self) -> None:
        """Books the epoch."""
        if self.scheduler is not None and self._losses:
            self.scheduler.step()
        self.train_loss = sum(self._losses) / len(self._losses) if self._losses else None
        if self._step_cost is None:
            self._step_cost = self.costs.step(self.model)
        host, seeds = self._step_cost
        done = len(self._losses) + self.skipped  # a step that is not taken has been computed all the same
        self.ledger.charge(Category.TRAIN_HOST, host * done)
        for seed_id, flops in seeds.items():
            self.ledger.charge_seed(seed_id, flops * done)
        grown = [slot.seed for slot in self.model.slots.values() if slot.seed is not None]
        self.ledger.charge_rent(self._host_size + sum(map(count_params, grown)))
        self.epoch += 1

    # --- measuring ----------------------------------------------------------------------------------------------

    def measure(self) -> tuple[Payload, ...]:
        """Validates, asks what each seed contributes, and tells the slots. Returns the contributions as events."""
        asked = questions(self.model, self.setup.engine.measure_fossils)
        bare = exported(self.model) if self.epoch == self.setup.episode_length else None
        val = self.task.splits.val
        self.previous_metric = None if self.measurement is None else self.measurement.metric
        self.measurement = found = measure(self.model, self.task, val, self.epoch, asked, bare=bare)
        self._charge_measuring(val, found)
        for slot in self.model.slots.values():
            slot.record_metric(self.task.metric.sign * found.metric)
        events: tuple[Payload, ...] = ()
        for question, contribution in found.answers:
            slot = self.model.slots[question.slot_id]
            assert slot.state is not None
            if question.against == "off":
                slot.record_contribution(contribution)
            else:
                slot.record_level_effect(contribution)
            events += (
                SeedContributionMeasuredPayload(
                    slot_id=question.slot_id,
                    seed_id=slot.state.seed_id,
                    blueprint_id=slot.state.blueprint_id,
                    against=question.against,
                    metric=contribution.metric,
                    metric_sem=contribution.metric_sem,
                    loss=contribution.loss,
                    loss_sem=contribution.loss_sem,
                ),
            )
        return self.stamp(events)

    def _charge_measuring(self, split: Split, found: Measurement) -> None:
        size = self.task.recipe.eval_batch_size
        for inputs in split.inputs.split(size):
            plain = self.costs.evaluation(self.model, inputs, [AS_IS])
            self.ledger.charge(Category.VALIDATION, plain)
            if len(found.configurations) > 1:
                whole = self.costs.evaluation(self.model, inputs, found.configurations)
                self.ledger.charge(Category.COUNTERFACTUAL, whole - plain)

    def report(self) -> HostReport:
        """What deciders may see of this host now."""
        slots = tuple(slot.report() for slot in self.model.slots.values())
        found = self.measurement
        return HostReport(
            env=self.env,
            round=self.round,
            epoch=self.epoch,
            episode_length=self.setup.episode_length,
            rules=self.settings.rules,
            slots=slots,
            host_params=self._host_size,
            total_params=self._host_size + sum(slot.params for slot in slots),
            effective_params=self._host_size + sum(slot.internal_effective_params for slot in slots),
            metric_sign=self.task.metric.sign,
            metric_point=self.task.metric.point,
            train_loss=self.train_loss,
            val_loss=None if found is None else found.loss,
            val_metric=None if found is None else found.metric,
            suspicious=self.vitals.suspicious,
            finished=self.finished,
            train_items=len(self.task.splits.train),
            previous_metric=self.previous_metric,
            rollbacks=self.rollbacks,
            last_op=self.last_op,
            last_action_success=self.last_action_success,
            exported_metric=None if found is None else found.exported,
        )

    # --- going back ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A copy of everything that training changes."""
        return Snapshot(
            epoch=self.epoch,
            model=_cloned(self.model.state_dict()),
            optimiser=state_by_name(self.model, self.optimiser),
            mark=self.ledger.mark(),
            steps=self.vitals.steps,
            seeds=self._live_seeds(),
            baseline=self.vitals.kept(),
        )

    def _live_seeds(self) -> dict[str, str]:
        live = {slot_id: slot.state for slot_id, slot in self.model.slots.items() if slot.stage in LIVE}
        return {slot_id: state.seed_id for slot_id, state in live.items() if state is not None}

    def restore(self, snapshot: Snapshot, culprits: Set[str] | None = None) -> tuple[Payload, ...]:
        """Goes back to the host and the fossils of the snapshot; live seeds, of now and of then, are removed.

        culprits: slots whose seeds are to blame; seeds of other slots that lived then and live now are kept, as they
        were. None keeps no live seed.

        Time does not go back: the epoch count, the learning rate's schedule, the count of germinations and the rest of
        an empty slot go on. Data and dropout are drawn from other streams than before. Tells of every seed that was
        there until now and is not any more.
        """
        self.rollbacks += 1
        self.measurement = self.previous_metric = None
        slots, faded = self.model.slots, self._faded()
        clock = None if self.scheduler is None else self.scheduler.last_epoch
        shared = set() if culprits is None else self._live_seeds().items() & snapshot.seeds.items()
        spared = {slot_id for slot_id, _ in shared} - (culprits or set())
        doomed = [slot for slot_id, slot in slots.items() if slot.stage in LIVE and slot_id not in spared]
        events = tuple(event for slot in doomed for event in slot.uproot())
        fossils = {slot_id: slot.obituary() for slot_id, slot in slots.items() if slot.stage is SeedStage.FOSSILIZED}
        planted = {slot_id: slot.germinations for slot_id, slot in slots.items()}
        resting = {slot_id: slot.get_extra_state() for slot_id, slot in slots.items() if slot.stage not in SEEDED}
        self.load_trained(snapshot.model, snapshot.optimiser)
        self.ledger.roll_back(snapshot.mark)
        for slot_id, slot in slots.items():
            slot.germinations = planted[slot_id]  # so that no seed id comes twice
            fossil = fossils.get(slot_id)
            if fossil is not None and (slot.state is None or slot.state.seed_id != fossil.seed_id):
                events += (fossil,)
            removed = slot.uproot() if slot.stage in LIVE and slot_id not in spared else ()
            self._structure_changed(removed)
            if slot_id in resting:
                slot.set_extra_state(resting[slot_id])
            elif removed and slot.state is not None and fossil is not None and slot.state.seed_id == fossil.seed_id:
                events += removed
        if self.scheduler is not None and clock is not None:
            set_clock(self.scheduler, clock, faded)
        self.draws = self.streams.of("training", rollbacks=self.rollbacks)
        self.vitals.go_back(dict(snapshot.baseline))
        self.cooling, self.mutated, self.seed_streaks = self.setup.governor.cool_down_steps, {}, {}
        return self.stamp(events)

    def uproot(self, slot_id: str) -> tuple[Payload, ...]:
        """Removes a live seed and leaves the rest of the host as it is. Tells of it."""
        events = self.model.slots[slot_id].uproot()
        self._structure_changed(events)
        del self.seed_streaks[slot_id]
        return self.stamp(events)

    def load_trained(self, model: dict[str, Any], optimiser: dict[str, Any]) -> None:
        """The model of a `state_dict`, which is copied, and an optimiser that goes on from its moments.

        The schedule of the learning rate begins anew.
        """
        self.model.load_state_dict(_cloned(model))
        self.optimiser, self.scheduler = self._make_optimiser()
        schedulers = [] if self.scheduler is None else [self.scheduler]
        load_state_by_name(self.model, self.optimiser, optimiser, schedulers=schedulers)
        self._step_cost = self._gate = None

    def _faded(self) -> float:
        """What the schedule has left of the learning rate."""
        return float(self.optimiser.param_groups[0]["lr"]) / self.task.recipe.lr

    def _make_optimiser(self) -> tuple[Optimizer, LRScheduler | None]:
        recipe, learning = self.task.recipe, [param for _, param in host_parameters(self.model)]
        optimiser = make_optimiser(recipe, learning)
        scheduler = make_scheduler(recipe, optimiser, self.setup.episode_length)
        self._lr_scale = self.setup.body.lr_scale(host_learns=bool(learning))
        sync_groups(self.model, optimiser, self._lr_scale, [] if scheduler is None else [scheduler])
        return optimiser, scheduler

    @property
    def fossils(self) -> int:
        return sum(slot.stage is SeedStage.FOSSILIZED for slot in self.model.slots.values())


def _less(now: Shape, before: Shape) -> bool:
    """Whether less of what was heard is heard."""
    return before[1] > 0.0 and (now[0] != before[0] or now[1] < before[1] or sum(now[2]) < sum(before[2]))


def _cloned(value: Any) -> Any:
    """Containers rebuilt, tensors cloned, the rest shared."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return value
