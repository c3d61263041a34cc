"""Beside a frozen host a comparison has ranks that are grown, ranks that are fixed, and AdaLoRA; sizes are told."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scripts.loader import safe_loader
from tests.scripts.test_compare import result
from tests.scripts.zygote import Ended, Zygote

from esper.runtime.language import BITS
from esper.scripts.adalora import adalora, is_installed, train
from esper.scripts.adapting import ADAPTING, RANKS
from esper.scripts.adapting_tables import alike, columns, judged
from esper.scripts.arms import ArmResult, make_arm, under
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.runner import setup_of
from esper.scripts.tables import comparison_table

TINY: dict[str, Any] = {
    "task": {"layers": 1, "context": 16, "epoch_items": 64, "pretrain_steps": 2, "cache_dir": os.devnull},
    "run": {"episode_length": 10},
}
needs_peft = pytest.mark.skipif(not is_installed(), reason="PEFT is not installed")


def tiny() -> EsperConfig:
    return under(ADAPTING.settle(assemble("stdlib_adapt", None, TINY, [])), "static")


def row(name: str, seed: int, bits: float, added: int) -> ArmResult:
    """On a host of 1,000 parameters; what was there from the start counts as the host's."""
    host = 1000 + added if name.startswith("rank") else 1000
    return replace(result(name, seed, bits), host_params=host, params=1000 + added)


def found() -> list[ArmResult]:
    arms = {
        "static": (2.0, 0),
        "heuristic": (1.5, 100),
        "policy": (1.6, 1000),
        "rank_4": (1.4, 110),
        "rank_8": (1.3, 3000),
        "adalora": (1.45, 95),
    }
    noise = (0.0, 0.01, 0.02)
    return [row(name, seed, bits + noise[seed], added) for name, (bits, added) in arms.items() for seed in range(3)]


# --- what is said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "equal"), [(100, 110, True), (110, 100, True), (100, 111, False), (0, 0, False), (0, 5, False)]
)
def test_parameters_are_alike_within_a_tenth_of_the_smaller(one: int, other: int, equal: bool) -> None:
    assert alike(one, other) is equal


def test_bits_are_compared_at_equal_size_alone_and_j_always() -> None:
    text = "\n".join(judged(found(), BITS, rent=0.06))

    # 1000 added parameters are a doubling: 0.06 bits. 100 of them cost 0.06 log2(1.1) = 0.00825.
    assert f"J {(2.0 - 1.5) - 0.06 * math.log2(1.1):+.3f} [" in text.split("against never grown")[1]
    line = next(line for line in text.splitlines() if line.startswith("- grown: heuristic against rank 4 everywhere"))
    assert "bits per character +0.100 [+0.100, +0.100], worse" in line
    line = next(line for line in text.splitlines() if line.startswith("- grown: heuristic against rank 8 everywhere"))
    assert line.endswith("sizes differ, so the metric alone is not compared.")
    assert "- grown: heuristic against AdaLoRA: J" in text
    assert "grown: heuristic against grown: heuristic" not in text


def test_the_table_has_what_was_added_to_the_host_however_it_came_there() -> None:
    table = comparison_table(found(), BITS, columns(BITS, rent=0.06))
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:]}

    assert cells["rank 8 everywhere"][3:5] == ["3000", "4000"]
    assert cells["AdaLoRA"][3:5] == ["95", "1095"]
    assert cells["grown: the learned policy"][5] == "-1.670 ± 0.025"  # -1.61 less a doubling


def test_a_rival_that_is_missing_on_a_seed_is_compared_on_the_others() -> None:
    few = [each for each in found() if (each.name, each.seed) != ("adalora", 1)]

    line = next(line for line in judged(few, BITS, rent=0.06) if "heuristic against AdaLoRA" in line)
    row = next(line for line in comparison_table(few, BITS, columns(BITS, rent=0.06)).splitlines() if "AdaLoRA" in line)

    assert "bits per character +0.050 [+0.050, +0.050], worse" in line
    assert "(2 of 3 seeds) | -0.550 ± 0.000 |" in row


# --- AdaLoRA ----------------------------------------------------------------------------------------------------


@needs_peft
def test_adalora_ends_with_the_ranks_that_it_may_keep_and_leaves_the_host_alone() -> None:
    task = replace(tiny().task, cut="layers")
    setup = setup_of(replace(tiny(), task=task, body=EsperConfig().body))
    before = {name: value.clone() for name, value in setup.task.make_host().state_dict().items()}

    adapted = train(setup, ranks=11)

    values = [value for name, value in adapted.model.named_parameters() if "lora_E" in name]
    assert len(values) == 2  # one attention, one MLP
    kept = [int((value != 0).sum()) for value in values]
    assert sum(kept) == 11
    assert adapted.added == kept[0] * (32 + 32) + kept[1] * (128 + 32)
    names = {name: name.replace(".out.weight", ".out.base_layer.weight") for name in before}
    after = {name.partition("network.")[2]: value for name, value in adapted.model.state_dict().items()}
    assert all(torch.equal(before[name], after[there]) for name, there in names.items())


@needs_peft
def test_adalora_is_made_as_large_as_what_it_is_compared_with_and_is_the_same_every_time(tmp_path: Path) -> None:
    arm = make_arm("adalora", 0, tiny(), tmp_path)

    first, again = adalora(arm, params=20_000), adalora(arm, params=20_000)

    added, wanted = first.params - first.host_params, 20_000 - first.host_params
    assert abs(added - wanted) <= (128 + 32)  # a rank around an MLP
    assert (first.digest, first.test_metric) == (again.digest, again.test_metric)
    assert list(tmp_path.iterdir()) == []


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    place = tmp_path_factory.mktemp("adapting")
    settings = [f"task.{name}={value}" for name, value in TINY["task"].items()]
    argv = ("--seeds", "1", "--episode-length", "10", "--jobs", "1", "--policy-rounds", "1")
    ended = zygote.run(
        "compare", "--task", "stdlib_adapt", *argv, *(part for each in settings for part in ("--set", each)), cwd=place
    )
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*-compare-stdlib-adapt-*")
    return ended, folder


@safe_loader
def test_a_frozen_host_is_compared_with_ranks_and_a_policy_and_with_adalora_where_seeds_were_kept(
    compared: tuple[Ended, Path],
) -> None:
    ended, folder = compared
    table = json.loads((folder / "table.json").read_text())
    arms = {each["name"]: each for each in table["results"]}

    rivals = {"adalora"} if arms["heuristic"]["fossilized"] and is_installed() else set()
    assert set(arms) == {"static", "heuristic", "policy", *(f"rank_{rank}" for rank in RANKS)} | rivals
    plain = arms["static"]["params"]
    assert [arms[f"rank_{rank}"]["params"] - plain for rank in RANKS] == [rank * (64 + 160) for rank in (4, 8, 16, 32)]
    assert table["lr_scores"] == {}
    assert "The policy trained on 4 episodes of another seed" in ended.out
    assert (folder / "table.md").read_text().strip() in ended.out


BAD = {
    "a policy where hosts learn": (
        ("--task", "digits", "--policy-rounds", "3"),
        "--policy-rounds 3: a policy is compared beside a frozen host alone; 'digits' learns",
    ),
    "fewer rounds than none": (("--task", "stdlib_adapt", "--policy-rounds", "-1"), "use 0 to leave the policy out"),
    "ranks above the width": (
        ("--task", "stdlib_adapt", "--set", "task.width=16", "--set", "task.pretrain_steps=1"),
        "has rank 32, which is above the width of slot r5c1, 16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_one_line_and_leaves_nothing_behind(
    zygote: Zygote, tmp_path: Path, case: str
) -> None:
    argv, words = BAD[case]

    ended = zygote.run("compare", *argv, "--set", f"task.cache_dir={os.devnull}", cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
