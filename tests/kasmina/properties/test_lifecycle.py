"""Any sequence of operations, legal or not, leaves slots in states that the tables allow.

Actions go through `operations.apply` as the engine sends them; what is possible is worked out here from a table
written by hand, not from the rows that the mechanics read.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support import BLENDS, PATIENT, bring, cnn, noise, report_on, same, seeded, snapshot, space_of

from esper.kasmina.config import SlotSettings
from esper.kasmina.gates import GatesConfig
from esper.kasmina.model import Configuration, MorphogeneticModel
from esper.kasmina.operations import apply
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import CHOICES, HEADS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.reports import AlphaMode, Contribution, HostReport, Rules, SeedStateReport
from esper.leyline.stages import EDGES, LIVE, SEEDED, SeedStage
from esper.leyline.telemetry import Payload, SeedInternalLevelChangedPayload, SeedStageChangedPayload

S = SeedStage
BLUEPRINTS = ("conv_ladder", "norm", "conv_light")
PROBE, BATCH = noise(2, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
PRUNABLE_AT, MOST_SEEDS = 2, 2
GATE_NAMES = {"G0", "G1", "G2", "G3", "G5"}
GATED = {LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE}


def possible_by_hand(op: LifecycleOp, slot: SeedStateReport, report: HostReport) -> bool:
    """The prose of the design as one expression per operation."""
    falling = slot.alpha_mode is AlphaMode.DOWN
    switchable = slot.blueprint_id == "conv_ladder" and slot.stage in (S.TRAINING, S.BLENDING, S.HOLDING)
    seeds = sum(other.stage in SEEDED for other in report.slots)
    return {
        LifecycleOp.GERMINATE: slot.stage is S.DORMANT and seeds < MOST_SEEDS,
        LifecycleOp.SET_ALPHA_TARGET: slot.stage in (S.BLENDING, S.HOLDING) and slot.alpha_mode is AlphaMode.HOLD,
        LifecycleOp.PRUNE: slot.stage in LIVE and slot.age >= PRUNABLE_AT and not falling,
        LifecycleOp.FOSSILIZE: slot.stage is S.HOLDING,
        LifecycleOp.ADVANCE: slot.stage in (S.GERMINATED, S.TRAINING, S.BLENDING) and not falling,
        LifecycleOp.GROW_INTERNAL: switchable and slot.internal_level < 4,
        LifecycleOp.SHRINK_INTERNAL: switchable and slot.internal_level > 0,
    }[op]


class Lifecycle(RuleBasedStateMachine):
    """A host of three slots under random decisions, with a training step and a measurement in each epoch."""

    model: MorphogeneticModel
    space: ActionSpace
    body: SlotSettings

    @initialize(
        automatic=st.sets(st.sampled_from(["G1", "G2", "G3"])),
        isolate=st.booleans(),
        start=st.integers(0, 2),
        mode=st.sampled_from(["permissive", "strict"]),
        stages=st.lists(st.sampled_from(SeedStage), min_size=MOST_SEEDS, max_size=MOST_SEEDS),
        blend=st.sampled_from(BLENDS),
    )
    def begin(self, automatic: set[str], isolate: bool, start: int, mode: Any, stages: list[SeedStage], blend: Any):
        """Two of three slots are in any stage already, so that long lives are met as often as short ones."""
        self.model = MorphogeneticModel(cnn((4, 4, 4)))
        self.model.configure(PATIENT)
        for slot, stage in zip(self.model.slots.values(), stages, strict=False):
            bring(slot, stage, blueprint="conv_ladder", blend=blend)
        self.body = SlotSettings(
            rules=Rules(max_seeds=MOST_SEEDS, min_prune_age=PRUNABLE_AT),
            gates=GatesConfig(mode, min_grad_ratio=0.0, min_improvement=-1e9, min_contribution=-0.5),
            embargo=1,
            ladder_start=start,
            auto_advance=tuple(sorted(automatic)),
            isolate_blending=isolate,
        )
        self.model.configure(self.body)
        self.space = space_of(self.model, BLUEPRINTS)
        self.stages = {slot_id: slot.stage for slot_id, slot in self.model.slots.items()}

    # --- rules --------------------------------------------------------------------------------------------------

    @rule(indices=st.tuples(*(st.integers(0, 7) for _ in HEADS)))
    def choose_anything(self, indices: tuple[int, ...]) -> None:
        """Masks off."""
        within = (index % len(self.space.choices(head)) for head, index in zip(HEADS, indices, strict=True))
        self.act(self.space.from_indices(tuple(within)))

    @rule(data=st.data(), gains=st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=6))
    def live_under_masks(self, data: st.DataObject, gains: list[float]) -> None:
        """As an episode goes: something possible, then an epoch."""
        for gain in gains:
            self.choose_what_is_possible(data)
            self.live_through_an_epoch(gain)

    def choose_what_is_possible(self, data: st.DataObject) -> None:
        report = report_on(self.model, self.body)
        free = [
            (op, slot.slot_id)
            for op in LifecycleOp
            if op is not LifecycleOp.WAIT
            for slot in report.slots
            if possible_by_hand(op, slot, report)
        ]
        if free:
            op, slot_id = data.draw(st.sampled_from(free))
            others = {"blueprint": st.sampled_from(BLUEPRINTS)} | {
                head: st.sampled_from(names) for head, names in CHOICES.items()
            }
            chosen = {head: data.draw(strategy) for head, strategy in others.items()}
            self.act(self.space.action(op, slot=slot_id, **chosen))

    @rule(gain=st.floats(-2.0, 2.0))
    def live_through_an_epoch(self, gain: float) -> None:
        for slot_id, slot in self.model.slots.items():
            with seeded():
                events = slot.step_epoch()
            self.follow(slot_id, events, drivers={"time"})
        self.model.train()
        self.model(BATCH).square().mean().backward()
        with torch.no_grad():
            for slot in self.model.fossil_and_live:
                if slot.is_active and slot.stage in LIVE:
                    slot.record_gradients(1.0, 100)
            for param in self.model.parameters():
                if param.grad is not None:
                    param -= 0.01 * param.grad
        self.model.zero_grad()
        for slot in self.model.slots.values():
            slot.record_metric(50.0 + gain)
            if slot.stage in (S.BLENDING, S.HOLDING):
                slot.record_contribution(Contribution(gain, 0.1, 0.0, 0.0, 1))

    @precondition(lambda self: any(stage in LIVE for stage in self.stages.values()))
    @rule(data=st.data())
    def be_taken_back(self, data: st.DataObject) -> None:
        slot_id = data.draw(st.sampled_from([key for key, stage in self.stages.items() if stage in LIVE]))
        self.follow(slot_id, self.model.slots[slot_id].uproot(), drivers={"rollback"})

    @rule()
    def be_saved_and_loaded(self) -> None:
        state = snapshot(self.model)
        fresh = MorphogeneticModel(cnn((4, 4, 4), seed=9))
        fresh.configure(self.body)
        fresh.load_grown(state, "memory")
        assert same(snapshot(fresh), state)
        assert report_on(fresh, self.body) == report_on(self.model, self.body)
        self.model = fresh

    @rule()
    def be_measured(self) -> None:
        configurations = [Configuration(), *(Configuration(frozenset({key})) for key in self.model.slots)]
        before = snapshot(self.model)
        self.model.eval()
        with torch.no_grad():
            plain, *_ = self.model.outputs(PROBE, configurations)
            assert torch.equal(plain, self.model(PROBE))
        assert same(snapshot(self.model), before)

    # --- what must hold of each of them -------------------------------------------------------------------------

    def act(self, action: FactoredAction) -> None:
        before, report = snapshot(self.model), report_on(self.model, self.body)
        with seeded():
            receipt = apply(self.model, action, report, PROBE)
        if action.op is LifecycleOp.WAIT:
            assert receipt.done
            assert same(snapshot(self.model), before)
            return
        self.check_receipt(action, receipt, report)
        if not receipt.done:
            assert same(snapshot(self.model), before)
        self.follow(action.slot_id or "", receipt.events, drivers={action.op.name})

    def check_receipt(self, action: FactoredAction, receipt: Receipt, report: HostReport) -> None:
        allowed = possible_by_hand(action.op, report.slots[action.slot_idx], report)
        if not allowed:
            assert (receipt.done, receipt.refused_by) == (False, "illegal")
        elif action.op in GATED:
            assert receipt.done or receipt.refused_by in GATE_NAMES
        else:
            assert receipt.done
        assert receipt.done == (receipt.why == "")
        assert receipt.done == (receipt.refused_by is None)
        if receipt.done:
            now = self.model.slots[action.slot_id].report()
            assert receipt.params_before == report.slots[action.slot_idx].internal_effective_params
            assert receipt.params_after == now.internal_effective_params
            assert receipt.output_change is not None
            if action.op is LifecycleOp.GERMINATE:
                assert receipt.output_change == 0.0

    def follow(self, slot_id: str, events: tuple[Payload, ...], drivers: set[str]) -> None:
        """Walks the events through the table of transitions, from the stage that was known to the present one."""
        stage = self.stages[slot_id]
        for event in events:
            assert event.slot_id == slot_id
            if isinstance(event, SeedInternalLevelChangedPayload):
                assert abs(event.to_level - event.from_level) == 1
            if isinstance(event, SeedStageChangedPayload):
                assert event.from_stage == stage.name
                assert event.driver in drivers
                edge = (stage, S[event.to_stage])
                assert edge in EDGES
                assert event.driver in (*EDGES[edge].drivers, "rollback")
                stage = edge[1]
        assert self.model.slots[slot_id].stage is stage
        self.stages[slot_id] = stage

    # --- what must always hold ----------------------------------------------------------------------------------

    @invariant()
    def levels_stay_between_zero_and_all(self) -> None:
        for slot in self.reports():
            if slot.stage in SEEDED:
                assert 0 <= slot.internal_level <= slot.internal_max_level
                assert slot.internal_level == sum(slot.rungs)
                assert len(slot.rungs) == slot.internal_max_level
                assert slot.internal_effective_params <= slot.params
            else:
                assert (slot.internal_level, slot.rungs, slot.params) == (0, (), 0)
            assert slot.internal_max_level >= 1

    @invariant()
    def alpha_is_what_forward_uses_and_fits_the_stage(self) -> None:
        for report, slot in zip(self.reports(), self.slots(), strict=True):
            used = slot.alpha.item()
            assert 0.0 <= used <= 1.0
            if slot.gate is None:
                assert used == torch.tensor(report.alpha).item()
            else:
                assert report.stage is S.BLENDING
            if report.stage in (S.HOLDING, S.FOSSILIZED):
                assert used == 1.0
            elif report.stage is not S.BLENDING:
                assert used == 0.0

    @invariant()
    def a_slot_holds_a_module_exactly_in_seeded_stages(self) -> None:
        for slot in self.slots():
            assert (slot.seed is not None) == (slot.stage in SEEDED)
            assert slot.stage is not S.TRAINING or slot.isolate_gradients

    @invariant()
    def there_are_never_more_seeds_than_allowed(self) -> None:
        assert len(self.model.fossil_and_live) <= MOST_SEEDS

    @invariant()
    def rest_is_counted_down(self) -> None:
        for slot in self.reports():
            expected = {S.PRUNED: (4, 3), S.EMBARGOED: (2,), S.RESETTING: (1,)}.get(slot.stage, (0,))
            assert slot.embargo_left in expected

    @invariant()
    def the_output_is_finite_and_silent_slots_are_exact(self) -> None:
        self.model.eval()
        with torch.no_grad():
            assert self.model(PROBE).isfinite().all()
            silent = [key for key, stage in self.stages.items() if stage not in (S.BLENDING, S.HOLDING, S.FOSSILIZED)]
            plain, muted = self.model.outputs(PROBE, [Configuration(), Configuration(frozenset(silent))])
            assert torch.equal(plain, muted)

    def slots(self) -> list[Any]:
        return list(self.model.slots.values())

    def reports(self) -> list[SeedStateReport]:
        return [slot.report() for slot in self.slots()]


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
