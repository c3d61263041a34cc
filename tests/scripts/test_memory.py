"""The commands that read runs, as processes: what they print, what they refuse, and that they leave no trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tests.karn.made import Made
from tests.scripts.zygote import Ended, Zygote

from esper.karn.phases import PHASES
from esper.karn.views import views
from esper.leyline.config import read_json
from esper.leyline.telemetry import SCHEMA_VERSION, EpisodeFinishedPayload, SeedFossilizedPayload
from esper.nissa.reader import read_events

RUN = (
    *("heuristic", "--preset", "digits", "--set", "task.widths=4,4,8", "--set", "task.epoch_items=64"),
    *("--workers", "1", "--quiet", "--blueprints", "conv_ladder", "norm", "--episode-length", "20"),
)


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs."""
    found = tmp_path_factory.mktemp("memory")
    for seed in ("0", "1"):
        ended = zygote.run("train", *RUN, "--seed", seed, cwd=found)
        assert ended.code == 0, ended.err
    return found


def newest(place: Path) -> Path:
    return (place / "runs" / "latest").resolve()


def asked(zygote: Zygote, place: Path, *argv: str) -> str:
    ended = zygote.run(*argv, cwd=place)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return ended.out


def test_runs_are_listed_with_how_they_ended(zygote: Zygote, place: Path) -> None:
    lines = asked(zygote, place, "runs").splitlines()

    assert [line.split()[0] for line in lines[1:]] == sorted(path.name for path in place.glob("runs/2*"))
    assert all(line.split()[1:6] == ["digits", "heuristic", "done", "1/1", "1"] for line in lines[1:])


def test_a_run_of_another_schema_is_listed_and_says_so(zygote: Zygote, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "20261120-1200-old"
    (folder / "ev").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema_version": 1}))

    assert "schema 1: another version of esper wrote it" in asked(zygote, tmp_path, "runs")


HALF_WRITTEN = {
    "a manifest that nests deeper than any reader follows": "[" * 100_000,
    "a manifest that was cut off": f'{{"schema_version": {SCHEMA_VERSION}, "config": {{"run"',
    "a list in the place of a manifest": "[]",
    "slots under names": f'{{"schema_version": {SCHEMA_VERSION}, "slots": {{"first": 1}}}}',
    "choices in the place of a list": f'{{"schema_version": {SCHEMA_VERSION}, "heads": {{"op": {{"x": 1}}}}}}',
    "settings that are a number": f'{{"schema_version": {SCHEMA_VERSION}, "config": 7, "started": 5, "metric": []}}',
    "settings of nothing": f'{{"schema_version": {SCHEMA_VERSION}, "config": {{"run": {{}}}}}}',
    "a manifest that says nothing": "{}",
    "no manifest": None,
}


@pytest.mark.parametrize("case", HALF_WRITTEN)
def test_a_run_with_half_a_manifest_is_read_or_refused_in_one_line(
    zygote: Zygote, place: Path, tmp_path: Path, case: str
) -> None:
    copy = tmp_path / "runs" / newest(place).name
    shutil.copytree(newest(place), copy)
    (copy / "run.json").unlink()
    if (text := HALF_WRITTEN[case]) is not None:
        (copy / "run.json").write_text(text)

    assert copy.name in asked(zygote, tmp_path, "runs")
    for argv in (
        ("show", copy.name),
        ("gates", copy.name),
        ("sql", copy.name, "from runs"),
        ("report", copy.name, "--html", "out.html"),
        ("report", copy.name, str(min(place.glob("runs/2*"))), "--html", "both.html"),
        ("export", copy.name, "--tensorboard", "out"),
    ):
        ended = zygote.run(*argv, cwd=tmp_path)
        assert (ended.code, ended.err.count("\n")) in ((0, 0), (2, 1)), ended.err
        assert ended.err.startswith("esper: ") or not ended.err


def test_a_run_whose_events_are_of_another_schema_does_not_keep_others_from_the_list(
    zygote: Zygote, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(newest(place), tmp_path / "runs" / newest(place).name)
    old = tmp_path / "runs" / "20261120-1200-old"
    (old / "ev").mkdir(parents=True)
    (old / "ev" / "r0.1-000000.jsonl").write_text('{"t":"RUN_STARTED","n":0,"w":"r0.1","schema_version":1}\n')

    lines = asked(zygote, tmp_path, "runs").splitlines()

    assert ["20261120-1200-old", newest(place).name] == [line.split()[0] for line in lines[1:]]
    assert "events of schema 1" in lines[1]


def test_what_a_run_says_cannot_command_the_terminal(zygote: Zygote, place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / newest(place).name
    shutil.copytree(newest(place), copy)
    manifest = json.loads((copy / "run.json").read_text())
    manifest["config"]["task"]["name"] = "\x1b]52;c;aGk=\x07\nfake line\u202e"
    (copy / "run.json").write_text(json.dumps(manifest))

    for argv in (("runs",), ("show", copy.name), ("sql", copy.name, "from runs")):
        text = asked(zygote, tmp_path, *argv)
        assert "\\x1b]52;c;aGk=\\x07\\nfake line\\u202e" in text
        assert all(char.isprintable() or char == "\n" for char in text)


def test_the_plan_of_a_question_keeps_its_lines(zygote: Zygote, place: Path) -> None:
    assert len(asked(zygote, place, "sql", "latest", "select 1", "--explain").splitlines()) > 3


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_failed_gate_is_an_exit_code_only_where_that_is_asked_for(
    zygote: Zygote, tmp_path: Path, check: list[str]
) -> None:
    collapsed = Made([["WAIT"] * 4] * 5, entropies=[0.01] * 5).write(tmp_path / "runs", "20261120-1200-collapsed")
    sound = Made([["WAIT"] * 4] * 5, entropies=[0.50] * 5).write(tmp_path / "runs", "20261120-1300-sound")

    failed, passed = (zygote.run("gates", path.name, *check, cwd=tmp_path) for path in (collapsed, sound))

    assert "FAIL" in failed.out
    assert "FAIL" not in passed.out
    assert (failed.code, passed.code) == (1 if check else 0, 0)


def test_the_learners_of_an_ab_run_are_shown_apart(zygote: Zygote, tmp_path: Path) -> None:
    argv = [*RUN[1:], "--ab-test", "shaped-vs-simplified", "--envs", "2", "--rounds", "2"]
    assert zygote.run("train", "ppo", *argv, cwd=tmp_path).code == 0

    screen = asked(zygote, tmp_path, "show", "latest")

    assert [line for line in screen.splitlines() if line.startswith("Group")] == ["Group shaped:", "Group simplified:"]
    assert screen.count("(2 hosts of the last round)") == screen.count("last update") == 2


def test_show_tells_what_was_kept_and_what_it_brought(zygote: Zygote, place: Path) -> None:
    told = [payload for _, payload in read_events(newest(place))]
    kept = [payload for payload in told if isinstance(payload, SeedFossilizedPayload)]
    (end,) = (payload for payload in told if isinstance(payload, EpisodeFinishedPayload))

    screen = asked(zygote, place, "show", "latest")

    assert screen.startswith(newest(place).name + "\n")
    assert f"test accuracy {end.test_metric:.2f} %" in screen
    assert f"{end.host_params} -> {end.params} parameters" in screen
    assert screen.count("kept at") == len(kept) == end.fossilized
    assert max(map(len, screen.splitlines())) <= 120


def test_sql_answers_as_a_table_json_and_csv(zygote: Zygote, place: Path) -> None:
    question = "select slot, germinated from slot_usage order by slot"

    table, lines, csv = (
        asked(zygote, place, "sql", "latest", question, "--format", how).splitlines()
        for how in ("table", "json", "csv")
    )

    rows = [json.loads(line) for line in lines]
    assert [row["slot"] for row in rows] == ["r0c0", "r0c1", "r0c2"]
    assert table[0].split() == ["slot", "germinated"]
    assert [line.split() for line in table[1:]] == [[row["slot"], str(row["germinated"])] for row in rows]
    assert csv == ["slot,germinated", *(f"{row['slot']},{row['germinated']}" for row in rows)]


def test_sql_without_a_question_says_what_can_be_asked(zygote: Zygote, place: Path) -> None:
    text = asked(zygote, place, "sql", "latest")

    assert all(view.name in text and view.summary in text for view in views())
    named = {line.split()[0] for line in text.splitlines()[1:] if line}
    assert {"gates", "integrity", "manifest", "slots"} <= named


def test_every_phase_has_gates_of_its_own(zygote: Zygote, place: Path) -> None:
    told = {phase: asked(zygote, place, "gates", "latest", "--phase", str(phase)) for phase in PHASES}

    for phase, name in {0: "usage", 1: "placement", 2: "overshoot"}.items():
        assert [each for each, text in told.items() if name in text] == [phase]


def test_gates_answer_by_themselves_and_against_a_control(zygote: Zygote, place: Path) -> None:
    first, second = sorted(path.name for path in place.glob("runs/2*"))

    alone, compared = asked(zygote, place, "gates", "latest"), asked(zygote, place, "gates", second, "--vs", first)

    assert len(alone.splitlines()) == len(compared.splitlines()) == 9
    assert "needs a control" in alone
    assert "needs a control" not in compared
    assert asked(zygote, place, "sql", "latest", "select name from gates").split()[1:3] == ["usage", "dominance"]


def test_arms_are_judged_each_by_itself(zygote: Zygote, place: Path, tmp_path: Path) -> None:
    top = tmp_path / "runs" / "20261120-1200-both"
    (top / "ev").mkdir(parents=True)
    for arm, run in zip(("one", "other"), sorted(place.glob("runs/2*")), strict=True):
        shutil.copytree(run, top / "arms" / arm)

    text = asked(zygote, tmp_path, "gates", top.name)

    assert [line for line in text.splitlines() if "/arms/" in line] == [
        f"{top.name}/arms/{arm}" for arm in ("one", "other")
    ]
    assert text.count("anti-thrash") == 2


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_every_view_is_exported(zygote: Zygote, place: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"

    asked(zygote, place, "export", "latest", f"--{kind}", "--to", str(target))

    views_and_verdicts = {v.name for v in views() if v.kind == "view"} | {"gates", "integrity"}
    assert {path.name for path in target.iterdir()} == {f"{name}.{kind}" for name in views_and_verdicts}
    assert duckdb.sql(f"select count(*) from '{target}/slot_steps.{kind}'").fetchall() == [(20 * 3,)]


def test_a_run_is_exported_for_tensorboard_below_its_name(zygote: Zygote, place: Path, tmp_path: Path) -> None:
    for run in sorted(path.name for path in place.glob("runs/2*")):
        assert f" curves of 1 run: {tmp_path}" in asked(zygote, place, "export", run, "--tensorboard", str(tmp_path))

    written = sorted(path.parent.name for path in tmp_path.rglob("*tfevents*"))
    assert written == sorted(path.name for path in place.glob("runs/2*"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_not_installed_is_named_with_what_brings_it(
    place: Path, tmp_path: Path, package: str
) -> None:
    argv = ["export", "latest", f"--{package}", str(tmp_path / "out")]
    script = f"import sys; sys.modules[{package!r}] = None; from esper.scripts.main import main; sys.exit(main({argv}))"

    ended = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"esper: --{package}: needs {package}; pip install 'esper[export]'\n"
    assert not (tmp_path / "out").exists()


BAD = {
    "a run that is not there": (("show", "nosuchrun"), "run 'nosuchrun': no such run"),
    "a folder that is no run": (("sql", "/tmp", "from runs"), "not a run folder"),
    "an unknown view": (("sql", "latest", "from churns"), "churns"),
    "several statements": (("sql", "latest", "from runs; from runs"), "2 statements"),
    "a statement that writes": (("sql", "latest", "drop view runs"), "refused"),
    "a file": (("sql", "latest", "from read_text('/etc/hostname')"), "closed"),
    "a phase that is not there": (("gates", "latest", "--phase", "9"), "--phase"),
    "a control that is not there": (("gates", "latest", "--vs", "nosuchrun"), "no such run"),
    "an export over something": (("export", "latest", "--to", "."), "exists already"),
    "a folder for what goes to a project": (("export", "latest", "--wandb", "p", "--to", "new"), "leave it out"),
    "two exports at once": (("export", "latest", "--csv", "--tensorboard", "new"), "not allowed with"),
    "no runs at all": (("runs", "--root", "nowhere"), "there is no run"),
    "the last none of the runs": (("runs", "--last", "0"), "at least 1"),
    "fewer than none of the runs": (("runs", "--last", "-3"), "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_one_line(zygote: Zygote, place: Path, case: str) -> None:
    argv, words = BAD[case]
    before = contents(place)

    ended = zygote.run(*argv, cwd=place)

    assert (ended.code, ended.out) == (2, ""), ended
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert contents(place) == before


def test_a_place_that_cannot_be_written_is_one_line(zygote: Zygote, place: Path) -> None:
    ended = zygote.run("export", "latest", "--to", "/proc/nothing", cwd=place)

    assert (ended.code, ended.out, ended.err.count("\n")) == (74, "", 1), ended
    assert ended.err.startswith("esper: /proc/nothing: ")


def contents(place: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in place.rglob("*") if path.suffix != ".parquet"}


def test_a_run_with_missing_lines_gets_no_verdict(zygote: Zygote, place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / newest(place).name
    shutil.copytree(newest(place), copy)
    for cache in copy.glob("ev/*.parquet"):
        cache.unlink()
    (segment,) = copy.glob("ev/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:5] + lines[6:]))

    ended: Ended = zygote.run("gates", copy.name, cwd=tmp_path)

    assert ended.code == 2
    assert "it deserves no verdict" in ended.err
    assert "! lines of this run are missing" in zygote.run("show", copy.name, cwd=tmp_path).out
    assert read_json(copy / "run.json")["schema_version"] == SCHEMA_VERSION
