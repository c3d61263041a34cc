"""Families of tasks: what is drawn, that only training is touched, and that a run lives through any draw."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import esper.tamiyo.baselines
import esper.tamiyo.heuristic
from esper.kasmina.export import Graft
from esper.kasmina.host import Host
from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.leyline.task import Split, Task
from esper.runtime.config import TaskConfig
from esper.runtime.data import digit_pairs, digits, digits_clutter, teacher
from esper.runtime.tasks import TASKS, make_task, slot_ids
from esper.scripts.config import EsperConfig
from esper.scripts.runner import build_task
from esper.simic.training.config import RunConfig
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tolaria import costs
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

_ = (esper.tamiyo.baselines, esper.tamiyo.heuristic)  # importing them fills the registry
FAMILIES = [name for name in TASKS if TASKS[name].family is not None]
every_family = pytest.mark.parametrize("name", FAMILIES)
seeds = st.integers(0, 10_000)


@cache
def family(name: str) -> Task:
    return make_task(TaskConfig(name=name), 0)


@cache
def clean(kind: str) -> tuple[Any, int]:
    """The data of a kind as its own loader gives it, and the number of its classes."""
    kinds = {
        "plain": lambda: (digits(0), 10),
        "paired": lambda: (digit_pairs(0), 19),
        "cluttered": lambda: (digits_clutter(0), 10),
    }
    return kinds[kind]() if kind in kinds else (teacher(0, int(kind), noise=0.0), int(kind) + 2)


def draw(name: str, number: int) -> Task:
    return family(name).member(stream(0, "test", number))


def told(task: Task) -> dict[str, str]:
    return dict(task.drawn)


def kind_of(task: Task) -> str:
    return task.drawn[0][1]


def host_of(task: Task) -> Host:
    host = task.make_host()
    assert isinstance(host, Host)
    return host


def rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def same(one: Split, other: Split) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_two_families_stand_on_the_shelf() -> None:
    assert FAMILIES == ["digits_mix", "teacher_mix"]


@every_family
def test_the_same_stream_draws_the_same_and_another_draws_another(name: str) -> None:
    first, again, other = draw(name, 1), draw(name, 1), draw(name, 2)

    assert first.drawn == again.drawn != other.drawn
    assert same(first.splits.train, again.splits.train)
    assert len(first.splits.train) != len(other.splits.train)


@pytest.mark.parametrize(
    ("name", "kinds", "blocks"),
    [("digits_mix", {"plain", "paired", "cluttered"}, 3), ("teacher_mix", {"2", "4", "6", "8"}, 2)],
)
def test_draws_cover_every_kind_and_the_whole_of_every_range(name: str, kinds: set[str], blocks: int) -> None:
    drawn = [told(draw(name, number)) for number in range(400)]
    shares, noises = ([float(each[what]) for each in drawn] for what in ("train_share", "label_noise"))

    counts = Counter(next(iter(each.values())) for each in drawn)

    assert set(counts) == kinds
    assert min(counts.values()) > 400 / len(kinds) / 2
    assert {each["widths"] for each in drawn} == {" ".join([str(width)] * blocks) for width in range(2, 9)}
    whole, clean = ([share == 1.0 for share in shares], [noise == 0.0 for noise in noises])
    assert 160 < sum(whole) < 240 > sum(clean) > 160  # half of them each,
    assert 70 < sum(map(all, zip(whole, clean, strict=True))) < 130  # independently
    parts, wrong = (sorted(share for share in shares if share < 1), sorted(noise for noise in noises if noise > 0))
    assert 0.10 <= parts[0] < 0.13 < 0.9 < parts[-1]
    assert 0.48 < parts[len(parts) // 2] < 0.62  # the middle of 0.1..1 is 0.55
    assert 0.0 < wrong[0] < 0.02 < 0.28 < wrong[-1] <= 0.3


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(FAMILIES), number=seeds)
def test_a_member_is_what_it_is_told_to_be(name: str, number: int) -> None:
    member = draw(name, number)
    said, (data, classes) = told(member), clean(kind_of(member))
    share = float(said["train_share"])

    assert [str(spec.dim) for spec in host_of(member).injection_specs] == said["widths"].split()
    assert abs(len(member.splits.train) - share * len(data.train)) <= 1
    assert host_of(member)(member.splits.val.inputs[:3]).shape == (3, classes)
    assert same(member.splits.val, data.val)
    assert same(member.splits.test, data.test)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(FAMILIES), number=seeds)
def test_only_labels_of_training_are_wrong_and_no_image_is_made_up_or_used_again(name: str, number: int) -> None:
    member = draw(name, number)
    data, classes = clean(kind_of(member))
    label = dict(zip(rows(data.train.inputs), data.train.targets.tolist(), strict=True))
    images, noise = rows(member.splits.train.inputs), float(told(member)["label_noise"])

    right = torch.tensor([label[image] for image in images])
    wrong = (right != member.splits.train.targets).double().mean().item()

    assert not Counter(images) - Counter(rows(data.train.inputs))  # a pair of scans may be in the data twice
    assert wrong == pytest.approx(noise, abs=4.5 * max(noise * (1 - noise) / len(images), 1e-12) ** 0.5)
    assert 0 <= member.splits.train.targets.min() <= member.splits.train.targets.max() < classes


@every_family
def test_a_draw_leaves_the_kinds_as_they_were(name: str) -> None:
    before = make_task(TaskConfig(name=name), 0)
    expected = [told(before.member(stream(5, "test"))), before.splits.train.targets.clone()]

    for number in range(20):
        before.member(stream(0, "test", number))

    assert told(before.member(stream(5, "test"))) == expected[0]
    assert torch.equal(before.splits.train.targets, expected[1])
    assert same(make_task(TaskConfig(name=name), 0).splits.train, before.splits.train)


@every_family
def test_every_member_has_the_slots_the_steps_and_the_measure_of_the_family(name: str) -> None:
    base = family(name)

    for number in range(30):
        member = draw(name, number)
        specs = host_of(member).injection_specs
        assert tuple(spec.slot_id for spec in specs) == slot_ids(TASKS[name])
        assert {spec.layout for spec in specs} == {"NCHW"}
        assert (member.name, member.metric, member.recipe) == (name, base.metric, base.recipe)
        assert member.steps_per_epoch == base.steps_per_epoch
        assert member.draw is None


@every_family
def test_a_family_and_its_draws_travel_to_another_process(name: str) -> None:
    sent = pickle.loads(pickle.dumps(family(name)))  # noqa: S301 - our own bytes

    assert sent.member(stream(0, "test", 3)).drawn == draw(name, 3).drawn
    assert sent.member(stream(0, "test", 3)).host_key == draw(name, 3).host_key


@every_family
def test_members_share_a_key_exactly_where_they_train_the_same_network_on_images_of_one_size(name: str) -> None:
    members = [draw(name, number) for number in range(120)]
    kinds_alike = {"plain": "8x8", "cluttered": "16x16", "paired": "8x16"}

    keys = {member.host_key for member in members}

    looks = {(told(member)["widths"], kinds_alike.get(kind_of(member), kind_of(member))) for member in members}
    assert len(keys) == len(looks) < 120


# --- settings ---------------------------------------------------------------------------------------------------


def test_widths_that_are_set_replace_the_drawn_ones_and_move_no_other_draw() -> None:
    task = make_task(TaskConfig(name="digits_mix", widths=(3, 4, 5)), 0)

    for number in range(10):
        fixed, free = task.member(stream(0, "test", number)), draw("digits_mix", number)
        assert told(fixed) == told(free) | {"widths": "3 4 5"}
        assert [spec.dim for spec in host_of(fixed).injection_specs] == [3, 4, 5]
        assert same(fixed.splits.train, free.splits.train)


def test_a_batch_that_some_draw_could_not_fill_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ConfigError, match=r"128 is larger than the smallest training data .*'digits_mix' draws, 107 items"
    ):
        make_task(TaskConfig(name="digits_mix", batch_size=128), 0)


def test_a_topology_is_built_into_the_hosts_of_every_draw(tmp_path: Any) -> None:
    grown = Graft("r0c2", "conv_light", "ADD", ())
    path = tmp_path / "topology.json"
    path.write_text(f'{{"environments": [[{str(grown.as_dict()).replace(chr(39), chr(34))}]]}}')
    config = EsperConfig(run=RunConfig(topology_from=str(path)), task=TaskConfig(name="digits_mix"))

    extended = build_task(config)

    for number in range(5):
        bare, member = draw("digits_mix", number), extended.member(stream(0, "test", number))
        params = [sum(param.numel() for param in host_of(task).parameters()) for task in (bare, member)]
        width = int(told(bare)["widths"][0])
        assert params[1] - params[0] == 9 * width**2 + 2 * width  # a 3x3 convolution and its norm
        assert member.host_key == extended.member(stream(0, "test", number)).host_key


def test_a_grown_model_cannot_be_where_hosts_of_a_family_start() -> None:
    with pytest.raises(ConfigError, match="hosts of 'digits_mix' differ from episode to episode"):
        Setup(family("digits_mix"), 1, 4, 0, start={}, start_name="run-1")


# --- through the engine -----------------------------------------------------------------------------------------


def short(name: str) -> Task:
    """The family with an epoch of one step."""
    return make_task(TaskConfig(name=name, epoch_items=64), 0)


def drawn_by(engine: Engine, round_: int) -> list[tuple[tuple[str, str], ...]]:
    engine.reset(round_)
    return [environment.task.drawn for environment in engine.environments]


@every_family
def test_environments_of_a_round_share_the_draw_only_where_they_share_their_start(name: str) -> None:
    apart, together = (Engine(Setup(family(name), 4, 5, 0, shared_init=shared)) for shared in (False, True))

    assert len(set(drawn_by(apart, 0))) == 4
    assert len(set(drawn_by(together, 0))) == 1
    assert drawn_by(together, 0) != drawn_by(together, 1)
    assert drawn_by(apart, 0) != drawn_by(apart, 1)


@every_family
def test_another_environment_or_round_leaves_the_draws_of_the_others_alone(name: str) -> None:
    two, five = (Engine(Setup(family(name), envs, 5, 3)) for envs in (2, 5))
    drawn_by(five, 0)

    assert drawn_by(two, 1) == drawn_by(five, 1)[:2]


@every_family
@pytest.mark.parametrize("controller", ["heuristic", "random"])
def test_a_controller_lives_through_rounds_of_a_family(name: str, controller: str) -> None:
    engine = Engine(Setup(short(name), 3, 6, 1))
    decider, governor = CONTROLLERS[controller](Build(PolicyConfig(), engine.space, 0)), Governor(engine.setup.governor)
    seen: list[tuple[tuple[str, str], ...]] = []

    for round_ in range(3):
        reports, memory = engine.reset(round_), decider.blank_memory(3)
        governor.begin(engine)
        for _step in range(6):
            choice, memory = decider.act(observe(reports, engine.space), possible(reports, engine.space), memory)
            engine.apply(choice.actions)
            engine.train_epoch()
            _, reports = governor.review(engine, engine.measure())
        for outcome, report in zip(engine.outcomes(), reports, strict=True):
            check(outcome, report)
            seen.append(outcome.drawn)

    assert len(set(seen)) == 9


def check(outcome: Any, report: HostReport) -> None:
    """The outcome is of the member that was drawn: its size by hand, its test split by being measured at all."""
    said = dict(outcome.drawn)
    width, blocks = int(said["widths"][0]), len(said["widths"].split())
    data, classes = clean(outcome.drawn[0][1])
    convolutions = 9 * width + (blocks - 1) * 9 * width**2
    assert outcome.host_params == convolutions + blocks * 2 * width + (width + 1) * classes
    assert report.train_items == int(float(said["train_share"]) * len(data.train))
    assert outcome.test_metric is not None


def test_what_hosts_cost_is_counted_once_for_all_draws_of_the_same_host(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    whole = costs.count_step
    monkeypatch.setattr(costs, "count_step", lambda *args: counted.append(1) or whole(*args))
    engine = Engine(Setup(make_task(TaskConfig(name="teacher_mix", epoch_items=64, widths=(2, 2)), 0), 6, 3, 0))

    for round_ in range(3):
        engine.reset(round_)
        engine.train_epoch()

    kinds = {environment.task.drawn[0] for environment in engine.environments}
    assert len(kinds) >= 2
    assert len(kinds) <= len(counted) <= 4  # there are four widths of teachers, and 18 episodes


def test_each_draw_is_charged_for_its_own_images_and_widths() -> None:
    engine = Engine(Setup(short("digits_mix"), 6, 3, 0))
    engine.reset(0)
    engine.train_epoch()

    for environment in engine.environments:
        alone = Engine(replace(engine.setup, task=replace(environment.task, drawn=()), envs=1))
        alone.reset(0)
        alone.train_epoch()
        assert environment.ledger.total == alone.environments[0].ledger.total
    assert len({environment.ledger.total for environment in engine.environments}) > 1
