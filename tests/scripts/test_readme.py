"""README is true: its tables are the code's, its example runs, its commands exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_generated_tables_are_those_of_the_code():
    done = subprocess.run([sys.executable, ROOT / "dev" / "readme_tables.py"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_example_for_an_own_model_runs_and_prints_what_it_says():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None

    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True 592"


@pytest.mark.parametrize("command", re.findall(r"^esper (\w+)", README, re.MULTILINE))
def test_every_command_in_readme_exists(command):
    done = subprocess.run(
        [sys.executable, "-m", "esper.scripts.main", command, "--help"], capture_output=True, text=True
    )

    assert done.returncode == 0


def test_the_longer_example_grows_a_network_by_hand_and_holds_its_seed(capsys):
    spec = importlib.util.spec_from_file_location("own_model", ROOT / "examples" / "own_model.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    assert example.main(epochs=12) == "HOLDING"
    assert "TRAINING    alpha 0.00" in capsys.readouterr().out
