"""README is true: its tables are the code's, its example runs, its commands exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support import bring, empty_slot
from torch import nn

from esper.leyline.randomness import drawing_from, stream
from esper.leyline.reports import Contribution
from esper.leyline.stages import SeedStage

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_generated_tables_are_those_of_the_code():
    done = subprocess.run([sys.executable, ROOT / "dev" / "readme_tables.py"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_example_for_an_own_model_runs_to_a_fossil_and_prints_what_it_says():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    said = re.findall(r"^print\(.*\)  # (.+)$", code[1], re.MULTILINE)

    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)

    planted, held, kept = done.stdout.splitlines()
    assert [planted, kept] == said == ["592", "True FOSSILIZED"]
    gain = re.fullmatch(r"HOLDING: without the seed (\d+\.\d\d) \+- (\d+\.\d\d) nats more", held)
    assert gain is not None
    assert float(gain[1]) > 2 * float(gain[2])


def test_the_environment_of_readme_takes_a_step():
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "gymnasium.make" in block)
    seen: dict[str, Any] = {}
    exec(code, seen)

    assert seen["env"].observation_space.contains(seen["observation"])
    assert seen["info"]["action_valid"] in (True, False)
    assert (seen["terminated"], seen["truncated"]) == (False, False)


@pytest.mark.parametrize("command", re.findall(r"^esper (\w+)", README, re.MULTILINE))
def test_every_command_in_readme_exists(command):
    done = subprocess.run(
        [sys.executable, "-m", "esper.scripts.main", command, "--help"], capture_output=True, text=True
    )

    assert done.returncode == 0


def example_named(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example():
    return example_named("own_model")


def test_the_longer_example_keeps_a_seed_for_good(example, capsys):
    with drawing_from(stream(0, "example")):
        model = example.main(epochs=12)

    assert [slot.stage for slot in model.slots.values()] == [SeedStage.FOSSILIZED]
    printed = capsys.readouterr().out
    assert printed.index("TRAINING    alpha 0.00") < printed.index("BLENDING    alpha 0.67") < printed.index("HOLDING")
    assert "FOSSILIZE: done" in printed


@pytest.mark.parametrize(("gain", "stage"), [(0.3, SeedStage.FOSSILIZED), (0.1, SeedStage.PRUNED)])
def test_the_longer_example_prunes_what_does_not_measurably_help(example, gain, stage):
    slot = bring(empty_slot(), SeedStage.HOLDING)
    slot.step_epoch()
    slot.record_contribution(Contribution(metric=1.0, metric_sem=0.1, loss=gain, loss_sem=0.1, epoch=1))

    assert example.verdict(slot).done
    assert slot.stage is stage


def test_the_example_that_grows_lora_adapts_a_frozen_network_and_merges_what_it_grew(capsys):
    with drawing_from(stream(0, "example")):
        model, plain = example_named("grow_lora").main()

    frozen, *_, adapted, sizes = capsys.readouterr().out.splitlines()
    before, after = (float(re.search(r"(\d+\.\d) %", line)[1]) for line in (frozen, adapted))
    assert before < 50 < 80 < after
    host, seeds = (64 * 64 + 64) + (64 * 32 + 32) + (32 * 10 + 10), 8 * (64 + 64) + 8 * (64 + 32)
    assert sizes == f"with seeds {host + seeds} parameters, merged {host}"
    assert [slot.stage for slot in model.slots.values()] == [SeedStage.FOSSILIZED] * 2
    assert [type(plain.first), type(plain.second)] == [nn.Linear] * 2
