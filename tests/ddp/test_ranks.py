"""Runs of several ranks: the same numbers as one process, one folder, one line of error, and all end when one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.ddp.launched import ALWAYS, HOST, PPO, RULE, Ranks, newest, until
from tests.scripts.zygote import Ended, Zygote

from esper.leyline.errors import ExitCode
from esper.leyline.telemetry import RanksTroubledPayload, RunFinishedPayload
from esper.nissa.reader import read_events

LONG = ("--rounds", "400")
SOON = ("--set", "run.ranks.timeout_s=2")


def digest(ended: Ended) -> str:
    assert ended.code == 0, ended.err
    return ended.out.splitlines()[-1].removeprefix("digest: sha256:")


@pytest.fixture(scope="module")
def alone(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], str]:
    """The digests of the same runs in one process."""
    cwd = tmp_path_factory.mktemp("alone")
    return {argv: digest(zygote.run("train", *argv, "--workers", "1", "--quiet", cwd=cwd)) for argv in (RULE, PPO)}


def troubles(cwd: Path) -> list[RanksTroubledPayload]:
    return [payload for _, payload in read_events(newest(cwd)) if isinstance(payload, RanksTroubledPayload)]


# --- the same run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [RULE, PPO], ids=["rule", "ppo"])
def test_environments_on_two_ranks_come_to_the_digest_of_one_process(
    zygote: Zygote, alone: dict[tuple[str, ...], str], tmp_path: Path, argv: tuple[str, ...]
) -> None:
    left = Ranks(zygote, tmp_path, "train", *argv).wait()

    assert digest(left[0].ended) == alone[argv]
    assert (left[0].err, left[1].ended) == ("", Ended(0, "", ""))
    assert len(list((tmp_path / "runs").iterdir())) == 2  # it, and `latest`
    assert {path.name.split("-")[0] for path in (newest(tmp_path) / "ev").iterdir()} == {"r0.1"}


@pytest.mark.slow
def test_three_ranks_come_to_the_digest_of_one_process_and_a_death_is_told_to_the_third(
    zygote: Zygote, tmp_path: Path
) -> None:
    argv = (*RULE, "--envs", "3")
    (tmp_path / "alone").mkdir()
    want = digest(zygote.run("train", *argv, "--workers", "1", "--quiet", cwd=tmp_path / "alone"))

    left = Ranks(zygote, tmp_path, "train", *argv, world=3).wait()
    killed = Ranks(zygote, tmp_path, "train", *argv, *LONG, world=3, faults={1: "ranks.answer=kill@9"}).wait()

    assert digest(left[0].ended) == want
    assert [killed[rank].code for rank in range(3)] == [ExitCode.RANKS, -signal.SIGKILL, ExitCode.RANKS]
    assert all("rank 1 died" in killed[rank].err for rank in (0, 2))


def test_a_run_whose_ranks_were_killed_goes_on_with_other_ranks_or_none_to_the_same_digest(
    zygote: Zygote, alone: dict[tuple[str, ...], str], tmp_path: Path
) -> None:
    first = Ranks(zygote, tmp_path, "train", *PPO, *ALWAYS, faults={0: "run.step=kill@4"}).wait()
    again = Ranks(zygote, tmp_path, "resume", "latest", faults={1: "ranks.answer=kill@12"}).wait()

    assert (first[0].code, first[1].code) == (-signal.SIGKILL, ExitCode.RANKS)
    assert (again[0].code, again[1].code) == (ExitCode.RANKS, -signal.SIGKILL)
    assert digest(zygote.run("resume", "latest", "--workers", "1", "--quiet", cwd=tmp_path)) == alone[PPO]


def test_hosts_that_all_ranks_train_are_trained_and_resumed_as_if_nothing_had_happened(
    zygote: Zygote, tmp_path: Path
) -> None:
    whole = Ranks(zygote, tmp_path / "whole", "train", *RULE, *HOST).wait()
    killed = Ranks(zygote, tmp_path, "train", *RULE, *HOST, *ALWAYS, faults={0: "run.step=kill@5"}).wait()
    again = Ranks(zygote, tmp_path, "resume", "latest").wait()

    assert (whole[1].ended, killed[1].code) == (Ended(0, "", ""), ExitCode.RANKS)
    assert digest(again[0].ended) == digest(whole[0].ended)


def test_one_process_goes_on_with_hosts_of_two_ranks_and_says_what_is_not_promised(
    zygote: Zygote, tmp_path: Path
) -> None:
    Ranks(zygote, tmp_path, "train", *RULE, *HOST, *ALWAYS, faults={0: "run.step=kill@5"}).wait()

    strict = zygote.run("resume", "latest", "--strict-resume", "--workers", "1", "--quiet", cwd=tmp_path)
    ended = zygote.run("resume", "latest", "--workers", "1", "--quiet", cwd=tmp_path)

    said = "ranks of each host was 2, is not set"
    assert (strict.code, said in strict.err) == (ExitCode.BAD_INPUT, True)
    assert ended.err == f"esper: not bit for bit what it would have been: {said}\n"
    assert ended.code == 0


# --- refused ----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "environments that ranks do not divide": (
        ("train", *RULE, "--envs", "3"), "run.envs: 3 environments cannot be dealt out evenly to 2 ranks",
    ),
    "batches that ranks do not divide": (
        ("train", *RULE, *HOST, "--set", "task.batch_size=15"), "task.batch_size: 15 items cannot be dealt out evenly",
    ),
    "workers beside ranks": (("train", *RULE, "--workers", "2"), "run.workers: 2 beside ranks"),
    "an A/B test": (("train", *PPO, "--ab-test", "shaped-vs-basic"), "run.ab_test: two teams cannot share ranks"),
    "a task that is none": (("train", "static", "--task", "nosuch"), "nosuch"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_ranks_cannot_run_is_said_in_one_line_by_one_of_them(zygote: Zygote, tmp_path: Path, case: str) -> None:
    argv, words = REFUSED[case]

    left = Ranks(zygote, tmp_path, *argv).wait()

    assert [left[rank].code for rank in (0, 1)] == [ExitCode.BAD_INPUT] * 2
    assert left[0].err.count("\n") == 1
    assert words in left[0].err
    assert left[1].ended.err == ""
    assert not (tmp_path / "runs").exists()


def test_a_command_of_many_runs_is_not_started_many_times(zygote: Zygote, tmp_path: Path) -> None:
    left = Ranks(zygote, tmp_path, "compare", "--task", "digits", "--seeds", "1").wait()

    assert [rank.code for rank in left.values()] == [ExitCode.BAD_INPUT] * 2
    assert "compare: torchrun is for one run" in left[0].err
    assert not (tmp_path / "runs").exists()


def test_a_rank_with_other_settings_or_data_is_refused_by_name(zygote: Zygote, tmp_path: Path) -> None:
    lr = ("train", *RULE, "--set", "task.lr=0.123")
    left = Ranks(zygote, tmp_path, "train", *RULE, others={1: lr}).wait()

    assert [rank.code for rank in left.values()] == [ExitCode.RANKS] * 2
    said = "rank 1 has another setting task.lr than rank 0: 0.123, not null; start all ranks alike"
    assert (left[0].err, left[1].err) == (f"esper: {said}\n", f"esper: rank 1: {said}\n")
    assert not (tmp_path / "runs").exists()


def test_a_rank_that_does_not_come_is_named_when_time_is_up(zygote: Zygote, tmp_path: Path) -> None:
    left = Ranks(zygote, tmp_path, "train", *RULE, *SOON, world=2, absent=(1,)).wait()[0]

    assert (left.code, left.err) == (
        ExitCode.RANKS, "esper: rank 1 did not come within 2 s; look at what it said\n",
    )  # fmt: skip
    assert 1.5 < left.seconds < 5


# --- one ends, all end ------------------------------------------------------------------------------------------

PLACES = [
    pytest.param((), 1, "ranks.answer=kill@5", id="before an answer"),
    pytest.param((), 0, "checkpoint.rename=kill@2", id="in a save"),
    pytest.param(HOST, 1, "ranks.collective=kill@20", id="before a collective, one host"),
    pytest.param(HOST, 1, "ranks.collected=kill@20", id="after a collective, one host"),
    pytest.param(HOST, 0, "ranks.collective=kill@20", id="rank 0, one host"),
    pytest.param(HOST, 0, "checkpoint.before_manifest=kill@2", id="in a save, one host"),
]


@pytest.mark.parametrize(("parallel", "victim", "plan"), PLACES)
def test_when_a_rank_dies_all_end_and_name_it(
    zygote: Zygote, tmp_path: Path, parallel: Sequence[str], victim: int, plan: str
) -> None:
    ranks = Ranks(zygote, tmp_path, "train", *RULE, *LONG, *parallel, *ALWAYS, faults={victim: plan})
    dead, other = ranks.wait(victim)[victim], ranks.wait(1 - victim)[1 - victim]

    assert (dead.code, other.code) == (-signal.SIGKILL, ExitCode.RANKS)
    assert other.seconds - dead.seconds < 5
    assert f"rank {victim} died" in other.err
    assert other.err.count("\n") == 1
    if victim == 1:
        assert [(told.kind, told.ranks) for told in troubles(tmp_path)] == [("died", (1,))]


@pytest.mark.parametrize(
    ("parallel", "plan"), [((), "ranks.answer=kill@20"), (HOST, "ranks.collective=kill@60")], ids=["envs", "one host"]
)
def test_what_rank_0_held_when_another_died_is_saved(
    zygote: Zygote, tmp_path: Path, parallel: Sequence[str], plan: str
) -> None:
    rarely = ("--set", "run.checkpoint.every=9999")
    Ranks(zygote, tmp_path, "train", *RULE, *LONG, *parallel, *rarely, faults={1: plan}).wait()

    assert len(list((newest(tmp_path) / "checkpoints").glob("ckpt-*"))) == 1


@pytest.mark.parametrize(
    "parallel", [pytest.param((), id="environments", marks=pytest.mark.slow), pytest.param(HOST, id="one host")]
)
def test_a_rank_that_is_stopped_is_named_when_time_is_up(
    zygote: Zygote, tmp_path: Path, parallel: Sequence[str]
) -> None:
    ranks = Ranks(zygote, tmp_path, "train", *RULE, *LONG, *SOON, *parallel)
    until(lambda: (tmp_path / "runs" / "latest").exists())
    ranks.hit(1, signal.SIGSTOP)
    try:
        left = ranks.wait(0)[0]
    finally:
        os.kill(ranks.pids[1], signal.SIGKILL)
    ranks.wait(1)

    assert left.code == ExitCode.RANKS
    assert 1.5 < left.seconds < 2 + 5
    assert "rank 1 has been silent for 2 s" in left.err


@pytest.mark.parametrize(
    ("parallel", "site"),
    [
        pytest.param((), "ranks.answer", id="environments"),
        pytest.param(HOST, "ranks.collective", id="one host", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_lives_and_does_nothing_is_named_when_time_is_up(
    zygote: Zygote, tmp_path: Path, parallel: Sequence[str], site: str
) -> None:
    ranks = Ranks(zygote, tmp_path, "train", *RULE, *LONG, *SOON, *parallel, faults={1: f"{site}=sleep:60@30"})
    left = ranks.wait()

    assert [rank.code for rank in left.values()] == [ExitCode.RANKS] * 2
    assert "rank 1 kept the others waiting for 2 s" in left[0].err
    assert "rank 1 kept the others waiting for 2 s" in left[1].err
    if not parallel:  # one that waits in a sum has no time to tell
        assert [(told.kind, told.ranks) for told in troubles(tmp_path)] == [("stuck", (1,))]


def test_a_rank_that_is_slow_is_told_of_once_and_the_run_goes_on(
    zygote: Zygote, alone: dict[tuple[str, ...], str], tmp_path: Path
) -> None:
    slow = "ranks.answer=sleep:1.5@10, ranks.answer=sleep:1.5@20"
    left = Ranks(zygote, tmp_path, "train", *RULE, faults={1: slow}).wait()
    (told,) = troubles(tmp_path)

    assert digest(left[0].ended) == alone[RULE]
    assert (told.kind, told.ranks) == ("slow", (1,))
    assert told.text.startswith("rank 1 took 1.")


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        pytest.param(signal.SIGINT, ExitCode.INTERRUPTED, id="ctrl-c", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ExitCode.TERMINATED, id="terminated"),
    ],
)
def test_a_signal_to_all_ranks_saves_what_is_held_and_all_end_with_its_code(
    zygote: Zygote, tmp_path: Path, sign: signal.Signals, code: ExitCode
) -> None:
    ranks = Ranks(zygote, tmp_path, "train", *RULE, *LONG, "--set", "run.checkpoint.every=9999")
    until(lambda: (tmp_path / "runs" / "latest" / "ev" / "r0.1-000000.open").exists())
    until(lambda: (newest(tmp_path) / "ev" / "r0.1-000000.open").stat().st_size > 20000)
    for rank in (1, 0):
        ranks.hit(rank, sign)
    os.kill(ranks.pids[0], sign)  # as the launcher does on top of it
    left = ranks.wait()

    assert [rank.code for rank in left.values()] == [code] * 2
    assert left[1].err == ""
    assert len(list((newest(tmp_path) / "checkpoints").glob("ckpt-*"))) == 1
    (finished,) = [p for _, p in read_events(newest(tmp_path)) if isinstance(p, RunFinishedPayload)]
    assert finished.status == "interrupted"
