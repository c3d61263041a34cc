"""Steps made by hand, and strategies for steps that nobody would make. Read `step` first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import HostReport, Rules, SeedStateReport
from esper.leyline.slot_config import SlotConfig
from esper.leyline.stages import SEEDED, SeedStage
from esper.simic.rewards.terms import Transition

LENGTH = 20
HOST = 1000  # parameters
SLOTS = 2
SPECS = [InjectionSpec(f"r0c{i}", 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(SLOTS)]
SPACE = ActionSpace(SlotConfig.from_specs(SPECS), ("conv", "norm"), ((True, True),) * SLOTS)
WAIT = SPACE.action("WAIT")
WELL, ILL = Verdict(healthy=True), Verdict(healthy=False)
LOST = Verdict(healthy=False, ended=True)


def slot(index: int, stage: SeedStage = SeedStage.DORMANT, **facts: Any) -> SeedStateReport:
    """Slot r0c<index>; a seed in it has 500 parameters, all of them active, and alpha 1 where it is heard."""
    slot_id = f"r0c{index}"
    report = SeedStateReport(slot_id, (slot_id,), 8, "NCHW", InjectionSurface.BLOCK_END, index, stage)
    if stage in SEEDED:
        report = replace(report, seed_id=f"{slot_id}.1", params=500, internal_effective_params=500, age=5)
    if stage in (SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED):
        report = replace(report, alpha=1.0)
    return replace(report, **facts)


def host(metric: float | None, *slots: SeedStateReport, epoch: int = 5, **facts: Any) -> HostReport:
    """A host of 1000 parameters; slots that are not given are empty."""
    seen = (*slots, *(slot(index) for index in range(len(slots), SLOTS)))
    report = HostReport(0, epoch, LENGTH, Rules(max_seeds=9), seen, HOST, HOST, HOST, val_metric=metric)
    return replace(report, **facts)


def act(op: str, index: int = 0) -> FactoredAction:
    return WAIT if op == "WAIT" else SPACE.action(op, slot=f"r0c{index}")


def step(
    before: HostReport,
    after: HostReport,
    action: FactoredAction = WAIT,
    done: bool = True,
    verdict: Verdict = WELL,
    settled: HostReport | None = None,
) -> Transition:
    """A step that settles where it ended, unless the governor took it back to a host without a measurement."""
    restored = after if verdict.healthy else replace(after, val_metric=None, exported_metric=None)
    receipt = Receipt(action.op, action.slot_id, done)
    return Transition(before, action, receipt, after, restored if settled is None else settled, verdict)


# --- anything at all --------------------------------------------------------------------------------------------

ANY_FLOAT = st.floats() | st.floats(-100, 100)
ACTIONS = st.builds(act, st.sampled_from([op.name for op in LifecycleOp]), st.integers(0, SLOTS - 1))
VERDICTS = st.sampled_from([WELL, WELL, ILL, LOST, Verdict(healthy=True, ended=True)])


def slots(alpha: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[SeedStateReport, ...]]:
    """Any state of every slot, also states that no seed ever is in."""

    def one(index: int) -> st.SearchStrategy[SeedStateReport]:
        return st.builds(
            slot,
            st.just(index),
            st.sampled_from(SeedStage),
            seed_id=st.sampled_from([None, "a", "b"]),
            age=st.integers(0, 40),
            alpha=alpha,
            params=st.integers(0, 10**9),
            internal_effective_params=st.integers(0, 10**9),
            internal_level=st.integers(0, 4),
            internal_previous_level=st.none() | st.integers(0, 4),
        )

    return st.tuples(*map(one, range(SLOTS)))


def hosts(metric: st.SearchStrategy[float], alpha: st.SearchStrategy[float]) -> st.SearchStrategy[HostReport]:
    """Any report of a host."""
    return st.builds(
        lambda seen, value, **facts: host(value, *seen, **facts),
        slots(alpha),
        st.none() | metric,
        epoch=st.integers(0, LENGTH),
        host_params=st.integers(1, 10**9),
        metric_sign=st.sampled_from([1.0, -1.0]),
        exported_metric=st.none() | metric,
        finished=st.booleans(),
    )


def steps(metric: st.SearchStrategy[float], alpha: st.SearchStrategy[float]) -> st.SearchStrategy[Transition]:
    """Any step."""
    report = hosts(metric, alpha)
    return st.builds(step, report, report, ACTIONS, st.booleans(), VERDICTS, report)
