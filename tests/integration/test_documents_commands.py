"""The commands that the documents give, as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.leyline.telemetry import (
    EnvStepPayload,
    Payload,
    PpoUpdatedPayload,
    RunFinishedPayload,
    SeedInternalLevelChangedPayload,
)
from esper.nissa.reader import gaps, read_events

CIFAR_SCALE = (
    "heuristic --task cifar_scale --data synthetic --slots r0c0 r0c1 r0c2 r0c3 r0c4 --max-seeds 2 "
    "--episode-length 12 --envs 2"
)


def run(cwd: Path, command: str) -> Path:
    """The folder of the run that the command made."""
    subprocess.run(
        [sys.executable, "-m", "esper.scripts.train", *command.split(), "--quiet"],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return (cwd / "runs" / "latest").resolve()


def told(folder: Path, kind: type[Payload]) -> list[Payload]:
    return [payload for _, payload in read_events(folder) if type(payload) is kind]


@pytest.mark.slow
def test_five_slots_of_cifar_scale_run_to_the_end_and_no_more_seeds_live_than_are_allowed(tmp_path: Path) -> None:
    folder = run(tmp_path, CIFAR_SCALE)

    steps = told(folder, EnvStepPayload)
    assert len(steps) == 2 * 12
    assert all(len(step.stage) == 5 for step in steps)
    # Stages 2 to 7 hold a seed.
    assert max(sum(2 <= stage <= 7 for stage in step.stage) for step in steps) <= 2
    assert [event.status for event in told(folder, RunFinishedPayload)] == ["done"]
    assert told(folder, SeedInternalLevelChangedPayload) == []
    assert gaps(folder) == []


@pytest.mark.slow
def test_with_ladders_on_offer_their_levels_are_changed(tmp_path: Path) -> None:
    folder = run(tmp_path, f"{CIFAR_SCALE} --blueprints conv_ladder")

    changes = told(folder, SeedInternalLevelChangedPayload)
    assert changes
    assert {event.blueprint_id for event in changes} == {"conv_ladder"}
    assert {step.op for step in told(folder, EnvStepPayload)} & {"GROW_INTERNAL", "SHRINK_INTERNAL"}


@pytest.mark.parametrize("treatment", ["", "--blueprints conv_ladder"], ids=["control", "treatment"])
def test_the_experiment_packs_commands_run_as_written_but_for_their_size(tmp_path: Path, treatment: str) -> None:
    """The documents' 100 rounds of 8 environments and 150 epochs are shortened, and images are procedural."""
    folder = run(
        tmp_path,
        "ppo --preset cifar_scale --task cifar_scale --slots r0c0 r0c1 r0c2 r0c3 r0c4 --max-seeds 2 "
        f"--rounds 1 --envs 2 --episode-length 3 {treatment} --sanctum "
        "--data synthetic --workers 1 --set task.epoch_items=128",
    )

    steps = told(folder, EnvStepPayload)
    assert len(steps) == 2 * 3
    assert all(len(step.stage) == 5 for step in steps)
    (update,) = told(folder, PpoUpdatedPayload)
    assert update.ratio_error <= 1e-5
    assert [event.status for event in told(folder, RunFinishedPayload)] == ["done"]
    assert (folder / "checkpoints" / "policy.pt").is_file()
