"""The main loop with any number of slots; nothing in it counts them, and it fits on a screen."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.tolaria.small import QUICK, Chainless, silent, toy

import esper.simic
import esper.tamiyo.policy
import esper.tolaria
from esper.kasmina.blueprints import standard_set
from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.factored_actions import CHOICES, OPS, FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.task import Task
from esper.leyline.telemetry import (
    EnvStepPayload,
    EpisodeFinishedPayload,
    Payload,
    RoundFinishedPayload,
    SeedContributionMeasuredPayload,
    SeedPayload,
    SeedStageChangedPayload,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import gaps, read_events
from esper.nissa.writer import EventWriter
from esper.scripts import shelves
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.rewards import ModeReward, Reward, StepScore, no_reward
from esper.simic.training import vectorized
from esper.simic.training.config import RunConfig
from esper.simic.training.keeping import Round
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.vectorized import train
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build, Controller, Rule, wait
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup

assert shelves.CONTROLLERS is CONTROLLERS  # importing the shelves has filled the registry
Told = list[tuple[Any, Payload]]


def by_number(before: Any, *rest: Any) -> tuple[list[StepScore], list[bool]]:
    """1 for the first environment, 2 for the second."""
    return [StepScore(1.0 + env) for env in range(len(before))], no_reward(before, *rest)[1]


@dataclass
class Listening:
    """A learner that keeps what it is given, and a reward that says when it was asked."""

    pays: Reward = by_number
    rollouts: list[Rollout] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def update(self, rollout: Rollout) -> tuple[Payload, ...]:
        self.rollouts.append(rollout)
        return ()

    def reward(
        self,
        before: list[HostReport],
        actions: tuple[FactoredAction, ...],
        receipts: list[Receipt],
        after: list[HostReport],
        settled: list[HostReport],
        verdicts: list[Verdict],
    ) -> tuple[list[StepScore], list[bool]]:
        self.asked.append((before, actions, receipts, after, settled, verdicts))
        return self.pays(*self.asked[-1])


def run(
    folder: Path, task: Task, who: str = "random", listening: Listening | None = None, **cfg: Any
) -> tuple[list[Round], Told]:
    """A whole run of the main loop, and every event that it told."""
    config = RunConfig(**{"controller": who, "envs": 2, "episode_length": 10} | cfg)
    heard = Listening() if listening is None else listening
    engine = Engine(Setup(task, config.envs, config.episode_length, config.seed, body=QUICK))
    controller = CONTROLLERS[who](Build(PolicyConfig(), engine.space, config.seed))
    (folder / "ev").mkdir(parents=True)
    with EventWriter(folder / "ev", "r0.1", TelemetryConfig()) as writer:
        publisher = Publisher(config, engine, writer, silent())
        team = Team(engine, Governor(engine.setup.governor), controller, heard, heard.reward, publisher)
        (rounds,) = train(config, team)
        publisher.close()
    return rounds, list(read_events(folder))


def steps_in(told: Told) -> list[EnvStepPayload]:
    return [payload for _, payload in told if isinstance(payload, EnvStepPayload)]


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
def test_the_main_loop_runs_with_any_number_of_slots(tmp_path: Path, slots: int) -> None:
    rounds, told = run(tmp_path, toy((4,) * slots))

    ids = [f"r0c{index}" for index in range(slots)]
    (round_,) = rounds
    for step in round_.rollout.steps:
        assert [slot.slot_id for slot in step.sight.reports[0].slots] == ids
        assert all(len(mask) == slots for mask in step.legal[0].slot_by_op)
    for step in steps_in(told):
        assert {len(values) for values in (step.stage, step.alpha, step.level, step.grad_ratio)} == {slots}
    used = {payload.slot_id for _, payload in told if isinstance(payload, SeedPayload)}
    assert len(used) >= 2
    assert used <= set(ids)


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
def test_head_sizes_follow_from_the_hosts_slots_and_the_blueprints_on_offer(slots: int) -> None:
    engine = Engine(Setup(toy((4,) * slots), 1, 4, 0))

    own = {"op": len(OPS), "slot": slots, "blueprint": len(standard_set("NCHW"))}
    assert engine.space.head_sizes == own | {head: len(names) for head, names in CHOICES.items()}
    assert engine.space.slot_config.num_slots == slots


def test_a_network_of_ones_own_goes_through_the_same_loop(tmp_path: Path) -> None:
    rounds, told = run(tmp_path, toy(make_host=Chainless), episode_length=16)

    assert {outcome.diverged for outcome in rounds[0].outcomes} == {False}
    assert len(steps_in(told)) == 2 * 16


# --- one screen, no names ---------------------------------------------------------------------------------------


def test_the_main_loop_fits_on_a_screen() -> None:
    assert len(inspect.getsource(vectorized.train).splitlines()) <= 40
    assert len(inspect.getsource(vectorized.play).splitlines()) <= 40
    assert len(inspect.getsource(vectorized).splitlines()) <= 80


def test_the_main_loop_knows_no_operation_by_name() -> None:
    words = {word.rstrip("E") for op in LifecycleOp for word in op.name.split("_")} - {"SET", "TARGET", "INTERNAL"}

    assert {"GERMINAT", "FOSSILIZ", "GROW", "ALPHA", "WAIT"} <= words
    assert re.findall(rf"\b(?:{'|'.join(words)})\w*", inspect.getsource(vectorized), re.IGNORECASE) == []


def numbers_in(path: Path) -> list[int]:
    """Whole numbers that stand in code."""
    tree = ast.parse(path.read_text())
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int]


def test_no_number_of_slots_stands_in_the_code_that_runs_them() -> None:
    folders = (esper.simic, esper.tamiyo.policy, esper.tolaria)
    files = [path for package in folders for path in Path(package.__path__[0]).rglob("*.py")]
    # Settings have defaults of their own, and the FLOP counter knows the axes of a tensor and the gates of an LSTM.
    files = [path for path in files if path.name not in ("config.py", "flops.py", "statistics.py")]

    found = {path.name: sorted(set(numbers_in(path)) - {0, 1, 2}) for path in files}

    assert len(files) > 15
    assert {name: numbers for name, numbers in found.items() if {3, 5, 12} & set(numbers)} == {}


# --- what is handed on ------------------------------------------------------------------------------------------


def test_the_learner_gets_every_step_of_every_round_and_rewards_see_both_sides_of_the_action(tmp_path: Path) -> None:
    heard = Listening()

    rounds, _ = run(tmp_path, toy(), listening=heard, rounds=2, episode_length=6)

    assert [len(rollout.steps) for rollout in heard.rollouts] == [6, 6]
    assert [round_.rollout for round_ in rounds] == heard.rollouts
    assert heard.rollouts[1].returns() == [6.0, 12.0]
    for (before, actions, receipts, after, settled, verdicts), step in zip(
        heard.asked, heard.rollouts[0].steps + heard.rollouts[1].steps, strict=True
    ):
        assert list(step.sight.reports) == list(before)
        assert [report.epoch for report in after] == [report.epoch + 1 for report in before]
        assert [receipt.op for receipt in receipts] == [action.op for action in actions]
        assert settled == after
        assert [verdict.healthy for verdict in verdicts] == [True, True]
    # The reports that the next decision sees are those that were settled after the last.
    assert heard.asked[1][0] == heard.asked[0][4]


def test_every_step_of_every_environment_is_told_with_what_was_decided_and_what_came_of_it(tmp_path: Path) -> None:
    heard = Listening()

    run(tmp_path, toy(), listening=heard, rounds=2, episode_length=6)
    told = list(read_events(tmp_path))

    where = [(e.round, e.episode, e.step, p.env_id) for e, p in told if isinstance(p, EnvStepPayload)]
    assert where == [(r, 2 * r + env, step, env) for r in range(2) for step in range(6) for env in range(2)]
    steps = iter(steps_in(told))
    for rollout in heard.rollouts:
        for step in rollout.steps:
            for env, action in enumerate(step.choice.actions):
                row = next(steps)
                names = {head: getattr(row, head) for head in ("op", "slot", *CHOICES, "blueprint")}
                assert {head: name for head, name in names.items() if name is not None} == action.as_names()
                assert row.reward == 1.0 + env
                assert row.op_mask == sum(1 << op for op in LifecycleOp if step.legal[env].op[op])
                slots = step.legal[env].slots(action.op) if action.slot_id is not None else ()
                assert [slot for slot in range(2) if row.slot_mask >> slot & 1] == [int(slot[-1]) for slot in slots]
                assert (row.log_prob, row.value) == (None, None)  # of a rule
    assert gaps(tmp_path) == []


def test_what_a_step_says_of_its_slots_is_what_the_next_decision_sees(tmp_path: Path) -> None:
    heard = Listening()

    run(tmp_path, toy(), listening=heard, episode_length=8)

    rows = [row for row in steps_in(list(read_events(tmp_path))) if row.env_id == 1]
    seen = [step.sight.reports[1] for step in heard.rollouts[0].steps[1:]]
    for row, report in zip(rows, seen, strict=False):
        assert row.stage == tuple(int(slot.stage) for slot in report.slots)
        assert row.alpha == pytest.approx([slot.alpha for slot in report.slots], rel=1e-6)
        assert row.level == tuple(slot.internal_level for slot in report.slots)
        assert (row.val_loss, row.val_metric) == pytest.approx((report.val_loss, report.val_metric), rel=1e-6)
        assert row.params == report.total_params


def test_a_step_tells_its_terms_the_weight_of_the_seeds_and_how_it_changed(tmp_path: Path) -> None:
    heard = Listening(pays=ModeReward(RewardConfig(mode="shaped")))

    rounds, told = run(tmp_path, toy(), listening=heard, episode_length=10)

    rows = iter(steps_in(told))
    for before, _, _, after, _, _ in heard.asked:
        for env in range(2):
            row, was, now = next(rows), before[env].slots, after[env].slots
            assert [name for name, _ in row.terms if name not in MODES["shaped"].weights] == []
            assert all(value != 0 for _, value in row.terms)
            assert row.reward == pytest.approx(sum(value for _, value in row.terms))
            assert row.effective_seed_params == sum(slot.internal_effective_params for slot in now)
            assert row.effective_seed_params_alpha == pytest.approx(
                sum(slot.alpha * slot.internal_effective_params for slot in now)
            )
            moved = [
                (new.alpha - old.alpha) ** 2 * max(old.params, new.params) for old, new in zip(was, now, strict=True)
            ]
            assert row.alpha_delta_sq_sum == pytest.approx(sum(moved) / before[env].host_params)
    assert any(row.alpha_delta_sq_sum > 0 for row in steps_in(told))
    by_env = [sum(row.reward for row in steps_in(told) if row.env_id == env) for env in range(2)]
    assert rounds[0].rollout.returns() == pytest.approx(by_env)


def test_a_round_looks_once_more_when_it_is_over(tmp_path: Path) -> None:
    rounds, _ = run(tmp_path, toy(), episode_length=4)

    horizon = rounds[0].rollout.horizon
    assert horizon is not None
    assert [report.epoch for report in horizon.reports] == [4, 4]


def test_rounds_and_episodes_are_told_when_they_end(tmp_path: Path) -> None:
    rounds, told = run(tmp_path, toy(), rounds=2, episode_length=4)

    episodes = [payload for _, payload in told if isinstance(payload, EpisodeFinishedPayload)]
    outcomes = [outcome for round_ in rounds for outcome in round_.outcomes]
    assert [(e.env_id, e.test_metric, e.params, e.flops) for e in episodes] == [
        (o.env, o.test_metric, o.params, o.ledger.total) for o in outcomes
    ]
    closing = [payload for _, payload in told if isinstance(payload, RoundFinishedPayload)]
    assert [payload.episodes for payload in closing] == [2, 2]
    for payload, round_ in zip(closing, rounds, strict=True):
        first, second = (outcome.val_metric for outcome in round_.outcomes)
        assert payload.metric_mean == pytest.approx((first + second) / 2)
        assert payload.reward_mean == pytest.approx(4 * 1.5)


def test_what_time_and_measurement_bring_about_is_told_with_the_step_that_brought_it(tmp_path: Path) -> None:
    _, told = run(tmp_path, toy(), episode_length=20)

    stages = [(e.step, p) for e, p in told if isinstance(p, SeedStageChangedPayload)]
    assert {payload.driver for _, payload in stages} >= {"GERMINATE", "ADVANCE", "time"}
    # A slot stands for an epoch as PRUNED, and rests from the next step's training on.
    pruned = {(p.env_id, p.seed_id): step for step, p in stages if p.to_stage == "PRUNED" and p.driver == "PRUNE"}
    rested = {(p.env_id, p.seed_id): step for step, p in stages if p.to_stage == "EMBARGOED"}
    assert pruned
    assert (
        {key: step - 1 for key, step in rested.items() if key in pruned and step is not None}
        == {key: step for key, step in pruned.items() if key in rested}
        != {}
    )
    measured = [e.step for e, p in told if isinstance(p, SeedContributionMeasuredPayload)]
    assert measured == sorted(measured) != []


# --- a host that is taken back ----------------------------------------------------------------------------------


def run_with_a_broken_host(folder: Path, controller: Controller) -> Listening:
    """Eight steps of two environments; in the fourth the first one's host trains on from a weight that is NaN."""
    heard = Listening()
    engine = Engine(Setup(toy(), 2, 8, 0, body=QUICK))
    train_epoch = engine.train_epoch

    def spoiled() -> None:
        if engine.environments[0].epoch == 3:
            next(engine.environments[0].model.parameters()).data.fill_(float("nan"))
        train_epoch()

    engine.train_epoch = spoiled  # type: ignore[method-assign]
    (folder / "ev").mkdir()
    cfg = RunConfig(controller="static", envs=2, episode_length=8)
    with EventWriter(folder / "ev", "r0.1", TelemetryConfig()) as writer:
        publisher = Publisher(cfg, engine, writer, silent())
        governor = Governor(engine.setup.governor)
        train(cfg, Team(engine, governor, controller, heard, heard.reward, publisher))
        publisher.close()
    return heard


def test_after_a_rollback_the_next_decision_sees_the_host_as_it_was_put_back(tmp_path: Path) -> None:
    """Both plant in the step in which the first host breaks: its seed has gone before anyone decides again."""

    def late(host: HostReport, legal: LegalActions, memory: None) -> tuple[FactoredAction, None]:
        plant = legal.space.action("GERMINATE", slot="r0c0", blueprint="conv_light")
        return plant if host.epoch == 3 else wait(legal.space), memory

    heard = run_with_a_broken_host(tmp_path, Rule(late, None))

    seen = [list(step.sight.reports) for step in heard.rollouts[0].steps]
    broken, whole = seen[4]
    assert (broken.rollbacks, broken.seeds_in_use, broken.val_loss, broken.epoch) == (1, 0, None, 4)
    assert (whole.rollbacks, whole.seeds_in_use, whole.epoch) == (0, 1, 4)
    # What was measured before the verdict is the reward's alone.
    after, settled = heard.asked[3][3:5]
    assert (after[0].rollbacks, after[0].seeds_in_use) == (0, 1)
    assert seen[4] == settled
    assert seen[4][1] == after[1]
    assert heard.asked[4][0] == settled


def test_a_rollback_ends_the_sequence_of_its_step_and_is_told_once(tmp_path: Path) -> None:
    remembered: list[tuple[int, int]] = []

    def counting(host: HostReport, legal: LegalActions, count: int) -> tuple[FactoredAction, int]:
        remembered.append((host.env, count))
        return wait(legal.space), count + 1

    heard = run_with_a_broken_host(tmp_path, Rule(counting, 0))

    ended = [step.ended for step in heard.rollouts[0].steps]
    assert ended == [[step == 3, False] for step in range(8)]
    assert [count for env, count in remembered if env == 0] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [count for env, count in remembered if env == 1] == list(range(8))
    names = [envelope.t for envelope, _ in read_events(tmp_path)]
    assert names.count("GOVERNOR_ROLLBACK") == 1
    rows = [row for row in steps_in(list(read_events(tmp_path))) if row.env_id == 0]
    assert [row.val_loss == row.val_loss for row in rows] == [step != 3 for step in range(8)]
