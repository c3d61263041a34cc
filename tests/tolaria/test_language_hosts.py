"""Transformers under the engine: FLOPs by a formula, causes and effects in bits, and order that no process changes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import PATIENT, bring, small_task
from tests.tolaria.small import QUICK, by_plan, do, engine_on, live, waiting

import esper
from esper.kasmina.model import Configuration, MorphogeneticModel, grow_from
from esper.kasmina.transformer_host import TransformerConfig
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.runtime.hosts import MakeHost
from esper.runtime.tasks import TASKS, make_task
from esper.tolaria.costs import Costs
from esper.tolaria.flops import count_eval, count_step

N, T, C, V, LAYERS, HEADS = 3, 10, 12, 17, 4, 3
ONE = TransformerConfig(vocabulary=V, context=T, layers=LAYERS, width=C, heads=HEADS, num_segments=2)
# Two FLOPs per multiplication: queries, keys and values; scores and their use, the upper triangle included; the way
# out; up and down.
ATTENTION = 2 * N * T * C * 3 * C + 2 * 2 * N * T * T * C + 2 * N * T * C * C
MLP = 2 * 2 * N * T * C * 4 * C
HEAD = 2 * N * T * C * V
FORWARD = LAYERS * (ATTENTION + MLP) + HEAD


def small(name: str, **settings: Any) -> Task:
    sizes = {"layers": 2, "width": 8, "heads": 2, "context": 16, "epoch_items": 32, "eval_batch_size": 128}
    return make_task(small_task(name, **sizes | settings), 0)


@pytest.mark.parametrize("cut", ["segments", "layers", "lattice", "weights"])
def test_a_step_costs_three_times_its_products_wherever_the_host_is_cut(cut: str) -> None:
    host = TransformerConfig(**vars(ONE) | {"cut": cut}).build()
    batch = torch.zeros(N, T, dtype=torch.int64)

    step = count_step(host, batch, lambda out, _: out.mean(), batch)

    assert step.forward == FORWARD == count_eval(host, batch).total
    assert step.backward == 2 * FORWARD  # of weights and of activations; a lookup costs nothing


def test_a_frozen_host_costs_no_backward() -> None:
    batch = torch.zeros(N, T, dtype=torch.int64)

    step = count_step(
        TransformerConfig(**vars(ONE) | {"frozen": True}).build(), batch, lambda out, _: out.mean(), batch
    )

    assert (step.forward, step.backward) == (FORWARD, 0)


@pytest.mark.parametrize(("name", "share"), [("stdlib_lm", 0.3), ("stdlib_adapt", 1.0)])
def test_a_seed_holds_back_for_a_host_that_learns_alone(name: str, share: float) -> None:
    plant = by_plan(None, do("GERMINATE", slot="r1c0", blueprint="lora"))
    engine = engine_on(
        small(name, schedule="constant", cut="lattice"), length=8, body=replace(QUICK, seed_lr_scale=None)
    )

    live(engine, plant, 2)

    environment = engine.environments[0]
    *_, seed = environment.optimiser.param_groups
    assert seed["params"]
    assert seed["lr"] == pytest.approx(share * environment.task.recipe.lr)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("cut", "blueprint"), [("lattice", "mlp_small"), ("weights", "lora")])
@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.FOSSILIZED])
def test_costs_of_parts_add_up_to_a_count_of_the_whole(
    stage: SeedStage, cut: str, blueprint: str, frozen: bool
) -> None:
    task = small("stdlib_lm", cut=cut)
    assert isinstance(task.make_host, MakeHost)
    config = task.make_host.config
    assert isinstance(config, TransformerConfig)
    model = grow_from(TransformerConfig(**vars(config) | {"frozen": frozen}).build())
    model.configure(PATIENT)
    size, train, costs = task.recipe.batch_size, task.splits.train, Costs(task)
    for slot_id in (None, "r1c0", "r0c1", "r0c0"):  # each before the one before it, which a gradient now goes through
        if slot_id is not None:
            bring(model.slots[slot_id], stage, blueprint=blueprint)

        host, seeds = costs.step(model)

        whole = count_step(model, train.inputs[:size], lambda out, y: task.loss(out, y).mean(), train.targets[:size])
        assert host + sum(seeds.values()) == whole.total
        passed = count_eval(model, train.inputs[:5]).total
        assert costs.evaluation(model, train.inputs[:5], [Configuration()]) == passed


def test_the_metric_is_the_loss_in_bits_and_less_of_it_is_a_gain() -> None:
    engine = engine_on(small("stdlib_lm", cut="lattice"), length=12, body=QUICK)
    plant_it = do("GERMINATE", "r1c0", blueprint="mlp_small", tempo="fast")
    steps = live(engine, by_plan(plant_it, *[do("ADVANCE", "r1c0")] * 3), 9)

    (report,) = steps[-1].after
    assert report.val_loss is not None
    assert report.val_metric == pytest.approx(report.val_loss / math.log(2))
    assert report.metric_point == 0.02
    assert report.metric_sign == -1.0
    found = report.slots[2].contribution
    assert found is not None
    assert found.metric == pytest.approx(found.loss / math.log(2))
    first, last = (step.after[0].val_metric for step in (steps[0], steps[-1]))
    assert first is not None
    assert last is not None
    assert last < first
    seed = engine.environments[0].model.slots["r1c0"].report()
    assert seed.metric_at_germination is None  # planted before anything was measured
    assert seed.metric_now == -last


@pytest.mark.parametrize(("surfaces", "slots"), [(("post_attn",), ("r0c0", "r1c0")), (("post_mlp",), ("r0c1", "r1c1"))])
def test_a_curriculum_enables_the_slots_at_some_surfaces(surfaces: tuple[str, ...], slots: tuple[str, ...]) -> None:
    body = QUICK.__class__(**vars(QUICK) | {"surfaces": surfaces})
    engine = engine_on(small("stdlib_lm", cut="lattice"), body=body)

    assert engine.space.slot_config.slot_ids == slots
    assert tuple(spec.slot_id for spec in engine.specs) == slots
    assert [report.order for report in engine.reports()[0].slots] == [1 * (s[3] == "1") + 2 * int(s[1]) for s in slots]


def test_a_frozen_host_without_seeds_lives_and_changes_nothing() -> None:
    engine = engine_on(small("stdlib_adapt"), length=3)

    steps = live(engine, waiting, 3)

    losses = [step.after[0].val_loss for step in steps]
    assert losses[0] == losses[1] == losses[2]
    assert steps[-1].after[0].train_loss is not None


def test_a_seed_around_a_weight_of_a_frozen_host_costs_what_its_products_do() -> None:
    task = small("stdlib_adapt", cut="weights")
    engine = engine_on(task, length=12, body=QUICK)
    model = engine.environments[0].model
    bring(model.slots["r1c1"], SeedStage.BLENDING, blueprint="lora")

    host, seeds = Costs(task).step(model)

    # The last MLP's: no gradient goes on below it. Both products forward; backward those of both weights, and one
    # into the output of the first.
    places, products = task.recipe.batch_size * 16, 2 * 8 * (32 + 8)
    assert list(seeds.values()) == [places * (2 * products + 2 * 8 * 8)]
    frozen = count_step(task.make_host(), task.splits.train.inputs[:16], lambda out, _: out.mean(), torch.zeros(0))
    assert host == frozen.forward + 2 * places * 8 * 97  # back through the head alone


def test_every_ordered_pair_of_lattice_slots_composes_with_seeds_in_them() -> None:
    model = MorphogeneticModel(TransformerConfig(**vars(ONE) | {"cut": "lattice"}).build())
    model.configure(PATIENT)
    for slot in model.slots.values():
        bring(slot, SeedStage.HOLDING, blueprint="mlp_small")
    batch = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))
    for first in model.slots:
        at_first = model.slots[first](model.forward_to(first, batch))
        for second in list(model.slots)[list(model.slots).index(first) + 1 :]:
            assert torch.equal(model.forward_to(second, at_first, from_slot_id=first), model.forward_to(second, batch))
        assert torch.equal(model.forward_from(first, at_first), model(batch))


def test_order_groups_and_weights_are_the_same_in_every_process() -> None:
    program = (
        "import json, hashlib, sys, torch\n"
        "from esper.leyline.randomness import drawing_from, stream\n"
        "from esper.runtime.config import TaskConfig\n"
        "from esper.runtime.tasks import TASKS, make_task, slot_ids\n"
        "torch.set_num_threads(1)\n"
        "told = {name: slot_ids(TASKS[name]) for name in TASKS}\n"
        "task = make_task(TaskConfig(name='tinystories_lattice', data='synthetic', layers=2), 5)\n"
        "with drawing_from(stream(1, 'init')):\n"
        "    host = task.make_host()\n"
        "seen = b''.join(param.detach().numpy().tobytes() for param in host.parameters())\n"
        "told['weights'] = hashlib.sha256(seen).hexdigest()\n"
        "told['text'] = hashlib.sha256(task.splits.train.inputs.numpy().tobytes()).hexdigest()\n"
        "json.dump(told, sys.stdout)\n"
    )
    source = str(Path(esper.__file__).parent.parent)
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": source},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    ]

    assert said[0] == said[1]
    assert set(json.loads(said[0])) == {*TASKS, "weights", "text"}
