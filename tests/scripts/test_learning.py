"""`esper train ppo` in real processes: what is learned is told, kept in a file, and can be used and compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.scripts.loader import safe_loader
from tests.scripts.test_train import SHORT, tail, told, train
from tests.scripts.zygote import Zygote

from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.telemetry import (
    EnvStepPayload,
    ObservationsPayload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    SeedInternalLevelChangedPayload,
)
from esper.nissa.reader import read_events

PPO = ("ppo", "--preset", "digits", *SHORT, "--rounds", "3", "--envs", "2", "--workers", "1")
MEASURED = ("train_loss", "val_loss", "val_metric", "metric_gain", "overfit")
LADDER = ("--blueprints", "conv_ladder", "--set", "body.auto_advance=G1")


@pytest.fixture(scope="module")
def learned(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the run is, and the run."""
    cwd = tmp_path_factory.mktemp("learned")
    return cwd, train(zygote, cwd, *PPO)[0]


def test_every_update_is_told_with_the_signs_by_which_a_broken_learner_is_known(learned: tuple[Path, str]) -> None:
    cwd, run = learned
    updates = told(cwd / run, PpoUpdatedPayload)

    assert [update.update for update in updates] == [0, 1, 2]
    for update in updates:
        assert update.skipped is None or update.skipped == ""
        assert update.ratio_error <= 1e-5
        assert (update.invalid_executed, update.all_masked) == (0, 0)
        assert update.explained_variance is not None
        assert update.approx_kl is not None
        assert update.clip_fraction is not None
        assert [head for head, _ in update.entropy] == list(HEADS)
        assert [op for op, _ in update.op_values] == [op.name for op in LifecycleOp]


def test_what_was_seen_is_told_sensor_by_sensor(learned: tuple[Path, str]) -> None:
    cwd, run = learned
    (seen, *_) = told(cwd / run, ObservationsPayload)

    names = {sensor.name for sensor in HOST_SENSORS} | {sensor.name for sensor in SLOT_SENSORS}
    assert names == {row[0] for row in seen.sensors}


def test_where_the_time_went_is_told_by_phase_and_adds_up(learned: tuple[Path, str]) -> None:
    cwd, run = learned
    for round_ in told(cwd / run, RoundFinishedPayload):
        spent = dict(round_.phases)
        assert set(spent) == {"reset", "decide", "train", "measure", "guard", "record", "save", "test", "learn"}
        assert sum(spent.values()) == pytest.approx(round_.seconds)


def test_the_terms_of_every_reward_add_up_to_it(learned: tuple[Path, str]) -> None:
    cwd, run = learned
    steps = told(cwd / run, EnvStepPayload)
    assert {name for step in steps for name, _ in step.terms} >= {"outcome", "progress"}
    for step in steps:
        # terms of about 100 points are told with seven digits, and their sum may be near 0
        assert sum(value for _, value in step.terms) == pytest.approx(step.reward, rel=1e-6, abs=1e-4)


def test_every_decision_is_told_with_its_masks_its_probability_and_the_value_of_its_state(
    learned: tuple[Path, str],
) -> None:
    cwd, run = learned
    for step in told(cwd / run, EnvStepPayload):
        assert step.op_mask >> LifecycleOp[step.op] & 1
        assert (step.slot is None) == (step.slot_mask == 0)
        assert step.slot is None or step.slot_mask >> int(step.slot[-1]) & 1
        assert step.log_prob is not None
        assert step.log_prob <= 0.0
        assert step.value is not None


def test_two_trainings_of_one_seed_are_the_same_and_hosts_of_a_round_start_alike(
    zygote: Zygote, learned: tuple[Path, str], tmp_path: Path
) -> None:
    cwd, run = learned
    again, _ = train(zygote, tmp_path, *PPO)
    others = train(zygote, tmp_path, *PPO[:-1], "2")[0]  # two workers

    def decided(folder: Path) -> list[tuple[object, ...]]:
        return [(step.op, step.slot, step.reward, step.val_loss) for step in told(folder, EnvStepPayload)]

    assert decided(tmp_path / again) == decided(cwd / run) == decided(tmp_path / others)
    first = [step.train_loss for step in told(cwd / run, EnvStepPayload)][:2]
    assert first[0] == first[1]


@safe_loader
def test_a_trained_policy_grows_a_network_and_refuses_another_action_space(
    zygote: Zygote, learned: tuple[Path, str]
) -> None:
    cwd, run = learned
    who = f"policy:{Path(run).name}"
    once, twice = (train(zygote, cwd, who, "--preset", "digits", *SHORT)[1] for _ in range(2))
    by_file = train(zygote, cwd, f"policy:{run}/checkpoints/policy.pt", "--preset", "digits", *SHORT)[1]
    other = zygote.run("train", who, "--preset", "digits_scale", *SHORT[2:], "--quiet", cwd=cwd)

    assert once == twice == by_file
    assert other.code == 2
    assert "chooses its slot from [r0c0 r0c1 r0c2], but this run offers [r0c0 r0c1 r0c2 r0c3 r0c4]" in other.err
    assert other.err.count("\n") == 1


def changed(learned: tuple[Path, str], place: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The policy of that run with other weights, in a file."""
    cwd, run = learned
    saved = torch.load(cwd / run / "checkpoints" / "policy.pt", weights_only=True)
    change(saved["weights"])
    torch.save(saved, place / "changed.pt")
    return place / "changed.pt"


def done_by(zygote: Zygote, cwd: Path, policy: Path, *settings: str) -> list[EnvStepPayload]:
    """What a policy does with two hosts that begin differently."""
    apart = ("--envs", "2", "--workers", "1", "--set", "run.shared_init=false")
    run, _ = train(zygote, cwd, f"policy:{policy}", "--preset", "digits", *SHORT, *apart, *settings)
    return told(cwd / run, EnvStepPayload)


@safe_loader
def test_a_policy_takes_the_likeliest_operation_unless_it_is_told_to_draw(
    zygote: Zygote, learned: tuple[Path, str], tmp_path: Path
) -> None:
    # From the likeliest to the least likely, whatever is seen, each only 1.1 times as likely as the next.
    order = ("FOSSILIZE", "ADVANCE", "GERMINATE", *(op.name for op in reversed(LifecycleOp)))

    def ranked(weights: dict[str, torch.Tensor]) -> None:
        weights["actor.2.weight"].zero_()
        weights["actor.2.bias"].zero_()
        for op in LifecycleOp:
            weights["actor.2.bias"][op] = -0.1 * order.index(op.name)

    policy = changed(learned, tmp_path, ranked)
    greedy, drawn = (done_by(zygote, tmp_path, policy, *more) for more in ((), ("--set", "policy.greedy=false")))

    def likeliest(step: EnvStepPayload) -> str:
        return next(name for name in order if step.op_mask >> LifecycleOp[name] & 1)

    assert len(greedy) == 12
    assert [step.op for step in greedy] == [likeliest(step) for step in greedy]
    assert {"GERMINATE", "ADVANCE"} <= {step.op for step in greedy}
    assert [step.op for step in drawn] != [likeliest(step) for step in drawn]


@safe_loader
def test_shuffled_sensors_change_what_a_policy_does_that_looks_and_nothing_of_what_one_does_that_is_blind(
    zygote: Zygote, learned: tuple[Path, str], tmp_path: Path
) -> None:
    measured = [column for column, sensor in enumerate(HOST_SENSORS) if sensor.name in MEASURED]

    def is_blind(weights: dict[str, torch.Tensor]) -> None:
        for name in ("features.0.weight", "slot_scorer.0.weight", "slot_scorer.2.weight"):
            weights[name].zero_()
        weights["actor.2.weight"].normal_(generator=torch.Generator().manual_seed(0))
        weights["actor.2.bias"][LifecycleOp.WAIT] = -100.0

    def looks(weights: dict[str, torch.Tensor]) -> None:
        is_blind(weights)
        weights["features.0.weight"][:, measured] = weights["features.0.weight"][:, measured].normal_(
            generator=torch.Generator().manual_seed(1)
        )

    for change, is_same in ((looks, False), (is_blind, True)):
        policy = changed(learned, tmp_path, change)
        seeing, shuffled = (
            [(step.op, step.slot, step.blueprint) for step in done_by(zygote, tmp_path, policy, *more)]
            for more in ((), ("--set", "policy.shuffle_sensors=true"))
        )
        assert len({op for op, _, _ in seeing}) > 1
        assert (seeing == shuffled) is is_same


def test_with_a_ladder_internal_operations_are_chosen_and_valued(zygote: Zygote, tmp_path: Path) -> None:
    evenly = ("--set", "policy.network.prior=0")  # so that nothing hangs on a lucky draw
    run, _ = train(zygote, tmp_path, *PPO, "--envs", "4", *LADDER, "--episode-length", "12", *evenly)

    assert len(told(tmp_path / run, SeedInternalLevelChangedPayload)) >= 3
    assert "GROW_INTERNAL" in {step.op for step in told(tmp_path / run, EnvStepPayload)}
    last = told(tmp_path / run, PpoUpdatedPayload)[-1]
    assert {"GROW_INTERNAL", "SHRINK_INTERNAL"} <= {op for op, _ in last.op_values}


def test_two_rewards_are_learned_from_in_turn_on_the_same_hosts_and_compared(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run("train", *PPO, "--ab-test", "shaped-vs-simplified", "--no-progress", cwd=tmp_path)
    run, _ = tail(ended)

    assert re.search(
        r"no verdict: shaped - simplified = [+-][\d.]+ points of the objective, 2 pairs of hosts", ended.out
    )
    groups = [
        (envelope.group, payload.op, payload.train_loss)
        for envelope, payload in read_events(tmp_path / run)
        if isinstance(payload, EnvStepPayload) and envelope.round == 0 and envelope.step == 0
    ]
    assert [group for group, _, _ in groups] == ["shaped"] * 2 + ["simplified"] * 2
    assert len({loss for _, _, loss in groups}) == 1
    names = {path.name for path in (tmp_path / run / "checkpoints").iterdir()}
    assert {"shaped.policy.pt", "simplified.policy.pt"} <= names
