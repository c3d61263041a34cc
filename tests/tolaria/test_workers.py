"""Worker processes: the same numbers for any N, and no error, death or signal that hangs or leaves a process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import same
from tests.tolaria.small import QUICK, toy
from torch import Tensor

import esper.tamiyo.baselines
from esper.leyline.errors import ConfigError, ExitCode, WorkerDiedError
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.telemetry import GovernorRollbackPayload, SeedGerminatedPayload
from esper.nissa.config import TelemetryConfig
from esper.nissa.progress import Progress
from esper.nissa.reader import read_events
from esper.nissa.writer import EventWriter
from esper.simic.agent.learner import NoLearner
from esper.simic.rewards.rewards import StepScore, no_reward
from esper.simic.training.config import RunConfig
from esper.simic.training.publishing import Publisher
from esper.simic.training.team import Team
from esper.simic.training.vectorized import train
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build
from esper.tolaria.config import GovernorConfig
from esper.tolaria.digest import combined, digest
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.setup import Setup
from esper.tolaria.workers import default_workers, engine_and_governor, local_workers, shares_of

_ = esper.tamiyo.baselines  # importing it fills the registry
ENVS = 4
ROOT = Path(__file__).parents[2]
MINUTES = 10**6  # training items of an epoch


def jumpy() -> Setup:
    """A learning rate and a governor with which some hosts are taken back, some given up and some neither."""
    return Setup(toy(lr=1.0), ENVS, 8, 0, body=QUICK, governor=GovernorConfig(explosion=1.005, max_rollbacks=2))


def slow() -> Setup:
    return Setup(toy(items=MINUTES), 2, 4, 0)


def refused_by_workers() -> Setup:
    if multiprocessing.parent_process() is not None:
        raise ConfigError("task.data: not here")
    return slow()


def dividing_by_zero(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError("on purpose")


def with_a_bug() -> Setup:
    task = toy()
    object.__setattr__(task, "loss", dividing_by_zero)
    return Setup(task, 2, 4, 0)


# --- the same numbers -------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What a run has come to, in words that give every digit."""

    asked: list[str] = field(default_factory=list)  # reports, actions, receipts, verdicts of each step
    events: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    kinds: set[type] = field(default_factory=set)  # of events
    rolled_back: int = 0
    ended: int = 0

    def reward(self, *asked: Any) -> tuple[list[StepScore], list[bool]]:
        self.asked.append(repr(asked))
        self.rolled_back += sum(not verdict.healthy for verdict in asked[-1])
        self.ended += sum(verdict.ended for verdict in asked[-1])
        return no_reward(*asked)


def run(folder: Path, workers: int) -> Told:
    """Two rounds of the main loop under random decisions."""
    told, config = Told(), RunConfig(controller="random", envs=ENVS, rounds=2, episode_length=8)
    engine, governor = engine_and_governor(jumpy, workers)
    controller = CONTROLLERS["random"](Build(PolicyConfig(), engine.space, 5))
    (folder / "ev").mkdir(parents=True)
    with closing(engine), EventWriter(folder / "ev", "r0.1", TelemetryConfig(heartbeat_s=3600.0)) as writer:
        progress = Progress(quiet=True)
        progress.start(config.rounds * config.episode_length, "workers")
        publisher = Publisher(config, engine, writer, progress)
        (rounds,) = train(config, Team(engine, governor, controller, NoLearner(), told.reward, publisher))
        told.digests, told.models = engine.digests(), engine.models()
    for _, payload in read_events(folder):
        told.kinds.add(type(payload))
        told.events.append(repr({**msgspec.to_builtins(payload), "seconds": None, "phases": None}))
    outcomes = [outcome for round_ in rounds for outcome in round_.outcomes]
    told.outcomes = [f"{outcome} {outcome.ledger.as_dict()}".replace(repr(outcome.ledger), "") for outcome in outcomes]
    return told


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return run(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize(
    "workers", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_run_comes_to_the_same_with_any_number_of_workers(tmp_path: Path, in_one_process: Told, workers: int) -> None:
    spread = run(tmp_path, workers)

    assert {GovernorRollbackPayload, SeedGerminatedPayload} <= spread.kinds
    assert spread.ended > 0
    assert 0 < spread.rolled_back < ENVS * 16
    assert spread.asked == in_one_process.asked
    assert spread.events == in_one_process.events
    assert spread.outcomes == in_one_process.outcomes
    assert spread.digests == in_one_process.digests
    assert all(same(*pair) for pair in zip(spread.models, in_one_process.models, strict=True))


def test_an_engine_with_some_of_the_environments_trains_them_as_if_it_had_all() -> None:
    whole, part = Engine(jumpy()), Engine(jumpy(), (1, 3))
    for engine in (whole, part):
        engine.reset(0)
        engine.train_epoch()

    reports, digests = whole.measure(), whole.digests()
    assert part.measure() == [reports[env] for env in (1, 3)]
    assert part.digests() == [digests[env] for env in (1, 3)]


def test_the_digest_of_a_run_is_combined_from_those_of_its_environments_in_their_order() -> None:
    engine = Engine(jumpy())
    engine.reset(0)
    digests, decisions = engine.digests(), [["WAIT"]]

    assert len(set(digests)) == ENVS
    assert combined(digests, decisions) == digest(engine.environments, decisions)
    assert combined(digests[::-1], decisions) != combined(digests, decisions)


def test_between_two_measurements_an_engine_of_workers_tells_the_present_and_not_the_past() -> None:
    alone = Engine(jumpy())
    with closing(local_workers(jumpy, 1)) as spread:
        for engine in (alone, spread):
            engine.reset(0)
            engine.measure()
        planted = alone.space.action("GERMINATE", slot="r0c0", blueprint="conv_light")
        actions = [planted, *[alone.space.action(LifecycleOp.WAIT)] * (ENVS - 1)]

        assert spread.flops() == alone.flops()
        assert spread.apply(actions) == alone.apply(actions)
        assert spread.flops() == alone.flops()
        assert spread.reports() == alone.reports()
        for engine in (alone, spread):
            engine.train_epoch()
        assert spread.flops() == alone.flops()


# --- shares -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_every_environment_has_one_worker_and_no_worker_two_more_than_another(envs: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, envs))

    shares = shares_of(envs, workers)

    assert [env for share in shares for env in share] == list(range(envs))
    assert len(shares) == workers
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("envs", "cores", "workers"), [(8, 2, 2), (8, 3, 2), (12, 5, 4), (7, 4, 1), (1, 8, 1), (4, 9, 4)]
)
def test_by_default_the_environments_are_dealt_out_evenly_to_the_cores(envs: int, cores: int, workers: int) -> None:
    assert default_workers(envs, cores) == workers


@pytest.mark.parametrize("workers", [0, -1, 3])
def test_workers_without_an_environment_are_refused(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"run.workers: {workers} for 2 environments; use 1 to 2"):
        engine_and_governor(slow, workers)


def test_one_worker_is_this_process() -> None:
    engine, governor = engine_and_governor(jumpy, 1)

    assert isinstance(engine, Engine)
    assert isinstance(governor, Governor)
    assert governor.config.max_rollbacks == 2


# --- what goes wrong --------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def no_process_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.usefixtures("no_process_left")
def test_an_error_of_the_user_arrives_as_itself() -> None:
    with closing(local_workers(refused_by_workers, 1)) as engine:
        with pytest.raises(ConfigError, match=r"^task\.data: not here$"):
            engine.reset(0)


@pytest.mark.usefixtures("no_process_left")
def test_an_error_of_ours_arrives_with_the_workers_traceback() -> None:
    with closing(local_workers(with_a_bug, 1)) as engine:
        engine.reset(0)
        engine.train_epoch()
        with pytest.raises(
            RuntimeError, match=r"(?s)worker 1 of 1.*in dividing_by_zero.*ZeroDivisionError: on purpose"
        ):
            engine.measure()


@pytest.mark.usefixtures("no_process_left")
def test_the_death_of_a_worker_is_met_at_once_though_another_has_minutes_to_go() -> None:
    with closing(local_workers(slow, 2)) as engine:
        engine.reset(0)
        engine.train_epoch()
        (victim,) = (child for child in multiprocessing.active_children() if child.name == "worker 2 of 2")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        began = time.monotonic()

        with pytest.raises(WorkerDiedError) as caught:
            engine.measure()

        assert str(caught.value) == (
            "worker 2 of 2 (environment 1) died with exit code -9 (Killed); "
            "run again, with fewer --workers if memory ran out"
        )
        assert caught.value.exit_code == ExitCode.RANKS
        engine.close()  # `closing` closes it again, which does nothing
        assert time.monotonic() - began < 5


def wait_for_minutes() -> None:
    """A program that prints the id of its worker and has it train; run by the tests of signals."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(ExitCode.TERMINATED)))
    with closing(local_workers(slow, 1)) as engine:
        engine.reset(0)
        engine.train_epoch()
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        engine.measure()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_main_process_ends_its_workers_in_a_second_or_so(sign: signal.Signals) -> None:
    program = f"from {__name__} import wait_for_minutes; wait_for_minutes()"
    main = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert main.stdout is not None
    (worker,) = map(int, main.stdout.readline().split())

    # Ctrl-C goes to every process of a terminal, the others to one.
    signalled = partial(os.killpg if sign == signal.SIGINT else os.kill, main.pid, sign)
    signalled()

    assert until(lambda: has_ended(worker), limit_s=5)
    _, err = main.communicate(timeout=10)
    assert err.count("Traceback") == (sign == signal.SIGINT)  # of the main process, none of the workers
    assert main.returncode == (143 if sign == signal.SIGTERM else -sign)
