"""`esper train` in real processes: what it prints, what it leaves behind, and that it can be done again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.scripts.loader import OLD_LOADER, safe_loader
from tests.scripts.zygote import Ended, Zygote

from esper.leyline.telemetry import (
    EnvStepPayload,
    EpisodeFinishedPayload,
    LogPayload,
    Payload,
    RunFinishedPayload,
    RunStartedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
)
from esper.nissa.reader import gaps, read_events
from esper.nissa.run_folder import RunFolder

SHORT = ("--task", "digits", "--episode-length", "6", "--set", "task.epoch_items=128")
QUICK = ("--set", "body.min_training=0", "--set", "body.min_holding=0", "--set", "body.min_prune_age=0")
TEN = ("--episode-length", "10")  # in which the rule grows
TAIL = re.compile(r"run: (?P<run>\S+)\ndigest: sha256:(?P<digest>[0-9a-f]{64})\n\Z")
# Keeps a seed of two rungs in r0c1 within nine epochs.
KEEPING = [
    {"op": "GERMINATE", "slot": "r0c1", "blueprint": "conv_ladder", "tempo": "fast"},
    {"op": "ADVANCE", "slot": "r0c1"},
    {"op": "GROW_INTERNAL", "slot": "r0c1"},
    {"op": "ADVANCE", "slot": "r0c1"},
    {"op": "WAIT"},
    {"op": "WAIT"},
    {"op": "ADVANCE", "slot": "r0c1"},
    {"op": "FOSSILIZE", "slot": "r0c1"},
    {"op": "WAIT"},
]
LADDER = ("--blueprints", "conv_ladder", "--episode-length", "9", *QUICK)


def tail(ended: Ended) -> tuple[str, str]:
    """The run's folder and digest, from the last two lines."""
    assert ended.code == 0, ended.err
    found = TAIL.search(ended.out)
    assert found is not None, ended.out
    return found["run"], found["digest"]


def train(zygote: Zygote, cwd: Path, *argv: str) -> tuple[str, str]:
    return tail(zygote.run("train", *argv, "--quiet", cwd=cwd))


def told(folder: Path, kind: type[Payload]) -> list[Payload]:
    return [payload for _, payload in read_events(folder) if type(payload) is kind]


# --- what is printed --------------------------------------------------------------------------------------------


def test_the_last_two_lines_say_where_the_run_is_and_its_digest(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", "random", *SHORT, cwd=tmp_path)

    run, digest = tail(ended)
    assert len(ended.out.splitlines()) > 5
    assert "env 0: test accuracy" in ended.out
    (finished,) = told(tmp_path / run, RunFinishedPayload)
    assert (finished.status, finished.digest) == ("done", digest)
    assert (tmp_path / "runs" / "latest").resolve() == (tmp_path / run).resolve()
    assert ended.err.count("\n") <= 12  # progress, at most a line for each tenth of the way


def test_quiet_prints_nothing_but_the_last_two_lines(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", "static", *SHORT, "--quiet", cwd=tmp_path)

    tail(ended)
    assert len(ended.out.splitlines()) == 2
    assert ended.err == ""


def test_without_progress_the_results_are_printed_all_the_same(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", "static", *SHORT, "--no-progress", cwd=tmp_path)

    tail(ended)
    assert len(ended.out.splitlines()) > 5
    assert ended.err == ""


@pytest.mark.parametrize("length", [1, 5, 8, 9])
def test_an_episode_in_which_the_rule_cannot_grow_says_so(zygote: Zygote, tmp_path: Path, length: int) -> None:
    argv = ("heuristic", *SHORT, "--episode-length", str(length))

    ended = zygote.run("train", *argv, "--no-progress", cwd=tmp_path)

    run, _ = tail(ended)
    grew = told(tmp_path / run, SeedGerminatedPayload) != []
    words = [f"esper: {note.text}" for note in told(tmp_path / run, LogPayload)]
    assert ended.err.splitlines() == words
    assert len(words) == (0 if grew else 1)
    assert grew == (length == 9)
    assert all(f"run.episode_length: {length} is too short to grow in" in line for line in words)


def test_slower_seeds_need_longer_episodes_and_quiet_tells_the_folder_only(zygote: Zygote, tmp_path: Path) -> None:
    slow = ("--episode-length", "12", "--set", "body.min_training=0.5", "--quiet")

    ended = zygote.run("train", "heuristic", *SHORT, *slow, cwd=tmp_path)

    run, _ = tail(ended)
    assert ended.err == ""
    # A look, planting, 6 epochs of training, 3 of blending, 1 of holding, and 2 in which to keep it.
    (note,) = told(tmp_path / run, LogPayload)
    assert note.level == "warning"
    assert "take 14 epochs here" in note.text


def test_prices_in_points_of_accuracy_are_told_where_the_metric_is_in_bits(zygote: Zygote, tmp_path: Path) -> None:
    quick = ("--task", "stdlib_lm", "--episode-length", "1", "--set", "task.epoch_items=16")
    rent_alone = ("--set", "reward.rent=0.06")

    plain = zygote.run("train", "static", *quick, *rent_alone, cwd=tmp_path)
    preset = zygote.run("train", "static", "--preset", "stdlib_lm", *quick, cwd=tmp_path)

    warned, *_ = plain.err.splitlines()
    assert warned == (
        "esper: reward.price_scale, reward.shock, reward.churn, reward.rollback, reward.divergence, "
        "gates.min_improvement, gates.min_contribution: by default in points of accuracy, and one counts like 0.02 "
        "bits here; start from --preset stdlib_lm"
    )
    assert "points of accuracy" not in preset.err


def test_a_run_that_is_not_to_grow_is_not_told_that_it_cannot(zygote: Zygote, tmp_path: Path) -> None:
    run, _ = train(zygote, tmp_path, "static", *SHORT)

    assert told(tmp_path / run, LogPayload) == []


def test_help_has_examples_and_names_every_flag_of_the_documents(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", "--help", cwd=tmp_path)

    assert ended.code == 0
    assert "esper train heuristic --task" in ended.out
    flags = (
        "task preset slots max-seeds blueprints episode-length envs rounds seed device data data-dir config-json set"
    )
    for flag in flags.split():
        assert f"--{flag} " in ended.out


# --- again ------------------------------------------------------------------------------------------------------


def test_the_installed_command_the_module_and_a_fork_come_to_the_same_digest(zygote: Zygote, tmp_path: Path) -> None:
    argv = ("random", *SHORT, "--envs", "2", "--seed", "3", "--quiet")
    esper = Path(sys.executable).with_name("esper")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[str(esper), "train", *argv], [sys.executable, "-m", "esper.scripts.train", *argv]]

    digests = {train(zygote, tmp_path, *argv)[1]}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for process in [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for command in commands]:
        out, err = process.communicate()
        digests.add(tail(Ended(process.returncode, out, err))[1])

    assert len(digests) == 1


def test_another_seed_comes_to_another_digest(zygote: Zygote, tmp_path: Path) -> None:
    first, second = (train(zygote, tmp_path, "static", *SHORT, "--seed", seed)[1] for seed in ("0", "1"))

    assert first != second


def test_a_runs_manifest_reruns_it_and_a_flag_still_wins(zygote: Zygote, tmp_path: Path) -> None:
    run, digest = train(zygote, tmp_path, "heuristic", *SHORT, "--seed", "5", "--set", "body.leash=0.3")

    again, same_digest = train(zygote, tmp_path, "--config-json", f"{run}/run.json")
    other, _ = train(zygote, tmp_path, "static", "--config-json", f"{run}/run.json", "--seed", "6")

    assert (again != run, same_digest) == (True, digest)
    config = json.loads((tmp_path / other / "run.json").read_text())["config"]
    assert config["run"]["controller"] == "static"
    assert config["run"]["seed"] == 6
    assert config["body"]["leash"] == 0.3


def test_the_decisions_of_a_run_are_repeated_to_the_same_digest(zygote: Zygote, tmp_path: Path) -> None:
    argv = (*SHORT, "--envs", "2", "--episode-length", "10", *QUICK)
    run, digest = train(zygote, tmp_path, "random", *argv)
    decided = Counter(step.op for step in told(tmp_path / run, EnvStepPayload))
    assert len(decided) >= 3

    for name in ("latest", Path(run).name, run):
        assert train(zygote, tmp_path, f"script:{name}", *argv)[1] == digest


def test_a_script_may_be_a_file(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps([KEEPING]))

    run, _ = train(zygote, tmp_path, "script:plan.json", *SHORT, *LADDER)

    steps = told(tmp_path / run, EnvStepPayload)
    assert [step.op for step in steps] == [line["op"] for line in KEEPING]
    assert all(step.done for step in steps)
    assert [step.level[1] for step in steps] == [1, 1, 2, 2, 2, 2, 2, 2, 2]


# --- from another run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that kept a seed of two rungs in r0c1."""
    cwd = tmp_path_factory.mktemp("grown")
    (cwd / "plan.json").write_text(json.dumps([KEEPING]))
    return cwd / train(zygote, cwd, "script:plan.json", *SHORT, *LADDER)[0]


@safe_loader
def test_a_grown_model_can_be_started_from(zygote: Zygote, tmp_path: Path, grown: Path) -> None:
    (before,) = told(grown, EpisodeFinishedPayload)

    onward, _ = train(zygote, tmp_path, "static", *SHORT, "--blueprints", "conv_ladder", "--start-from", str(grown))

    first, *_ = told(tmp_path / onward, EnvStepPayload)
    (after,) = told(tmp_path / onward, EpisodeFinishedPayload)
    assert first.stage == (1, 7, 1)  # dormant, fossilised, dormant
    assert first.level == (0, 2, 0)
    assert first.train_loss < told(grown, EnvStepPayload)[0].train_loss
    assert (after.params, after.fossilized) == (before.params, 1)


@safe_loader
def test_a_run_from_the_latest_can_be_rerun_when_another_run_is_the_latest(zygote: Zygote, tmp_path: Path) -> None:
    train(zygote, tmp_path, "static", *SHORT)
    onward, digest = train(zygote, tmp_path, "static", *SHORT, "--start-from", "latest")

    assert train(zygote, tmp_path, "--config-json", f"{onward}/run.json")[1] == digest


def test_a_final_topology_is_built_from_scratch_with_as_many_parameters(
    zygote: Zygote, tmp_path: Path, grown: Path
) -> None:
    (grown_up,) = told(grown, EpisodeFinishedPayload)

    scratch, _ = train(zygote, tmp_path, "static", *SHORT, "--topology-from", str(grown))

    (built,) = told(tmp_path / scratch, EpisodeFinishedPayload)
    # Two rungs of 9 C^2 + 2 C parameters for 8 channels; the host has no more than it had.
    assert grown_up.params == grown_up.host_params + 2 * (9 * 64 + 16)
    assert (built.host_params, built.params, built.fossilized) == (grown_up.params, grown_up.params, 0)
    first, *_ = told(tmp_path / scratch, EnvStepPayload)
    assert first.stage == (1, 1, 1)


@pytest.fixture(scope="module")
def several(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the latest folder is of two runs, as demonstrations and comparisons leave them."""
    cwd = tmp_path_factory.mktemp("several")
    runs = {who: cwd / train(zygote, cwd, who, *SHORT, *TEN)[0] for who in ("heuristic", "static")}
    with RunFolder.create(cwd / "runs", "both") as top:
        (top.path / "arms").mkdir()
    for who, run in runs.items():
        run.rename(top.path / "arms" / f"{who}-s0")
    return cwd


@pytest.mark.parametrize("argv", [("script:latest",), ("static", "--start-from"), ("static", "--topology-from")])
def test_a_folder_of_several_runs_names_them(zygote: Zygote, several: Path, argv: tuple[str, ...]) -> None:
    asked = argv if len(argv) == 1 else (*argv, "latest")
    before = sorted(several.rglob("*"))

    ended = zygote.run("train", *asked, cwd=several)

    assert ended.code == 2
    assert ended.err == (
        "esper: run 'latest': holds 2 runs: heuristic-s0, static-s0; give one, such as latest/arms/heuristic-s0\n"
    )
    assert sorted(several.rglob("*")) == before


def test_one_of_several_runs_is_repeated_and_the_repetition_can_be_rerun(
    zygote: Zygote, several: Path, tmp_path: Path
) -> None:
    shutil.copytree(several / "runs", tmp_path / "runs", symlinks=True)
    (arm,) = tmp_path.glob("runs/2*/arms/heuristic-s0")
    (done,) = told(arm, RunFinishedPayload)
    argv = (*SHORT, *TEN)

    again, digest = train(zygote, tmp_path, "script:latest/arms/heuristic-s0", *argv)

    assert digest == done.digest
    # By now the latest is another run, which has no arms.
    assert train(zygote, tmp_path, "--config-json", f"{again}/run.json")[1] == digest
    for name in (f"{arm.parent.parent.name}/arms/heuristic-s0", str(arm)):
        assert train(zygote, tmp_path, f"script:{name}", *argv)[1] == digest


@pytest.mark.parametrize("flag", [pytest.param("--start-from", marks=safe_loader), "--topology-from"])
def test_one_of_several_runs_is_gone_on_from(zygote: Zygote, several: Path, tmp_path: Path, flag: str) -> None:
    (arm,) = several.glob("runs/2*/arms/heuristic-s0")
    (grown,) = told(arm, EpisodeFinishedPayload)
    ended = zygote.run("train", "static", flag, str(arm), *SHORT, *TEN, "--quiet", cwd=tmp_path)

    (after,) = told(tmp_path / tail(ended)[0], EpisodeFinishedPayload)
    assert after.params == grown.params


def test_an_arm_that_a_run_does_not_have_names_those_it_has(zygote: Zygote, several: Path) -> None:
    ended = zygote.run("train", "static", "--topology-from", "latest/arms/ppo-s0", cwd=several)

    assert ended.code == 2
    assert "has no arm 'ppo-s0'; it has heuristic-s0, static-s0" in ended.err
    assert ended.err.count("\n") == 1


def test_what_is_saved_loads_with_plain_torch_load(grown: Path) -> None:
    (environment,) = torch.load(grown / "checkpoints" / "final.pt")["environments"]

    assert environment["model"]["slots.r0c1.seed.rungs.1.2.weight"].shape == (8, 8, 3, 3)


def test_the_final_topology_is_saved_as_json(grown: Path) -> None:
    (topology,) = json.loads((grown / "checkpoints" / "topology.json").read_text())["environments"]

    assert topology == [
        {"slot": "r0c1", "blueprint": "conv_ladder", "blend": "ADD", "rungs": [True, True, False, False]}
    ]


@pytest.mark.skipif(not OLD_LOADER, reason="this torch loads files from elsewhere safely")
def test_an_old_torch_refuses_a_model_that_this_run_did_not_write(zygote: Zygote, tmp_path: Path, grown: Path) -> None:
    ended = zygote.run("train", "static", *SHORT, "--start-from", str(grown), cwd=tmp_path)

    assert ended.code == 3
    assert "known hole in its loader" in ended.err


@safe_loader
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--task", "digits_scale"), "holds a model grown on 'digits', this run is on 'digits_scale'"),
        (("--set", "task.widths=8,8,8"), "holds a model of another host"),
        (("--slots", "r0c0", "r0c1"), "holds a model of another host"),
    ],
)
def test_a_grown_model_of_another_host_is_refused(
    zygote: Zygote, tmp_path: Path, grown: Path, flags: tuple[str, ...], words: str
) -> None:
    ended = zygote.run("train", "static", *SHORT, "--start-from", str(grown), *flags, cwd=tmp_path)

    assert ended.code == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# --- what is told -----------------------------------------------------------------------------------------------


def test_the_events_of_a_run_decode_without_a_gap_and_a_step_is_short(zygote: Zygote, tmp_path: Path) -> None:
    argv = ("--envs", "2", "--rounds", "2", "--episode-length", "12")

    run, _ = train(zygote, tmp_path, "random", *SHORT, *argv, *QUICK)

    events = list(read_events(tmp_path / run))
    assert gaps(tmp_path / run) == []
    assert [envelope.counter for envelope, _ in events] == list(range(len(events)))
    assert isinstance(events[0][1], RunStartedPayload)
    assert isinstance(events[-1][1], RunFinishedPayload)
    lines = [line for path in (tmp_path / run / "ev").glob("*.jsonl") for line in path.read_bytes().splitlines()]
    steps = [len(line) for line in lines if json.loads(line)["t"] == "ENV_STEP"]
    assert len(steps) == 2 * 2 * 12
    assert sum(steps) / len(steps) <= 600


def test_ladders_are_tuned_where_they_are_on_offer(zygote: Zygote, tmp_path: Path) -> None:
    argv = ("--task", "digits", "--episode-length", "20", "--blueprints", "conv_ladder")

    run, _ = train(zygote, tmp_path, "heuristic", *argv, "--set", "task.epoch_items=512")

    changes = told(tmp_path / run, SeedInternalLevelChangedPayload)
    assert changes
    for change in changes:
        assert abs(change.to_level - change.from_level) == 1
        assert 0 <= change.to_level <= change.internal_max_level == 4


def test_the_manifest_names_slots_heads_and_settings(zygote: Zygote, tmp_path: Path) -> None:
    run, _ = train(zygote, tmp_path, "static", *SHORT, "--slots", "r0c0", "r0c2")

    manifest = json.loads((tmp_path / run / "run.json").read_text())
    assert [slot["id"] for slot in manifest["slots"]] == ["r0c0", "r0c2"]
    assert manifest["heads"]["slot"] == ["r0c0", "r0c2"]
    assert manifest["config"]["body"]["slots"] == ["r0c0", "r0c2"]
    assert manifest["metric"] == {"name": "accuracy", "unit": "%", "higher_is_better": True}
    described = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    head = described.stdout.strip() if described.returncode == 0 else None
    assert (manifest["git"] is None) == (head is None)
    if head is not None:
        assert head.startswith(manifest["git"].rstrip("+"))


# --- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_code_and_a_last_event(
    zygote: Zygote, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    pid = zygote.start("train", "static", "--task", "digits", "--episode-length", "5000", "--quiet", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 2000 for path in tmp_path.glob("runs/2*/ev/*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(pid, sent)

    ended = zygote.wait(pid)

    assert ended.code == code
    assert "Traceback" not in ended.err
    (run,) = tmp_path.glob("runs/2*")
    *how_to_go_on, what = ended.err.splitlines()
    assert how_to_go_on == [f"esper: to go on: esper resume runs/{run.name}"]
    assert what in ("esper: interrupted", "esper: terminated")
    (last,) = told(run, RunFinishedPayload)
    assert last.status == "interrupted"
    assert last.digest is None
    assert gaps(run) == []
    assert list((run / "ev").glob("*.open")) == []


def test_a_run_whose_every_host_diverged_says_so_in_its_exit_code(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", "static", *SHORT, "--set", "task.lr=1e30", "--quiet", cwd=tmp_path)

    assert ended.code == 5
    assert TAIL.search(ended.out)
    assert ended.err.splitlines() == [
        "esper: the governor gave up every host: their losses diverge; try a smaller task.lr"
    ]
