"""A grown model saved in any stage, read by plain `torch.load` into a fresh one, goes on bit for bit.

`python tests/kasmina/test_checkpoints.py FILE` is that other process: it loads FILE, goes on and saves.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import (
    LINEAR,
    PATIENT,
    USEFUL,
    bring,
    cnn,
    empty_slot,
    find_healthy,
    noise,
    plant,
    same,
    seeded,
    snapshot,
    stir,
)
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from esper.kasmina.groups import host_parameters, sync_groups
from esper.kasmina.model import MorphogeneticModel
from esper.kasmina.optimiser import load_state_by_name, state_by_name
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import WrongHostError
from esper.leyline.factored_actions import CURVES, Style
from esper.leyline.stages import SeedStage

ROOT = Path(__file__).parents[2]
AUTOMATIC = replace(PATIENT, auto_advance=("G1", "G2", "G3"))
S = SeedStage
Case = Callable[[SeedSlot], object]


def ladder_at(stage: SeedStage, level: int) -> Case:
    def case(slot: SeedSlot) -> None:
        bring(slot, S.TRAINING, blueprint="conv_ladder")
        while slot.report().internal_level < 2:
            slot.grow_internal()
        find_healthy(slot)
        for goal in (S.BLENDING, S.HOLDING):
            while stage >= goal and slot.stage < goal and not slot.advance_stage().done:
                slot.step_epoch()
        while slot.report().internal_level > level:
            slot.shrink_internal()
        while slot.report().internal_level < level:
            slot.grow_internal()
        stir(slot)
        find_healthy(slot)
        slot.step_epoch()
        if stage is S.FOSSILIZED:
            assert slot.fossilize().done
        assert slot.stage is stage

    return case


def blending(blend: str, epochs: int, tempo: int = 4) -> Case:
    def case(slot: SeedSlot) -> None:
        bring(slot, S.BLENDING, blend=blend, tempo=tempo)
        for _ in range(epochs):
            slot.step_epoch()
        slot.eval()
        with slot.watching_gate():
            slot(noise(3, slot.spec.dim, 4, 4))
        slot.train()

    return case


def along(curve: str) -> Case:
    def case(slot: SeedSlot) -> None:
        slot.germinate("conv_light", Style("ADD", CURVES[curve]), 6, 0.9)
        slot.advance_stage()
        find_healthy(slot)
        slot.step_epoch()
        slot.advance_stage()
        stir(slot)
        slot.step_epoch()
        slot.step_epoch()

    return case


def fading(blend: str, curve: str = "linear") -> Case:
    def case(slot: SeedSlot) -> None:
        blending(blend, 3)(slot)
        assert slot.prune(4, CURVES[curve]).done
        slot.step_epoch()

    return case


def blending_out(slot: SeedSlot) -> None:
    bring(slot, S.HOLDING)
    slot.set_alpha_target(0.5, 3, LINEAR)
    slot.step_epoch()


def measured(slot: SeedSlot) -> None:
    bring(slot, S.HOLDING, blueprint="conv_ladder")
    slot.record_metric(71.25)
    slot.grow_internal()
    slot.record_level_effect(USEFUL)
    slot.grow_internal()


def second_seed(slot: SeedSlot) -> None:
    bring(slot, S.RESETTING)
    while slot.stage is not S.DORMANT:
        slot.step_epoch()
    plant(slot, "norm")


CASES: dict[str, Case] = {
    **{stage.name: (lambda slot, stage=stage: bring(slot, stage)) for stage in SeedStage},
    "blending about to begin": blending("ADD", 0),
    "blending with a gate": blending("GATE", 2),
    "blended by a gate, at the end": blending("GATE", 4),
    "multiplying": blending("MULTIPLY", 1),
    **{f"blending along {curve}": along(curve) for curve in CURVES},
    "fading": fading("ADD"),
    "fading along a sharp sigmoid": fading("ADD", "sigmoid_sharp"),
    "fading with a gate": fading("GATE"),
    "blending out of holding": blending_out,
    **{f"training ladder at level {level}": ladder_at(S.TRAINING, level) for level in range(5)},
    **{f"blending ladder at level {level}": ladder_at(S.BLENDING, level) for level in range(5)},
    **{f"fossil ladder of level {level}": ladder_at(S.FOSSILIZED, level) for level in range(1, 5)},
    "everything measured": measured,
    "second seed in the slot": second_seed,
}
OPTIMISERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01),
}


def fresh(optimiser: str) -> tuple[MorphogeneticModel, Optimizer]:
    model = MorphogeneticModel(cnn((4,) * 3, seed=99))
    model.configure(AUTOMATIC)
    return model, OPTIMISERS[optimiser]([param for _, param in host_parameters(model)])


def grown(cases: list[str], optimiser: str) -> tuple[MorphogeneticModel, Optimizer]:
    """A model with one case in each slot, trained for two steps so that there are moments."""
    model = MorphogeneticModel(cnn((4,) * max(3, len(cases))))
    model.configure(PATIENT)
    for name, slot in zip(cases, model.slots.values(), strict=False):
        with seeded(4):
            CASES[name](slot)
    model.configure(AUTOMATIC)
    stepper = OPTIMISERS[optimiser]([param for _, param in host_parameters(model)])
    sync_groups(model, stepper, 1.0)
    for step in range(2):
        train(model, stepper, step)
    return model, stepper


def train(model: MorphogeneticModel, optimiser: Optimizer, step: int) -> None:
    optimiser.zero_grad()
    model.train()
    model(noise(4, 1, 8, 8, seed=step)).square().mean().backward()
    for slot in model.fossil_and_live:
        if slot.is_active and slot.stage is not S.FOSSILIZED:
            slot.record_gradients(1.0, 100)
    optimiser.step()


def go_on(model: MorphogeneticModel, optimiser: Optimizer) -> None:
    """Two epochs of one step; time may bring stages and gates, whose weights are drawn alike."""
    with seeded(7):
        for step in (10, 11):
            for slot in model.slots.values():
                slot.step_epoch()
            sync_groups(model, optimiser, 1.0)
            train(model, optimiser, step)


def save(path: Path, model: MorphogeneticModel, optimiser: Optimizer) -> None:
    torch.save({"model": model.state_dict(), "optimiser": state_by_name(model, optimiser)}, path)


def load(path: Path, model: MorphogeneticModel, optimiser: Optimizer) -> None:
    saved = torch.load(path)  # weights-only by default
    model.load_grown(saved["model"], str(path))
    sync_groups(model, optimiser, 1.0)
    load_state_by_name(model, optimiser, saved["optimiser"])


def everything(model: MorphogeneticModel, optimiser: Optimizer) -> dict[str, Any]:
    return snapshot(model) | {
        f"optimiser.{name}.{key}": value
        for name, entries in state_by_name(model, optimiser)["state"].items()
        for key, value in entries.items()
    }


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("case", CASES)
def test_a_model_loaded_in_any_stage_goes_on_as_if_it_had_never_stopped(case: str, optimiser: str, tmp_path: Path):
    model, stepper = grown([case], optimiser)
    save(tmp_path / "model.pt", model, stepper)
    saved = everything(model, stepper)
    reports = [slot.report() for slot in model.slots.values()]
    go_on(model, stepper)

    other, other_stepper = fresh(optimiser)
    load(tmp_path / "model.pt", other, other_stepper)

    assert same(everything(other, other_stepper), saved)
    assert [slot.report() for slot in other.slots.values()] == reports
    go_on(other, other_stepper)
    assert same(everything(other, other_stepper), everything(model, stepper))
    assert [slot.report() for slot in other.slots.values()] == [slot.report() for slot in model.slots.values()]


def test_a_fresh_process_goes_on_as_if_training_had_never_stopped(tmp_path: Path):
    cases = ["blending with a gate", "training ladder at level 2", "fossil ladder of level 1", "EMBARGOED", "fading"]
    model, stepper = grown(cases, "sgd")
    save(tmp_path / "model.pt", model, stepper)
    go_on(model, stepper)

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, __file__, str(tmp_path / "model.pt")], check=True, env=environment)

    resumed = torch.load(tmp_path / "model.pt.resumed")
    assert same(resumed["model"], model.state_dict())
    assert same(flat(resumed["optimiser"]["state"]), flat(state_by_name(model, stepper)["state"]))


def flat(state: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{name}.{key}": value for name, entries in state.items() for key, value in entries.items()}


def resume(path: Path) -> None:
    """What the other process does."""
    saved = torch.load(path)
    slots = sum(key.endswith(".alpha") for key in saved["model"])
    model = MorphogeneticModel(cnn((4,) * slots, seed=5))
    model.configure(AUTOMATIC)
    stepper = OPTIMISERS["sgd"]([param for _, param in host_parameters(model)])
    load(path, model, stepper)
    go_on(model, stepper)
    save(Path(f"{path}.resumed"), model, stepper)


@pytest.mark.parametrize("case", CASES)
def test_a_model_can_be_loaded_over_another_in_any_stage(case: str):
    model, _ = grown([case], "sgd")
    state = snapshot(model)

    for before in ("blending with a gate", "fossil ladder of level 1", "PRUNED"):
        other, _ = grown([before], "sgd")
        other.load_state_dict(state)
        assert same(snapshot(other), state)


@pytest.mark.parametrize("case", CASES)
def test_loading_moves_no_random_stream(case: str):
    model, _ = grown([case], "sgd")
    other, _ = fresh("sgd")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    other.load_state_dict(snapshot(model))

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("trains", [True, False])
def test_a_loaded_fossil_trains_or_not_as_its_new_models_setting_says(trains: bool):
    model, _ = grown(["FOSSILIZED"], "sgd")
    other, _ = fresh("sgd")
    other.configure(replace(AUTOMATIC, fossil_train=trains))

    other.load_state_dict(snapshot(model))

    assert {param.requires_grad for param in other.slots["r0c0"].parameters()} == {trains}


# --- what is in the file ----------------------------------------------------------------------------------------


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if type(value) is dict:
        for key, item in value.items():
            yield f"{path}.{key} (key)", key
            yield from leaves(item, f"{path}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    else:
        yield path, value


@pytest.mark.parametrize("case", CASES)
def test_what_a_slot_says_beside_its_weights_is_made_of_primitives(case: str):
    slot = empty_slot(4)
    CASES[case](slot)

    for path, leaf in leaves(slot.get_extra_state()):
        assert type(leaf) in (str, int, float, bool, type(None)), path


def test_the_extra_state_has_the_keys_of_the_work_package():
    slot = bring(empty_slot(), S.BLENDING, blueprint="conv_ladder", blend="GATE")
    slot.step_epoch()

    extra = slot.get_extra_state()

    assert {"seed_state", "alpha_schedule_config", "isolate_gradients"} <= extra.keys()
    seed, schedule = extra["seed_state"], extra["alpha_schedule_config"]
    assert {
        *("seed_id", "blueprint_id", "slot_id", "stage", "stage_entered_at", "alpha", "metrics"),
        *("blending_steps_done", "blending_steps_total"),
        *("internal_kind", "internal_level", "internal_max_level", "internal_mask"),
    } <= seed.keys()
    assert (seed["seed_id"], seed["blueprint_id"], seed["slot_id"]) == ("r0c0.1", "conv_ladder", "r0c0")
    assert (seed["stage"], type(seed["stage_entered_at"]), type(seed["metrics"])) == ("BLENDING", float, dict)
    assert (seed["alpha"], seed["blending_steps_done"], seed["blending_steps_total"]) == (0.25, 1, 4)
    assert (seed["internal_kind"], seed["internal_level"], seed["internal_max_level"]) == (1, 1, 4)
    assert seed["internal_mask"] == [True, False, False, False]
    assert {"algorithm_id", "total_steps", "current_step", "steepness"} <= schedule.keys()
    assert (schedule["algorithm_id"], schedule["total_steps"], schedule["current_step"]) == ("LINEAR", 4, 1)
    assert extra["isolate_gradients"] is True


def test_a_gates_weights_are_in_the_state_dict_proper_and_gone_after_blending():
    slot = bring(empty_slot(), S.BLENDING, blend="GATE")
    assert {key for key in slot.state_dict() if key.startswith("gate.")} == {
        *("gate.score.0.weight", "gate.score.0.bias", "gate.score.2.weight", "gate.score.2.bias")
    }

    while not slot.advance_stage().done:
        slot.step_epoch()

    assert not any(key.startswith("gate.") for key in slot.state_dict())
    assert slot.get_extra_state()["alpha_schedule_config"] is None


def test_a_prefixed_state_dict_loads_too():
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MorphogeneticModel(cnn((4,) * 3))

    whole, other = Whole(), Whole()
    whole.inner.configure(PATIENT)
    bring(whole.inner.slots["r0c1"], S.HOLDING)

    other.load_state_dict(snapshot(whole))

    assert same(snapshot(other), snapshot(whole))


# --- a file of another host -------------------------------------------------------------------------------------


def state_with(widths: tuple[int, ...] = (4, 4, 4), slots: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    model = MorphogeneticModel(cnn(widths), slots)
    model.configure(PATIENT)
    slot = next(iter(model.slots.values()))
    bring(slot, S.HOLDING, blueprint="conv_ladder")
    state = snapshot(model)
    key = f"slots.{slot.spec.slot_id}._extra_state"
    state[key] = state[key] | {"seed_state": state[key]["seed_state"] | changes}
    return state


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(lambda: state_with((4, 8, 4)), id="other widths"),
        pytest.param(lambda: state_with((4, 4)), id="fewer blocks"),
        pytest.param(lambda: state_with((4, 4, 4, 4)), id="more blocks"),
        pytest.param(lambda: state_with(slots=["r0c2"]), id="fewer slots"),
        pytest.param(lambda: state_with(blueprint_id="conv_giant"), id="unknown blueprint"),
        pytest.param(lambda: state_with(blueprint_id="norm"), id="another blueprint"),
        pytest.param(lambda: state_with(stage="PROBATIONARY"), id="unknown stage"),
        pytest.param(lambda: state_with(internal_mask=[True] * 9), id="more rungs"),
        pytest.param(lambda: cnn().state_dict(), id="a plain network"),
        pytest.param(dict, id="nothing"),
    ],
)
def test_a_model_of_another_host_is_refused_in_one_line_that_names_the_file(state: Callable[[], dict[str, Any]]):
    model = MorphogeneticModel(cnn((4,) * 3))
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(WrongHostError) as caught:
        model.load_grown(state(), "grown.pt")

    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items() if isinstance(value, torch.Tensor))
    assert all(after[key] == value for key, value in before.items() if not isinstance(value, torch.Tensor))

    message = str(caught.value)
    assert message.startswith("grown.pt holds a model of another host: ")
    assert message.endswith("Use the task and slots it was grown with.")
    assert "\n" not in message


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
