"""One process per folder, nothing written over, and no name that leads out of `runs/`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline.errors import ConfigError, ExitCode, FolderInUseError, StorageError
from esper.nissa.run_folder import RunFolder, arms, check_id, find, resolve, runs

PREAMBLE = """
import sys, time
from pathlib import Path
from esper.leyline.errors import EsperError
from esper.nissa.run_folder import RunFolder
here = Path(sys.argv[1])
"""


def python(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def made(root: Path, run_id: str) -> Path:
    with RunFolder.create(root, "digits", run_id) as folder:
        folder.write_manifest({"task": "digits"})
    return folder.path


# ---- making


def test_a_new_run_has_a_telling_name_and_its_places(tmp_path):
    before = time.strftime("%Y%m%d-%H%M%S")
    with RunFolder.create(tmp_path / "runs", "cifar_scale") as folder:
        name = re.fullmatch(r"(\d{8}-\d{6})-cifar_scale-[0-9a-f]{6}", folder.id)

        assert name is not None
        assert before <= name[1] <= time.strftime("%Y%m%d-%H%M%S")
        assert folder.path == tmp_path / "runs" / folder.id
        assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "ev", "run.lock"]
        assert folder.next_writer() == "r0.1"


def test_a_folder_is_taken_whether_or_not_a_dead_process_made_it(tmp_path):
    arm = tmp_path / "arms" / "ppo"
    with RunFolder.take(arm) as folder:
        assert not folder.manifest.exists()
        folder.write_manifest({"task": "digits"})
        with pytest.raises(FolderInUseError, match="in use by process"):
            RunFolder.take(arm)
    with RunFolder.take(arm) as folder:
        assert json.loads(folder.manifest.read_text()) == {"task": "digits"}


def test_latest_is_the_newest_top_level_folder_and_moves_with_the_whole(tmp_path):
    for run_id in ("one", "two", "three"):
        made(tmp_path / "runs", run_id)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")

    assert os.readlink(tmp_path / "elsewhere" / "latest") == "three"
    assert find(tmp_path / "elsewhere", "latest").name == "three"
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["latest", "one", "three", "two"]


def test_runs_inside_an_experiment_leave_latest_alone(tmp_path):
    with RunFolder.create(tmp_path, "phase0", "whole") as whole:
        with RunFolder.create_in(whole.path / "arms" / "control-1") as arm:
            arm.write_manifest({})

        assert (arm.path / "ev").is_dir()
        assert find(tmp_path, "latest") == whole.path
        assert runs(tmp_path) == ["whole"]


def test_a_name_that_is_taken_is_never_written_over(tmp_path):
    path = made(tmp_path, "mine")
    before = (path / "run.json").read_bytes()

    with pytest.raises(ConfigError) as caught:
        RunFolder.create(tmp_path, "digits", "mine")

    assert str(caught.value) == f"{path}: exists already; choose another name or resume it"
    assert (path / "run.json").read_bytes() == before


def test_a_made_up_name_that_is_taken_is_replaced_by_another(tmp_path, monkeypatch):
    drawn = iter(["aaaaaa", "d00000", "aaaaaa", "bbbbbb", "d00001"])
    monkeypatch.setattr("esper.nissa.run_folder.secrets.token_hex", lambda _: next(drawn))
    monkeypatch.setattr("esper.nissa.run_folder.time.strftime", lambda _: "20261120-140233")

    first, second = RunFolder.create(tmp_path, "digits"), RunFolder.create(tmp_path, "digits")

    assert (first.id, second.id) == ("20261120-140233-digits-aaaaaa", "20261120-140233-digits-bbbbbb")


def test_many_runs_started_at_once_all_get_a_folder(tmp_path):
    folders: list[RunFolder] = []
    threads = [threading.Thread(target=lambda: folders.append(RunFolder.create(tmp_path, "digits"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({folder.path for folder in folders}) == 12
    assert find(tmp_path, "latest") in [folder.path for folder in folders]
    assert len(os.listdir(tmp_path)) == 13


# ---- one process


def test_two_processes_cannot_hold_one_folder_and_a_killed_one_does_not(tmp_path):
    path = made(tmp_path, "mine")
    hold = "folder = RunFolder.open_existing(here); print('held', flush=True); time.sleep(60)"
    ask = "try: RunFolder.open_existing(here)\nexcept EsperError as error: print(error); sys.exit(error.exit_code)"

    holder = python(hold, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    second = python(ask, path)
    told, _ = second.communicate(timeout=30)
    holder.kill()
    holder.communicate(timeout=30)
    third = python(ask, path)
    third.communicate(timeout=30)

    assert second.returncode == ExitCode.FOLDER_IN_USE == 4
    assert told == (
        f"{path}: in use by process {holder.pid} on {os.uname().nodename}; wait until it ends or use another run\n"
    )
    assert third.returncode == 0


def test_a_folder_can_be_let_go(tmp_path):
    folder = RunFolder.open_existing(made(tmp_path, "mine"))
    with pytest.raises(FolderInUseError):
        RunFolder.open_existing(folder.path)
    folder.close()
    folder.close()

    RunFolder.open_existing(folder.path).close()


def test_a_program_started_by_a_run_does_not_inherit_its_lock(tmp_path):
    path = made(tmp_path, "mine")
    start = (
        "import subprocess; f = RunFolder.open_existing(here); subprocess.Popen(['sleep', '5'], stdout=-3, stderr=-3)"
    )
    assert python(start, path).wait(timeout=30) == 0

    RunFolder.open_existing(path).close()


def test_what_never_began_cannot_go_on(tmp_path):
    RunFolder.create(tmp_path, "digits", "mine").close()

    with pytest.raises(ConfigError, match=r"mine: not a run that can go on: it has no run\.json"):
        RunFolder.open_existing(tmp_path / "mine")


# ---- the manifest


def test_the_manifest_is_written_once(tmp_path):
    with RunFolder.create(tmp_path, "digits", "mine") as folder:
        written = folder.write_manifest({"slots": ["r0c0", "r0c1"], "lr": 0.05, "name": "naïve"})
        before = written.read_bytes()

        with pytest.raises(StorageError, match=r"run\.json: written already; a manifest is never edited"):
            folder.write_manifest({})

    assert json.loads(before) == {"slots": ["r0c0", "r0c1"], "lr": 0.05, "name": "naïve"}
    assert written == tmp_path / "mine" / "run.json"
    assert written.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_manifest_that_is_not_json_leaves_nothing(tmp_path, value):
    with RunFolder.create(tmp_path, "digits", "mine") as folder:
        with pytest.raises((ValueError, TypeError)):
            folder.write_manifest({"lr": value})

    assert sorted(os.listdir(folder.path)) == ["checkpoints", "ev", "run.lock"]


def test_a_manifest_is_whole_or_absent_whenever_one_looks_and_after_kill_9(tmp_path):
    code = """
for n in range(10_000):
    RunFolder.create(here, "digits", f"run-{n}").write_manifest({"n": n, "x": "x" * 500_000})
"""
    child = python(code, tmp_path)
    looked = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end or looked == 0:
        assert time.monotonic() < end + 30
        looked += manifests_that_are_whole(tmp_path)
    child.kill()
    child.communicate(timeout=30)

    assert manifests_that_are_whole(tmp_path) > 0


def manifests_that_are_whole(root: Path) -> int:
    found = sorted(root.glob("run-*/run.json"), key=lambda path: int(path.parent.name.removeprefix("run-")))
    for path in found[-3:]:
        assert len(json.loads(path.read_text())["x"]) == 500_000
    return len(found)


# ---- disks


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try: RunFolder.create(here, "digits", "mine").write_manifest({"x": "x" * 10_000})
except EsperError as error: print(error); sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("room", "file"), [(0, ""), (2000, "/run.json")])
def test_a_full_disk_ends_in_one_line_and_exit_74_with_nothing_half_written(tmp_path, room, file):
    child = python(FULL, tmp_path, room)
    told, _ = child.communicate(timeout=30)

    assert child.returncode == ExitCode.STORAGE == 74
    assert told == f"{tmp_path}/mine{file}: file too large; check the disk or choose another folder\n"
    assert not [name for name in os.listdir(tmp_path / "mine") if "json" in name]


def test_a_place_that_cannot_hold_runs_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "latest").write_text("mine")

    for root, says in (
        (tmp_path / "file", "file exists; something is in the way"),
        (tmp_path / "file" / "runs", "not a directory; a file is in the way"),
        (Path("/proc/runs"), "/proc/runs: "),
        (tmp_path / "blocked", "latest: not a link but something else; move it away"),
        (tmp_path / "two\nlines" / ("x" * 300), "file name too long"),
    ):
        with pytest.raises(StorageError) as caught:
            RunFolder.create(root, "digits")

        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 74
    assert (tmp_path / "blocked" / "latest").read_text() == "mine"


# ---- names


EVIL = (
    "", ".", "..", "../mine", "mine/..", "/etc", "mine/", "a\\b", "mine\0", "a b", "Mine", "-mine", "_mine", "mine.",
    "ｍine", "mine\n", "%2e%2e", "~", "x" * 129, "é", "latest", "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_is_no_id_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        check_id(name)

    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        RunFolder.create(tmp_path / "runs", "digits", name)
    with pytest.raises(ConfigError):
        RunFolder.create(tmp_path / "runs", name or "/")
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []
    assert os.listdir(tmp_path) in ([], ["runs"])


PATHS = st.lists(st.sampled_from(["..", ".", "/", "mine", "secret", "runs", "\\", "\0", "~", "%2e", "\u2024"])).map(
    "".join
)


@settings(deadline=None)
@given(name=st.one_of(PATHS, st.text()))
def test_no_name_whatever_leads_out_of_the_runs(tmp_path_factory, name):
    place = tmp_path_factory.getbasetemp() / "traversal"
    if not place.exists():
        made(place / "runs", "mine-1")
        made(place / "secret", "mine")

    try:
        found = find(place / "runs", name)
    except ConfigError:
        found = None

    assert found in (None, place / "runs" / "mine-1")


@settings(deadline=None)
@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,127}", fullmatch=True).filter(lambda name: name != "latest"))
def test_an_id_is_what_the_pattern_says(name):
    assert check_id(name) == name


def test_a_run_is_found_by_its_id_the_start_of_it_latest_or_its_path(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    first, second = made(root, "20261120-140233-digits-aaaaaa"), made(root, "20261121-090000-digits-bbbbbb")
    monkeypatch.chdir(tmp_path)

    assert resolve(root, second.name) == second
    assert resolve(root, "20261120") == first
    assert resolve(root, "latest") == second
    assert resolve(root, str(first)) == first
    assert resolve(root, f"runs/{first.name}") == Path("runs", first.name)
    assert resolve(root, "runs/latest") == Path("runs/latest")
    with RunFolder.open_existing(resolve(root, "runs/latest")) as folder:
        assert folder.id == second.name


def test_a_link_among_the_runs_is_no_run_of_theirs(tmp_path):
    outside = made(tmp_path / "secret", "mine")
    made(tmp_path / "runs", "ours")
    (tmp_path / "runs" / "linked").symlink_to(outside)

    assert runs(tmp_path / "runs") == ["ours"]
    with pytest.raises(ConfigError, match="no such run"):
        find(tmp_path / "runs", "linked")


def test_arms_behind_a_link_are_no_arms_of_a_run(tmp_path):
    made(tmp_path / "secret", "mine")
    ours = made(tmp_path / "runs", "ours")
    (ours / "arms").symlink_to(tmp_path / "secret")

    assert arms(ours) == []
    with pytest.raises(ConfigError, match="has no arm 'mine'; it has none"):
        resolve(tmp_path / "runs", "ours/arms/mine")


def test_the_whole_id_wins_over_a_longer_one(tmp_path):
    short = made(tmp_path, "demo")
    made(tmp_path, "demo-2")

    assert resolve(tmp_path, "demo") == short


def test_a_start_that_fits_two_runs_lists_them(tmp_path):
    made(tmp_path, "20261120-a"), made(tmp_path, "20261120-b")

    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, "2026")

    assert str(caught.value) == "run '2026': 2 runs begin so: 20261120-a, 20261120-b; write more of the name"


def test_a_run_that_is_not_there_gets_a_hint(tmp_path):
    with pytest.raises(ConfigError, match=r"no such run in .*; there is none yet"):
        resolve(tmp_path / "runs", "digits")
    with pytest.raises(ConfigError, match=r"run 'latest': there is no run in .* yet"):
        resolve(tmp_path / "runs", "latest")

    made(tmp_path / "runs", "digits-one")

    with pytest.raises(ConfigError, match="did you mean 'digits-one'"):
        resolve(tmp_path / "runs", "digits_one")
    with pytest.raises(ConfigError, match="not a run folder; give its path"):
        resolve(tmp_path / "runs", str(tmp_path))


@pytest.mark.parametrize("target", ["../secret/mine", "gone", "latest", "/etc"])
def test_a_latest_that_points_elsewhere_is_not_followed(tmp_path, target):
    made(tmp_path / "secret", "mine")
    made(tmp_path / "runs", "ours")
    (tmp_path / "runs" / "latest").unlink()
    (tmp_path / "runs" / "latest").symlink_to(target)

    with pytest.raises(ConfigError, match="which is no run; give an id"):
        resolve(tmp_path / "runs", "latest")
