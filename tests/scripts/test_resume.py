"""A run that was killed, stopped or starved ends as if nothing had happened: same digest, same decisions and events."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.scripts.loader import safe_loader
from tests.scripts.zygote import Ended, Zygote

from esper.leyline import faults
from esper.leyline.errors import ExitCode
from esper.leyline.telemetry import (
    LogPayload,
    PpoUpdatedPayload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    RunResumedPayload,
    SeedGerminatedPayload,
)
from esper.nissa.reader import live_events, read_events

ALWAYS = ("--set", "run.checkpoint.every=1")
TINY = ("--task", "digits", "--set", "task.epoch_items=64", "--set", "task.widths=4,4", "--episode-length", "6")
RULE = ("random", *TINY, "--envs", "2", "--rounds", "2", "--seed", "3", "--blueprints", "conv_ladder", "conv_light")
ADAM = ("--set", "task.optimiser=adamw", "--set", "task.schedule=cosine", "--set", "task.lr=0.003")
PPO = ("ppo", *TINY, "--envs", "2", "--rounds", "3", "--set", "policy.network.size=16", "--set", "ppo.epochs=1")
TOLD_ONCE = (RunResumedPayload, RunFinishedPayload, RunHeartbeatPayload, LogPayload)
"""Events of a process, not of what is trained."""


def train(zygote: Zygote, cwd: Path, *argv: str, **environment: str) -> Ended:
    return zygote.run("train", *argv, *ALWAYS, "--quiet", cwd=cwd, **environment)


def resume(zygote: Zygote, cwd: Path, *argv: str, **environment: str) -> Ended:
    return zygote.run("resume", "latest", *argv, "--quiet", cwd=cwd, **environment)


def digest(ended: Ended) -> str:
    assert ended.code == 0, ended.err
    return ended.out.splitlines()[-1].removeprefix("digest: sha256:")


def newest(cwd: Path) -> Path:
    return (cwd / "runs" / "latest").resolve()


def told(folder: Path) -> list[Any]:
    """All that was told of what was trained, but for the clock's part."""
    found = []
    for envelope, payload in live_events(folder):
        if not isinstance(payload, TOLD_ONCE):
            timeless = {**msgspec.to_builtins(payload), "seconds": None, "phases": None}
            found.append((envelope.t, envelope.group, envelope.round, envelope.episode, envelope.step, repr(timeless)))
    return found


class Whole:
    """Runs that nobody disturbed, each made once."""

    def __init__(self, zygote: Zygote, place: Path) -> None:
        self._zygote, self._place = zygote, place
        self._made: dict[tuple[str, ...], tuple[str, list[Any]]] = {}

    def of(self, *argv: str) -> tuple[str, list[Any]]:
        """Its digest and its events."""
        if argv not in self._made:
            cwd = self._place / str(len(self._made))
            cwd.mkdir()
            self._made[argv] = digest(train(self._zygote, cwd, *argv, "--workers", "1")), told(newest(cwd))
        return self._made[argv]


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(zygote, tmp_path_factory.mktemp("whole"))


def killed(zygote: Zygote, cwd: Path, plan: str, *argv: str) -> None:
    ended = train(zygote, cwd, *argv, ESPER_FAULTS=plan)
    assert ended.code == -signal.SIGKILL, f"{plan}: {ended.code} {ended.err}"


# --- killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [site for site in faults.SITES if not site.startswith("ranks.")])
def test_a_run_that_is_killed_at_any_place_ends_as_if_it_had_not_been(
    zygote: Zygote, whole: Whole, tmp_path: Path, site: str
) -> None:
    killed(
        zygote, tmp_path, f"{site}=kill@{1 if site in ('run.grown', 'run.finished') else 2}", *RULE, "--workers", "1"
    )

    ended = resume(zygote, tmp_path)

    assert (digest(ended), ended.err) == (whole.of(*RULE)[0], "")
    assert told(newest(tmp_path)) == whole.of(*RULE)[1]
    names = [path.name for path in (newest(tmp_path) / "checkpoints").iterdir()]
    assert not [name for name in names if name.startswith(".")]


RUNS: dict[str, Sequence[str]] = {
    "AdamW with a schedule": (*RULE, *ADAM),
    "PPO": PPO,
    "PPO taught by a rule": (*PPO, "--set", "ppo.teacher.rule=heuristic", "--set", "ppo.teacher.rounds=2"),
    "an A/B test": (*PPO, "--ab-test", "shaped-vs-basic"),
    "a rule with a memory": ("heuristic", *RULE[1:], "--set", "policy.heuristic.latest=0.1"),
}


@pytest.mark.parametrize("name", RUNS)
def test_whatever_is_learned_by_whomever_a_chain_of_kills_changes_nothing(
    zygote: Zygote, whole: Whole, tmp_path: Path, name: str
) -> None:
    argv = RUNS[name]
    killed(zygote, tmp_path, "run.step=kill@4", *argv, "--workers", "1")
    for _ in range(2):
        again = resume(zygote, tmp_path, ESPER_FAULTS="run.step=kill@5")
        assert again.code == -signal.SIGKILL, again.err

    ended = resume(zygote, tmp_path)

    assert (digest(ended), ended.err) == (whole.of(*argv)[0], "")
    assert told(newest(tmp_path)) == whole.of(*argv)[1]


def test_the_runs_of_these_tests_grow_and_learn(whole: Whole) -> None:
    grown = [event for event in whole.of(*RULE)[1] if event[0] == SeedGerminatedPayload.type.name]
    learned = [event for event in whole.of(*PPO)[1] if event[0] == PpoUpdatedPayload.type.name]

    assert len(grown) >= 4
    assert len(learned) == 3


def test_another_number_of_workers_goes_on_to_the_same_end(zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    killed(zygote, tmp_path, "run.step=kill@3", *RULE, "--workers", "2")
    again = resume(zygote, tmp_path, "--workers", "1", ESPER_FAULTS="run.step=kill@5")
    assert again.code == -signal.SIGKILL, again.err

    ended = resume(zygote, tmp_path)

    assert digest(ended) == whole.of(*RULE)[0]
    assert told(newest(tmp_path)) == whole.of(*RULE)[1]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    killed(zygote, tmp_path, "run.step=kill", *RULE, "--workers", "1")
    assert list((newest(tmp_path) / "checkpoints").iterdir()) == []

    assert digest(resume(zygote, tmp_path)) == whole.of(*RULE)[0]
    assert told(newest(tmp_path)) == whole.of(*RULE)[1]


def test_a_run_that_is_done_is_only_read(zygote: Zygote, tmp_path: Path) -> None:
    first = train(zygote, tmp_path, "static", *TINY)
    files = sorted(path for path in newest(tmp_path).rglob("*"))

    again = zygote.run("train", "--resume", "latest", "--quiet", cwd=tmp_path)

    assert again == first
    assert sorted(path for path in newest(tmp_path).rglob("*")) == files


def test_a_script_made_from_a_run_that_was_resumed_has_every_decision_once(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    argv = ("random", *TINY, "--seed", "3", "--blueprints", "conv_light")
    killed(zygote, tmp_path, "run.saved=kill@2", *argv)
    resume(zygote, tmp_path)
    run = newest(tmp_path).name

    scripted = train(zygote, tmp_path, f"script:{run}", *argv[1:])

    assert digest(scripted) == whole.of(*argv)[0]


# --- stopped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "code"), [("interrupt", ExitCode.INTERRUPTED), ("terminate", ExitCode.TERMINATED)])
@pytest.mark.parametrize("site", ["run.step", "run.hold", "checkpoint.verify", "checkpoint.rename"])
def test_a_signal_saves_what_is_held_and_has_an_exit_code_of_its_own(
    zygote: Zygote, whole: Whole, tmp_path: Path, action: str, code: ExitCode, site: str
) -> None:
    began = time.monotonic()
    stopped = train(zygote, tmp_path, *RULE, "--workers", "1", ESPER_FAULTS=f"{site}={action}@3")

    assert (stopped.code, stopped.out) == (code, "")
    assert f"to go on: esper resume {Path('runs') / newest(tmp_path).name}" in stopped.err
    assert time.monotonic() - began < 60
    assert digest(resume(zygote, tmp_path)) == whole.of(*RULE)[0]
    assert told(newest(tmp_path)) == whole.of(*RULE)[1]


def test_what_is_held_is_saved_though_no_checkpoint_was_due(zygote: Zygote, tmp_path: Path) -> None:
    argv = (*RULE, "--workers", "1", "--set", "run.checkpoint.every=99", "--quiet")
    stopped = zygote.run("train", *argv, cwd=tmp_path, ESPER_FAULTS="run.step=terminate@4")

    (page,) = (newest(tmp_path) / "checkpoints").glob("ckpt-*/meta.json")
    found = json.loads(page.read_text())

    assert stopped.code == ExitCode.TERMINATED
    assert (found["round"], found["step"]) in ((0, 1), (0, 2), (0, 3))


def test_a_second_signal_ends_the_process_at_once_and_does_no_damage(
    zygote: Zygote, whole: Whole, tmp_path: Path
) -> None:
    plan = "run.step=terminate@4, checkpoint.write=sleep:20@9"
    began = time.monotonic()
    process = zygote.start("train", *RULE, "--workers", "1", *ALWAYS, "--quiet", cwd=tmp_path, ESPER_FAULTS=plan)
    signal_after_the_first(tmp_path, process)

    assert zygote.wait(process).code in (ExitCode.TERMINATED, ExitCode.INTERRUPTED)
    assert time.monotonic() - began < 60
    assert digest(resume(zygote, tmp_path)) == whole.of(*RULE)[0]


def signal_after_the_first(cwd: Path, process: int) -> None:
    """Sends SIGTERM when the run has told that it was interrupted, thus while it saves."""
    import os

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        events = read_events(newest(cwd)) if (cwd / "runs" / "latest").exists() else iter(())
        if any(isinstance(payload, RunFinishedPayload) for _, payload in events):
            os.kill(process, signal.SIGTERM)
            return
        time.sleep(0.05)


# --- a disk that refuses ----------------------------------------------------------------------------------------


def test_a_full_disk_stops_no_training_and_says_so(zygote: Zygote, whole: Whole, tmp_path: Path) -> None:
    ended = train(zygote, tmp_path, *RULE, "--workers", "1", ESPER_FAULTS="checkpoint.write=enospc@3")
    logs = [payload.text for _, payload in read_events(newest(tmp_path)) if isinstance(payload, LogPayload)]

    assert digest(ended) == whole.of(*RULE)[0]
    assert "the checkpoint could not be written: no space left on device; training goes on" in logs


@pytest.mark.parametrize(("action", "words"), [("enospc", "no space left"), ("erofs", "read-only file system")])
def test_a_disk_that_takes_no_checkpoint_three_times_ends_the_run_in_one_line(
    zygote: Zygote, whole: Whole, tmp_path: Path, action: str, words: str
) -> None:
    ended = train(zygote, tmp_path, *RULE, "--workers", "1", ESPER_FAULTS=f"checkpoint.write={action}@5+")

    assert (ended.code, ended.out) == (ExitCode.STORAGE, "")
    assert ended.err.count("\n") == 1
    assert "3 checkpoints in a row could not be written" in ended.err
    assert words in ended.err
    assert digest(resume(zygote, tmp_path)) == whole.of(*RULE)[0]


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_short(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cut")
    killed(zygote, place, "run.step=kill@6", *RULE, "--workers", "1")
    return place


@pytest.fixture
def place(cut_short: Path, tmp_path: Path) -> Path:
    """A run that was killed, to be spoilt."""
    shutil.copytree(cut_short, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


def checkpoints(place: Path) -> list[Path]:
    return sorted((newest(place) / "checkpoints").glob("ckpt-*"))


def test_a_corrupt_checkpoint_is_named_even_to_the_quiet_and_the_one_before_is_used(
    zygote: Zygote, whole: Whole, place: Path
) -> None:
    path = checkpoints(place)[-1] / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    ended = resume(zygote, place)

    assert digest(ended) == whole.of(*RULE)[0]
    assert ended.err.count("\n") == 1
    assert f"{path.relative_to(place)}: does not match its hash; it was damaged; going on from an older" in ended.err
    assert told(newest(place)) == whole.of(*RULE)[1]


def test_where_no_checkpoint_is_good_the_exit_code_is_3_and_nothing_changes(zygote: Zygote, place: Path) -> None:
    for folder in checkpoints(place):
        (folder / "MANIFEST.json").write_text("{}")
    before = {
        path: path.read_bytes() for path in newest(place).rglob("*") if path.is_file() and path.name != "run.lock"
    }

    ended = resume(zygote, place)

    assert (ended.code, ended.out) == (ExitCode.NO_CHECKPOINT, "")
    assert ended.err.count("\n") == 1
    assert "no checkpoint can be loaded" in ended.err
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_checkpoint_of_another_run_is_not_taken(zygote: Zygote, place: Path) -> None:
    manifest = newest(place) / "run.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"run": "0" * 32}))

    ended = resume(zygote, place)

    assert (ended.code, ended.out) == (ExitCode.NO_CHECKPOINT, "")
    assert "is of another run" in ended.err


def test_two_processes_cannot_have_one_folder(zygote: Zygote, place: Path) -> None:
    first = zygote.start("resume", "latest", "--quiet", cwd=place, ESPER_FAULTS="run.step=sleep:8@1")
    deadline = time.monotonic() + 30
    while len(list((newest(place) / "ev").iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)

    second = resume(zygote, place)

    assert (second.code, second.out) == (ExitCode.FOLDER_IN_USE, "")
    assert second.err.count("\n") == 1
    assert "in use by process" in second.err
    assert zygote.wait(first).code == 0


def test_another_torch_is_warned_of_and_under_strict_resume_refused(zygote: Zygote, whole: Whole, place: Path) -> None:
    strict = resume(zygote, place, "--strict-resume", MKL_CBWR="COMPATIBLE")
    lax = resume(zygote, place, MKL_CBWR="COMPATIBLE")

    assert (strict.code, strict.out, strict.err.count("\n")) == (ExitCode.BAD_INPUT, "", 1)
    assert "--strict-resume" in strict.err
    assert lax.err == "esper: not bit for bit what it would have been: MKL_CBWR was not set, is COMPATIBLE\n"
    assert lax.code == 0


BAD: dict[str, tuple[Sequence[str], str]] = {
    "a run that is not there": (("resume", "nosuchrun"), "no such run"),
    "other settings": (("train", "--resume", "latest", "--rounds", "3"), "goes on with the train's own settings"),
    "another controller": (("train", "ppo", "--resume", "latest"), "goes on with the train's own settings"),
    "strictness without a run": (("train", "static", "--strict-resume"), "--strict-resume: is for a run that goes on"),
    "an exam that is none": (("exam", "--resume", "latest"), "is no exam"),
    "more workers than hosts": (("resume", "latest", "--workers", "5"), "run.workers: 5 for 2 environments"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_go_on_is_said_in_one_line(zygote: Zygote, place: Path, case: str) -> None:
    argv, words = BAD[case]

    ended = zygote.run(*argv, cwd=place)

    assert (ended.code, ended.out) == (ExitCode.BAD_INPUT, "")
    assert ended.err.count("\n") == 1
    assert words in ended.err


def test_a_fault_that_does_not_exist_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    ended = train(zygote, tmp_path, "static", *TINY, ESPER_FAULTS="run.stepp=kill")

    assert ended.code == ExitCode.BAD_INPUT
    assert "'run.stepp' is no place; did you mean 'run.step'?" in ended.err


# --- folders of several runs ------------------------------------------------------------------------------------

DEMO = ("demo", "--set", "task.epoch_items=64", "--set", "run.episode_length=4", "--set", "run.rounds=2", *ALWAYS)
COMPARE = ("compare", *TINY, "--seeds", "1", "--jobs", "1", "--lr", "0.05", *ALWAYS)


@safe_loader
@pytest.mark.parametrize("nth", [pytest.param(3, marks=pytest.mark.slow), 10, pytest.param(18, marks=pytest.mark.slow)])
def test_a_demo_that_is_killed_anywhere_goes_on_to_the_same_digest(zygote: Zygote, tmp_path: Path, nth: int) -> None:
    cwd = tmp_path / "whole"
    cwd.mkdir()
    want = digest(zygote.run(*DEMO, "--quiet", cwd=cwd))
    ended = zygote.run(*DEMO, "--quiet", cwd=tmp_path, ESPER_FAULTS=f"run.step=kill@{nth}")
    assert ended.code == -signal.SIGKILL, ended.err

    again = zygote.run("resume", "latest", cwd=tmp_path)

    assert digest(again) == want
    assert "learned by PPO" in again.out


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on_to_the_same_digest(zygote: Zygote, tmp_path: Path) -> None:
    cwd = tmp_path / "whole"
    cwd.mkdir()
    want = digest(zygote.run(*COMPARE, "--quiet", cwd=cwd))
    ended = zygote.run(*COMPARE, "--quiet", cwd=tmp_path, ESPER_FAULTS="run.step=kill@9")
    assert ended.code != 0

    again = zygote.run("resume", "latest", "--jobs", "1", "--quiet", cwd=tmp_path)

    assert digest(again) == want
    assert len(list(newest(tmp_path).glob("arms/*/result.json"))) == len(list(newest(tmp_path).glob("arms/*")))


def test_a_checkpoint_holds_nothing_but_tensors_and_primitives(place: Path) -> None:
    state = torch.load(checkpoints(place)[-1] / "state.pt")

    assert set(state) == {"format", "space", "done", "teams"}
