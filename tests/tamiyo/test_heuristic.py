"""What the heuristic decides, rule by rule and from both sides of every threshold, on reports made by hand.

Settings are the defaults; the episode has 100 epochs, so that fractions of it read as per cent. When and where seeds
are planted is in `test_heuristic_planting.py`, what is remembered in `test_heuristic_memory.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tamiyo.small import (
    BLANK,
    LENGTH,
    RULES,
    blending,
    brings,
    decide,
    held,
    heuristic,
    host,
    ladder,
    masks,
    slot,
    words,
)

from esper.leyline.decisions import Sight
from esper.leyline.reports import AlphaMode, Contribution, HostReport, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.stages import SEEDED, SeedStage
from esper.nissa.progress import Progress
from esper.nissa.run_folder import RunFolder
from esper.scripts.runner import prepare, run_training
from esper.scripts.train import add_arguments, configure
from esper.tamiyo.config import HeuristicConfig
from esper.tamiyo.heuristic import (
    Recollection,
    RuleOf,
    Situation,
    evidence,
    keep_what_helps,
    plant_on_a_plateau,
    remove_the_broken,
    remove_the_unproven,
    tune_the_ladder,
)

GERMINATED, TRAINING, BLENDING = SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING
HOLDING, FOSSILIZED = SeedStage.HOLDING, SeedStage.FOSSILIZED
LADDER = SeedInternalKind.CONV_LADDER


def answer(rule: RuleOf, report: HostReport, memory: Recollection = BLANK) -> str:
    """What one rule says, asked alone."""
    found = rule(Situation(HeuristicConfig(), report, masks(report), memory))
    return words(None if found is None else found[0])


def test_evidence_is_the_loss_in_standard_errors() -> None:
    assert evidence(Contribution(metric=-5.0, metric_sem=1.0, loss=0.5, loss_sem=0.25, epoch=1)) == 2.0
    assert evidence(Contribution(metric=5.0, metric_sem=1.0, loss=-0.5, loss_sem=0.25, epoch=1)) == -2.0
    assert evidence(Contribution(metric=5.0, metric_sem=1.0, loss=0.0, loss_sem=0.0, epoch=1)) == 0.0
    assert evidence(None) is None


# --- one rule at a time -----------------------------------------------------------------------------------------

NEEDS_REST = replace(RULES, internal_needs_hold=True)
SETTLED = Recollection(settled=frozenset({"seed-r0c0"}))

# A rule, a host, and the answer of the rule on this host; `-` hands the question on to the next rule.
ANSWERS: dict[str, tuple[RuleOf, HostReport, str]] = {
    # Broken, or harmful while blending.
    "broken in training": (remove_the_broken, host(slot(0, TRAINING, broken=True)), "PRUNE r0c0"),
    "broken while held": (remove_the_broken, host(held(broken=True)), "PRUNE r0c0"),
    "broken and just old enough": (remove_the_broken, host(slot(0, TRAINING, broken=True, age=3)), "PRUNE r0c0"),
    "broken and too young": (remove_the_broken, host(slot(0, TRAINING, broken=True, age=2)), "-"),
    "broken for good": (remove_the_broken, host(slot(0, FOSSILIZED, broken=True)), "-"),
    "broken and fading": (remove_the_broken, host(blending(broken=True, alpha_mode=AlphaMode.DOWN)), "-"),
    "harm above three errors": (remove_the_broken, host(blending(worth=-3.125)), "PRUNE r0c0"),
    "harm of three errors": (remove_the_broken, host(blending(worth=-3.0)), "-"),
    "blending and not measured": (remove_the_broken, host(blending(worth=None)), "-"),
    "help above three errors": (remove_the_broken, host(blending(worth=3.125)), "-"),
    "harm while held is judged elsewhere": (remove_the_broken, host(held(worth=-9.0)), "-"),
    "the first broken of two": (
        remove_the_broken,
        host(
            slot(0, TRAINING, broken=True, age=2), slot(1, TRAINING), blending(2, -4.0), slot(3, TRAINING, broken=True)
        ),
        "PRUNE r0c2",
    ),
    # Ladders.
    "the seed pays": (tune_the_ladder, host(ladder(worth=2.0)), "GROW_INTERNAL r0c0"),
    "the seed does not pay": (tune_the_ladder, host(ladder(worth=1.875)), "-"),
    "the seed pays while held": (tune_the_ladder, host(ladder(stage=HOLDING)), "GROW_INTERNAL r0c0"),
    "the seed is in training": (tune_the_ladder, host(ladder(stage=TRAINING)), "-"),
    "the seed is blended less than half": (tune_the_ladder, host(ladder(alpha=0.4375)), "-"),
    "the seed was not measured": (tune_the_ladder, host(ladder(effect=5.0, worth=None)), "-"),
    "a ladder of one rung": (tune_the_ladder, host(ladder(internal_level=0, internal_max_level=1)), "-"),
    "the rung pays, whatever the seed": (tune_the_ladder, host(ladder(effect=1.0, worth=-2.0)), "GROW_INTERNAL r0c0"),
    "the rung does not pay": (tune_the_ladder, host(ladder(effect=0.875)), "SHRINK_INTERNAL r0c0"),
    "the lowest rung does not pay": (tune_the_ladder, host(ladder(effect=-5.0, internal_level=1)), "-"),
    "the top rung pays": (tune_the_ladder, host(ladder(effect=5.0, internal_level=4)), "-"),
    "time for one more rung": (tune_the_ladder, host(ladder(), left=5), "GROW_INTERNAL r0c0"),
    "no time for one more rung": (tune_the_ladder, host(ladder(), left=4), "-"),
    "the rung pays and time is up": (tune_the_ladder, host(ladder(effect=5.0), left=4), "-"),
    "back, however little time": (tune_the_ladder, host(ladder(effect=0.0), left=1), "SHRINK_INTERNAL r0c0"),
    "up, but alpha must rest": (tune_the_ladder, host(ladder(), rules=NEEDS_REST), "-"),
    "back, but alpha must rest": (tune_the_ladder, host(ladder(effect=0.0), rules=NEEDS_REST), "-"),
    "the first ladder that has a move": (
        tune_the_ladder,
        host(ladder(0, worth=0.0), ladder(1, 0.0), ladder(2)),
        "SHRINK_INTERNAL r0c1",
    ),
    # Keeping.
    "help of two errors": (keep_what_helps, host(held(worth=2.0)), "FOSSILIZE r0c0"),
    "help below two errors": (keep_what_helps, host(held(worth=1.875)), "-"),
    "help not measured": (keep_what_helps, host(held(worth=None)), "-"),
    "held long enough": (keep_what_helps, host(held(worth=9.0, epochs=2)), "FOSSILIZE r0c0"),
    "held an epoch too little": (keep_what_helps, host(held(worth=9.0, epochs=1)), "-"),
    "help while blending": (keep_what_helps, host(blending(worth=9.0, epochs_in_stage=9)), "-"),
    "help when all is over": (keep_what_helps, host(held(worth=9.0), finished=True), "-"),
    "the first that helps": (
        keep_what_helps,
        host(held(0, 1.0), held(1, 9.0, epochs=1), held(2, 2.0), held(3, 9.0)),
        "FOSSILIZE r0c2",
    ),
    # Removing: the first verdict comes after 2 epochs, patience is 10 more.
    "unproven, out of patience": (remove_the_unproven, host(held(worth=1.0, epochs=12)), "PRUNE r0c0"),
    "unproven, patience left": (remove_the_unproven, host(held(worth=1.0, epochs=11)), "-"),
    "unproven, two epochs left": (remove_the_unproven, host(held(worth=1.0), left=2), "PRUNE r0c0"),
    "unproven, three epochs left": (remove_the_unproven, host(held(worth=1.0), left=3), "-"),
    "harm above two errors": (remove_the_unproven, host(held(worth=-2.125, epochs=2)), "PRUNE r0c0"),
    "harm of two errors": (remove_the_unproven, host(held(worth=-2.0, epochs=2)), "-"),
    "harm before the first verdict": (remove_the_unproven, host(held(worth=-9.0, epochs=1)), "-"),
    "never measured": (remove_the_unproven, host(held(worth=None, epochs=50), left=1), "-"),
    "still blending at the end": (remove_the_unproven, host(blending(worth=-2.5, epochs_in_stage=50), left=1), "-"),
    "unproven and too young": (remove_the_unproven, host(held(worth=-9.0, age=2)), "-"),
    "the first that has to go": (
        remove_the_unproven,
        host(held(0, 1.0), held(1, -9.0, age=2), held(2, -3.0), held(3, -9.0)),
        "PRUNE r0c2",
    ),
    # Planting: at 3 epochs at the earliest, at 10 without a plateau. Keeping takes 17 epochs at the slow tempo.
    "late enough without a plateau": (plant_on_a_plateau, host(slot(0), left=90), "GERMINATE r0c0"),
    "too early without a plateau": (plant_on_a_plateau, host(slot(0), left=91), "-"),
    "time to keep one more": (plant_on_a_plateau, host(slot(0), left=17), "GERMINATE r0c0"),
    "no time to keep one more": (plant_on_a_plateau, host(slot(0), left=16), "-"),
    "time beside another": (plant_on_a_plateau, host(slot(0), slot(1, TRAINING), left=18), "GERMINATE r0c0"),
    "no time beside another": (plant_on_a_plateau, host(slot(0), slot(1, TRAINING), left=17), "-"),
    "no slot is free": (plant_on_a_plateau, host(slot(0, TRAINING), slot(1, SeedStage.EMBARGOED)), "-"),
    "no seed more is allowed": (
        plant_on_a_plateau,
        host(slot(0), slot(1, FOSSILIZED), rules=replace(RULES, max_seeds=1)),
        "-",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_rule_answers_on_its_side_of_every_threshold(case: str) -> None:
    rule, report, expected = ANSWERS[case]

    assert answer(rule, report) == expected


@pytest.mark.parametrize("case", ANSWERS)
def test_where_less_of_the_metric_is_better_every_decision_is_the_same(case: str) -> None:
    _, report, _ = ANSWERS[case]
    turned = replace(report, metric_sign=-1.0, val_metric=1.0, previous_metric=2.0)

    assert decide(turned) == decide(report)


@pytest.mark.parametrize("case", [case for case, (_, _, words) in ANSWERS.items() if words != "-"])
def test_an_answer_is_what_the_whole_heuristic_does(case: str) -> None:
    _, report, expected = ANSWERS[case]

    assert decide(report)[0] == expected


def test_a_settled_ladder_is_left_alone_and_another_tuned() -> None:
    both = host(ladder(0), ladder(1))

    assert answer(tune_the_ladder, both) == "GROW_INTERNAL r0c0"
    assert answer(tune_the_ladder, both, SETTLED) == "GROW_INTERNAL r0c1"
    assert answer(tune_the_ladder, host(ladder(0, effect=0.0)), SETTLED) == "-"


@pytest.mark.parametrize(("epochs", "expected"), [(1, "WAIT"), (2, "PRUNE r0c0")])
def test_in_a_short_episode_a_held_seed_is_measured_twice_before_it_goes(epochs: int, expected: str) -> None:
    short = replace(RULES, min_holding=1)

    assert decide(host(held(worth=1.0, epochs=epochs), left=6, epoch=6, episode_length=12, rules=short))[0] == expected


# --- all rules together -----------------------------------------------------------------------------------------

# One slot for every rule, each with what it has to say; the rules in their order.
EVERY_RULE = [
    (lambda at: blending(at, broken=True), "PRUNE"),
    (lambda at: ladder(at), "GROW_INTERNAL"),
    (lambda at: held(at, worth=9.0), "FOSSILIZE"),
    (lambda at: held(at, worth=-9.0), "PRUNE"),
    (lambda at: slot(at, GERMINATED), "ADVANCE"),
    (lambda at: slot(at), "GERMINATE"),
]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("calm", range(len(EVERY_RULE) + 1))
def test_the_first_rule_that_has_something_to_say_decides_in_whatever_slot(calm: int, backwards: bool) -> None:
    places = list(range(len(EVERY_RULE)))[:: -1 if backwards else 1]
    slots = {
        at: slot(at, FOSSILIZED) if index < calm else make(at)
        for index, (at, (make, _)) in enumerate(zip(places, EVERY_RULE, strict=True))
    }

    said, _ = decide(host(*(slots[at] for at in sorted(slots))))

    assert said == ("WAIT" if calm == len(EVERY_RULE) else f"{EVERY_RULE[calm][1]} r0c{places[calm]}")


def test_a_seed_that_helps_is_kept_before_those_that_do_not_are_removed() -> None:
    """With two decisions left the order is the difference between keeping it and not."""
    last = host(held(0, 1.0), held(1, 1.0), held(2, 9.0), left=2)

    assert decide(last)[0] == "FOSSILIZE r0c2"


@st.composite
def slots(draw: st.DrawFn, index: int) -> SeedStateReport:
    stage = draw(st.sampled_from(SeedStage))
    worth = st.none() | st.sampled_from([-9.0, -2.5, 0.0, 2.0]).map(brings)
    seeded: dict[str, Any] = {
        "age": draw(st.integers(0, 9)),
        "epochs_in_stage": draw(st.integers(0, 15)),
        "alpha": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "alpha_target": draw(st.sampled_from([0.5, 1.0])),
        "alpha_mode": draw(st.sampled_from(AlphaMode)),
        "internal_kind": LADDER,
        "internal_level": draw(st.integers(0, 4)),
        "internal_max_level": 4,
        "contribution": draw(worth),
        "level_effect": draw(worth),
        "broken": draw(st.booleans()),
    }
    return slot(index, stage, **seeded if stage in SEEDED else {})


@given(data=st.data(), left=st.integers(1, LENGTH), top=st.integers(1, 4), finished=st.booleans())
def test_whatever_is_decided_is_possible(data: st.DataObject, left: int, top: int, finished: bool) -> None:
    rules = replace(RULES, max_seeds=top, internal_needs_hold=data.draw(st.booleans()))
    report = host(*(data.draw(slots(index)) for index in range(3)), left=left, rules=rules, finished=finished)
    legal = masks(report)

    choice, _ = heuristic(legal.space).act(Sight([report]), [legal], (BLANK,))

    assert legal.allows(choice.actions[0])


# --- the promise ------------------------------------------------------------------------------------------------


def kept(seed: int, folder: Path) -> int:
    """Fossilised seeds of a run of 12 epochs on digits."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = ["heuristic", "--task", "digits", "--episode-length", "12", "--seed", str(seed)]
    with RunFolder.create_in(folder) as run:
        finished = run_training(prepare(configure(parser.parse_args(argv))), run, Progress(quiet=True))
    return finished.rounds[-1].outcomes[0].fossilized


@pytest.mark.slow
def test_in_twelve_epochs_on_digits_four_runs_of_five_keep_a_seed(tmp_path: Path) -> None:
    assert sum(kept(seed, tmp_path / str(seed)) > 0 for seed in range(5)) >= 4
