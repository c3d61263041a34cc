"""What exporters write, read back by other means, against plain Python over the raw lines of real recorded runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from math import isnan, log2
from pathlib import Path
from statistics import fmean
from struct import unpack_from
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from tests.karn.conftest import ByHand, started, step
from tests.karn.recorded import Recorded, near
from wandb.proto.wandb_internal_pb2 import Record

from esper.karn.exporters import tensorboard
from esper.karn.exporters.traces import Trace, traces
from esper.karn.memory import open_memory
from esper.leyline.errors import ConfigError, StorageError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EnvStepPayload,
    EpisodeFinishedPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunStartedPayload,
)

Curves = dict[str, dict[int, float]]
"""By name, then by round, episode or update."""

COUNTED_ELSEWHERE = {
    *(f"rounds/{name}" for name in ("val_min", "val_max", "test_metric", "params", "doublings", "fossilized")),
    *(f"episodes/{name}" for name in ("steps", "operations", "refused", "germinated", "rollbacks")),
}
"""Columns of views that `test_views.py` works out from the lines; they come through by the same way as the others."""


# ---- what the lines say


def told(recorded: Recorded) -> Curves:
    """Every other curve."""
    found: Curves = defaultdict(dict)

    def tell(section: str, place: int, pairs: Iterable[tuple[str, float | None]]) -> None:
        for name, value in pairs:
            if value is not None:
                found[f"{section}/{name}"][place] = value

    for where, payload in recorded.told:
        place = where.round or 0
        if isinstance(payload, RoundFinishedPayload):
            tell("rounds", place, [("val_metric", payload.metric_mean), ("reward_mean", payload.reward_mean)])
            tell("rounds", place, [("seconds", payload.seconds), ("episodes", payload.episodes)])
            tell("phase_seconds", place, payload.phases)
        elif isinstance(payload, EpisodeFinishedPayload):
            tell("episodes", place * recorded.envs + payload.env_id, of_episode(payload, recorded.rent))
        elif isinstance(payload, PpoUpdatedPayload):
            tell("ppo", payload.update, of_update(payload))
            tell("head_entropy", payload.update, payload.entropy)
            tell("head_kl", payload.update, payload.kl)
            tell("head_clip_fraction", payload.update, payload.clipped)
            tell("head_grad_norm", payload.update, payload.head_grad_norm)
            tell("op_values", payload.update, payload.op_values)
    for round_, steps in by_round(recorded).items():
        ops = [taken.op for taken in steps]
        tell("operations", round_, [(op.name, ops.count(op.name) / len(ops)) for op in LifecycleOp])
        for term in {name for taken in recorded.steps().values() for name, _ in taken.terms}:
            paid = sum(dict(taken.terms).get(term, 0.0) for taken in steps)
            tell("reward", round_, [(term, paid / recorded.envs)])
    for round_, rates in churn(recorded).items():
        tell("churn", round_, [("level_change_rate", fmean(rates))])
    return dict(found)


def of_episode(end: EpisodeFinishedPayload, rent: float) -> Iterator[tuple[str, float | None]]:
    names = "val_metric", "test_metric", "test_loss", "host_params", "params", "fossilized", "reward", "flops"
    yield from ((name, getattr(end, name)) for name in (*names, "flops_wasted"))
    doublings = log2(end.params / end.host_params)
    yield "doublings", doublings
    yield "j", None if end.test_metric is None else end.test_metric - rent * doublings


def of_update(update: PpoUpdatedPayload) -> Iterator[tuple[str, float | None]]:
    """All that is one number."""
    for name in update.__struct_fields__:
        value = getattr(update, name)
        if name != "update" and not isinstance(value, str | tuple):
            yield name, value


def by_round(recorded: Recorded) -> dict[int, list[EnvStepPayload]]:
    found = defaultdict(list)
    for (round_, _, _), payload in recorded.steps().items():
        found[round_].append(payload)
    return found


def churn(recorded: Recorded) -> dict[int, list[float]]:
    """Of every round the rates of its ladders, as the view has them, which `test_views.py` works out."""
    found = defaultdict(list)
    for round_, rate in recorded.rows("select round, level_change_rate from churn where ladder_steps > 0"):
        found[round_].append(rate)
    return found


# ---- traces


def only(recorded: Recorded) -> Trace:
    (trace,) = traces(recorded.con)
    return trace


def curves(trace: Trace) -> Curves:
    found: Curves = defaultdict(dict)
    for point in trace.points:
        for name, value in point.values.items():
            assert point.place not in found[name]
            found[name][point.place] = value
    return dict(found)


def test_every_curve_is_what_the_lines_say(recorded: Recorded) -> None:
    found = curves(only(recorded))

    expected = told(recorded)
    assert set(found) == {*expected, *COUNTED_ELSEWHERE}
    for name, values in expected.items():
        assert found[name] == {place: near(value) for place, value in values.items()}, name


def test_the_terms_of_the_reward_add_up_to_it(recorded: Recorded) -> None:
    found = curves(only(recorded))

    for round_, reward in found["rounds/reward_mean"].items():
        parts = [values[round_] for name, values in found.items() if name.startswith("reward/")]
        assert sum(parts) == pytest.approx(reward, abs=1e-3)  # terms are written with seven digits


def test_numbers_have_the_time_at_which_their_round_was_finished(recorded: Recorded) -> None:
    trace = only(recorded)

    finished = {where.round: where.time_s for where, _ in recorded.of(RoundFinishedPayload)}
    assert {p.time_s for p in trace.points if p.axis == "round"} == set(finished.values())
    assert {p.place: p.time_s for p in trace.points if p.axis == "round"} == finished
    assert [p.time_s for p in trace.points] == sorted(p.time_s for p in trace.points)
    ((start, _),) = recorded.of(RunStartedPayload)
    assert (trace.started_s, trace.last_s) == (start.time_s, max(finished.values()))


def test_a_trace_knows_its_run(recorded: Recorded) -> None:
    trace = only(recorded)

    assert (trace.name, trace.team, trace.group_of, trace.status) == (recorded.run, None, None, "done")
    assert trace.config == recorded.manifest["config"]


def ended(round_: int, group: str | None = None, metric: float = 50.0) -> list[tuple[Payload, dict[str, Any]]]:
    where: dict[str, Any] = {"round": round_, "episode": round_} | ({} if group is None else {"group": group})
    episode = EpisodeFinishedPayload(
        env_id=0, val_metric=metric, test_metric=metric, host_params=10, params=10, fossilized=0, flops=1,
        flops_wasted=0, reward=metric,
    )  # fmt: skip
    finished = RoundFinishedPayload(episodes=1, metric_mean=metric, reward_mean=metric, seconds=1.0)
    return [(step(0), {**where, "step": 0}), (episode, where), (finished, where)]


def traces_of(folder: ByHand, *events: tuple[Payload, dict[str, Any]]) -> list[Trace]:
    folder.write(folder.line(started()), *(folder.line(payload, **where) for payload, where in events))
    with closing(open_memory([folder.path])) as store:
        return traces(store.con)


def test_a_run_without_a_finished_round_has_no_curves_yet(folder: ByHand) -> None:
    (trace,) = traces_of(folder, (step(0), {"round": 0, "step": 0}))

    assert (trace.points, trace.config, trace.status) == ((), {}, "died")
    assert trace.last_s == trace.started_s == 1000.0


@pytest.mark.parametrize("config", ["[]", "5", "null", '"text"'])
def test_what_is_no_configuration_counts_as_none(folder: ByHand, config: str) -> None:
    (folder.path / "run.json").write_text(f'{{"schema_version": {SCHEMA_VERSION}, "config": {config}}}')

    (trace,) = traces_of(folder, *ended(0))

    assert trace.config == {}


def test_a_number_that_was_not_finite_is_nan_and_not_left_out(folder: ByHand) -> None:
    (trace,) = traces_of(folder, *ended(0, metric=float("nan")))

    assert isnan(curves(trace)["rounds/reward_mean"][0])


def test_a_term_that_paid_nothing_in_a_round_has_0_there(folder: ByHand) -> None:
    paid = step(0, reward=-1.5, terms=(("rent", -1.5),)), {"round": 0, "step": 0}

    (trace,) = traces_of(folder, paid, *ended(0), *ended(1))

    assert curves(trace)["reward/rent"] == {0: -1.5, 1: 0.0}


def test_two_policies_of_one_run_are_two_traces(folder: ByHand) -> None:
    one, other = traces_of(folder, *ended(0, "shaped", 40.0), *ended(0, "simplified", 60.0))

    assert [one.name, other.name] == ["a-run/team-shaped", "a-run/team-simplified"]
    assert [curves(trace)["rounds/val_metric"] for trace in (one, other)] == [{0: 40.0}, {0: 60.0}]


# ---- TensorBoard


@pytest.fixture
def board(recorded: Recorded, tmp_path: Path) -> EventAccumulator:
    """A run as TensorBoard reads it."""
    tensorboard.write(traces(recorded.con), tmp_path)
    return read(tmp_path / recorded.run)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    found.Reload()
    return found


def settings(board: EventAccumulator, tag: str) -> HParamsPluginData:
    data: HParamsPluginData = HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content)
    return data


def test_tensorboard_reads_every_curve(recorded: Recorded, board: EventAccumulator) -> None:
    scalars = board.PluginTagToContent("scalars")

    assert set(scalars) == {*told(recorded), *COUNTED_ELSEWHERE}
    for name, values in told(recorded).items():
        found = {event.step: make_ndarray(event.tensor_proto).item() for event in board.Tensors(name)}
        assert found == {place: pytest.approx(value, rel=1e-6, abs=1e-6) for place, value in values.items()}, name


def test_tensorboard_shows_numbers_at_the_time_of_the_run(recorded: Recorded, board: EventAccumulator) -> None:
    found = [(event.step, event.wall_time) for event in board.Tensors("rounds/reward_mean")]

    assert found == [(where.round, where.time_s) for where, _ in recorded.of(RoundFinishedPayload)]


def test_tensorboard_has_the_configuration_and_how_the_run_ended(recorded: Recorded, board: EventAccumulator) -> None:
    start = settings(board, "_hparams_/session_start_info").session_start_info
    end = settings(board, "_hparams_/session_end_info").session_end_info

    config = recorded.manifest["config"]
    assert start.group_name == recorded.run
    assert start.hparams["run.seed"].number_value == config["run"]["seed"]
    assert start.hparams["task.name"].string_value == config["task"]["name"]
    assert start.hparams["task.widths"].string_value == "[4, 4, 8]"
    assert start.hparams["body.fossil_train"].bool_value is config["body"]["fossil_train"] is True
    assert config["task"]["data"] is None
    assert "task.data" not in start.hparams
    assert end.status == Status.STATUS_SUCCESS


def test_a_run_that_died_is_a_failure_there(folder: ByHand, tmp_path: Path) -> None:
    tensorboard.write(traces_of(folder, *ended(0)), tmp_path / "out")

    end = settings(read(tmp_path / "out" / "a-run"), "_hparams_/session_end_info").session_end_info
    assert end.status == Status.STATUS_FAILURE


def test_nothing_is_written_over_or_beside_what_exists(folder: ByHand, tmp_path: Path) -> None:
    both = traces_of(folder, *ended(0, "A"), *ended(0, "B"))
    (tmp_path / "out" / "a-run" / "team-B").mkdir(parents=True)

    with pytest.raises(ConfigError, match="team-B exists already; nothing is written over"):
        tensorboard.write(both, tmp_path / "out")

    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_named(folder: ByHand, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")

    with pytest.raises(StorageError, match=r"out/a-run/.*a file is in the way"):
        tensorboard.write(traces_of(folder, *ended(0)), tmp_path / "out")


@pytest.mark.parametrize("team", ["../../out", "..", "/tmp/x", "A/B", ""])
def test_a_team_s_name_leads_to_no_other_folder(folder: ByHand, tmp_path: Path, team: str) -> None:
    tensorboard.write(traces_of(folder, *ended(0, team)), tmp_path / "out")

    (written,) = (path for path in tmp_path.rglob("events.out.*"))
    assert written.parent.parent == tmp_path / "out" / "a-run"


# ---- Weights & Biases


def exported(folder: Path, to: Path, project: str = "esper") -> subprocess.CompletedProcess[str]:
    """A process of its own: the library changes standard output and starts a helper."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    theirs = {f"WANDB_{name}_DIR": str(to) for name in ("CONFIG", "CACHE", "DATA")} | {"WANDB_DIR": str(to)}
    switches = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    command = (sys.executable, "-m", "esper.scripts.main", "export", str(folder), "--wandb", project)
    return subprocess.run(command, env=ours | theirs | switches, cwd=to, capture_output=True, text=True, timeout=120)


def records(path: Path) -> Iterator[Record]:
    """The library's own file, which it has no reader for: 7 bytes, then a log as LevelDB writes it.

    Blocks of 32 KiB hold pieces, each with a checksum (4 bytes), its length (2) and what it is of its record (1):
    all (1), the beginning (2), a part (3) or the end (4). What is too short for a piece ends a block.
    """
    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def pairs(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_weights_and_biases_gets_every_curve(recorded: Recorded, tmp_path: Path) -> None:
    done = exported(recorded.folder, tmp_path)

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    (run,) = (record.run for record in found if record.HasField("run"))
    config = {name: value for name, value in pairs(run.config.update).items() if name != "_wandb"}
    assert (run.project, run.display_name, config) == ("esper", recorded.run, recorded.manifest["config"])

    rows = [pairs(record.history.item) for record in found if record.HasField("history")]
    axes = {
        record.metric.glob_name.removesuffix("/*"): record.metric.step_metric
        for record in found
        if record.HasField("metric") and record.metric.glob_name
    }
    expected = told(recorded)
    for name, values in expected.items():
        axis = axes[name.partition("/")[0]]
        assert {row[axis]: row[name] for row in rows if name in row} == {at: near(v) for at, v in values.items()}, name
    assert {name for row in rows for name in row if "/" in name} == {*expected, *COUNTED_ELSEWHERE}
    finished = {where.round: near(where.time_s) for where, _ in recorded.of(RoundFinishedPayload)}
    assert {row["round"]: row["_timestamp"] for row in rows if "round" in row} == finished
    (end,) = (record.exit for record in found if record.HasField("exit"))
    assert end.exit_code == 0


def test_arms_are_a_group_there_and_a_run_that_died_has_failed(folder: ByHand, tmp_path: Path) -> None:
    top = tmp_path / "both"
    (top / "ev").mkdir(parents=True)
    arm = ByHand(top / "arms" / "one")
    arm.write(arm.line(started()), *(arm.line(payload, **where) for payload, where in ended(0)))
    (tmp_path / "out").mkdir()

    done = exported(top, tmp_path / "out")

    assert (done.returncode, done.stderr) == (0, "")
    (path,) = (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    (run,) = (record.run for record in found if record.HasField("run"))
    assert (run.display_name, run.run_group) == ("both/arms/one", "both")
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]


def test_what_the_library_refuses_is_one_line(folder: ByHand, tmp_path: Path) -> None:
    folder.write(folder.line(started()))

    done = exported(folder.path, tmp_path, project="a/b")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("esper: wandb: Invalid project name 'a/b'")
    assert done.stderr.count("\n") == 1
