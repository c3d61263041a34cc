"""The documents' experiments, made tiny: cohorts of runs, and what is asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.scripts.loader import safe_loader
from tests.scripts.zygote import Ended, Zygote

from esper.kasmina.blueprints import standard_set
from esper.leyline.config import read_json

SMALL = (
    *("--task", "digits", "--rounds", "2", "--envs", "2", "--episode-length", "9", "--jobs", "1"),
    *("--set", "task.widths=4,4", "--set", "task.epoch_items=64"),
)
TINY = ("experiment", "phase0", "--seeds", "2", *SMALL)
NAMES = ["usage", "dominance", "ROI", "internal ops pay", "entropy", "rollbacks", "anti-thrash", "invalid actions"]

STANDARD = standard_set("NCHW")


@pytest.fixture(scope="module")
def conducted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    place = tmp_path_factory.mktemp("experiment")
    ended = zygote.run(*TINY, cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*-phase0-digits-*")
    return ended, folder


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path)["config"] for path in folder.glob("arms/*/run.json")}


@safe_loader
def test_three_cohorts_learn_on_the_same_hosts_and_differ_in_what_may_be_planted(conducted: tuple[Ended, Path]) -> None:
    found = manifests(conducted[1])
    offered = {
        "control": [*STANDARD],
        "ladder": ["conv_ladder"],
        "both": [*STANDARD, "conv_ladder"],
    }

    assert set(found) == {f"{name}{kind}-s{seed}" for name in offered for kind in ("", "-greedy") for seed in (0, 1)}
    for name, blueprints in offered.items():
        for seed in (0, 1):
            config = found[f"{name}-s{seed}"]
            assert config["run"]["seed"] == seed
            assert config["body"]["blueprints"] == blueprints
            config["body"]["blueprints"] = None
            assert config == {**found[f"control-s{seed}"], "body": {**config["body"], "blueprints": None}}


@safe_loader
def test_every_policy_grows_hosts_that_are_new_to_it_and_the_same_for_all_cohorts(
    conducted: tuple[Ended, Path],
) -> None:
    found = manifests(conducted[1])

    for index in (0, 1):
        seeds = {found[f"{name}-greedy-s{index}"]["run"]["seed"] for name in ("control", "ladder", "both")}
        assert len(seeds) == 1
        assert seeds.isdisjoint({0, 1})
        who = found[f"ladder-greedy-s{index}"]["run"]["controller"]
        assert who.startswith("policy:")
        assert f"ladder-s{index}" in who


@safe_loader
def test_the_gates_of_both_treatments_are_printed_and_kept(conducted: tuple[Ended, Path]) -> None:
    ended, folder = conducted
    kept = json.loads((folder / "gates.json").read_text())

    assert list(kept) == ["ladder", "both", "ladder, greedy", "both, greedy"]
    assert all([gate["name"] for gate in answers] == NAMES for answers in kept.values())
    assert kept["ladder"][1]["note"].startswith("vacuous")
    assert all(gate["note"] != "needs a control" for answers in kept.values() for gate in answers)
    assert (folder / "gates.md").read_text().strip() in ended.out
    assert ended.out.startswith("**A stand-in for the documents' experiment: task digits, rounds 2, envs 2, episode")


@safe_loader
def test_an_experiment_goes_on_without_running_anything_twice(zygote: Zygote, conducted: tuple[Ended, Path]) -> None:
    ended, folder = conducted
    before = sorted(folder.glob("arms/*"))

    again = zygote.run("experiment", "phase0", "--resume", str(folder), "--jobs", "1", cwd=folder.parent.parent)

    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == ended.out.splitlines()[-1]
    assert sorted(folder.glob("arms/*")) == before


@pytest.fixture(scope="module")
def packed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    place = tmp_path_factory.mktemp("pack")
    ended = zygote.run("experiment", "pack", "--seeds", "1", *SMALL, cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*-pack-digits-*")
    return ended, folder


@safe_loader
def test_the_pack_has_the_documents_runs_two_rewards_each(packed: tuple[Ended, Path]) -> None:
    found = manifests(packed[1])

    asked = {
        name: (config["body"]["max_seeds"], config["run"]["episode_length"], config["body"]["blueprints"])
        for name, config in found.items()
    }
    assert asked == {
        "run1-s0": (2, 9, [*STANDARD]),
        "run2-s0": (4, 12, [*STANDARD]),  # a third longer, as 200 is to 150
        "run3-s0": (2, 9, [*STANDARD, "conv_ladder"]),
    }
    assert {config["run"]["ab_test"] for config in found.values()} == {"shaped-vs-simplified"}


@safe_loader
def test_every_run_of_the_pack_is_held_against_what_the_documents_expect(packed: tuple[Ended, Path]) -> None:
    ended, folder = packed
    kept = json.loads((folder / "gates.json").read_text())
    rows = {run: {row["name"]: row for row in answers} for run, answers in kept.items()}

    assert list(rows) == ["run1", "run2", "run3"]
    assert {"heavier seeds", "late slots under-used", "entropies", "fates"} <= rows["run1"].keys()
    assert {"more prunes", "no collapse", "invalid actions"} <= rows["run2"].keys()
    assert rows["run3"]["the sensor of levels"]["passed"] is True
    assert rows["run2"]["more prunes"]["note"] != "needs run 1"
    assert "One seed gives no interval" in ended.out


BAD = {
    "an experiment that does not exist": (("experiment", "phase9"), "invalid choice: 'phase9'"),
    "no policies": (("experiment", "phase0", "--seeds", "0"), "--seeds 0: at least one policy per cohort"),
    "no process": (("experiment", "phase0", "--jobs", "0"), "--jobs 0: must be at least 1"),
    "an unknown task": (("experiment", "phase0", "--task", "digitz"), "unknown task 'digitz'"),
    "no images": (("experiment", "phase0"), "no files in 'data'"),
    "other settings for one that goes on": (
        ("experiment", "phase0", "--resume", "latest", "--rounds", "3"),
        "goes on with the experiment's own settings",
    ),
    "a run that the pack does not have": (("experiment", "pack", "--run", "1", "7"), "--run 7: no such run of pack"),
    "runs of an experiment that has none": (("experiment", "phase0", "--run", "1"), "--run 1: no such run of phase0"),
    "seeds for runs that have their own": (("experiment", "pack", "--max-seeds", "3"), "every run of the pack has its"),
    "an experiment that is not there": (("experiment", "phase0", "--resume", "nosuchrun"), "no such run"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_conducted_is_one_line_and_leaves_nothing_behind(
    zygote: Zygote, tmp_path: Path, case: str
) -> None:
    argv, words = BAD[case]

    ended = zygote.run(*argv, cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
