"""Gates of finer surfaces and finer seeds, on runs made by hand: numbers worked out on paper."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.karn.made import Made

from esper.karn.memory import open_memory
from esper.karn.phases import PHASES, gates
from esper.karn.verdicts import Verdict
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    EnvStepPayload,
    GovernorRollbackPayload,
    Payload,
    SeedFossilizedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
)
from esper.nissa.writer import EventWriter

SLOTS = {"r0c0": "POST_ATTN", "r0c1": "POST_MLP", "r1c0": "POST_ATTN", "r1c1": "POST_MLP"}
QUIET = [["WAIT"]] * 5
LAST = 4  # round


@dataclass
class Run:
    """A run with a lattice of slots, in whose last round the events `told` happened, each with its step."""

    told: tuple[tuple[int, Payload], ...] = ()
    made: Made | None = None

    def write(self, root: Path, name: str, seed: int) -> str:
        made = self.made or Made(QUIET, blueprint="conv_light")
        made.seed, made.slots = seed, tuple(SLOTS)
        path = made.write(root, name)
        manifest = json.loads((path / "run.json").read_text())
        for slot in manifest["slots"]:
            slot["surface"] = SLOTS[slot["id"]]
        (path / "run.json").write_text(json.dumps(manifest))
        with EventWriter(path / "ev", "r1.1") as events:
            for step, payload in self.told:
                events.emit(payload, round=LAST, episode=LAST, step=step)
        return path.name


def judged(root: Path, phase: int, treatment: list[Run], control: list[Run] | None = None) -> dict[str, Verdict]:
    names = [
        [run.write(root, f"{side}{seed}", seed) for seed, run in enumerate(runs)]
        for side, runs in (("t", treatment), ("c", control or []))
    ]
    with closing(open_memory([root / name for each in names for name in each])) as store:
        return {gate.name: gate for gate in gates(store.con, *names, phase)}


def seed(slot: str, blueprint: str = "lora", number: int = 9) -> dict[str, Any]:
    return {"env_id": 0, "slot_id": slot, "seed_id": f"{slot}.{number}", "blueprint_id": blueprint}


def planted(slot: str, blueprint: str = "lora", number: int = 9) -> SeedGerminatedPayload:
    return SeedGerminatedPayload(
        **seed(slot, blueprint, number), params=10, blend="add", tempo=3, internal_kind=0, internal_level=1,
        internal_max_level=1,
    )  # fmt: skip


def pruned(slot: str, contribution: float | None, blueprint: str = "lora", number: int = 9, by: str = "controller"):
    return SeedPrunedPayload(**seed(slot, blueprint, number), initiator=by, age=1, params=10, contribution=contribution)


def kept(slot: str, number: int = 9) -> SeedFossilizedPayload:
    return SeedFossilizedPayload(
        **seed(slot, number=number), age=1, params=10, params_removed=0, internal_level=1, contribution=None
    )


def grown(slot: str, blueprint: str = "lora_ladder") -> SeedInternalLevelChangedPayload:
    return SeedInternalLevelChangedPayload(
        **seed(slot, blueprint), internal_kind=2, from_level=1, to_level=2, internal_max_level=4, params_before=1,
        internal_effective_params=2,
    )  # fmt: skip


def asked_to_plant(slot: str, possible: int, done: bool = True) -> EnvStepPayload:
    """possible: bits of the slots in which one could have been planted."""
    return EnvStepPayload(
        env_id=0, op="GERMINATE", slot=slot, blueprint="lora", done=done, op_mask=3, slot_mask=possible,
        val_metric=50.0, params=1, effective_params=1, flops=1, stage=(int(SeedStage.DORMANT),) * 4, alpha=(0.0,) * 4,
        level=(0,) * 4, slot_params=(0,) * 4, grad_ratio=(None,) * 4,
    )  # fmt: skip


def test_every_phase_has_gates_with_names_of_their_own(tmp_path: Path) -> None:
    for phase, questions in PHASES.items():
        found = judged(tmp_path / str(phase), phase, [Run()], [Run()])
        assert len(found) == len(questions)
        assert all(gate.asks and gate.limit for gate in found.values())


# --- phase 1 -------------------------------------------------------------------------------------------------------


def worth(*tests: float) -> list[Run]:
    return [Run(made=Made(QUIET, tests=[test] * 5, blueprint="conv_light")) for test in tests]


def test_quality_per_rent_wants_more_than_no_loss(tmp_path: Path) -> None:
    better = judged(tmp_path / "a", 1, worth(52.0, 53.0, 54.5), worth(50.0, 51.0, 52.0))["quality per rent"]
    alike = judged(tmp_path / "b", 1, worth(50.1, 51.0, 51.9), worth(50.0, 51.0, 52.0))["quality per rent"]
    alone = judged(tmp_path / "c", 1, worth(50.0))["quality per rent"]

    assert better.value == pytest.approx((2.0 + 2.0 + 2.5) / 3)
    assert (better.passed, alike.passed, alone.passed) == (True, False, None)


def test_placement_is_chi_squared_against_an_even_choice_among_possible_slots(tmp_path: Path) -> None:
    # 10 seeds beside attention and 2 beside the MLP where all four slots were possible; 4 more where only r0c1 was.
    free = [asked_to_plant("r0c0", 0b1111)] * 6 + [asked_to_plant("r1c0", 0b1111)] * 4
    free += [asked_to_plant("r1c1", 0b1111)] * 2 + [asked_to_plant("r0c1", 0b0010)] * 4
    refused = [asked_to_plant("r1c1", 0b1111, done=False)] * 50

    found = judged(tmp_path, 1, [Run(tuple(enumerate([*free, *refused], start=1)))])["placement"]

    # Expected 12 / 2 = 6 and 6 + 4 = 10, seen 10 and 6: chi^2 = 16/6 + 16/10; one degree of freedom.
    assert found.value == pytest.approx(math.erfc(math.sqrt((16 / 6 + 16 / 10) / 2)))
    assert (found.passed, found.n) == (False, 16)
    assert found.note == "POST_ATTN 10 of 6.0 expected, POST_MLP 6 of 10.0 expected"


def test_placement_that_is_far_from_even_passes_and_a_few_seeds_are_not_judged(tmp_path: Path) -> None:
    def beside_attention(count: int) -> Run:
        return Run(tuple((step, asked_to_plant("r0c0", 0b1111)) for step in range(1, count + 1)))

    many, few = (judged(tmp_path / str(n), 1, [beside_attention(n)])["placement"] for n in (20, 8))

    assert many.value == pytest.approx(math.erfc(math.sqrt(20 / 2)))
    assert (many.passed, few.passed) == (True, None)
    assert few.note.endswith("fewer than 5 expected on a surface")


def test_placement_needs_seeds_and_surfaces(tmp_path: Path) -> None:
    nothing = judged(tmp_path / "a", 1, [Run()])["placement"]
    only = judged(tmp_path / "b", 1, [Run(((1, asked_to_plant("r0c0", 0b0101)),))])["placement"]

    assert (nothing.passed, nothing.note) == (None, "nothing was planted late enough")
    assert (only.passed, only.note) == (None, "POST_ATTN is the only surface there is")


def test_small_steps_are_growths_of_the_ladder_among_these_and_large_seeds(tmp_path: Path) -> None:
    climbs = Run(((1, grown("r0c0")), (2, grown("r0c1")), (3, planted("r1c0", "lora_large"))))
    jumps = Run(((1, planted("r0c0", "lora_large")), (2, grown("r0c1", "conv_ladder"))))

    assert judged(tmp_path / "a", 1, [climbs])["small steps"].value == pytest.approx(2 / 3)
    assert judged(tmp_path / "a2", 1, [climbs])["small steps"].passed
    both = judged(tmp_path / "b", 1, [climbs, jumps])["small steps"]
    assert (both.value, both.passed, both.note) == (pytest.approx(1 / 3), False, "2 against 2")
    assert judged(tmp_path / "c", 1, [Run()])["small steps"].note == "neither happened"


# --- phase 2 -------------------------------------------------------------------------------------------------------


def test_an_overshoot_is_a_harmful_seed_pruned_soon_after_a_heavy_step_up(tmp_path: Path) -> None:
    """Of six seeds planted in the last round (and one in each of five) two overshot."""
    told = (
        (1, planted("r0c0", "conv_heavy")), (21, pruned("r0c0", -0.5, "conv_heavy")),  # counts, on the last step
        (1, planted("r0c1", "conv_heavy", 2)), (22, pruned("r0c1", -0.5, "conv_heavy", 2)),  # a step too late
        (1, planted("r1c0", "mlp")), (2, pruned("r1c0", 0.5, "mlp")),  # had helped
        (1, planted("r1c1", "lora_large")), (2, pruned("r1c1", -0.5, "lora_large", by="governor")),  # not its decision
        (30, planted("r0c0", "lora", 3)), (31, pruned("r0c0", -0.5, "lora", 3)),  # was not heavy
        (30, planted("r1c0", "conv_ladder", 4)),
        (40, SeedInternalLevelChangedPayload(
            **seed("r1c0", "conv_ladder", 4), internal_kind=1, from_level=1, to_level=2, internal_max_level=4,
            params_before=1, internal_effective_params=2)),
        (45, pruned("r1c0", -0.1, "conv_ladder", 4)),  # counts: grown five steps before
    )  # fmt: skip
    half = told[:2]

    found = judged(tmp_path / "a", 2, [Run(half)] * 1, [Run(told)])["overshoot"]
    turned = judged(tmp_path / "b", 2, [Run(told)], [Run(half)])["overshoot"]

    # 1 of 6 seeds against 2 of 11, in per cent
    assert found.value == pytest.approx(100 * (1 / 6 - 2 / 11))
    assert (found.passed, turned.passed) == (True, False)


def test_overshooting_less_than_never_cannot_be_asked(tmp_path: Path) -> None:
    overshot = Run(((1, planted("r0c0", "mlp")), (2, pruned("r0c0", -0.5, "mlp"))))

    assert judged(tmp_path / "a", 2, [overshot], [Run()])["overshoot"].note.startswith("the control never overshot")
    assert judged(tmp_path / "b", 2, [overshot])["overshoot"].note == "needs a control"


def test_kept_seeds_are_those_that_were_kept_among_those_that_met_an_end(tmp_path: Path) -> None:
    frugal = Run(((1, planted("r0c0")), (5, kept("r0c0")), (1, planted("r0c1")), (5, pruned("r0c1", None))))
    wasteful = Run(((1, planted("r0c0")), (5, pruned("r0c0", None))))

    found = judged(tmp_path / "a", 2, [frugal], [wasteful])["kept seeds"]

    assert (found.value, found.passed) == (0.5, True)
    assert judged(tmp_path / "b", 2, [frugal])["kept seeds"].note == "needs a control"
    assert judged(tmp_path / "c", 2, [Run()], [frugal])["kept seeds"].note == "no seed met an end"


def test_rollbacks_are_told_with_the_surface_that_the_step_acted_on(tmp_path: Path) -> None:
    back = GovernorRollbackPayload(
        env_id=0, reason="made", detector="burst", steps=8, restored_epoch=0, restored_steps=0, rollbacks=1
    )
    told = (
        (1, asked_to_plant("r0c1", 0b1111)), (1, back), (2, asked_to_plant("r1c1", 0b1111)), (2, back),
        (3, asked_to_plant("r1c0", 0b1111)), (3, back), (0, back),  # at step 0 the run waited
    )  # fmt: skip

    found = judged(tmp_path, 2, [Run(told), Run()], [Run(), Run()])["rollbacks by surface"]

    assert found.value == pytest.approx(100 * (4 / 5 + 0) / 2)
    assert found.note == "POST_MLP 2, POST_ATTN 1, no slot 1"
    assert found.passed is False
