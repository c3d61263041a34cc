"""The same questions to every controller: is each choice legal, is memory a value, does it know tasks by name?"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tolaria.small import QUICK, Chainless, engine_on, toy

import esper.tamiyo
from esper.kasmina.config import BodyConfig
from esper.leyline.decisions import Sight
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import CHOICES, OPS, FactoredAction, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.runtime.tasks import TASKS
from esper.scripts import shelves
from esper.tamiyo.baselines import draw
from esper.tamiyo.config import HeuristicConfig, PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build, Controller, forget
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor

assert shelves.CONTROLLERS is CONTROLLERS  # importing the shelves has filled the registry
LENGTH = 12
SCRIPT = (
    {"op": "GERMINATE", "slot": "r0c1", "blueprint": "norm", "style": "linear_gate", "tempo": "fast"},
    {"op": "ADVANCE", "slot": "r0c1"},
    {"op": "WAIT"},
    {"op": "PRUNE", "slot": "r0c1", "alpha_speed": "instant"},
)
VARIANTS = ((HeuristicConfig(warm_up=0.0, latest=0.0), HeuristicConfig(latest=1.0, plateau=0.0)),)


def build(name: str, engine: Engine, script: Any = (SCRIPT,), seed: int = 0) -> Controller:
    return CONTROLLERS[name](Build(PolicyConfig(), engine.space, seed, script, VARIANTS))


def episode(controller: Controller, engine: Engine, steps: int = LENGTH) -> list[list[FactoredAction]]:
    """[step][environment], every choice checked against its masks before it is done."""
    governor, taken = Governor(engine.setup.governor), []
    governor.begin(engine)
    reports, memory = engine.reports(), controller.blank_memory(len(engine.environments))
    for _ in range(steps):
        legal = possible(reports, engine.space)
        choice, memory = controller.act(observe(reports), legal, memory)
        assert len(choice.actions) == len(reports)
        assert all(masks.allows(action) for masks, action in zip(legal, choice.actions, strict=True))
        engine.apply(choice.actions)
        engine.train_epoch()
        verdicts, reports = governor.review(engine, engine.measure())
        memory = forget(controller, memory, [not verdict.healthy or verdict.ended for verdict in verdicts])
        taken.append(list(choice.actions))
    return taken


@pytest.mark.parametrize("host", ["cnn", "no chain"])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_choice_of_an_episode_is_legal(name: str, host: str) -> None:
    task = toy((4, 6, 6), items=32) if host == "cnn" else toy(make_host=Chainless, items=32)
    engine = engine_on(task, envs=2, length=LENGTH, body=QUICK)

    taken = episode(build(name, engine), engine)

    assert len(taken) == LENGTH


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_choice_is_legal_where_ladders_are_all_there_is_and_few_may_live(name: str) -> None:
    body = BodyConfig(blueprints=("conv_ladder",), max_seeds=1, min_training=0.0)
    engine = engine_on(toy(items=32), length=18, body=body)
    script = ({"op": "GERMINATE", "slot": "r0c1", "blueprint": "conv_ladder"}, {"op": "ADVANCE", "slot": "r0c1"})

    episode(build(name, engine, (script,)), engine, 18)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_host_that_has_ended_is_only_waited_for(name: str) -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)
    engine.environments[0].finished = True

    taken = episode(build(name, engine, ((), SCRIPT)), engine, 6)

    assert {actions[0].op for actions in taken} == {LifecycleOp.WAIT}


@pytest.mark.parametrize("envs", [1, 4])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_blank_memory_has_one_equal_entry_per_environment(name: str, envs: int) -> None:
    controller = build(name, engine_on(toy()))

    memory = controller.blank_memory(envs)

    assert len(memory) == envs
    assert memory == controller.blank_memory(1) * envs
    assert hash(repr(memory)) == hash(repr(controller.blank_memory(envs)))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_memory_is_packed_as_what_plain_torch_load_reads_and_unpacked_as_it_was(name: str, tmp_path: Path) -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)
    controller = build(name, engine)
    memory: Any = controller.blank_memory(2)
    reports = engine.reports()
    for _ in range(5):
        choice, memory = controller.act(observe(reports), possible(reports, engine.space), memory)
        engine.apply(choice.actions)
        engine.train_epoch()
        reports = engine.measure()
        torch.save(controller.pack(memory), tmp_path / "memory.pt")

        assert controller.unpack(torch.load(tmp_path / "memory.pt")) == memory


@pytest.mark.parametrize("name", CONTROLLERS)
def test_where_a_sequence_has_ended_memory_is_blank_again_and_elsewhere_kept(name: str) -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)
    controller = build(name, engine)
    memory: Any = tuple(controller.blank_memory(2))
    reports = engine.reports()
    for _ in range(3):
        choice, memory = controller.act(observe(reports), possible(reports, engine.space), memory)
        engine.apply(choice.actions)
        engine.train_epoch()
        reports = engine.measure()

    assert forget(controller, memory, [False, False]) == memory
    assert forget(controller, memory, [True, False]) == (controller.blank_memory(1)[0], memory[1])


@pytest.mark.parametrize("name", CONTROLLERS)
def test_an_environment_more_changes_no_decision_of_the_others(name: str) -> None:
    one, two = (engine_on(toy((4, 6, 6)), envs=envs, length=LENGTH) for envs in (1, 2))

    alone, among = episode(build(name, one), one), episode(build(name, two), two)

    assert [actions[0] for actions in alone] == [actions[0] for actions in among]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_says_in_one_line_what_it_does(name: str) -> None:
    summary = (CONTROLLERS[name].__doc__ or "").splitlines()[0]

    assert 10 < len(summary) < 100


def test_no_task_is_known_by_name_to_the_mind() -> None:
    source = {path: path.read_text() for path in Path(esper.tamiyo.__path__[0]).rglob("*.py")}
    known = re.compile(rf"\b({'|'.join(TASKS)}|cifar|teacher|mnist)\w*", re.IGNORECASE)

    found = {str(path): known.findall(text) for path, text in source.items() if known.search(text)}

    assert len(source) > 5
    assert found == {}


def test_the_static_controller_only_waits() -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)

    taken = episode(build("static", engine), engine)

    assert {action.op for actions in taken for action in actions} == {LifecycleOp.WAIT}


def steps_of(taken: list[dict[str, str]], op: str) -> list[int]:
    return [step for step, names in enumerate(taken) if names["op"] == op]


def test_the_periodic_controller_plants_slots_and_blueprints_in_turn_and_keeps_everything() -> None:
    body = BodyConfig(blueprints=("norm", "conv_small"), min_training=0.0)
    engine = engine_on(toy((4, 6, 6)), length=40, body=body)

    taken = [actions[0].as_names() for actions in episode(build("periodic", engine), engine, 40)]

    planted = [names for names in taken if names["op"] == "GERMINATE"]
    assert [names["blueprint"] for names in planted] == ["norm", "conv_small", "norm"]
    assert len({names["slot"] for names in planted}) == 3
    # Due every 0.15 of 40 epochs; a seed that can go on comes before one that is due.
    late = [step - due for due, step in zip((6, 12, 18), steps_of(taken, "GERMINATE"), strict=True)]
    assert late[0] == 0
    assert 0 <= max(late) <= 3
    assert not any(names["op"] == "PRUNE" for names in taken)
    assert [slot.stage for slot in engine.reports()[0].slots] == [SeedStage.FOSSILIZED] * 3


# --- by lot -----------------------------------------------------------------------------------------------------


def chi_square(counts: Counter[Any], choices: int, draws: int) -> float:
    expected = draws / choices
    return sum((counts[key] - expected) ** 2 / expected for key in counts) + expected * (choices - len(counts))


def test_lots_are_even_over_operations_and_over_each_head_given_the_ones_before() -> None:
    """Limits are the 99.99 % points of chi-square; the draws are the same every time."""
    engine = engine_on(toy((4, 6, 6)), length=30, body=QUICK)
    for op, slot in (("GERMINATE", "r0c0"), ("ADVANCE", "r0c0")):
        heads = {"blueprint": "norm"} if op == "GERMINATE" else {}
        engine.apply([engine.space.action(op, slot=slot, **heads)])
        engine.train_epoch()
    (legal,) = possible(engine.measure(), engine.space)
    generator, draws = torch.Generator().manual_seed(0), 6000

    drawn = [draw(legal, generator) for _ in range(draws)]

    ops = Counter(action.op for action in drawn)
    assert set(ops) == {LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.PRUNE, LifecycleOp.ADVANCE}
    assert chi_square(ops, 4, draws) < 21.1
    germinations = [action for action in drawn if action.op is LifecycleOp.GERMINATE]
    assert {action.slot_id for action in germinations} == {"r0c1", "r0c2"}
    sizes = {"slot": 2, "blueprint": len(engine.space.blueprints)} | {head: len(CHOICES[head]) for head in CHOICES}
    limits = {2: 15.2, 3: 18.5, 4: 21.2, 7: 27.9}
    for head in OPS[LifecycleOp.GERMINATE].heads:
        counts = Counter(action.chosen(head) for action in germinations)
        assert chi_square(counts, sizes[head], len(germinations)) < limits[sizes[head]], head


def test_each_environment_draws_its_own_lots() -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)

    taken = episode(build("random", engine), engine)

    assert [actions[0] for actions in taken] != [actions[1] for actions in taken]


def test_lots_depend_on_where_they_are_drawn_and_not_on_what_was_drawn_before() -> None:
    engine = engine_on(toy(), length=LENGTH)
    controller, legal = build("random", engine), possible(engine.reset(0), engine.space)
    memory = controller.blank_memory(1)

    def drawn(**where: int) -> FactoredAction:
        reports = [replace(report, **where) for report in engine.reports()]
        (action,) = controller.act(observe(reports), legal, memory)[0].actions
        return action

    rounds = [drawn(round=round_) for round_ in range(12)]
    epochs = [drawn(epoch=epoch) for epoch in range(12)]

    assert rounds == [drawn(round=round_) for round_ in range(12)]
    assert rounds != epochs
    assert len(set(rounds)) > 3 < len(set(epochs))


# --- with settings by environment and round -------------------------------------------------------------------------


def test_variants_plant_by_the_settings_of_their_environment_and_round() -> None:
    at_once, never = VARIANTS[0]

    def planted(round_: int, *rows: tuple[HeuristicConfig, ...]) -> list[bool]:
        engine = engine_on(toy(), envs=2, length=LENGTH)
        engine.reset(round_)
        config = PolicyConfig()
        taken = episode(CONTROLLERS["variants"](Build(config, engine.space, 0, (), rows)), engine, 6)
        return [any(actions[env].op is LifecycleOp.GERMINATE for actions in taken) for env in range(2)]

    assert planted(0, (at_once, never), (never, at_once)) == [True, False]
    assert planted(1, (at_once, never), (never, at_once)) == [False, True]
    assert planted(2, (at_once, never)) == [True, True]


def test_variants_decide_as_the_heuristic_of_those_settings() -> None:
    settings = HeuristicConfig(keep_evidence=0.5, prefer=("norm",))
    alone, among = (engine_on(toy(), envs=2, length=LENGTH) for _ in range(2))

    one = episode(CONTROLLERS["heuristic"](Build(PolicyConfig(heuristic=settings), alone.space, 0)), alone)
    other = episode(CONTROLLERS["variants"](Build(PolicyConfig(), among.space, 0, (), ((settings,),))), among)

    assert one == other


@pytest.mark.parametrize("rows", [(), ((),)])
def test_no_variants_at_all_are_refused(rows: Any) -> None:
    with pytest.raises(ConfigError, match="write variants:FILE"):
        CONTROLLERS["variants"](Build(PolicyConfig(), engine_on(toy()).space, 0, (), rows))


# --- by recording -----------------------------------------------------------------------------------------------


def test_a_script_is_done_as_it_is_written_and_waited_for_when_it_ends() -> None:
    engine = engine_on(toy(), envs=2, length=LENGTH)

    taken = episode(build("scripted", engine, (SCRIPT,)), engine, 6)

    named = [actions[0].as_names() for actions in taken]
    assert [names | want for names, want in zip(named, SCRIPT, strict=False)] == named[:4]
    assert {names["op"] for names in named[4:]} == {"WAIT"}
    assert {actions[1].op for actions in taken} == {LifecycleOp.WAIT}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"op": "DANCE"}, "script: op 'DANCE' is not in this action space"),
        ({"op": "ADVANSE", "slot": "r0c0"}, "did you mean 'ADVANCE'"),
        ({"op": "ADVANCE", "slot": "r0c9"}, "slot 'r0c9' is not in this action space"),
        ({"op": "GERMINATE", "slot": "r0c0", "blueprint": "conv_hevy"}, "did you mean 'conv_heavy'"),
        ({"op": "WAIT", "mood": "good"}, "mood 'good' is not in this action space"),
    ],
)
def test_a_script_with_a_name_that_does_not_exist_is_refused_before_it_is_begun(line: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build("scripted", engine_on(toy()), (SCRIPT, (line,)))


def test_a_script_that_asks_for_the_impossible_says_where_and_what_is_true() -> None:
    engine = engine_on(toy(), length=LENGTH)
    impossible = (SCRIPT[0], {"op": "FOSSILIZE", "slot": "r0c1"})

    with pytest.raises(ConfigError, match=r"step 1 of environment 0 .* not possible: r0c0 DORMANT, r0c1 GERMINATED"):
        episode(build("scripted", engine, (impossible,)), engine, 6)


def test_no_script_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="write script:RUN or script:FILE"):
        build("scripted", engine_on(toy()), ())


def test_a_script_goes_on_after_a_rollback_where_it_was() -> None:
    engine = engine_on(toy(), length=LENGTH)
    controller = build("scripted", engine)
    reports = engine.reports()
    _, memory = controller.act(observe(reports), possible(reports, engine.space), controller.blank_memory(1))
    environment = engine.environments[0]
    environment.epoch = 2
    memory = forget(controller, memory, [True])

    choice, _ = controller.act(Sight([environment.report()]), possible(engine.reports(), engine.space), memory)

    assert choice.actions[0].op is LifecycleOp.WAIT  # the third line
