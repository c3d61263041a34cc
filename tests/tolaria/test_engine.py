"""Hosts in lockstep that do not touch each other, and a test split that nobody sees before the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tolaria.small import (
    CLASSES,
    QUICK,
    Chainless,
    alike,
    at_random,
    by_plan,
    do,
    dropout_host,
    engine_on,
    images,
    item_loss,
    live,
    state_of,
    toy,
    waiting,
)
from torch import Generator, Tensor, nn

from esper.kasmina.config import BodyConfig
from esper.kasmina.export import export
from esper.kasmina.slot import SeedSlot
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.leyline.task import Task
from esper.tolaria.config import EngineConfig
from esper.tolaria.digest import digest
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup, Streams

NOISE = dropout_host


def shifted(inputs: Tensor, generator: Generator) -> Tensor:
    """An augmentation: each item rolled by a drawn number of pixels."""
    shift = torch.randint(0, 8, (), generator=generator)
    return inputs.roll(int(shift), 3)


def noisy() -> Task:
    """A toy that draws in construction, in training and in augmentation."""
    return replace(toy(make_host=NOISE), augment=shifted)


# --- many are like one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_an_environment_more_moves_nothing_in_the_others(shared: bool) -> None:
    one, three = (engine_on(noisy(), envs=envs, shared_init=shared) for envs in (1, 3))

    for _ in range(12):
        live(one, at_random(one.environments[0].epoch), 1)
        live(three, at_random(three.environments[0].epoch), 1)

    assert alike(one.environments[0], three.environments[0])
    assert digest(one.environments, []) == digest(three.environments[:1], [])
    assert one.reports()[0] == three.reports()[0]
    assert one.environments[0].ledger.as_dict() == three.environments[0].ledger.as_dict()


def test_environments_are_different_runs_unless_the_round_is_shared() -> None:
    apart, together = (engine_on(noisy(), envs=2, shared_init=shared) for shared in (False, True))

    first, second = (environment.model.state_dict() for environment in apart.environments)
    assert not torch.equal(first["host.segments.0.0.weight"], second["host.segments.0.0.weight"])
    first, second = (environment.model.state_dict() for environment in together.environments)
    assert all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], Tensor))


def test_the_first_rounds_may_be_apart_where_later_ones_are_shared() -> None:
    engine = engine_on(noisy(), envs=2, shared_init=True, apart=1)

    def alike_in(round_: int) -> bool:
        engine.reset(round_)
        first, second = (environment.model.state_dict() for environment in engine.environments)
        return torch.equal(first["host.segments.0.0.weight"], second["host.segments.0.0.weight"])

    assert [alike_in(round_) for round_ in (0, 1, 2)] == [False, True, True]


def test_in_a_shared_round_hosts_that_draw_nothing_of_their_own_train_alike() -> None:
    apart, together = (
        engine_on(replace(toy(), augment=shifted), envs=2, shared_init=shared) for shared in (False, True)
    )

    live(apart, waiting, 2)
    live(together, waiting, 2)

    one, other = (state_of(environment) for environment in together.environments)
    weights = [name for name, value in one.items() if name.startswith("host.") and isinstance(value, Tensor)]
    assert weights
    assert all(torch.equal(one[name], other[name]) for name in weights)
    assert not torch.equal(*(state_of(environment)["host.segments.0.0.weight"] for environment in apart.environments))


def test_a_round_is_a_run_of_its_own_and_returns_with_its_number() -> None:
    engine = engine_on(noisy())
    states = []
    for round_ in (0, 1, 0):
        engine.reset(round_)
        live(engine, at_random(4), 4)
        states.append(digest(engine.environments, []))

    assert states[0] == states[2] != states[1]


def test_the_digest_knows_weights_moments_generators_and_decisions() -> None:
    engine = engine_on(noisy())
    live(engine, waiting, 1)
    environment = engine.environments[0]
    plain = digest([environment], [["WAIT"]])

    def changed(by: Any, back: Any) -> str:
        by()
        found = digest([environment], [["WAIT"]])
        back()
        return found

    weight = next(environment.model.parameters())
    moment = environment.optimiser.state[weight]["momentum_buffer"]
    draws = environment.draws.get_state()
    with torch.no_grad():
        others = {
            changed(lambda: weight[0, 0, 0].neg_(), lambda: weight[0, 0, 0].neg_()),
            changed(lambda: moment.mul_(2.0), lambda: moment.div_(2.0)),
            changed(lambda: torch.rand(1, generator=environment.draws), lambda: environment.draws.set_state(draws)),
            digest([environment], [["PRUNE"]]),
            digest([environment, environment], [["WAIT"]]),
        }

    assert len(others | {plain}) == 6


# --- an epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envs", [1, 3])
def test_an_epoch_is_as_many_items_whatever_the_number_of_environments(envs: int) -> None:
    seen: list[int] = []

    def counting(inputs: Tensor, _generator: Generator) -> Tensor:
        seen.append(len(inputs))
        return inputs

    engine = engine_on(replace(toy(items=48), augment=counting), envs=envs)

    live(engine, waiting, 2)

    assert seen == [16] * (3 * envs * 2)


def test_batches_are_the_outer_loop_and_environments_the_inner_one() -> None:
    seen: list[float] = []

    def watching(inputs: Tensor, generator: Generator) -> Tensor:
        seen.append(generator.initial_seed())
        return inputs

    live(engine_on(replace(toy(), augment=watching), envs=2), waiting, 1)

    assert seen == seen[:2] * 4
    assert seen[0] != seen[1]


def test_augmentation_is_the_same_again_and_another_in_the_next_epoch() -> None:
    def augmented() -> list[Tensor]:
        kept: list[Tensor] = []

        def keeping(inputs: Tensor, generator: Generator) -> Tensor:
            kept.append(torch.rand(4, generator=generator))
            return inputs

        live(engine_on(replace(toy(), augment=keeping)), waiting, 2)
        return kept

    once, again = augmented(), augmented()

    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    assert len({tuple(draw.tolist()) for draw in once}) == 8


def test_streams_of_different_purposes_environments_rounds_and_epochs_are_apart() -> None:
    setup = Setup(toy(), 2, 4, 0)
    streams = {
        Streams(setup, round_, env).of(purpose, epoch).initial_seed()
        for round_ in range(2)
        for env in range(2)
        for purpose in ("draw", "init", "order", "augment", "training", "growth")
        for epoch in range(3)
    }

    assert len(streams) == 2 * 2 * 6 * 3


def test_a_shared_round_shares_its_draw_initialisation_order_and_augmentation_and_nothing_else() -> None:
    setup = Setup(toy(), 2, 4, 0, shared_init=True)
    first, second = Streams(setup, 0, 0), Streams(setup, 0, 1)
    purposes = ("draw", "init", "order", "augment", "training", "growth")

    shared = [name for name in purposes if first.of(name).initial_seed() == second.of(name).initial_seed()]

    assert shared == ["draw", "init", "order", "augment"]


def test_gradients_are_read_at_as_many_batches_as_the_setting_says_the_last_among_them() -> None:
    environment = engine_on(toy(items=160), engine=EngineConfig(gradient_samples=3)).environments[0]

    environment.begin_epoch()

    assert environment._sampled == {2, 5, 9}


# --- validation and test ----------------------------------------------------------------------------------------


def poisoned(task: Task) -> Task:
    """The same task whose test split is full of NaN."""
    test = task.splits.test
    broken = replace(test, inputs=torch.full_like(test.inputs, torch.nan), targets=test.targets.clone())
    return replace(task, splits=replace(task.splits, test=broken))


def test_nothing_is_read_from_the_test_split_before_the_outcomes() -> None:
    task = poisoned(toy())
    sound, blind = engine_on(toy(), envs=2), engine_on(task, envs=2)

    seen = live(sound, at_random(2), 12, Governor(sound.setup.governor))
    unseen = live(blind, at_random(2), 12, Governor(blind.setup.governor))

    assert [step.settled for step in seen] == [step.settled for step in unseen]
    assert all(map(alike, sound.environments, blind.environments))
    task.splits.test.inputs.copy_(toy().splits.test.inputs)
    assert [o.test_loss for o in blind.outcomes()] == [o.test_loss for o in sound.outcomes()]


LIFE = (
    do("GERMINATE", blueprint="conv_light", tempo="fast"),
    *[do("ADVANCE")] * 2,
    None,
    None,
    do("ADVANCE"),
    do("FOSSILIZE"),
)


def with_a_fossil_and_a_gate() -> Engine:
    """A fossil in r0c0 and a gated seed that is being blended into r0c1."""
    engine = engine_on(toy(), length=30)
    gated = (
        do("GERMINATE", slot="r0c1", blueprint="conv_light", style="linear_gate", tempo="slow"),
        *[do("ADVANCE", slot="r0c1")] * 2,
    )
    live(engine, by_plan(*LIFE, *gated), 11)
    assert [slot.stage for slot in engine.reports()[0].slots] == [SeedStage.FOSSILIZED, SeedStage.BLENDING]
    return engine


def test_test_figures_are_those_of_the_exported_network() -> None:
    engine = with_a_fossil_and_a_gate()

    (outcome,) = engine.outcomes()
    network = export(engine.environments[0].model, engine.environments[0].probe).eval()

    with torch.no_grad():
        logits = network(engine.setup.task.splits.test.inputs)
    want = engine.setup.task.splits.test.targets
    log_prob = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    assert outcome.test_metric == pytest.approx(100 * float(np.mean((logits.argmax(1) == want).numpy())))
    assert outcome.test_loss == pytest.approx(-float(log_prob[torch.arange(40), want].mean()), rel=1e-5)
    assert outcome.params == sum(param.numel() for param in network.parameters())
    assert not any(isinstance(module, SeedSlot) for module in network.modules())
    assert (outcome.fossilized, outcome.diverged) == (1, False)
    assert [graft.slot_id for graft in outcome.topology] == ["r0c0"]


def test_reading_the_test_split_leaves_the_state_as_it_was() -> None:
    engine = with_a_fossil_and_a_gate()
    before, reports = digest(engine.environments, []), engine.reports()

    engine.outcomes()

    assert digest(engine.environments, []) == before
    assert engine.reports() == reports


def test_validation_figures_are_those_of_the_last_epoch() -> None:
    engine = engine_on(toy())
    last = live(engine, waiting, 3)[-1].after[0]

    (outcome,) = engine.outcomes()

    assert (outcome.val_loss, outcome.val_metric) == (last.val_loss, last.val_metric)


# --- any host ---------------------------------------------------------------------------------------------------


def test_a_network_of_ones_own_lives_through_an_episode() -> None:
    engine = engine_on(toy(make_host=Chainless), envs=2, length=25)

    steps = live(engine, at_random(11), 25, Governor(engine.setup.governor))

    done = {receipt.op.name for step in steps for receipt in step.receipts if receipt.done}
    assert {"GERMINATE", "ADVANCE", "PRUNE"} <= done
    assert all(verdict.healthy for step in steps for verdict in step.verdicts)
    assert all(outcome.test_metric is not None for outcome in engine.outcomes())


def test_a_network_of_ones_own_reports_the_contribution_a_hand_made_pass_gives() -> None:
    engine = engine_on(toy(make_host=Chainless), length=30)
    live(engine, by_plan(*LIFE[:3], None), 5)
    report, model = engine.reports()[0], engine.environments[0].model.eval()
    val = engine.setup.task.splits.val

    with torch.no_grad():
        with_seed = item_loss(model(val.inputs), val.targets)
        model.slots["r0c0"].seed = model.slots["r0c0"].state = None
        without = item_loss(model(val.inputs), val.targets)

    assert report.slots[0].contribution is not None
    assert report.slots[0].contribution.loss == pytest.approx(float((without - with_seed).mean()), rel=1e-4)


class Pair(nn.Module):
    """A network that can be cut at its slots and is no chain of segments: what `HostProtocol` asks for, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)
        self.injection_specs = tuple(
            InjectionSpec(f"r0c{i}", 4, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i in range(2)
        )
        self.isolate_blending = True

    @property
    def injection_points(self) -> dict[str, int]:
        return {"r0c0": 4, "r0c1": 4}

    @property
    def slot_order(self) -> tuple[str, ...]:
        return ("r0c0", "r0c1")

    def forward_to(self, slot_id: str, x: Tensor, from_slot_id: str | None = None) -> Tensor:
        if from_slot_id is None:
            x = self.first(x).relu()
        return x if slot_id == "r0c0" or from_slot_id == "r0c1" else self.second(x).relu()

    def forward_from(self, slot_id: str, x: Tensor) -> Tensor:
        return self.head((x if slot_id == "r0c1" else self.second(x).relu()).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_from("r0c1", self.forward_to("r0c1", x))


def test_a_network_that_can_be_cut_by_hand_lives_through_an_episode_and_keeps_a_seed() -> None:
    engine = engine_on(toy(make_host=Pair), length=20)

    steps = live(engine, by_plan(*LIFE, do("GERMINATE", slot="r0c1")), 12, Governor(engine.setup.governor))

    assert all(receipt.done for step in steps for receipt in step.receipts)
    assert all(step.verdicts[0].healthy for step in steps)
    (outcome,) = engine.outcomes()
    assert outcome.fossilized == 1
    assert outcome.test_metric is not None


class Slotless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"body": BodyConfig(slots=("r0c9",))}, r"'r0c9' is not in this host; it has r0c0, r0c1"),
        ({"body": BodyConfig(slots=("early",))}, "Invalid slot 'early'. Use canonical format: r0c0"),
        ({"body": BodyConfig(slots=("r0c0", "r0c0"))}, "each once"),
        ({"body": BodyConfig(blueprints=("conv_laddr",))}, "did you mean 'conv_ladder'"),
        ({"body": BodyConfig(blueprints=("norm", "norm"))}, "name each blueprint once"),
        (
            {"body": BodyConfig(blueprints=("mlp", "lora_ladder"))},
            "mlp lora_ladder: none fits a slot of this host, which carry NCHW tensors; those on the shelf that do: ",
        ),
        ({"engine": EngineConfig(device="warp")}, "engine.device: 'warp' cannot be used here"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_trained(setup: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine(Setup(toy(), 1, 4, 0, **setup))


def test_a_host_without_slots_is_refused() -> None:
    with pytest.raises(ConfigError, match="Slotless has no slot"):
        Engine(Setup(toy(make_host=Slotless), 1, 4, 0))


def test_every_environment_starts_from_a_grown_model_that_is_given() -> None:
    grown = with_a_fossil_and_a_gate().environments[0]
    state = grown.model.state_dict()

    engine = engine_on(toy(), envs=2, length=30, start=state, start_name="it")

    assert [slot.stage for slot in engine.reports()[1].slots] == [SeedStage.FOSSILIZED, SeedStage.BLENDING]
    inputs = images(8, 5).inputs
    with torch.no_grad():
        assert torch.equal(engine.environments[1].model.eval()(inputs), grown.model.eval()(inputs))
    live(engine, waiting, 1)


def test_a_fossil_that_is_started_from_rests_where_the_run_says_that_fossils_do() -> None:
    state = with_a_fossil_and_a_gate().environments[0].model.state_dict()

    engine = engine_on(toy(), body=replace(QUICK, fossil_train=False), start=state, start_name="it")

    seed = engine.environments[0].model.slots["r0c0"].seed
    assert seed is not None
    assert not any(param.requires_grad for param in seed.parameters())


def test_what_is_told_of_an_episode_ends_where_the_reports_end() -> None:
    """Stages, as a reader of the events would follow them, against the reports."""
    engine = engine_on(toy(), envs=2, length=25)
    at: dict[tuple[int, str], str] = {}

    def followed(report: HostReport, legal: Any) -> Any:
        for slot in report.slots:
            assert at.get((report.env, slot.slot_id), "DORMANT") == slot.stage.name
        return lots(report, legal)

    lots = at_random(9)
    for _ in range(25):
        (step,) = live(engine, followed, 1)
        for event in [event for receipt in step.receipts for event in receipt.events] + step.events:
            if event.type.name == "SEED_STAGE_CHANGED":
                assert at.get((event.env_id, event.slot_id), "DORMANT") == event.from_stage
                at[event.env_id, event.slot_id] = event.to_stage

    assert len(set(at.values())) > 1


@pytest.mark.parametrize("blueprint", ["norm", "conv_heavy", "conv_ladder"])
def test_the_action_space_knows_what_a_seed_will_cost_where_it_is_planted(blueprint: str) -> None:
    engine = engine_on(toy(), body=replace(QUICK, blueprints=("norm", "conv_heavy", "conv_ladder")))
    space = engine.space
    column = space.blueprints.index(blueprint)

    for index, slot in enumerate(space.slot_config.slot_ids):
        engine.reset(0)
        engine.apply([space.action("GERMINATE", slot=slot, blueprint=blueprint)])
        report = engine.reports()[0]
        assert report.effective_params - report.host_params == space.params[index][column] > 0
