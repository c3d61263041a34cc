"""The toy world: its best policy is found by searching all policies, and its slots live as real ones do."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolaria.small import toy

from esper.gym import GrowthEnv
from esper.gym.toy.engine import TOY_BODY, CalmGovernor, ToyEngine, toy_setup
from esper.gym.toy.reports import exported_metric
from esper.gym.toy.world import EPISODE_LENGTH, PARAMS, WORLDS, Alpha, ToySlot, ToyState, World, best
from esper.kasmina.config import BodyConfig, TimedGate
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, FactoredAction, LifecycleOp
from esper.leyline.randomness import stream
from esper.leyline.reports import AlphaMode, HostReport, SeedStateReport
from esper.leyline.stages import LIVE, SEEDED, SeedStage
from esper.nissa.config import TelemetryConfig
from esper.nissa.progress import Progress
from esper.nissa.writer import EventWriter
from esper.scripts import shelves
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.learner import NoLearner
from esper.simic.agent.ppo import PPO
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.rewards import ModeReward
from esper.simic.training.config import RunConfig
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.vectorized import play
from esper.tamiyo.baselines import draw
from esper.tamiyo.config import NetworkConfig, PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build
from esper.tamiyo.policy.action_masks import LegalActions, possible
from esper.tamiyo.policy.learned import new_policy
from esper.tolaria.engine import Engine
from esper.tolaria.setup import Setup

assert shelves.CONTROLLERS is CONTROLLERS  # importing the shelves has filled the registry
LEAST_AGE = 4  # at which a seed may be pruned
HOST_ALONE = 5.0 + 25.0 * (1.0 - 0.8**12)
# Rates in points per epoch times the epochs in which a seed is heard, minus 3 points per doubling of 1000 parameters.
# A seed is planted before epoch 0, trains in it and blends from epoch 1 on; all an epoch later where a weed has to go.
BY_HAND = {
    World(plenty=False, weedy=False): HOST_ALONE + 3.0 * 11 - 3 * math.log2(2000 / 1000),
    World(plenty=False, weedy=True): HOST_ALONE + 3.0 * 10 - 3 * math.log2(2000 / 1000),
    World(plenty=True, weedy=False): HOST_ALONE + (2.9 + 2.1) * 11 - 3 * math.log2(4000 / 1000),
    World(plenty=True, weedy=True): HOST_ALONE + (2.9 + 2.1) * 10 - 3 * math.log2(4000 / 1000),
}


def every_action(legal: LegalActions, but: tuple[str, ...]) -> Iterator[FactoredAction]:
    """All possible actions, with the heads in `but` at their first choice."""
    for op in (op for op in LifecycleOp if legal.op[op]):
        slots = range(len(legal.slot_by_op[op])) if OPS[op].needs_slot else (0,)
        for slot in (slot for slot in slots if not OPS[op].needs_slot or legal.slot_by_op[op][slot]):
            free = [
                [index for index, free in enumerate(legal.head_mask(head, op, slot)) if free]
                if head in OPS[op].heads and head not in but
                else [0]
                for head in HEADS[2:]
            ]
            for rest in product(*free):
                yield legal.space.from_indices((int(op), slot, *rest))


def bare(state: ToyState) -> ToyState:
    """The state without what moves nothing that comes: names, exact alphas on their way, ages above the least ones."""
    return state._replace(
        slots=tuple(map(bare_slot, state.slots)), metric=None, previous=None, last_op=0, last_done=True
    )


def bare_slot(slot: ToySlot) -> ToySlot:
    in_stage = min(slot.in_stage, 1)  # every other duration is one epoch in twelve
    if slot.stage not in SEEDED:
        return ToySlot(slot.stage, in_stage=in_stage)
    slot = slot._replace(
        germinations=0, blend="ADD", age=min(slot.age, LEAST_AGE), in_stage=in_stage, previous_level=None
    )
    if slot.stage in (SeedStage.GERMINATED, SeedStage.TRAINING):
        return slot
    target, left = slot.alpha.target, slot.alpha.steps_total - slot.alpha.steps_done
    on_the_way = {AlphaMode.UP: Alpha(0.1, 0.1, target, left), AlphaMode.DOWN: Alpha(0.9, 0.9, target, left)}
    mode = slot.alpha.mover.mode
    return slot._replace(first=Alpha(), alpha=on_the_way[mode] if mode in on_the_way else Alpha(target, target, target))


def best_by_search(engine: ToyEngine, world: World, but: tuple[str, ...]) -> tuple[float, int]:
    """The best objective that any decisions reach, `but` at their first choice; and how many states were looked at."""
    known: dict[ToyState, float] = {}

    def value(state: ToyState) -> float:
        if state not in known:
            report = engine.rules.report(state)
            if state.epoch == EPISODE_LENGTH:
                known[state] = exported_metric(state) - 3 * math.log2(report.exported_params / 1000)
            else:
                actions = every_action(possible([report], engine.space)[0], but)
                after = {bare(engine.rules.live(engine.rules.act(state, action)[0])) for action in actions}
                known[state] = max(map(value, after))
        return known[state]

    return value(bare(engine.rules.start(world))), len(known)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WORLDS), st.integers(1, EPISODE_LENGTH - 1))
def test_what_the_search_leaves_out_moves_nothing_that_comes(seed: int, world: World, when: int) -> None:
    engine, lot = ToyEngine(toy_setup(1)), stream(seed, "lot")
    state = other = engine.rules.start(world)
    for epoch in range(EPISODE_LENGTH):
        legal = possible([engine.rules.report(each) for each in (state, other)], engine.space)
        assert legal[0] == legal[1]
        action = draw(legal[0], lot)
        state, other = (engine.rules.live(engine.rules.act(each, action)[0]) for each in (state, other))
        other = bare(other) if epoch == when else other

    assert exported_metric(state) == exported_metric(other)


@pytest.mark.parametrize("world", WORLDS, ids=str)
@pytest.mark.parametrize(
    "but",
    [
        # Styles and curves move nothing (below); without the rest seeds blend in full, and go at once.
        pytest.param(("style", "alpha_curve", "alpha_target", "alpha_speed"), id="in full and at once"),
        pytest.param(("style", "alpha_curve"), id="everything", marks=pytest.mark.slow),
    ],
)
def test_no_policy_does_better_than_the_known_best_one(world: World, but: tuple[str, ...]) -> None:
    found, states = best_by_search(ToyEngine(toy_setup(1)), world, but)

    assert states > 500
    assert found == pytest.approx(BY_HAND[world])


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_the_known_best_policy_earns_what_was_worked_out_by_hand(world: World) -> None:
    env = toy_env()
    env.reset(options={"host_seed": round_with(world)})
    lines = (*best(world), *[{"op": "WAIT"}] * (EPISODE_LENGTH - len(best(world))))

    steps = [env.step(np.array(env.core.space.action(**line).indices)) for line in lines]

    assert all(info["op_done"] and info["action_valid"] for *_, info in steps)
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (EPISODE_LENGTH - 1) + [True]
    assert sum(reward for _, reward, *_ in steps) == pytest.approx(BY_HAND[world])
    assert steps[-1][-1]["outcome"]["return"] == pytest.approx(BY_HAND[world])


def toy_env() -> GrowthEnv:
    env = gymnasium.make("Esper/Toy-v0").unwrapped
    assert isinstance(env, GrowthEnv)
    return env


def round_with(world: World) -> int:
    """A round whose first environment lives in this world."""
    engine = ToyEngine(toy_setup(1))
    for round_ in range(100):
        engine.reset(round_)
        if engine.states[0].world == world:
            return round_
    raise AssertionError(f"{world} is never drawn")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WORLDS), st.integers(0, 3), st.integers(0, 4))
def test_style_and_curve_move_nothing_that_is_learned(seed: int, world: World, style: int, curve: int) -> None:
    engine, lot = ToyEngine(toy_setup(1)), stream(seed, "lot")
    one = other = engine.rules.start(world)
    for _ in range(EPISODE_LENGTH):
        legal = possible([engine.rules.report(one)], engine.space)[0]
        action = draw(legal, lot)
        indices = list(action.indices)
        indices[HEADS.index("style")], indices[HEADS.index("alpha_curve")] = style, curve
        one = engine.rules.live(engine.rules.act(one, action)[0])
        other = engine.rules.live(engine.rules.act(other, engine.space.from_indices(indices))[0])

    assert [slot.learned for slot in one.slots] == [slot.learned for slot in other.slots]
    assert exported_metric(one) == exported_metric(other)


LIFE = ("seed_id", "blueprint_id", "stage", "age", "epochs_in_stage", "embargo_left", "alpha_target", "alpha_mode")
MORE_LIFE = ("blend", "alpha_steps_done", "alpha_steps_total", "internal_level", "internal_previous_level")


def life(slot: SeedStateReport) -> dict[str, object]:
    told = {name: getattr(slot, name) for name in (*LIFE, *MORE_LIFE)}
    # A real slot remembers what was last measured also of a seed that is kept or gone.
    return told | {"measured": slot.stage in LIVE and slot.contribution is not None}


@pytest.mark.parametrize("timed", [(), ("G1", "G2", "G3")], ids=["by hand", "by time"])
@pytest.mark.parametrize("seed", range(6))
def test_slots_of_the_toy_world_live_as_real_ones_do(seed: int, timed: tuple[TimedGate, ...]) -> None:
    body = BodyConfig(max_seeds=1, blueprints=tuple(PARAMS), auto_advance=timed)
    real = Engine(Setup(toy((4, 4)), 1, 24, 0, body=body))
    unreal = ToyEngine(toy_setup(1, episode_length=24, body=body))
    unreal.states = [unreal.rules.start(World(plenty=False, weedy=False))]
    lot, (here,), (there,) = stream(seed, "lot"), real.reset(0), unreal.reports()
    for _ in range(24):
        legal_here, legal_there = possible([here], real.space)[0], possible([there], unreal.space)[0]
        # A real ladder has more rungs than the toy's, so that it may grow on.
        assert [free for op, free in enumerate(legal_here.op) if op != 6] == [
            free for op, free in enumerate(legal_there.op) if op != 6
        ]
        action = draw(legal_there, lot)
        receipts = [engine.apply([action])[0] for engine in (real, unreal)]
        assert receipts[0].done == receipts[1].done
        assert receipts[0].refused_by == receipts[1].refused_by
        for engine in (real, unreal):
            engine.train_epoch()
        (here,), (there,) = real.measure(), unreal.measure()
        assert list(map(life, here.slots)) == list(map(life, there.slots))
        gated = [slot.blend == "GATE" for slot in here.slots]  # a real gate reports its mean weight
        alphas = [
            (mine.alpha, yours.alpha)
            for mine, yours, gate in zip(here.slots, there.slots, gated, strict=True)
            if not gate
        ]
        assert all(mine == pytest.approx(yours) for mine, yours in alphas)


def mean_return(who: str, tmp_path: Path) -> tuple[float, float]:
    """Of a controller in the main loop, and of the best policy in the same worlds."""
    cfg = RunConfig(controller=who, envs=16, episode_length=EPISODE_LENGTH)
    engine = ToyEngine(toy_setup(cfg.envs))
    controller = CONTROLLERS[who](Build(PolicyConfig(), engine.space, 0))
    (tmp_path / "ev").mkdir()
    with EventWriter(tmp_path / "ev", "r0.1", TelemetryConfig()) as writer:
        progress = Progress(quiet=True)
        progress.start(EPISODE_LENGTH, who)
        publisher = Publisher(cfg, engine, writer, progress)
        team = Team(engine, CalmGovernor(), controller, NoLearner(), ModeReward(RewardConfig()), publisher)
        outcome = play(0, cfg, team)
        publisher.close()
    returns = outcome.rollout.returns()
    return sum(returns) / 16, sum(BY_HAND[state.world] for state in engine.states) / 16


@pytest.mark.parametrize("who", ["random", "heuristic", "periodic", "static"])
def test_no_rule_plays_the_toy_world_well_in_the_main_loop(who: str, tmp_path: Path) -> None:
    got, possible_ = mean_return(who, tmp_path)

    assert got < possible_ - 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_finds_the_best_policy_of_the_toy_world_in_the_main_loop(seed: int, tmp_path: Path) -> None:
    """Within 20 seconds of one core, draws of the policy included: a twentieth of what growing well brings is left."""
    cfg = RunConfig(controller="ppo", envs=32, episode_length=EPISODE_LENGTH, rounds=100)
    engine = ToyEngine(toy_setup(cfg.envs, seed))
    policy = new_policy(engine.space, NetworkConfig(size=64, slot_size=32, prior=0.0), seed)
    learner = PPO(policy.network, PPOConfig(lr=3e-3, epochs=4, minibatch=8), seed, cfg.rounds)
    (tmp_path / "ev").mkdir()
    began, shortfalls = time.process_time(), []
    with EventWriter(tmp_path / "ev", "r0.1", TelemetryConfig()) as writer:
        progress = Progress(quiet=True)
        progress.start(1, "toy")
        publisher = Publisher(cfg, engine, writer, progress)
        team = Team(engine, CalmGovernor(), policy, learner, ModeReward(RewardConfig()), publisher)
        for round_ in range(cfg.rounds):
            returns = play(round_, cfg, team).rollout.returns()
            best_return = fmean(BY_HAND[state.world] for state in engine.states)
            shortfalls.append((best_return - fmean(returns)) / (best_return - HOST_ALONE))

    assert fmean(shortfalls[-5:]) <= 0.05
    assert time.process_time() - began <= 20


def test_environments_draw_all_worlds_and_not_from_the_global_generator() -> None:
    engine = ToyEngine(toy_setup(64))
    before = torch.random.get_rng_state()

    engine.reset(0)
    drawn = [state.world for state in engine.states]

    assert set(drawn) == set(WORLDS)
    assert torch.equal(before, torch.random.get_rng_state())
    more = ToyEngine(toy_setup(65))
    more.reset(0)
    assert [state.world for state in more.states][:64] == drawn


def test_sensors_tell_the_worlds_apart() -> None:
    env = toy_env()
    seen = {env.reset(options={"host_seed": round_with(world)})[0]["obs"].tobytes() for world in WORLDS}

    assert len(seen) == len(WORLDS)


def test_names_that_the_toy_world_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'conv_lite' is not in the toy world.*did you mean 'conv_light'"):
        ToyEngine(toy_setup(1, body=BodyConfig(blueprints=("conv_lite",))))
    with pytest.raises(ConfigError, match="r5c0"):
        ToyEngine(toy_setup(1, body=BodyConfig(slots=("r5c0",))))


def test_a_run_may_use_one_slot_of_the_toy_world() -> None:
    engine = ToyEngine(toy_setup(3, body=BodyConfig(slots=("r0c1",), max_seeds=TOY_BODY.max_seeds)))

    reports: list[HostReport] = engine.reset(0)

    assert [[slot.slot_id for slot in report.slots] for report in reports] == [["r0c1"]] * 3
