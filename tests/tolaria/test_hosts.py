"""Hosts that were put away go on bit for bit, from states that chance has brought about, in fresh processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tolaria.small import QUICK, live, toy

from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.baselines import draw
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tolaria.config import GovernorConfig
from esper.tolaria.digest import digest_of_state
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor
from esper.tolaria.hosts import LocalHosts
from esper.tolaria.setup import Setup
from esper.tolaria.workers import engine_and_governor, hosts_of

ROOT = Path(__file__).parents[2]
LENGTH, ENVS, MORE = 20, 2, 3
ONWARD = (LifecycleOp.GERMINATE, LifecycleOp.ADVANCE, LifecycleOp.GROW_INTERNAL, LifecycleOp.FOSSILIZE)
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser": "sgd", "momentum": 0.9, "lr": 0.05},
    "adamw, cosine": {"optimiser": "adamw", "schedule": "cosine", "lr": 0.01},
    "sgd, too fast": {"optimiser": "sgd", "lr": 1.0},
    "rmsprop": {"optimiser": "rmsprop", "momentum": 0.5, "lr": 0.01},
}


@dataclass(frozen=True)
class Case:
    """A run under decisions by lot, most of which lead on, put away after some steps."""

    seed: int
    steps: int
    recipe: str
    explosion: float  # of the governor: near 1 it takes hosts back now and then

    def hosts(self) -> LocalHosts:
        body = replace(QUICK, blueprints=("conv_ladder", "conv_light", "norm"), embargo=0.2)
        governor = GovernorConfig(explosion=self.explosion, snapshot_steps=4, bless_steps=8)
        setup = Setup(toy(**RECIPES[self.recipe]), ENVS, LENGTH, self.seed, body=body, governor=governor)
        return LocalHosts(Engine(setup), Governor(governor))

    def play(self, hosts: LocalHosts, steps: int) -> list[str]:
        """Every report, and the digests at the end."""

        def decide(report: HostReport, legal: LegalActions) -> FactoredAction:
            lots = stream(self.seed, "decisions", report.env, report.epoch)
            onward = tuple(free and op in ONWARD for op, free in enumerate(legal.op))
            eager = any(onward) and float(torch.rand((), generator=lots)) < 0.8
            return draw(replace(legal, op=onward) if eager else legal, lots)

        seen = [
            repr((step.after, step.settled, step.receipts))
            for step in live(hosts.engine, decide, steps, hosts.governor)
        ]
        return [*seen, *hosts.engine.digests()]

    def begun(self) -> LocalHosts:
        hosts = self.hosts()
        hosts.engine.reset(0)
        hosts.governor.begin(hosts.engine)
        return hosts


CASES = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    steps=st.integers(1, LENGTH - MORE - 1),
    recipe=st.sampled_from(sorted(RECIPES)),
    explosion=st.sampled_from([1.01, 20.0]),
)


def through_a_file(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def kinds_of(hosts: LocalHosts) -> set[str]:
    """What is remarkable about a state."""
    found = set()
    for environment in hosts.engine.environments:
        found |= {"taken back"} if environment.rollbacks else set()
        found |= {"a schedule"} if environment.scheduler is not None else set()
        if environment.last_op in (LifecycleOp.GROW_INTERNAL, LifecycleOp.SHRINK_INTERNAL):
            found |= {"a ladder changed"} if environment.last_action_success else set()
        for slot in environment.report().slots:
            found |= {"embargoed"} if slot.stage is SeedStage.EMBARGOED else set()
            found |= {"a gate"} if (slot.stage, slot.blend) == (SeedStage.BLENDING, "GATE") else set()
            found.add(slot.stage.name)
    return found


def gone_on(folder: Path) -> None:
    """What the fresh process does: `CASE.pt` becomes `CASE.txt`."""
    torch.set_num_threads(1)
    for path in sorted(folder.glob("*.pt")):
        saved = torch.load(path)
        case = Case(**saved["case"])
        hosts = case.hosts()
        hosts.load(saved["state"])
        path.with_suffix(".txt").write_text("\n".join(case.play(hosts, MORE)))


@pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_any_state_goes_on_in_a_fresh_process_as_it_would_have_gone_on(tmp_path: Path, examples: int) -> None:
    want: dict[str, list[str]] = {}
    kinds: set[str] = set()

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES)
    def put_away(case: Case) -> None:
        hosts = case.begun()
        case.play(hosts, case.steps)
        kinds.update(kinds_of(hosts))
        name = f"{len(want):04d}"
        (tmp_path / f"{name}.pt").write_bytes(through_a_file({"case": vars(case), "state": hosts.state()}))
        want[name] = case.play(hosts, MORE)

    put_away()
    code = "import pathlib, sys; from tests.tolaria.test_hosts import gone_on; gone_on(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=environment)

    assert {path.stem: path.read_text().split("\n") for path in tmp_path.glob("*.txt")} == want
    wanted = {"a gate", "a ladder changed", "embargoed", "a schedule", "taken back", "FOSSILIZED"}
    assert wanted | ({"HOLDING"} if examples > 40 else set()) <= kinds  # a held seed is soon kept


def test_a_state_is_not_written_into_by_later_steps() -> None:
    case = Case(seed=1, steps=6, recipe="adamw, cosine", explosion=1.05)
    hosts = case.begun()
    case.play(hosts, case.steps)
    state = hosts.state()
    before = digest_of_state(deepcopy(state))

    case.play(hosts, MORE)

    assert digest_of_state(state) == before


def test_a_state_gathered_from_workers_is_the_one_of_a_single_process() -> None:
    case = Case(seed=5, steps=4, recipe="adamw, cosine", explosion=1.05)
    hosts = case.begun()
    case.play(hosts, case.steps)
    state, engine = hosts.state(), hosts.engine
    engine_, governor = engine_and_governor(partial(setup_of, case), 2)
    with closing(engine_):
        spread = hosts_of(engine_, governor)
        reports = spread.load(state)

        assert reports == engine.reports()
        assert engine_.digests() == engine.digests()
        assert digest_of_state(spread.state()) == digest_of_state(state)


def setup_of(case: Case) -> Setup:
    return case.hosts().engine.setup
