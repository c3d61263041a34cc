"""Modes over whole episodes: what the steps of an episode sum up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simic.rewards.small import (
    ANY_FLOAT,
    HOST,
    ILL,
    LENGTH,
    LOST,
    WAIT,
    WELL,
    act,
    host,
    hosts,
    slot,
    step,
    steps,
)
from tests.tolaria.small import Decide, at_random, by_plan, do, engine_on, toy

from esper.leyline.config import apply
from esper.leyline.decisions import Verdict
from esper.leyline.errors import ConfigError
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.simic.rewards.config import RewardConfig
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.rewards import ModeReward, StepScore, no_reward
from esper.simic.rewards.terms import TERMS, Transition
from esper.tamiyo.policy.action_masks import possible
from esper.tolaria.governor import Governor

every_mode = pytest.mark.parametrize("mode", list(MODES))
PENALTIES = ("rollback", "divergence")


def scores_of(episode: Sequence[Transition], mode: str = "basic", **settings: float) -> list[StepScore]:
    reward = ModeReward(RewardConfig(mode=mode, **settings))
    return [reward.score(each) for each in episode]


def total(scores: Sequence[StepScore]) -> float:
    return sum(score.total for score in scores)


def sum_of(scores: Sequence[StepScore], *names: str) -> float:
    return sum(value for score in scores for name, value in score.terms if name in names)


# --- sums over episodes -----------------------------------------------------------------------------------------


@st.composite
def episodes(draw: st.DrawFn, rollbacks: bool = True) -> list[Transition]:
    """Steps that follow on each other: a host without a measurement at first and after the governor took it back."""
    length, sign = draw(st.integers(1, 8)), draw(st.sampled_from([1.0, -1.0]))
    reports = hosts(st.floats(-1000, 1000), st.floats(0, 1))
    lived: list[Transition] = []
    now = _placed(draw(reports), 0, length, sign, val_metric=None)
    for epoch in range(1, length + 1):
        after = _placed(draw(reports), epoch, length, sign, exported_metric=None)
        if epoch == length:
            after = replace(after, exported_metric=draw(st.floats(-1000, 1000)))
        well = not rollbacks or draw(st.booleans()) or draw(st.booleans())
        settled = after if well else _placed(draw(reports), epoch, length, sign, val_metric=None)
        lived.append(step(now, after, draw(st.sampled_from(_DEEDS)), True, WELL if well else ILL, settled))
        now = settled
    return lived


_DEEDS = [WAIT, act("PRUNE"), act("PRUNE", 1), act("GROW_INTERNAL"), act("SHRINK_INTERNAL", 1), act("GERMINATE")]


def _placed(report: HostReport, epoch: int, length: int, sign: float, **facts: float | None) -> HostReport:
    return replace(report, epoch=epoch, episode_length=length, metric_sign=sign, finished=False, **facts)


def objective_of(episode: Sequence[Transition]) -> float:
    """J of what the last step leaves behind; a host that was just taken back leaves nothing measured behind."""
    end = episode[-1]
    if not end.verdict.healthy:
        return 0.0
    fossils = sum(seen.params for seen in end.after.slots if seen.stage.name == "FOSSILIZED")
    assert end.after.exported_metric is not None
    doublings = math.log(1 + fossils / end.after.host_params) / math.log(2)
    return end.after.metric_sign * end.after.exported_metric - 3.0 * doublings


@settings(max_examples=50, deadline=None)
@given(episode=episodes(), weighted=st.booleans())
def test_outcome_and_progress_sum_up_to_the_objective_through_prunes_levels_and_rollbacks(episode, weighted) -> None:
    scores = scores_of(episode, "shaped", alpha_weighted_rent=weighted)

    assert sum_of(scores, "outcome", "progress") == pytest.approx(objective_of(episode), abs=1e-8)
    assert sum_of(scores, "progress") == pytest.approx(0.0, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(episode=episodes(rollbacks=False), gamma=st.floats(0.5, 1.0))
def test_discounted_progress_comes_to_nothing_so_that_no_policy_is_favoured(episode, gamma) -> None:
    scores = scores_of(episode, gamma=gamma)

    discounted = sum(gamma**t * sum_of([score], "progress") for t, score in enumerate(scores))

    assert discounted == pytest.approx(0.0, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(episode=episodes(rollbacks=False))
def test_without_an_accident_basic_and_sparse_pay_the_objective_and_no_mode_pays_more(episode) -> None:
    worth = objective_of(episode)

    for mode in ("basic", "sparse"):
        assert total(scores_of(episode, mode)) == pytest.approx(worth, abs=1e-8)
    for mode in MODES:
        assert total(scores_of(episode, mode)) <= worth + 1e-8


STAGES = [SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING]


@every_mode
@settings(max_examples=40, deadline=None)
@given(
    waited=st.lists(st.floats(0, 100), min_size=8, max_size=8),
    harmed=st.lists(st.floats(0, 100), min_size=8, max_size=8),
    alphas=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    final=st.floats(0, 100),
)
def test_planting_harming_and_pruning_pays_no_more_than_waiting(mode, waited, harmed, alphas, final) -> None:
    blending = dict(zip(STAGES[2:], alphas, strict=True))
    lives = [(slot(0, stage, age=age, alpha=blending.get(stage, 0.0)),) for age, stage in enumerate(STAGES)]
    deeds = [act("GERMINATE"), *[act("ADVANCE")] * 3, act("PRUNE"), WAIT, WAIT, WAIT]
    idle = _lived(waited, final, [()] * 8, [WAIT] * 8)
    busy = _lived(harmed, final, [*lives, (slot(0, SeedStage.PRUNED),), (), (), ()], deeds)

    assert total(scores_of(busy, mode)) <= total(scores_of(idle, mode)) + 1e-9


def _lived(metrics, final, seeds, deeds) -> list[Transition]:
    reports = [host(None, epoch=0, episode_length=8)]
    for epoch, (metric, seen) in enumerate(zip(metrics, seeds, strict=True), 1):
        reports.append(
            host(metric, *seen, epoch=epoch, episode_length=8, exported_metric=final if epoch == 8 else None)
        )
    return [step(*pair, deed) for pair, deed in zip(pairwise(reports), deeds, strict=True)]


# --- one step ---------------------------------------------------------------------------------------------------


@every_mode
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(steps(ANY_FLOAT, ANY_FLOAT), max_size=4))
def test_each_environment_is_scored_by_itself_and_its_total_is_finite(mode: str, rows: list[Transition]) -> None:
    reward = ModeReward(RewardConfig(mode=mode))
    columns = [[getattr(row, name) for row in rows] for name in Transition.__dataclass_fields__]

    scores, ended = reward(*columns)

    assert scores == [reward.score(row) for row in rows]
    assert all(math.isfinite(score.total) for score in scores)
    assert ended == no_reward(*columns)[1] == [not row.verdict.healthy or row.verdict.ended for row in rows]


@every_mode
def test_a_total_is_the_sum_of_the_modes_weighted_terms_in_their_order(mode: str) -> None:
    seen = host(60.0, slot(0, SeedStage.HOLDING, age=0))
    of = step(seen, host(50.0), act("PRUNE"), verdict=LOST)

    score = ModeReward(RewardConfig(mode=mode)).score(of)

    weights = MODES[mode].weights
    assert score.terms == tuple((name, weights[name] * TERMS[name](of, RewardConfig())) for name in weights)
    assert score.total == pytest.approx(sum(value for _, value in score.terms))
    assert set(PENALTIES) | {"outcome"} <= set(weights)


@every_mode
def test_a_host_that_is_lost_is_paid_for_once_and_scores_nothing_afterwards(mode: str) -> None:
    gone = host(None, finished=True)
    padding = step(gone, replace(gone, epoch=LENGTH), verdict=Verdict(healthy=True, ended=True))

    scores = scores_of([step(host(60.0), host(5.0), verdict=LOST, settled=gone), padding, padding], mode)

    assert sum_of(scores, *PENALTIES) == -20.0
    assert [score.total for score in scores[1:]] == [0.0, 0.0]
    assert [name for name, _ in scores[1].terms] == list(MODES[mode].weights)


def test_no_reward_is_nothing_for_everyone() -> None:
    rows = [step(host(60.0), host(70.0)), step(host(60.0), host(70.0), verdict=ILL)]
    columns = [[getattr(row, name) for row in rows] for name in Transition.__dataclass_fields__]

    assert no_reward(*columns) == ([StepScore(0.0), StepScore(0.0)], [False, True])


def test_shaped_differs_from_simplified_by_shock_and_churn_and_that_from_basic_by_prices() -> None:
    seen = host(60.0, slot(0, SeedStage.HOLDING, age=0))
    (shaped,), (simplified,), (basic,) = (
        scores_of([step(seen, host(60.0), act("PRUNE"))], mode) for mode in ("shaped", "simplified", "basic")
    )

    assert basic.total == pytest.approx(3 * math.log2(1500 / HOST))
    assert simplified.total - basic.total == pytest.approx(-0.005)
    assert shaped.total - simplified.total == pytest.approx(-0.2 * 0.5 - 0.05)


def test_a_mode_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"mode.*shapd.*shaped"):
        RewardConfig(mode="shapd")
    with pytest.raises(ConfigError, match="gamma"):
        apply(RewardConfig(), {"gamma": 1.5})


# --- a real engine ----------------------------------------------------------------------------------------------


FOSSIL = (
    do("GERMINATE", blueprint="conv_light", tempo="fast"),
    *[do("ADVANCE")] * 2,
    *[None] * 2,
    do("ADVANCE"),
    do("FOSSILIZE"),
)
BLENDED = (
    do("GERMINATE", slot="r0c1", blueprint="conv_light", style="linear_gate", tempo="slow"),
    *[do("ADVANCE", slot="r0c1")] * 2,
)
PLANS: dict[str, Callable[[], Decide]] = {
    "at random": lambda: at_random(1),
    "a fossil, and a seed on probation at the end": lambda: by_plan(*FOSSIL, *[None] * 5, *BLENDED),
    "a pruned seed": lambda: by_plan(*BLENDED, *[None] * 3, do("PRUNE", slot="r0c1")),
}


@pytest.mark.parametrize("ill_at", [(), (2,), (3, 9)])
@pytest.mark.parametrize("plan", PLANS)
def test_an_episode_of_a_real_host_pays_the_objective_of_the_network_it_exports(
    plan: str, ill_at: tuple[int, ...]
) -> None:
    """The test split is the validation split here, so that the outcome's figures are those of the reward."""
    task = toy()
    engine = engine_on(replace(task, splits=replace(task.splits, test=task.splits.val)), envs=2, length=16)
    governor, decide, reward = Governor(engine.setup.governor), PLANS[plan](), ModeReward(RewardConfig(rollback=5.0))
    governor.begin(engine)
    reports, scored = engine.reports(), []
    for epoch in range(16):
        legal = possible(reports, engine.space)
        actions = [decide(report, masks) for report, masks in zip(reports, legal, strict=True)]
        receipts = engine.apply(actions)
        if epoch in ill_at:
            with torch.no_grad():
                next(engine.environments[0].model.parameters()).view(-1)[0] = torch.nan
        engine.train_epoch()
        after = engine.measure()
        verdicts, settled = governor.review(engine, after)
        scored.append(reward(reports, actions, receipts, after, settled, verdicts)[0])
        reports = settled

    accidents, outcomes = [len(ill_at), 0], engine.outcomes()
    for outcome, scores, taken_back in zip(outcomes, zip(*scored, strict=True), accidents, strict=True):
        assert outcome.test_metric is not None
        worth = outcome.test_metric - 3 * math.log2(outcome.params / outcome.host_params)
        assert total(scores) == pytest.approx(worth - 5.0 * taken_back, abs=1e-6)
    if "fossil" in plan:
        assert outcomes[1].params > outcomes[1].host_params
        assert outcomes[1].val_metric != outcomes[1].test_metric  # the seed on probation is heard, and not exported


def test_a_real_host_that_is_lost_pays_for_each_rollback_and_once_for_the_loss() -> None:
    engine, reward = engine_on(toy(), length=8), ModeReward(RewardConfig(rollback=5.0, divergence=7.0))
    governor = Governor(engine.setup.governor)
    governor.begin(engine)
    reports, totals = engine.reports(), []
    for _ in range(8):
        actions = [engine.space.action("WAIT")]
        receipts = engine.apply(actions)
        with torch.no_grad():
            next(engine.environments[0].model.parameters()).view(-1)[0] = torch.nan
        engine.train_epoch()
        after = engine.measure()
        verdicts, settled = governor.review(engine, after)
        (score,), _ = reward(reports, actions, receipts, after, settled, verdicts)
        totals.append(score.total)
        reports = settled

    assert totals == [-5.0, -5.0, -12.0, 0.0, 0.0, 0.0, 0.0, 0.0]
