"""The same questions to every task and every preset."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from tests.support import seeded, small_task

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.config import BodyConfig
from esper.kasmina.host import Host
from esper.leyline.errors import ConfigError
from esper.leyline.task import Task
from esper.runtime.config import TaskConfig
from esper.runtime.data import VOCABULARY
from esper.runtime.tasks import TASKS, make_task, slot_ids
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.presets import PRESETS
from esper.tolaria.engine import Engine
from esper.tolaria.setup import Setup


def after_blocks(count: int) -> tuple[str, ...]:
    return tuple(f"r0c{block}" for block in range(count))


LATTICE = tuple(f"r{layer}c{column}" for layer in range(6) for column in (0, 1))
SLOTS = {
    "digits": after_blocks(3),
    "digits_scale": after_blocks(5),
    "digits_clutter": after_blocks(3),
    "digit_pairs": after_blocks(3),
    "teacher": after_blocks(2),
    "digits_mix": after_blocks(3),
    "teacher_mix": after_blocks(2),
    "cifar_baseline": after_blocks(3),
    "cifar_scale": after_blocks(5),
    "cifar_impaired": after_blocks(3),
    "cifar_minimal": after_blocks(3),
    "digits_pool": ("r0c0", "r0c1", "r1c0", "r1c1", "r2c0"),  # its last block has no pool
    "cifar_baseline_pool": LATTICE[:6],
    "cifar_scale_pool": LATTICE[:10],
    "stdlib_lm": after_blocks(3),
    "stdlib_adapt": LATTICE,
    "tinystories": after_blocks(3),
    "tinystories_layerwise": after_blocks(6),
    "tinystories_lattice": LATTICE,
}
LANGUAGE = [name for name in TASKS if TASKS[name].measures.metric.unit == "bits"]
IMAGES = [name for name in TASKS if name not in LANGUAGE]
WIDE = {"digits_pool": (32, 32, 32), "cifar_scale": (32, 32, 32, 32, 32)}


@cache
def task(name: str) -> Task:
    return make_task(small_task(name), 0)


def test_the_shelf_holds_the_tasks_that_were_asked_for() -> None:
    assert set(TASKS) == set(SLOTS)
    assert set(LANGUAGE) == {name for name in TASKS if name.startswith(("stdlib", "tinystories"))}


@pytest.mark.parametrize("name", TASKS)
def test_a_host_has_the_slots_that_its_cut_promises(name: str) -> None:
    host = task(name).make_host()
    assert isinstance(host, Host)

    assert host.slot_order == slot_ids(TASKS[name]) == SLOTS[name]


@pytest.mark.parametrize("name", IMAGES)
def test_items_are_float_images_with_a_class_each(name: str) -> None:
    splits = task(name).splits

    for split in (splits.train, splits.val, splits.test):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.dim() == 4
        assert split.targets.dtype == torch.int64
        assert split.targets.shape == (len(split),)
        assert torch.isfinite(split.inputs).all()
        assert split.inputs.shape[1:] == splits.train.inputs.shape[1:]


@pytest.mark.parametrize("name", LANGUAGE)
def test_items_are_contexts_of_text_with_the_next_character_of_each(name: str) -> None:
    splits = task(name).splits

    for split in (splits.train, splits.val, splits.test):
        assert split.inputs.dtype == split.targets.dtype == torch.int64
        assert split.inputs.shape == split.targets.shape == (len(split), 64)
        assert torch.equal(split.targets[:, :-1], split.inputs[:, 1:])
        assert torch.equal(split.targets[:-1, -1], split.inputs[1:, 0])


@pytest.mark.parametrize("name", IMAGES)
def test_the_hosts_classes_are_the_labels(name: str) -> None:
    chosen = task(name)

    outputs = chosen.make_host()(chosen.splits.val.inputs[:8])

    assert outputs.shape[0] == 8
    assert set(chosen.splits.train.targets.tolist()) == set(range(outputs.shape[1]))
    for split in (chosen.splits.val, chosen.splits.test):
        assert 0 <= split.targets.min() <= split.targets.max() < outputs.shape[1]


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_host_gives_logits_for_every_symbol_at_every_place(name: str) -> None:
    chosen = task(name)

    outputs = chosen.make_host()(chosen.splits.val.inputs[:2])

    assert outputs.shape == (2, 64, VOCABULARY)
    for split in (chosen.splits.train, chosen.splits.val, chosen.splits.test):
        assert 0 <= split.inputs.min() <= split.inputs.max() < VOCABULARY


@pytest.mark.parametrize("name", IMAGES)
def test_loss_is_cross_entropy_item_by_item_and_the_metric_counts_right_answers(name: str) -> None:
    chosen, classes = task(name), 7
    logits = torch.zeros(3, classes)
    logits[1, 2], logits[2, 0] = 50.0, 50.0
    want = torch.tensor([0, 2, 4])

    loss, right = chosen.loss(logits, want), chosen.metric.per_item(logits, want)

    # Without an opinion log(classes) nats; a sure answer costs nothing if right and its lead if wrong.
    assert loss.tolist() == pytest.approx([1.945910, 0.0, 50.0], abs=1e-5)
    assert right[1:].tolist() == [1.0, 0.0]
    assert (chosen.metric.scale, chosen.metric.unit, chosen.metric.sign) == (100.0, "%", 1.0)


@pytest.mark.parametrize("name", LANGUAGE)
def test_loss_is_nats_per_character_item_by_item_and_the_metric_is_the_same_in_bits(name: str) -> None:
    chosen = task(name)
    logits = torch.zeros(2, 3, 8)  # two contexts of three characters, eight symbols
    logits[1, 0, 5] = logits[1, 1, 5] = logits[1, 2, 5] = 50.0
    want = torch.tensor([[0, 1, 2], [5, 5, 4]])

    loss, score = chosen.loss(logits, want), chosen.metric.per_item(logits, want)

    # Without an opinion 3 bits each; then two sure and right, one sure and wrong by a lead of 50 nats.
    assert loss.tolist() == pytest.approx([3 * 0.693147, 50 / 3], abs=1e-5)
    assert (chosen.metric.scale * score).tolist() == pytest.approx([3.0, 50 / 3 / 0.693147], abs=1e-3)
    assert (chosen.metric.unit, chosen.metric.sign) == ("bits", -1.0)


@pytest.mark.parametrize("name", TASKS)
def test_an_epoch_is_the_training_split_in_full_batches_and_of_families_and_texts_a_fixed_number_of_items(
    name: str,
) -> None:
    chosen = task(name)
    items = len(chosen.splits.train) if chosen.draw is None else 2048
    items = 512 if name in LANGUAGE else items

    assert chosen.epoch_items == items
    assert chosen.steps_per_epoch == items // chosen.recipe.batch_size >= 10


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].learns])
def test_a_host_draws_its_weights_from_the_generator_that_is_lent(name: str) -> None:
    hosts = []
    for seed in (3, 3, 4):
        with seeded(seed):
            hosts.append(torch.cat([param.flatten() for param in task(name).make_host().parameters()]))

    assert torch.equal(hosts[0], hosts[1])
    assert not torch.equal(hosts[0], hosts[2])


@pytest.mark.parametrize("name", [name for name in TASKS if not TASKS[name].learns])
def test_a_host_that_does_not_learn_has_learned_and_is_the_same_whatever_is_lent(name: str) -> None:
    hosts = []
    for seed in (3, 4):
        with seeded(seed):
            hosts.append(torch.cat([param.flatten() for param in task(name).make_host().parameters()]))

    assert torch.equal(hosts[0], hosts[1])
    assert not any(param.requires_grad for param in task(name).make_host().parameters())


@pytest.mark.parametrize("name", TASKS)
def test_every_blueprint_that_fits_can_be_planted_in_every_slot(name: str) -> None:
    engine = Engine(Setup(task(name), 1, 10, 0))
    fitting = [name for name in BLUEPRINTS if any(BLUEPRINTS[name].fits(spec) for spec in engine.specs)]
    assert set(engine.space.blueprints) < set(fitting)

    for blueprint in engine.space.blueprints:
        engine.reset(0)
        for slot in engine.space.slot_config.slot_ids:
            (receipt,) = engine.apply([engine.space.action("GERMINATE", slot=slot, blueprint=blueprint)])
            assert receipt.done, receipt.why


@pytest.mark.parametrize("name", [*LANGUAGE, *WIDE])
@pytest.mark.parametrize("blueprint", [name for name, item in BLUEPRINTS.items() if "weight" in item.forms])
def test_around_the_weights_of_a_host_every_seed_of_low_rank_can_be_planted(name: str, blueprint: str) -> None:
    widths = WIDE.get(name)
    around = make_task(small_task(name, cut="weights", widths=widths), 0)
    engine = Engine(Setup(around, 1, 10, 0, body=BodyConfig(blueprints=(blueprint,))))
    engine.reset(0)

    # 3x3 of one or three channels are 9 or 27 numbers: the first block of a convolutional host takes no rank of 32.
    narrow = {"r0c0"} if widths and blueprint == "lora_large" else set()
    assert engine.space.slot_config.slot_ids == (after_blocks(len(widths)) if widths else LATTICE)
    for slot in engine.space.slot_config.slot_ids:
        (receipt,) = engine.apply([engine.space.action("GERMINATE", slot=slot, blueprint=blueprint)])
        assert receipt.done is (slot not in narrow), receipt.why


@pytest.mark.parametrize("name", TASKS)
def test_another_seed_is_another_repetition_and_the_same_seed_the_same(name: str) -> None:
    config = small_task(name)
    again, other = make_task(config, 0).splits, make_task(config, 1).splits

    assert torch.equal(task(name).splits.train.inputs, again.train.inputs)
    assert not torch.equal(task(name).splits.train.inputs[:100], other.train.inputs[:100])


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("cifar")])
def test_procedural_images_have_the_shape_of_cifar_and_are_never_chosen_silently(name: str) -> None:
    splits = task(name).splits

    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [2000, 500, 500]
    assert splits.train.inputs.shape[1:] == (3, 32, 32)
    with pytest.raises(ConfigError, match="--data synthetic"):
        make_task(TaskConfig(name=name, data_dir="/no/such/folder"), 0)


# --- presets ----------------------------------------------------------------------------------------------------


def test_there_is_a_preset_for_every_task_and_one_for_the_demo() -> None:
    assert set(PRESETS) == {*TASKS, "demo"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_made_of_settings_that_exist_and_differs_from_the_defaults(name: str) -> None:
    config = assemble(name, None, {}, [])

    assert config != EsperConfig()
    assert config.task.name == ("digits" if name == "demo" else name)
    assert PRESETS[name].summary


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_host_and_a_flag_wins_over_it(name: str) -> None:
    layer: dict[str, dict[str, object]] = {"run": {"episode_length": 7}}
    layer["task"] = {"pretrain_steps": 2, "cache_dir": os.devnull}
    if TASKS[assemble(name, None, {}, []).task.name].sources:
        layer["task"]["data"] = "synthetic"

    config = assemble(name, None, layer, [])

    assert config.run.episode_length == 7
    assert isinstance(make_task(config.task, 0).make_host(), Host)


def test_a_flag_may_choose_another_task_than_the_preset() -> None:
    config = assemble("demo", None, {"task": {"name": "digit_pairs"}}, [])

    assert config.task.name == "digit_pairs"
    assert config.task.widths == (4, 4, 8)
    assert isinstance(make_task(config.task, 0).make_host(), Host)


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_prices_of_a_language_preset_are_in_bits(name: str) -> None:
    priced, usual = assemble(name, None, {}, []), EsperConfig()

    # A point of accuracy is 0.02 bits, wherever there is one.
    for ours, theirs, names in (
        (vars(priced.reward), vars(usual.reward), ("rent", "price_scale", "shock", "churn", "rollback", "divergence")),
        (vars(priced.gates), vars(usual.gates), ("min_improvement", "min_contribution")),
    ):
        assert {each: ours[each] for each in names} == pytest.approx({each: 0.02 * theirs[each] for each in names})
