"""A comparison pairs seeds, treats every arm alike and says honestly who won."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.scripts.zygote import Zygote

from esper.leyline.task import Metric
from esper.runtime.config import TaskConfig
from esper.runtime.language import BITS
from esper.runtime.tasks import TASKS, make_task, recipe_of, widened_tasks
from esper.scripts.arms import Arm, ArmResult
from esper.scripts.compare import TUNING_SEEDS, tune
from esper.scripts.config import EsperConfig
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


def wider(task: TaskConfig, params: int) -> tuple[TaskConfig, TaskConfig]:
    found = widened_tasks(task, params)
    assert found is not None
    return found


def size(task: TaskConfig) -> int:
    return sum(param.numel() for param in make_task(task, 0).make_host().parameters())


@pytest.mark.parametrize("params", [1500, 3811, 4995])
def test_widened_hosts_enclose_the_grown_one(params):
    below, above = wider(TaskConfig(name="digit_pairs"), params)

    assert size(below) <= params <= size(above)


@pytest.mark.parametrize("params", [9_000, 12_000, 20_000])
def test_a_language_host_is_widened_by_channels_per_head(params):
    task = TaskConfig(name="stdlib_lm", layers=2, cut="layers", width=16)
    below, above = wider(task, params)

    assert size(below) <= params <= size(above)
    assert (below.layers, below.cut, above.layers, above.cut) == (2, "layers", 2, "layers")


def test_a_frozen_host_has_no_wider_rival():
    assert widened_tasks(TaskConfig(name="stdlib_adapt"), 100_000) is None


def test_a_host_that_kept_nothing_is_compared_with_itself():
    base = TaskConfig(name="digit_pairs", widths=TASKS["digit_pairs"].host.scale)

    assert wider(TaskConfig(name="digit_pairs"), size(base)) == (base, base)


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


def test_bits_are_shown_with_decimals_that_say_something():
    found = rows(static=[2.5, 2.51, 2.52], heuristic=[2.48, 2.493, 2.5])

    table = comparison_table(found, BITS)

    assert "test bits per character (bits)" in table
    assert "| never grown | 2.510 ± 0.025 |" in table  # deviation 0.01, t(0.975, 2) = 4.303
    assert "| -0.019 ± 0.004 |" in table  # mean of -0.020, -0.017 and -0.020
    assert "growing won, -0.019 bits per character [-0.023, -0.015]" in "\n".join(verdicts(found, BITS))


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

    assert f"{table['lr']:g}" == max(table["lr_scores"], key=lambda rate: table["lr_scores"][rate])


# --- the learning rate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.05, (0.015, 0.05, 0.15)),
        (0.15, (0.015, 0.05, 0.15, 0.5)),
        (0.5, (0.015, 0.05, 0.15, 0.5, 1.5)),
        (90.0, (0.015, 0.05, 0.15, 0.5, 1.5)),
        (0.015, (0.005, 0.015, 0.05, 0.15)),
        (1e-9, (0.0015, 0.005, 0.015, 0.05, 0.15)),
    ],
)
@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
def test_rates_are_tried_until_the_best_is_not_at_an_edge_or_two_further_are_tried(
    best: float, tried: tuple[float, ...], metric: Metric, tmp_path: Path
) -> None:
    """The task's own rate is 0.05; the host does the worse, the further a rate is from the best."""
    ran: list[str] = []

    def run_all(arms: Iterable[Arm]) -> list[ArmResult]:
        found = []
        for arm in arms:
            rate = arm.config.task.lr
            assert rate is not None
            assert arm.config.run.controller == "static"
            ran.append(str(arm.folder))
            found.append(result(arm.name, arm.seed, 50 - metric.sign * abs(rate - best)))
        return found

    chosen, scores = tune(EsperConfig(), metric, tmp_path, run_all)

    assert tuple(scores) == tried
    assert chosen == min(tried, key=lambda rate: abs(rate - best))
    assert scores[chosen] == pytest.approx(50 - metric.sign * abs(chosen - best))
    assert len(ran) == len(set(ran)) == 2 * len(tried)  # two seeds each, none of them twice


def test_where_the_higher_rates_diverge_lower_ones_are_tried(tmp_path: Path) -> None:
    def run_all(arms: Iterable[Arm]) -> list[ArmResult]:
        return [result(arm.name, arm.seed, 10.0 if arm.config.task.lr == 0.0015 else None) for arm in arms]

    chosen, scores = tune(EsperConfig(), ACCURACY, tmp_path, run_all)

    assert chosen == 0.0015
    assert [rate for rate, score in scores.items() if score > 0] == [0.0015]


@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
@pytest.mark.parametrize("diverging", [TUNING_SEEDS[:1], TUNING_SEEDS[1:], TUNING_SEEDS])
def test_a_rate_that_diverges_on_any_tuning_seed_is_out(
    diverging: tuple[int, ...], metric: Metric, tmp_path: Path
) -> None:
    """The higher the rate the better, but above the task's own some seeds come to nothing."""
    base = recipe_of(TaskConfig()).lr

    def came_to(arm: Arm) -> ArmResult:
        rate = arm.config.task.lr
        assert rate is not None
        return result(arm.name, arm.seed, None if rate > base and arm.seed in diverging else metric.sign * rate)

    chosen, scores = tune(EsperConfig(), metric, tmp_path, lambda arms: [came_to(arm) for arm in arms])

    assert chosen == base
    assert {rate for rate, score in scores.items() if math.isinf(score)} == {rate for rate in scores if rate > base}
    assert max(scores) > base


# --- an early end -----------------------------------------------------------------------------------------------


def endless(zygote: Zygote, cwd: Path, jobs: int) -> tuple[int, list[int]]:
    """A comparison that would take hours, and its worker processes, each in an arm."""
    argv = ("--task", "digits", "--seeds", "1", "--lr", "0.05", "--episode-length", "100000", "--jobs", str(jobs))
    pid = zygote.start("compare", *argv, cwd=cwd)
    deadline = time.monotonic() + 120
    while len(begun := list(cwd.glob("runs/2*/arms/*/run.json"))) < jobs:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    locks = [(manifest.parent / "run.lock").read_text() for manifest in begun]
    return pid, [int(lock.split()[1]) for lock in locks]  # process 123 on somewhere


def are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_comparison_and_its_workers_at_once(
    zygote: Zygote, tmp_path: Path, sent: signal.Signals, code: int, word: str
) -> None:
    pid, workers = endless(zygote, tmp_path, jobs=1)

    os.kill(pid, sent)
    began = time.monotonic()
    ended = zygote.wait(pid)

    assert time.monotonic() - began < 10  # an arm takes hours
    assert (ended.code, ended.out, ended.err) == (code, "", f"esper: {word}\n")
    assert are_gone(workers)


def test_a_worker_that_is_killed_is_one_line_that_names_what_ran_and_the_jobs(zygote: Zygote, tmp_path: Path) -> None:
    pid, workers = endless(zygote, tmp_path, jobs=2)

    os.kill(workers[0], signal.SIGKILL)
    ended = zygote.wait(pid)

    assert (ended.code, ended.out) == (6, "")
    assert ended.err == (
        "esper: a worker process was killed while it trained static, seed 0 or heuristic, seed 0; "
        "if memory ran out, give fewer than --jobs 2\n"
    )
    assert are_gone(workers)
