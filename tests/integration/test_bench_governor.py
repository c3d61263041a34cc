"""Faults struck into real hosts, in short: `python -m bench.governor` asks the same of more hosts and more faults."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from bench.gate_cost import bare_step
from bench.governor import healthy_table, host
from bench.governor_faults import FAULTS, Case, Row, matrix
from bench.governor_healthy import Lived, Wanted, lived
from tests.support import same
from tests.tolaria.small import dropout_host, engine_on, state_of, toy

from esper.leyline.randomness import drawing_from

BRIEFLY = ("NaN in a batch", "NaN in a seed's gradient", "NaN in a weight", "learning rate x 100", "exploding seed")


def test_faults_are_found_in_time_and_hosts_go_back_to_what_they_were_before() -> None:
    rows = matrix(host("digits"), [0], BRIEFLY)

    assert [row.fault for row in rows] == list(BRIEFLY)
    assert {row.fault: row.kept for row in rows} == dict.fromkeys(BRIEFLY, True)
    assert sum(case.taken_back for row in rows for case in row.cases) == 3


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        (Case(None, 3, untouched=False, taken_back=True, right=True), True),
        (Case(None, 30, untouched=False, taken_back=True, right=True), False),  # late
        (Case(None, 3, untouched=False, taken_back=True, right=False), False),  # to another state
        (Case(None, None, untouched=False, taken_back=False, right=True), False),  # never
    ],
)
def test_a_promise_is_kept_in_time_and_at_the_right_place(case: Case, kept: bool) -> None:
    assert FAULTS["learning rate x 100"].taken_back_in == 8
    assert Row("learning rate x 100", "digits", [case]).kept == kept


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_gate_and_detector_change_no_bit_of_a_healthy_host(recipe: str) -> None:
    gated, bare = (engine_on(toy(make_host=dropout_host, optimiser=recipe, lr=0.01)).environments[0] for _ in range(2))
    for environment in (gated, bare):
        for _ in range(3):
            environment.begin_epoch()
            with drawing_from(environment.draws):
                for index in range(environment.task.steps_per_epoch):
                    if environment is gated:
                        environment.train_batch(index)
                    else:
                        bare_step(environment, index)
            environment.epoch += 1

    assert torch.isfinite(next(gated.model.parameters())).all()
    assert same(state_of(gated), state_of(bare))


def test_healthy_steps_are_gone_on_with_where_they_were_left(tmp_path: Path) -> None:
    one = Lived(Wanted("digits", "random", 0), 1200, 9, 0, 1, ("burst at 9",), 3.0)
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps(asdict(one)) + "\n")

    done = lived(1200, kept, jobs=1)

    assert done == [one]
    assert healthy_table(done).endswith("| random | 1 | 1 | 1200 | 9 | 0 | 1 | 1 |")
