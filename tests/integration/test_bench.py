"""The benchmarks compare like with like, and say truthfully whether a bound was kept. No time is asserted here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench import __main__ as bench
from bench import step_language
from bench.ladder_levels import ladder_at
from bench.measuring import QUICK, Effort, Finding, compare, noise_of, ratio_of
from bench.run import train_plainly
from bench.subjects import batches, evaluate, grown_state, plain_twin, setup_for, task_named

from esper.kasmina.config import BodyConfig
from esper.kasmina.transformer_host import Cut
from esper.leyline.injection_spec import Place
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.tolaria.costs import Costs
from esper.tolaria.engine import Engine
from esper.tolaria.environment import Environment


@pytest.fixture(scope="module")
def digits() -> Task:
    return task_named("digits")


def grown(task: Task, seeds: int, isolated: bool | None = None) -> Environment:
    return Environment(0, 0, setup_for(task, grown_state(task, seeds, isolated)), Costs(task))


def test_the_command_asks_the_questions_of_the_checkout_and_passes_on_what_they_say(tmp_path: Path) -> None:
    esper = [sys.executable, "-m", "esper.scripts.main", "bench"]

    unknown = subprocess.run([*esper, "weather"], capture_output=True, text=True, cwd=tmp_path)
    asked = subprocess.run(
        [*esper, "events", "--quick", "--results", "kept"], capture_output=True, text=True, cwd=tmp_path
    )

    assert (unknown.returncode, "no question 'weather'" in unknown.stderr) == (2, True)
    assert "env.step of five slots" in asked.stdout
    assert asked.returncode == int("MISSED" in asked.stdout), asked.stderr
    (kept,) = (tmp_path / "kept").glob("*.json")
    assert json.loads(kept.read_text())["answers"].keys() == {"events"}


# --- like with like ---------------------------------------------------------------------------------------------


def test_seeds_are_planted_half_blended_and_rest_there(digits: Task) -> None:
    slots = grown(digits, 3).model.slots.values()

    assert [slot.stage for slot in slots] == [SeedStage.BLENDING] * 3
    for slot in slots:
        slot.step_epoch()
    assert [slot.alpha.item() for slot in slots] == [0.5] * 3


@pytest.mark.parametrize("name", ["digits", "digits_scale", "cifar_baseline"])
@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_the_plain_network_computes_what_the_growing_one_does(name: str, seeds: int) -> None:
    task = task_named(name)
    model = grown(task, seeds).model.eval()
    inputs, _ = batches(task, 1)[0]

    with torch.no_grad():
        expected, plain = model(inputs), plain_twin(model).eval()(inputs)

    torch.testing.assert_close(plain, expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("cut", step_language.BOUNDS)
def test_the_plain_decoder_computes_what_the_transformer_does(cut: Cut) -> None:
    task = step_language.language_task(cut)
    model = Environment(0, 0, setup_for(task), Costs(task)).model.eval()
    inputs, _ = batches(task, 1)[0]

    with torch.no_grad():
        expected, plain = model(inputs), step_language.plain_decoder(model).eval()(inputs)

    torch.testing.assert_close(plain, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("name", "place"), [("channel_ladder", "NCHW"), ("lora_ladder", "weight")])
def test_a_ladder_at_a_level_is_the_full_one_with_rungs_off_and_no_weight_at_zero(name: str, place: Place) -> None:
    part, whole = ladder_at(name, place, 1), ladder_at(name, place, 4)

    assert (part.active, whole.active) == ((True, False, False, False), (True,) * 4)
    assert all(map(torch.equal, part.parameters(), whole.parameters()))
    assert all(param.count_nonzero() == param.numel() for param in whole.parameters())


@pytest.mark.parametrize("seeds", [0, 2])
def test_the_plain_loop_trains_the_same_network_on_the_same_batches(digits: Task, seeds: int) -> None:
    """Not isolated, so that both blends send the same gradients into the host."""
    start = grown_state(digits, seeds, isolate_blending=False)
    engine = Engine(replace(setup_for(digits, start, episode_length=2), body=BodyConfig(isolate_blending=False)))
    engine.reset(0)
    twin = plain_twin(engine.environments[0].model)

    losses = []
    for _ in range(2):
        engine.train_epoch()
        losses.append(engine.measure()[0].val_loss)
    *plain, _test_loss = train_plainly(twin, digits, epochs=2)

    assert plain == pytest.approx(losses, rel=1e-4)


def test_a_plain_validation_is_the_mean_over_all_items_whatever_the_batch(digits: Task) -> None:
    twin = plain_twin(grown(digits, 0).model)

    whole, parts = evaluate(twin, digits.splits.val, 1000), evaluate(twin, digits.splits.val, 77)

    assert parts == pytest.approx(whole, rel=1e-5)


# --- the verdict ------------------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_over_pairs() -> None:
    found = ratio_of("it", [(1.0, 1.5), (2.0, 2.2), (10.0, 9.0)], bound=1.1)

    assert found.value == pytest.approx(1.1)  # of 1.5, 1.1 and 0.9
    assert found.samples == {"plain_s": [1.0, 2.0, 10.0], "ours_s": [1.5, 2.2, 9.0]}


def test_versions_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []

    def burn(who: str) -> None:
        calls.append(who)
        sum(range(2_000_000))  # longer than a sample has to be, so that a sample is one call

    found = compare("it", lambda: burn("plain"), lambda: burn("ours"), None, pairs=3)

    assert calls[-6:] == ["plain", "ours"] * 3
    assert calls[:-6].count("ours") >= 1
    assert len(found.samples["plain_s"]) == len(found.samples["ours_s"]) == 3


def test_the_noise_shrinks_with_the_root_of_the_samples() -> None:
    # Quartiles of a normal distribution are 1.349 standard deviations apart, its median is 1.253 / sqrt(n) uncertain.
    spread = [math.sin(step) for step in range(100)]

    assert noise_of(spread * 4) == pytest.approx(noise_of(spread) / 2, rel=0.05)
    assert noise_of([3.0, 3.0, 3.0]) == 0.0


@pytest.mark.parametrize(("value", "bound", "missed"), [(1.1, 1.1, False), (1.2, 1.1, True), (9.9, None, False)])
def test_a_bound_is_missed_above_it(value: float, bound: float | None, missed: bool) -> None:
    assert Finding("it", value, "x", bound, 0.0, {}).missed is missed


# --- the command ------------------------------------------------------------------------------------------------


def asking(monkeypatch: pytest.MonkeyPatch, finding: Finding) -> list[Effort]:
    """A single question `made_up` with this answer; returns the efforts that were asked for."""
    efforts: list[Effort] = []

    def answer(effort: Effort) -> list[Finding]:
        efforts.append(effort)
        return [finding]

    module = ModuleType("made_up", "Is this a question?")
    module.answer = answer  # type: ignore[attr-defined]
    monkeypatch.setattr(bench, "QUESTIONS", {"made_up": module})
    return efforts


@pytest.mark.parametrize(("bound", "code", "verdict"), [(1.3, 0, "kept"), (1.2, 1, "MISSED")])
def test_the_exit_code_says_whether_every_bound_was_kept(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bound: float,
    code: int,
    verdict: str,
) -> None:
    asking(monkeypatch, Finding("one thing over another", 1.25, "x", bound, 0.01, {"plain_s": [1.0], "ours_s": [1.25]}))

    assert bench.main(["--results", str(tmp_path)]) == code
    assert verdict in capsys.readouterr().out


def test_all_samples_are_kept_with_machine_versions_and_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    efforts = asking(monkeypatch, Finding("it", 1.25, "x", 1.3, 0.01, {"plain_s": [1.0, 2.0], "ours_s": [1.25, 2.5]}))

    bench.main(["made_up", "--quick", "--results", str(tmp_path)])

    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    (finding,) = kept["answers"]["made_up"]
    assert finding["samples"] == {"plain_s": [1.0, 2.0], "ours_s": [1.25, 2.5]}
    assert not finding["missed"]
    assert kept["quick"] is True
    assert efforts == [QUICK]
    assert kept["commit"]
    assert kept["machine"]["threads"] == 1
    assert kept["versions"]["torch"] == torch.__version__


def test_an_unknown_question_is_named_and_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["speed", "--results", str(tmp_path)])

    assert stopped.value.code == 2
    assert "no question 'speed'; there are step, run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_file_asks_a_question_in_its_first_line() -> None:
    commands = {"__main__", "rl", "chaos", "governor"}
    parts = {"__init__", "measuring", "subjects", "chaos_ranks", "chaos_rows", "governor_faults", "governor_healthy"}
    files = {path.stem for path in Path(bench.__file__).parent.glob("*.py")}

    assert files - commands - parts == set(bench.QUESTIONS)
    for module in bench.QUESTIONS.values():
        assert (module.__doc__ or "").splitlines()[0].endswith("?")


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    """Whether bounds are kept depends on the machine; that they are measured does not."""
    bench.main(["--quick", "--results", str(tmp_path)])

    (path,) = tmp_path.iterdir()
    answers = json.loads(path.read_text())["answers"]
    assert set(answers) == set(bench.QUESTIONS)
    for findings in answers.values():
        assert findings
        assert all(math.isfinite(finding["value"]) and finding["value"] >= 0 for finding in findings)
