"""Every operation, stage, head, blueprint, reward term and event type has a place in memory: a table and a view.

The names come from the registries themselves, and a run is written in which each of them occurs: whoever adds one that
no table holds or no view shows finds it here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass

import duckdb
import pytest
from tests.karn.made import EVERY_OP
from tests.karn.recorded import Recorded

from esper.karn.mcp.schema import view_list
from esper.karn.memory import load
from esper.karn.tables import TABLES
from esper.karn.views import views
from esper.kasmina.blueprints import BLUEPRINTS
from esper.leyline.factored_actions import HEADS, OPS
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EnvStepPayload,
    EpisodeFinishedPayload,
    GovernorRollbackPayload,
    GovernorStepsSkippedPayload,
    GovernorSuspectedPayload,
    LogPayload,
    ObservationsPayload,
    Payload,
    PpoUpdatedPayload,
    RanksTroubledPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    RunResumedPayload,
    RunStartedPayload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
    TelemetryEventType,
)
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter
from esper.simic.rewards.terms import TERMS

OPERATIONS = [op.name for op in OPS]
STAGES = list(SeedStage)
LAST = max(
    len(OPERATIONS), len(STAGES), len(BLUEPRINTS)
)  # step; at those before it slots are in one stage after another


@dataclass(frozen=True)
class Kind:
    """Names, and the questions to tables and views that each must be answered with all of them."""

    names: Collection[str]
    questions: tuple[str, ...]


KINDS = {
    "operations": Kind(
        OPERATIONS,
        (
            "select op from ops", "select op from env_step",
            "select op from env_steps", "select op from decisions", "select unnest(possible_ops) from decisions",
            "select choice from action_mix where head = 'op'", "select op from op_values",
        ),
    ),
    "stages": Kind(
        [stage.name for stage in STAGES],
        (
            "select stage from stages", "select to_stage from seed_stage",
            "select stage from slot_steps", "select split_part(what, ' ', 3) from lifecycle where event = 'stage'",
            "select stage from lifecycle_spans union all select 'DORMANT'",  # is when there is no seed
            "select stage from stage_durations union all select 'DORMANT'",
        ),
    ),
    "heads": Kind(
        HEADS,
        (
            "select head from heads", "select head from choices", "select column_name from (describe env_step)",
            "select column_name from (describe decisions)", "select head from action_mix",
            "select head from head_health", "select head from entropy_collapse",
        ),
    ),
    "blueprints": Kind(
        list(BLUEPRINTS),
        (
            "select choice from choices where head = 'blueprint'", "select blueprint_id from seed_germinated",
            "select choice from action_mix where head = 'blueprint'", "select blueprint from decisions",
            "select blueprint_id from blueprint_stats", "select blueprint_id from rent_roi",
            "select blueprint_id from slot_steps", "select blueprint_id from lifecycle",
            "select blueprint_id from lifecycle_spans", "select blueprint_id from stage_durations",
            "select blueprint_id from level_changes",
        ),
    ),
    "reward terms": Kind(
        list(TERMS), ("select term.name from (select unnest(terms) as term from env_step)",
                      "select term from reward_long"),
    ),
    "event types": Kind([event.name for event in TelemetryEventType], ("select event_type from event_types",)),
}  # fmt: skip
EVERY_QUESTION = [(name, question) for name, kind in KINDS.items() for question in kind.questions]

ELSEWHERE = {
    TelemetryEventType.RUN_STARTED: "from runs where controller = 'told at the start'",
    TelemetryEventType.RUN_RESUMED: "select round from round_finished except select round from rounds",
    TelemetryEventType.RUN_HEARTBEAT: "from live_run_heartbeat",
    TelemetryEventType.GOVERNOR_STEPS_SKIPPED: "from live_gov_skipped",
    TelemetryEventType.GOVERNOR_SUSPECTED: "from live_gov_suspected",
    TelemetryEventType.LOG: "from live_log",
}
"""What shows events that no view of `views.sql` asks for: the manifest, what was taken back, or they themselves."""


# --- a run with all of it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """One host with a slot for every blueprint; a second attempt takes back the round after it."""
    slots = [{"id": f"r0c{index}", "order": index, "surface": "BLOCK_END", "channels": 8} for index in range(LAST)]
    heads = {head: ["x"] for head in HEADS} | {"blueprint": list(BLUEPRINTS)}
    with RunFolder.create(tmp_path_factory.mktemp("parity"), "made", "everything") as folder:
        config = {"run": {"seed": 0}, "reward": {"rent": 3.0}}
        metric = {"name": "accuracy", "unit": "%", "higher_is_better": True}
        folder.write_manifest({"config": config, "slots": slots, "heads": heads, "metric": metric})
        with EventWriter(folder.ev, folder.next_writer()) as events:
            events.emit(
                RunStartedPayload(
                    schema_version=SCHEMA_VERSION, controller="told at the start", task="digits", envs=1, rounds=2,
                    episode_length=LAST + 1,
                )
            )  # fmt: skip
            for payload, step in told_of_a_round():
                events.emit(payload, round=0, episode=0, step=step)
            events.emit(RoundFinishedPayload(episodes=1, reward_mean=0.0, seconds=1.0), round=1)
            events.emit(RunHeartbeatPayload(rss_bytes=1, buffered_bytes=0))
            events.emit(LogPayload(level="info", text="x"))
        with EventWriter(folder.ev, folder.next_writer()) as events:
            events.emit(RunResumedPayload(from_round=1, from_step=0))
            events.emit(RunFinishedPayload(status="done", seconds=1.0))
    with closing(load([str(folder.path)])) as store:
        yield store.con


def told_of_a_round() -> Iterator[tuple[Payload, int | None]]:
    """What happens, and at which step."""
    for slot, blueprint in enumerate(BLUEPRINTS):
        yield from told_of_a_seed(slot, blueprint)
    for step in range(LAST + 1):
        yield decision(step), step
    told = GovernorRollbackPayload(
        env_id=0, reason="x", detector="burst", steps=8, restored_epoch=0, restored_steps=0, rollbacks=1
    )
    yield told, LAST
    yield GovernorStepsSkippedPayload(env_id=0, skipped=1, seeds=(("r0c0", 2),), steps=8), LAST
    yield GovernorSuspectedPayload(env_id=0, far_off=2, failing=1, steps=8), LAST
    yield (
        EpisodeFinishedPayload(
            env_id=0, val_metric=1.0, test_metric=1.0, host_params=10, params=20, fossilized=1, flops=1, flops_wasted=0,
            reward=1.0,
        ),
        None,
    )  # fmt: skip
    of_heads, of_ops = tuple((head, 0.5) for head in HEADS), tuple((op, 0.5) for op in OPERATIONS)
    yield (
        PpoUpdatedPayload(
            update=0, sequences=1, steps=1, forced_share=0.0, ratio_error=0.0, invalid_executed=0, all_masked=0,
            value_mean=0.0, value_deviation=1.0, memory_rms=0.0, lr=1e-3, entropy_share=1.0, entropy=of_heads,
            op_values=of_ops,
        ),
        None,
    )  # fmt: skip
    yield RanksTroubledPayload(kind="slow", ranks=(1,), text="x"), LAST
    yield ObservationsPayload(sensors=(("x", 0.0, 1.0, 0.0, 0.0),)), None
    yield RoundFinishedPayload(episodes=1, reward_mean=1.0, seconds=1.0, phases=(("x", 1.0),)), None


def told_of_a_seed(slot: int, blueprint: str) -> Iterator[tuple[Payload, int]]:
    seed = {"env_id": 0, "slot_id": f"r0c{slot}", "seed_id": f"r0c{slot}.1", "blueprint_id": blueprint}
    ladder = {"internal_kind": 1, "internal_max_level": 4}
    yield SeedGerminatedPayload(**seed, **ladder, params=5, blend="add", tempo=3, internal_level=1), 0
    for step, stage in enumerate(STAGES):
        moved = SeedStageChangedPayload(**seed, from_stage="x", to_stage=stage.name, driver="time", alpha=0.0, age=step)
        yield moved, step
    yield SeedGateEvaluatedPayload(**seed, gate="G1", passed=True, checks=(("x", 1.0, 0.0, True),)), 1
    yield (
        SeedInternalLevelChangedPayload(
            **seed, **ladder, from_level=1, to_level=2, params_before=5, internal_effective_params=9
        ),
        LAST,
    )
    yield (
        SeedContributionMeasuredPayload(**seed, against="off", metric=1.0, metric_sem=0.1, loss=0.1, loss_sem=0.1),
        LAST,
    )
    yield SeedPrunedPayload(**seed, initiator="controller", age=1, params=5), LAST
    yield SeedFossilizedPayload(**seed, age=1, params=5, params_removed=0, internal_level=1), LAST


def decision(step: int) -> EnvStepPayload:
    """One with a choice of every head. All slots are in the same stage, at last in one with a seed."""
    names = list(BLUEPRINTS)
    chosen = dict.fromkeys(HEADS, "x") | {
        "op": OPERATIONS[step % len(OPERATIONS)], "slot": "r0c0", "blueprint": names[step % len(names)]
    }  # fmt: skip
    stage = SeedStage.TRAINING if step == LAST else STAGES[step % len(STAGES)]
    return EnvStepPayload(
        env_id=0, **chosen, op_mask=EVERY_OP, slot_mask=1, terms=tuple((term, 1.0) for term in TERMS), params=10,
        effective_params=10, flops=1, stage=(int(stage),) * LAST, alpha=(0.0,) * LAST, level=(1,) * LAST,
        slot_params=(5,) * LAST, grad_ratio=(None,) * LAST,
    )  # fmt: skip


# --- what holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "question"), EVERY_QUESTION)
def test_every_name_is_in_every_table_and_view_that_is_for_its_kind(everything, kind: str, question: str) -> None:
    told = {name for (name,) in everything.execute(question).fetchall()}

    assert set(KINDS[kind].names) - told == set()


@pytest.mark.parametrize("event", TelemetryEventType, ids=lambda event: event.name)
def test_every_event_type_is_told_in_a_table_and_shown_in_a_view(everything, event: TelemetryEventType) -> None:
    (table,) = (table.name for table in TABLES if table.event is event)
    showing = [f"from {view.name}" for view in views() if re.search(rf"\blive_{table}\b", view.sql) and view.grain]

    assert everything.execute(f"from {table}").fetchall()
    assert (event in ELSEWHERE) == (not showing), "exactly what no view asks for stands in ELSEWHERE"
    for question in showing or [ELSEWHERE[event]]:
        assert everything.execute(question).fetchall(), question
    assert f"live_{table}" in {view.name for view in view_list().views}


def test_every_view_has_something_to_show_of_such_a_run(everything) -> None:
    assert [
        view.name for view in views() if view.grain and not everything.execute(f"from {view.name}").fetchall()
    ] == []


def test_what_real_runs_tell_has_its_names_from_these_registries(recorded: Recorded) -> None:
    steps = recorded.steps().values()

    assert {step.op for step in steps} <= set(OPERATIONS)
    assert {SeedStage(stage) for step in steps for stage in step.stage} <= set(STAGES)
    assert {term for step in steps for term, _ in step.terms} <= set(TERMS)
    assert set(recorded.manifest["heads"]) == set(HEADS)
    assert set(recorded.manifest["heads"]["blueprint"]) <= set(BLUEPRINTS)
    assert {payload.blueprint_id for _, payload in recorded.of(SeedGerminatedPayload)} <= set(BLUEPRINTS)
