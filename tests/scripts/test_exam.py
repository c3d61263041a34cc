"""An exam trains, searches and judges on the same hosts, is honest in words, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.scripts.loader import safe_loader
from tests.scripts.zygote import Ended, Zygote

from esper.leyline.config import decode, encode, read_json
from esper.leyline.factored_actions import HEADS
from esper.leyline.task import Metric
from esper.leyline.telemetry import EnvStepPayload
from esper.nissa.reader import read_events
from esper.runtime.language import BITS
from esper.scripts.arms import joint_digest
from esper.scripts.config import EsperConfig
from esper.scripts.exam import Plan, examine
from esper.scripts.exam_arms import Arms, HostResult, RunResult, under
from esper.scripts.exam_searches import Searched, menu_of
from esper.scripts.exam_tables import TITLES, Exam, as_dict, in_words, report, settings_in_words, verdict
from esper.scripts.runner import prepare
from esper.simic.agent.config import TeacherConfig
from esper.simic.experiments.halving import Found
from esper.tamiyo.config import HeuristicConfig

ACCURACY = Metric("accuracy", "%", True, lambda out, _want: out, 100.0)
NEVER = ({"op": "WAIT"},) * 3
QUICK = (
    "exam",
    "--task",
    "digits",
    "--quick",
    "--jobs",
    "1",
    "--set",
    "task.epoch_items=64",
    "--set",
    "task.widths=4,4",
    "--set",
    "ppo.teacher.rule=heuristic",
    "--set",
    "ppo.teacher.rounds=1",
)


def host(j: float, seed: int = 0, env: int = 0, **facts: Any) -> HostResult:
    usual = {
        "test_metric": j + 1,
        "host_params": 100,
        "params": 150,
        "fossilized": 1,
        "operations": 4,
        "flops": 2 * 10**9,
    }
    return HostResult(seed=seed, env=env, drawn=[], j=j, **usual | facts)


def run(name: str, returns: Sequence[Sequence[float]]) -> RunResult:
    return RunResult(name, 7, f"runs/{name}", "d", [list(row) for row in returns], [], 1.0, 60.0)


def exam(**arms: Sequence[float]) -> Exam:
    """J of every arm, seed by seed; arms that are not given have 50 on each. Of a seed's two hosts one is 4 better."""
    given = {name.replace("_", "-"): values for name, values in arms.items()}
    usual = [50.0] * len(given["ppo"])
    hosts = {
        arm: [host(j + 4 * env - 2, seed, env) for seed, j in enumerate(given.get(arm, usual)) for env in range(2)]
        for arm in TITLES
    }
    training, stage = run("ppo", [[40.0, 42.0], [60.0, 62.0]]), run("search-1", [[1.0, 2.0]] * 2)
    scheduled = Searched(Found(NEVER, 5, 4, 0.0), [stage])
    tuned = Searched(Found(HeuristicConfig(keep_evidence=7.5), 6, 4, 0.0), [stage, stage])
    return Exam("digits", ACCURACY, 3.0, "", hosts, training, TeacherConfig(), scheduled, tuned)


def test_an_exam_in_bits_says_so_and_shows_decimals_that_say_something() -> None:
    found = replace(exam(ppo=[-2.5013, -2.5113]), metric=BITS, rent=0.06)

    text = report(found, ["exam", "--task", "stdlib_lm"])

    assert "J = -test bits per character in bits - 0.06 x log2(exported / host parameters)" in text
    assert "| arm | J (bits) |" in text
    assert "| PPO | -2.5063 ± " in text


# --- in words ---------------------------------------------------------------------------------------------------


def test_the_verdict_names_whom_ppo_lost_to_and_beat_and_is_not_told_apart_from() -> None:
    found = exam(
        ppo=[60, 61, 62], schedule=[70, 71.5, 72], static=[50, 51, 52.5], random=[10, 60, 120], periodic=[10, 60, 110]
    )

    assert verdict(found) == (
        "**PPO lost to the best fixed schedule; it was not told apart from the periodic and random operations; "
        "it beat the tuned heuristic and the host never grown.** Best mean J: best fixed schedule, 71.2."
    )


def test_differences_are_taken_seed_by_seed() -> None:
    # The seeds differ far more than the arms do: unpaired nothing could be told.
    text = report(exam(ppo=[11, 51.5, 91.2], static=[10, 50, 90]), ["exam"])

    # differences 1, 1.5, 1.2: mean 1.233, deviation 0.2517, t(0.975, 2) = 4.303, half width 0.625
    assert "- Against never grown: PPO won, +1.23 [+0.61, +1.86]." in text


@pytest.mark.parametrize(
    ("shuffled", "words"),
    [
        ([50, 51, 52.1], "PPO acts on what it sees: shuffled sensors lower its J, +9.97"),
        ([60, 61, 62], "PPO acts as a fixed schedule: shuffled sensors do not lower its J, +0.00 [+0.00, +0.00]"),
        ([70, 71, 72.1], "PPO acts as a fixed schedule: shuffled sensors do not lower its J, -10.03"),
        ([10, 61, 90], "PPO acts as a fixed schedule"),
    ],
)
def test_a_policy_that_shuffled_sensors_do_not_hurt_acts_as_a_fixed_schedule(shuffled: list[float], words: str) -> None:
    assert words in report(exam(ppo=[60, 61, 62], ppo_shuffled=shuffled), ["exam"])


def test_the_table_has_a_row_per_arm_with_all_that_was_asked_for() -> None:
    rows = [line for line in report(exam(ppo=[50, 54]), ["exam"]).splitlines() if line.startswith("| ")]

    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == list(TITLES.values())
    # two seeds, however many hosts: mean 52, deviation 2.828, t(0.975, 1) = 12.706: half width 25.41
    assert rows[2] == "| PPO | 52.00 ± 25.41 |  | 53.00 ± 25.41 | 150 | 2.0 | 4.0 |"
    assert rows[-1] == "| never grown | 50.00 ± 0.00 | +2.00 ± 25.41 | 51.00 ± 0.00 | 150 | 2.0 | 4.0 |"


def test_hosts_that_diverged_are_counted_and_their_seed_is_what_its_other_host_is() -> None:
    found = exam(ppo=[50, 54])
    lost = {**found.hosts, "ppo": [host(48), host(10, env=1, test_metric=None), host(52, 1), host(56, 1, 1)]}

    text = report(Exam(**{**vars(found), "hosts": lost}), ["exam"])

    # test accuracy 49 and (53 + 57) / 2, J (48 + 10) / 2 and (52 + 56) / 2; half widths 12.706 / 2 of the difference
    assert "| PPO | 41.50 ± 158.83 |  | 52.00 ± 38.12 (1 diverged) |" in text


def test_what_training_and_the_search_took_and_found_is_told() -> None:
    text = report(exam(ppo=[50, 54]), ["exam", "--task", "digits"])

    assert "PPO trained on 4 episodes in 1.0 CPU minutes, seed 7" in text
    assert "the first and of the last tenth of its rounds: 41.0 and 61.0" in text
    assert "tried 5 schedules in 4 episodes and 1.0 CPU minutes, " in text
    assert "and 6 settings of the heuristic in 4 episodes and 2.0 CPU minutes." in text
    assert "The heuristic, tuned: keep_evidence=7.5." in text
    assert text.startswith("`esper exam --task digits`: 2 held-out seeds of 2 hosts each, the same for all arms.")


def test_who_taught_ppo_is_told() -> None:
    found = exam(ppo=[50, 54])
    by_rule = {rule: replace(found, teacher=TeacherConfig(rule, rounds=1)) for rule in ("heuristic", "periodic", None)}

    texts = {rule: report(each, ["exam"]) for rule, each in by_rule.items()}

    assert "In the first 1 of its 2 rounds it imitated tuned heuristic. The searches" in texts["heuristic"]
    assert "In the first 1 of its 2 rounds it imitated periodic. The searches" in texts["periodic"]
    assert "imitated" not in texts[None]


def test_a_schedule_in_words_leaves_waiting_out() -> None:
    plant = {"op": "GERMINATE", "slot": "r0c1", "blueprint": "norm"}

    assert in_words((*NEVER, plant, {"op": "ADVANCE", "slot": "r0c1"})) == "3 GERMINATE r0c1 norm; 4 ADVANCE r0c1"
    assert in_words(NEVER) == "never grow"


def test_settings_in_words_leave_the_usual_ones_out() -> None:
    assert settings_in_words(HeuristicConfig()) == "the usual settings"
    assert settings_in_words(HeuristicConfig(prefer=("norm", "conv_light"))) == "prefer=norm,conv_light"


def test_the_figures_can_be_written_as_json() -> None:
    found = json.loads(json.dumps(as_dict(exam(ppo=[50, 54])), allow_nan=False))

    assert [(each["seed"], each["j"]) for each in found["arms"]["ppo"]] == [(0, 48), (0, 52), (1, 52), (1, 56)]
    assert (found["against"]["static"]["mean"], found["against"]["static"]["seeds"]) == (2.0, 2)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taken(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    place = tmp_path_factory.mktemp("exam")
    ended = zygote.run(*QUICK, cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*-exam-digits-*")
    return ended, folder


@pytest.fixture
def copy(taken: tuple[Ended, Path], tmp_path: Path) -> Path:
    """The finished exam, to be spoilt."""
    folder = tmp_path / "runs" / taken[1].name
    shutil.copytree(taken[1], folder)
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) for path in folder.glob("arms/*/result.json")}


def gone_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunResult]:
    """What --resume does, in a thread: processes of its own would take seconds to begin."""
    monkeypatch.chdir(folder.parent.parent)
    asked = read_json(folder / "run.json")
    plan, config = decode(Plan, asked["exam"]), decode(EsperConfig, asked["config"])
    with closing(prepare(under(config, "ppo"))) as prepared, ThreadPoolExecutor(1) as pool:
        metric, menu = prepared.engine.setup.task.metric, menu_of(config, prepared.engine)
        return examine(plan, config, metric, menu, folder, Arms(pool, 1, quiet=True))[1]


def config_of(folder: Path, arm: str) -> EsperConfig:
    return decode(EsperConfig, read_json(folder / "arms" / arm / "run.json")["config"])


@safe_loader
def test_an_exam_runs_every_arm_and_saves_its_table(taken: tuple[Ended, Path]) -> None:
    ended, folder = taken
    table = json.loads((folder / "table.json").read_text())

    assert set(table["arms"]) == set(TITLES)
    assert (folder / "table.md").read_text().strip() in ended.out
    assert ended.out.startswith("**A stand-in, not an exam")
    assert ended.out.splitlines()[-2] == f"run: {folder.relative_to(folder.parent.parent)}"
    assert ended.out.splitlines()[-1].startswith("digest: sha256:")


@safe_loader
def test_all_arms_are_judged_on_the_same_hosts_which_nobody_has_seen(taken: tuple[Ended, Path]) -> None:
    _, folder = taken
    arms = json.loads((folder / "table.json").read_text())["arms"]
    hosts = {name: [(each["seed"], each["env"]) for each in rows] for name, rows in arms.items()}
    seen = {
        result["seed"]
        for name, result in results(folder).items()
        if name.startswith(("ppo", "search", "tuning")) and "-seed" not in name
    }

    assert all(each == hosts["ppo"] for each in hosts.values())
    assert [env for _, env in hosts["ppo"]] == [0, 1, 0, 1]
    assert len({seed for seed, _ in hosts["ppo"]}) == 2
    assert seen.isdisjoint(seed for seed, _ in hosts["ppo"])
    pairs = zip(arms["random"], arms["static"], strict=True)
    assert all(row["j"] == untouched["j"] for row, untouched in pairs if row["operations"] == 0)


@safe_loader
@pytest.mark.parametrize("search", ["search", "tuning"])
def test_a_search_gets_as_many_episodes_as_ppo_and_chooses_by_validation(
    taken: tuple[Ended, Path], search: str
) -> None:
    _, folder = taken
    found = results(folder)
    stages = [result for name, result in found.items() if name.startswith(search)]

    assert sum(len(row) for stage in stages for row in stage["returns"]) == sum(map(len, found["ppo"]["returns"])) == 4
    assert config_of(folder, f"{search}-1").reward.mode == "sparse"  # the returns are J on validation
    assert config_of(folder, f"{search}-1").run.shared_init is True
    assert config_of(folder, "static-seed1").run.shared_init is False


@safe_loader
def test_the_heuristic_is_judged_with_the_settings_that_were_found(taken: tuple[Ended, Path]) -> None:
    _, folder = taken
    tuned = json.loads((folder / "heuristic.json").read_text())
    tried = json.loads((folder / "tuning-1.json").read_text())

    assert encode(config_of(folder, "heuristic-seed1").policy.heuristic) == tuned
    assert encode(config_of(folder, "ppo").policy.heuristic) == tuned  # its teacher's
    assert tuned in [each for row in tried for each in row]
    assert encode(HeuristicConfig()) in [each for row in tried for each in row]
    assert json.loads((folder / "table.json").read_text())["tuning"]["settings"] == tuned


@safe_loader
def test_random_operates_as_often_as_ppo(taken: tuple[Ended, Path]) -> None:
    _, folder = taken
    found = results(folder)
    counts = [host["operations"] for arm in ("ppo-seed1", "ppo-seed2") for host in found[arm]["hosts"]]

    assert config_of(folder, "random-seed1").policy.random.operations == sum(counts) / 4
    assert config_of(folder, "ppo-shuffled-seed1").policy.shuffle_sensors is True


def decisions(folder: Path) -> list[list[dict[str, str]]]:
    """What a run of one round did, [environment][epoch], by the heads that mattered."""
    done: dict[int, list[dict[str, str]]] = {}
    for _, step in read_events(folder):
        if isinstance(step, EnvStepPayload):
            named = {head: getattr(step, head) for head in HEADS}
            done.setdefault(step.env_id, []).append({head: name for head, name in named.items() if name is not None})
    return [done[env] for env in sorted(done)]


@safe_loader
@pytest.mark.parametrize("best", [0, 1])
def test_what_returned_most_on_its_last_hosts_is_what_is_judged(
    copy: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    # Whichever of the two that came so far has the higher return: the other, found by lot, or what was known before.
    for stage in ("search-2", "tuning-2"):
        result = read_json(copy / "arms" / stage / "result.json")
        result["returns"] = [[float(env == best) for env in range(2)]]
        (copy / "arms" / stage / "result.json").write_text(json.dumps(result))
    for arm in copy.glob("arms/*-seed*"):
        if arm.name.startswith(("schedule", "heuristic")):
            shutil.rmtree(arm)

    gone_on(copy, monkeypatch)

    schedules = json.loads((copy / "search-2.json").read_text())
    settings = json.loads((copy / "tuning-2.json").read_text())
    assert schedules[0] != schedules[1]
    assert json.loads((copy / "schedule.json").read_text()) == [schedules[best]]
    for env in decisions(copy / "arms" / "schedule-seed1"):
        assert all(asked.items() <= done.items() for asked, done in zip(schedules[best], env, strict=True))
    assert settings[0] != settings[1]
    assert [encode(config_of(copy, f"heuristic-seed{seed}").policy.heuristic) for seed in (1, 2)] == settings[best] * 2


@safe_loader
def test_a_finished_exam_that_goes_on_runs_nothing_and_says_the_same(
    zygote: Zygote, taken: tuple[Ended, Path], copy: Path
) -> None:
    before = sorted(copy.glob("arms/*"))
    (copy / "table.md").unlink()
    ended = zygote.run("exam", "--resume", str(copy), "--jobs", "1", cwd=copy.parent.parent)

    assert ended.code == 0, ended.err
    assert sorted(copy.glob("arms/*")) == before
    assert ended.out.splitlines()[-1] == taken[0].out.splitlines()[-1]
    assert (copy / "table.md").read_text() == (taken[1] / "table.md").read_text()


@safe_loader
def test_arms_that_were_cut_short_go_on_and_come_to_the_same(
    taken: tuple[Ended, Path], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = [copy / "arms" / arm for arm in ("ppo", "search-2", "tuning-1", "heuristic-seed1")]
    for arm in cut:
        (arm / "result.json").unlink()
        shutil.rmtree(max((arm / "checkpoints").glob("ckpt-*")))  # the end of the run

    runs = gone_on(copy, monkeypatch)

    resumed = {folder.parent.name for folder in copy.glob("arms/*/ev") if list(folder.glob("r0.2-*"))}
    assert resumed == {arm.name for arm in cut}
    assert sorted(path.name for path in copy.glob("arms/*")) == sorted(path.name for path in taken[1].glob("arms/*"))
    assert f"digest: sha256:{joint_digest(runs)}" == taken[0].out.splitlines()[-1]


def test_a_signal_ends_an_exam_and_its_processes_at_once(zygote: Zygote, tmp_path: Path) -> None:
    pid = zygote.start("exam", "--task", "digits", "--rounds", "9999", "--jobs", "1", "--quiet", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (begun := list(tmp_path.glob("runs/2*/arms/ppo/run.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [int((manifest.parent / "run.lock").read_text().split()[1]) for manifest in begun]

    os.kill(pid, signal.SIGTERM)
    ended = zygote.wait(pid)

    assert (ended.code, ended.out, ended.err) == (143, "", "esper: terminated\n")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


BAD = {
    "no task": ((), "--task: which one?"),
    "an unknown task": (("--task", "digitz"), "unknown task 'digitz'; did you mean 'digits'"),
    "one seed": (("--task", "digits", "--hosts", "1"), "--hosts 1: an interval needs at least 2"),
    "no process": (("--task", "digits", "--jobs", "0"), "--jobs 0: must be at least 1"),
    "no round": (("--task", "digits", "--rounds", "0"), "run.rounds: 0 is out of range"),
    "one environment": (("--task", "digits", "--envs", "1"), "run.envs: 1; schedules are compared side by side"),
    "an unknown preset": (("--task", "digits", "--preset", "digitz"), "unknown preset 'digitz'"),
    "an unknown blueprint": (("--task", "digits", "--blueprints", "conv_hevy"), "did you mean 'conv_heavy'"),
    "an exam within the exam": (
        ("--task", "digits", "--set", "run.ab_test=shaped-vs-basic"),
        "run.ab_test: an exam has arms of its own",
    ),
    "an exam that is not there": (("--resume", "nosuchrun"), "run 'nosuchrun': no such run"),
    "other settings for an exam that goes on": (("--resume", "latest", "--rounds", "3"), "give no others but --jobs"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_examined_is_one_line_and_leaves_nothing_behind(
    zygote: Zygote, tmp_path: Path, case: str
) -> None:
    argv, words = BAD[case]

    ended = zygote.run("exam", *argv, cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_no_exam_cannot_go_on_as_one(zygote: Zygote, tmp_path: Path) -> None:
    argv = ("static", "--episode-length", "1", "--set", "task.epoch_items=64", "--quiet")
    assert zygote.run("train", *argv, cwd=tmp_path).code == 0

    ended = zygote.run("exam", "--resume", "latest", cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(
        r"esper: --resume: runs/\S+ is no exam; give the folder of one, or use esper resume\n", ended.err
    )
