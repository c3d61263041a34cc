"""Every ladder, at every level, saved and read by plain `torch.load` into a fresh model, goes on bit for bit.

`python tests/kasmina/test_ladder_checkpoints.py FILE ...` is another process: it loads each FILE, goes on and saves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kasmina.sequences import grown_to
from tests.support import PATIENT, find_healthy, noise, same, seeded, snapshot, stir
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.groups import host_parameters, sync_groups
from esper.kasmina.ladder import Ladder
from esper.kasmina.model import SlottedModel
from esper.kasmina.optimiser import load_state_by_name, state_by_name
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite
from esper.leyline.errors import WrongHostError
from esper.leyline.injection_spec import Place
from esper.leyline.stages import SeedStage

ROOT = Path(__file__).parents[2]
WIDTH = 48
S = SeedStage
INPUTS: dict[Place, tuple[int, ...]] = {
    "NCHW": (3, 2, 4, 4),
    "BTC": (3, 5, 16),
    "weight": (3, 5, 16),
    "conv": (3, 51, 4, 4),
}
RUNGS = {"conv_ladder": 4, "channel_ladder": 3, "lora_ladder": 4, "attn_head_ladder": 4}
LADDERS = [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms if item.kind]
CASES = [
    (name, place, stage, level)
    for name, place in LADDERS
    for stage in (S.TRAINING, S.BLENDING, S.FOSSILIZED)
    for level in range(int(stage is S.FOSSILIZED), RUNGS[name] + 1)
]
every_case = pytest.mark.parametrize(
    ("name", "place", "stage", "level"), CASES, ids=[f"{n}-{p}-{s.name}-{level}" for n, p, s, level in CASES]
)
OPTIMISERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01),
}


def network(place: Place) -> nn.Module:
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if place == "NCHW":
        return nn.Sequential(nn.Conv2d(2, WIDTH, 1), SeedSlot.at("r0c0", WIDTH), *pooled, nn.Linear(WIDTH, 4))
    if place == "conv":
        around = WeightSite(nn.Conv2d(51, WIDTH, 3, stride=2, padding=1), "r0c0")
        return nn.Sequential(nn.ReLU(), around, *pooled, nn.Linear(WIDTH, 4))
    if place == "weight":
        around = WeightSite(nn.Linear(51, WIDTH), "r0c0")
        return nn.Sequential(nn.Linear(16, 51), around, nn.Linear(WIDTH, 4))
    return nn.Sequential(nn.Linear(16, WIDTH), SeedSlot.at("r0c0", WIDTH, "BTC"), nn.Linear(WIDTH, 4))


def fresh(place: Place, optimiser: str, seed: int = 9) -> tuple[SlottedModel, Optimizer]:
    with seeded(seed):
        model = SlottedModel(network(place))
    model.configure(replace(PATIENT, auto_advance=("G1", "G2", "G3")))
    return model, OPTIMISERS[optimiser]([param for _, param in host_parameters(model)])


def grown(name: str, place: Place, stage: SeedStage, level: int, optimiser: str) -> tuple[SlottedModel, Optimizer]:
    """A ladder at its level after two steps with two rungs on and one at its level, so that there are moments."""
    model, stepper = fresh(place, optimiser, seed=0)
    slot = model.slots["r0c0"]
    grown_to(slot, stage if stage is not S.FOSSILIZED else S.HOLDING, name, level=2)
    sync_groups(model, stepper, 1.0)
    train(model, stepper, place, 0)
    train(model, stepper, place, 1)
    while slot.report().internal_level > level:
        assert slot.shrink_internal().done
    while slot.report().internal_level < level:
        assert slot.grow_internal().done
    stir(slot)
    train(model, stepper, place, 2)
    if stage is S.FOSSILIZED:
        find_healthy(slot)
        slot.step_epoch()
        assert slot.fossilize().done
        sync_groups(model, stepper, 1.0)
    assert (slot.stage, slot.report().internal_level) == (stage, level)
    return model, stepper


def train(model: SlottedModel, optimiser: Optimizer, place: Place, step: int) -> None:
    optimiser.zero_grad()
    model.train()
    model(noise(*INPUTS[place], seed=step)).square().mean().backward()
    optimiser.step()


def go_on(model: SlottedModel, optimiser: Optimizer, place: Place) -> None:
    """Two epochs of a step each, and a rung more in between where one can be switched on."""
    slot = model.slots["r0c0"]
    for step in (10, 11):
        slot.step_epoch()
        slot.grow_internal()
        sync_groups(model, optimiser, 1.0)
        train(model, optimiser, place, step)


def save(path: Path, model: SlottedModel, optimiser: Optimizer) -> None:
    torch.save({"model": model.state_dict(), "optimiser": state_by_name(model, optimiser)}, path)


def load(path: Path, model: SlottedModel, optimiser: Optimizer) -> None:
    saved = torch.load(path)  # weights-only by default
    model.load_grown(saved["model"], str(path))
    sync_groups(model, optimiser, 1.0)
    load_state_by_name(model, optimiser, saved["optimiser"])


def everything(model: SlottedModel, optimiser: Optimizer) -> dict[str, Any]:
    return snapshot(model) | {
        f"optimiser.{name}.{key}": value
        for name, entries in state_by_name(model, optimiser)["state"].items()
        for key, value in entries.items()
    }


@every_case
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_loaded_ladder_goes_on_as_if_it_had_never_stopped(name, place, stage, level, optimiser, tmp_path):
    model, stepper = grown(name, place, stage, level, optimiser)
    save(tmp_path / "model.pt", model, stepper)
    saved, told = everything(model, stepper), model.slots["r0c0"].report()
    go_on(model, stepper, place)

    other, other_stepper = fresh(place, optimiser)
    load(tmp_path / "model.pt", other, other_stepper)

    slot = other.slots["r0c0"]
    assert same(everything(other, other_stepper), saved)
    assert slot.report() == told
    assert isinstance(slot.seed, Ladder)
    assert len(slot.seed.rungs) == (level if stage is S.FOSSILIZED else RUNGS[name])
    go_on(other, other_stepper, place)
    assert same(everything(other, other_stepper), everything(model, stepper))
    assert slot.report() == model.slots["r0c0"].report()


def test_a_fresh_process_goes_on_as_if_training_had_never_stopped(tmp_path: Path):
    kept = {}
    for name, place in LADDERS:
        model, stepper = grown(name, place, S.BLENDING, 2, "adamw")
        save(tmp_path / f"{name}.{place}", model, stepper)
        go_on(model, stepper, place)
        kept[place, tmp_path / f"{name}.{place}.resumed"] = everything(model, stepper)

    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, __file__, *sorted(map(str, tmp_path.iterdir()))], check=True, env=environment)

    for (place, path), expected in kept.items():
        other, other_stepper = fresh(place, "adamw")
        load(path, other, other_stepper)
        assert same(everything(other, other_stepper), expected), path.name


@pytest.mark.parametrize("place", ["BTC", "weight", "conv"])
def test_a_seed_of_another_place_is_refused_in_one_line(place: Place):
    saved, _ = grown("channel_ladder", "NCHW", S.TRAINING, 1, "sgd")
    model, _ = fresh(place, "sgd")

    with pytest.raises(WrongHostError, match="holds a model of another host") as caught:
        model.load_grown(saved.state_dict(), "grown.pt")

    assert "\n" not in str(caught.value)


def resume(path: Path) -> None:
    """What the other process does; the file's name ends in the place."""
    place = path.suffix[1:]
    assert place in INPUTS
    model, stepper = fresh(place, "adamw", seed=5)
    load(path, model, stepper)
    go_on(model, stepper, place)
    save(Path(f"{path}.resumed"), model, stepper)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        resume(Path(argument))
