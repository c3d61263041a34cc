"""Experiments on where seeds may stand: cohorts that differ in that alone, and tables that say where seeds went."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.scripts.loader import safe_loader
from tests.scripts.zygote import Ended, Zygote

from esper.leyline.errors import ConfigError
from esper.runtime.tasks import make_task
from esper.scripts.cohorts import EXPERIMENTS
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.experiment_kinds import against
from esper.tolaria.engine import Engine
from esper.tolaria.setup import Setup


def cohorts(name: str, task: str, *runs: int, **settings: Any) -> dict[str, EsperConfig]:
    layer = {"task": {"name": task, **settings}}
    return EXPERIMENTS[name].cohorts(assemble(task, None, layer, []), runs)


def slots_of(config: EsperConfig) -> tuple[str, ...]:
    task = make_task(config.task, 0)
    return Engine(Setup(task, 1, 10, 0, body=config.body)).space.slot_config.slot_ids


def slots_in(found: dict[str, EsperConfig]) -> dict[str, int]:
    return {name: len(slots_of(config)) for name, config in found.items()}


def without_places(config: EsperConfig) -> EsperConfig:
    return replace(config, task=replace(config.task, cut=None), body=replace(config.body, surfaces=None))


def test_phase_1_has_three_six_and_twelve_slots_and_the_rank_ladder_in_all_of_them() -> None:
    found = cohorts("phase1", "stdlib_lm")

    assert slots_in(found) == {"segments": 3, "layers": 6, "lattice": 12}
    assert len({without_places(config) for config in found.values()}) == 1
    assert all("lora_ladder" in (config.body.blueprints or ()) for config in found.values())


def test_phase_2_has_both_sides_of_the_pools_and_two_ladders() -> None:
    found = cohorts("phase2", "digits_clutter")

    # Three blocks, of which two have a pool.
    assert slots_in(found) == {
        **{"control": 3, "pre_pool": 3, "post_pool": 2, "both sides": 5},
        **{"conv_ladder": 3, "channel_ladder": 3},
    }
    placed = [found[name] for name in ("control", "pre_pool", "post_pool", "both sides")]
    assert len({without_places(config) for config in placed}) == 1
    assert found["channel_ladder"].body.blueprints == ("channel_ladder",)


def test_run_4_of_the_pack_is_a_transformer_with_slots_after_segments_after_attention_and_in_a_lattice() -> None:
    found = cohorts("pack", "stdlib_lm", 4)

    assert slots_in(found) == {"run4": 3, "run4-post_attn": 6, "run4-lattice": 12}
    assert {config.body.max_seeds for config in found.values()} == {2}
    assert EXPERIMENTS["pack"].task((4,)) == "tinystories"
    assert EXPERIMENTS["pack"].usual == (1, 2, 3)
    with pytest.raises(ConfigError, match="--run 4: its hosts read text"):
        EXPERIMENTS["pack"].task((1, 4))


@pytest.mark.parametrize(("name", "task"), [("phase1", "tinystories"), ("phase2", "cifar_scale")])
def test_phases_are_on_the_documents_tasks_with_the_documents_numbers(name: str, task: str) -> None:
    experiment = EXPERIMENTS[name]

    assert experiment.task(()) == task
    assert dict(experiment.numbers) == {"rounds": 100, "envs": 8, "episode_length": 150}


def test_cohorts_are_paired_learning_and_greedily_where_both_are_there() -> None:
    names = {name: ["x"] for name in ("a", "b", "c", "a, greedy", "b, greedy")}

    found = against((("b", "a"), ("c", "a")), names)

    assert found == [
        ("b against a", "b", "a"),
        ("c against a", "c", "a"),
        ("b, greedy against a", "b, greedy", "a, greedy"),
    ]


SMALL = ("--jobs", "1", "--episode-length", "9")
TEXT = ("layers=3", "context=16", "epoch_items=32", "batch_size=16", "eval_batch_size=256")


def run(zygote: Zygote, place: Path, *argv: str) -> tuple[Ended, Path]:
    ended = zygote.run("experiment", *argv, *SMALL, cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*")
    return ended, folder


@safe_loader
def test_a_table_under_the_heuristic_has_every_cohort_and_where_its_seeds_were_planted(
    zygote: Zygote, tmp_path: Path
) -> None:
    ended, folder = run(zygote, tmp_path, "pools", "--seeds", "2", "--set", "task.epoch_items=128")

    rows = [line.split(" | ") for line in ended.out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[2:]] == [
        *("never grown", "pre_pool", "post_pool", "conv_ladder", "channel_ladder", "conv_heavy"),
    ]
    placed = {row[0].strip("| "): row[7] for row in rows[2:]}
    assert placed["never grown"] == "block_end 0 (0)"
    assert placed["pre_pool"].startswith("pre_pool ")
    assert placed["post_pool"].startswith("post_pool ")
    assert json.loads((folder / "gates.json").read_text()) == {}
    manifests = sorted(path.parent.name for path in folder.glob("arms/*/run.json"))
    assert len(manifests) == 6 * 2
    assert "never_grown-s0" in manifests


@pytest.mark.slow
@safe_loader
def test_phase_1_is_judged_by_its_gates_cut_against_cut(zygote: Zygote, tmp_path: Path) -> None:
    settings = [part for each in TEXT for part in ("--set", f"task.{each}")]
    few = ("--task", "stdlib_lm", "--rounds", "2", "--envs", "2", "--seeds", "1")

    ended, folder = run(zygote, tmp_path, "phase1", *few, *settings)

    kept = json.loads((folder / "gates.json").read_text())
    pairs = ["layers against segments", "lattice against segments", "lattice against layers"]
    assert list(kept) == [*pairs, *(pair.replace(" ", ", greedy ", 1) for pair in pairs)]
    names = ["quality per rent", "placement", "small steps", "entropy"]
    assert all([gate["name"] for gate in gates] == names for gates in kept.values())
    assert ended.out.startswith("**A stand-in for the documents' experiment: task stdlib_lm, rounds 2, envs 2")


BAD = {
    "a cut of language hosts for images": (
        ("phase1", "--task", "digits"),
        "task.cut: 'digits' has a convolutional host",
    ),
    "pools of a language host": (
        ("phase2", "--task", "stdlib_lm"),
        "task.cut: 'stdlib_lm' has a language host, which is",
    ),
    "text and images in one pack": (("pack", "--run", "1", "4"), "--run 4: its hosts read text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_such_place_is_one_line(zygote: Zygote, tmp_path: Path, case: str) -> None:
    argv, words = BAD[case]

    ended = zygote.run("experiment", *argv, cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
