"""A comparison pairs seeds, treats every arm alike and says honestly who won."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from esper.kasmina.host import CNNHost
from esper.leyline.task import Metric
from esper.runtime.config import TaskConfig
from esper.runtime.tasks import TASKS, make_task, uniform_widths
from esper.scripts.arms import ArmResult
from esper.scripts.tables import comparison_table, verdicts

ACCURACY = Metric("accuracy", "%", True, lambda out, _want: out, 100.0)
LOSS = Metric("perplexity", "nats", False, lambda out, _want: out)


def result(name: str, seed: int, test: float | None, fossilized: int = 0) -> ArmResult:
    return ArmResult(
        name=name,
        seed=seed,
        run="",
        digest="",
        val_metric=test,
        test_metric=test,
        test_loss=test,
        host_params=10,
        params=20,
        fossilized=fossilized,
        flops=10**9,
        flops_wasted=0,
        cpu_seconds=1.0,
    )


def rows(**arms: list[float | None]) -> list[ArmResult]:
    return [result(name, seed, value) for name, values in arms.items() for seed, value in enumerate(values)]


def size(task: str, widths: tuple[int, ...]) -> int:
    host = make_task(TaskConfig(name=task, widths=widths), 0).make_host()
    assert isinstance(host, CNNHost)
    return sum(param.numel() for param in host.parameters())


@pytest.mark.parametrize("params", [1500, 3811, 4995])
def test_widened_hosts_enclose_the_grown_one(params):
    below, above = uniform_widths(TaskConfig(name="digit_pairs"), params)

    assert size("digit_pairs", below) <= params <= size("digit_pairs", above)


def test_a_host_that_kept_nothing_is_compared_with_itself():
    base = TASKS["digit_pairs"].host.widths

    assert uniform_widths(TaskConfig(name="digit_pairs"), size("digit_pairs", base)) == (base, base)


def test_the_verdict_says_that_growing_won_lost_or_cannot_be_told():
    text = "\n".join(
        verdicts(
            rows(static=[50, 51, 52], heuristic=[60, 61.5, 62], scratch=[70, 71, 73], random=[40, 80, 62]), ACCURACY
        )
    )

    assert "Against never grown: growing won, +10.2 points of accuracy" in text
    assert "Against final topology from scratch: growing lost" in text
    assert "Against grown: random: no clear difference" in text
    assert "Best mean: final topology from scratch, 71.3 %." in text


def test_where_less_is_better_the_verdict_turns_round():
    text = "\n".join(verdicts(rows(static=[5.0, 5.1, 5.2], heuristic=[3.0, 3.1, 3.3]), LOSS))

    assert "Against never grown: growing won, -2.0 nats" in text


def test_one_seed_is_shown_without_a_verdict():
    text = "\n".join(verdicts(rows(static=[50], heuristic=[60]), ACCURACY))

    assert "+10.0 points of accuracy on one seed, which gives no interval and no verdict" in text


def test_a_diverged_run_is_counted_and_spoils_the_verdict():
    found = rows(static=[50, 51], heuristic=[60, None])

    assert "(1 diverged)" in comparison_table(found, ACCURACY)
    assert "no verdict, a run diverged" in "\n".join(verdicts(found, ACCURACY))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    root = tmp_path_factory.mktemp("compare")
    small = ["--set", "task.epoch_items=128", "--set", "task.widths=4,4,4", "--set", f"run.root={root}"]
    command = [sys.executable, "-m", "esper.scripts.main", "compare", "--task", "digits", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--episode-length", "9", "--jobs", "1", *small], capture_output=True, text=True, check=True
    )
    return done, Path(done.stdout.splitlines()[-2].removeprefix("run: "))


def test_a_comparison_runs_every_arm_and_saves_its_table(comparison):
    done, folder = comparison
    table = json.loads((folder / "table.json").read_text())

    names = {row["name"] for row in table["results"]}
    assert names == {"static", "heuristic", "periodic", "random", "scratch", "uniform_below", "uniform_above"}
    assert (folder / "table.md").read_text().strip() in done.stdout
    assert done.stdout.splitlines()[-1].startswith("digest: sha256:")


def test_the_final_topology_from_scratch_has_the_grown_runs_parameters(comparison):
    _, folder = comparison
    table = json.loads((folder / "table.json").read_text())
    params = {row["name"]: row["params"] for row in table["results"]}

    assert params["scratch"] == params["heuristic"]


def test_the_learning_rate_is_chosen_by_the_never_grown_host(comparison):
    _, folder = comparison
    table = json.loads((folder / "table.json").read_text())

    assert len(table["lr_scores"]) == 3
    assert f"{table['lr']:g}" == max(table["lr_scores"], key=lambda rate: table["lr_scores"][rate])
