"""The live state: what any prefix of a run tells, in any order of its writers, and what is derived from it."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.karn.conftest import ByHand, started, step
from tests.karn.recorded import Recorded

from esper.karn.episodes import stages_of
from esper.karn.feed import Event, Feed, Replay
from esper.karn.state import RETAINED, SILENT_S, Condition, State, Status
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    Envelope,
    EnvStepPayload,
    EpisodeFinishedPayload,
    LogPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunHeartbeatPayload,
    RunResumedPayload,
    SeedContributionMeasuredPayload,
    SeedInternalLevelChangedPayload,
)

EVERY_ROUND = 10**6
SEED = {"env_id": 0, "slot_id": "r0c0", "seed_id": "s", "blueprint_id": "conv_ladder"}


def at(
    payload: Payload, n: int = 0, writer: str = "r0.1", time_s: float | None = None, **where: int | str | None
) -> Event:
    time_s = 100.0 + n if time_s is None else time_s
    return Envelope(t=payload.type.name, counter=n, writer=writer, time_s=time_s, **where), payload


def state_of(events: list[Event], retained: int = EVERY_ROUND) -> State:
    state = State(retained)
    for event in events:
        state.take(*event)
    return state


def facts(state: State) -> dict[str, Any]:
    """Everything that a state holds, but for the number of changes that made it."""
    return {
        "started": state.started, "finished": state.finished, "heard": state.heard_s, "beat": state.heartbeat,
        "notices": state.notices, "teams": {name: asdict(team) for name, team in state.teams.items()},
    }  # fmt: skip


def finished_round(seconds: float, mean: float = 50.0) -> RoundFinishedPayload:
    return RoundFinishedPayload(episodes=1, metric_mean=mean, reward_mean=1.0, seconds=seconds)


def level(before: int, after: int, cause: str = "op") -> SeedInternalLevelChangedPayload:
    return SeedInternalLevelChangedPayload(
        **SEED, internal_kind=1, from_level=before, to_level=after, internal_max_level=4, params_before=0,
        internal_effective_params=0, cause=cause,
    )  # fmt: skip


# ---- any run ---------------------------------------------------------------------------------------------------------


@st.composite
def attempts(draw: st.DrawFn) -> list[list[Event]]:
    """What one to three attempts of a run told, each going on from somewhere before the end of the one before it."""
    told: list[list[Event]] = []
    begin = 0
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        writer = f"r0.{attempt}"
        first: Payload = started() if attempt == 1 else RunResumedPayload(from_round=begin // 4, from_step=begin % 4)
        end = begin + draw(st.integers(0, 11))
        stories = [(first, {})] + [(p, w) for x in range(begin, end) for p, w in _of_step(x, attempt)]
        events = [at(p, n, writer, time_s=1000.0 * attempt + n, **where) for n, (p, where) in enumerate(stories)]
        begin = draw(st.integers(0, end))
        told.append(events)
    told.append([at(LogPayload(level="info", text=str(n)), n, "r1.1", time_s=900.0 + 700 * n) for n in range(3)])
    return told


def _of_step(x: int, attempt: int) -> list[tuple[Payload, dict[str, int]]]:
    """Two hosts in rounds of four steps."""
    round_, step_ = divmod(x, 4)
    place = {"round": round_, "step": step_}
    events: list[tuple[Payload, dict[str, int]]] = [(level(step_, step_ + 1), place)]
    events += [(step(step_, val_metric=float(attempt)), place)]
    if step_ == 3:
        events.append((finished_round(1.0 + attempt), {"round": round_}))
    return events


@given(told=attempts(), seed=st.integers())
def test_it_does_not_matter_how_the_lines_of_writers_fall_between_each_other(told, seed: int) -> None:
    draw, mixed, rest = random.Random(seed), [], [list(events) for events in told]
    while rest := [events for events in rest if events]:
        mixed.append(draw.choice(rest).pop(0))

    assert facts(state_of(mixed)) == facts(state_of([event for events in told for event in events]))


@given(told=attempts(), share=st.floats(0, 1))
def test_any_prefix_of_a_run_is_a_state_that_can_be_asked(told, share: float) -> None:
    events = sorted((event for each in told for event in each), key=lambda event: event[0].time_s)
    events = events[: round(share * len(events))]
    state = state_of(events)

    assert state.version == len(events)
    assert state.heard_s == max((where.time_s for where, _ in events), default=None)
    assert state.share_done is None or 0 <= state.share_done <= 1
    assert state.status(0.0) is (Status.DIED if events else Status.WAITING)
    for team in state.teams.values():
        state.alerts(team)
        for episode in team.episodes.values():
            assert episode.last_step == max(episode.steps, default=None)
            episode.seeds()


@given(told=attempts())
def test_a_step_that_was_told_again_is_the_one_of_the_last_attempt_that_told_it(told) -> None:
    resumed = [payload for events in told for _, payload in events if isinstance(payload, RunResumedPayload)]
    begins = [0, *(each.from_round * 4 + each.from_step for each in resumed)]
    ends = [begin + sum(isinstance(p, EnvStepPayload) for _, p in events) for begin, events in zip(begins, told)]  # noqa: B905
    expected = {}
    for attempt, (begin, end) in enumerate(zip(begins, ends, strict=True), start=1):
        expected = {x: value for x, value in expected.items() if x < begin} | dict.fromkeys(range(begin, end), attempt)

    team = state_of([event for events in told for event in events]).team()

    found = {r * 4 + s: told_.val_metric for (r, _), e in team.episodes.items() for s, told_ in e.walk()}
    assert found == expected


# ---- a real run ------------------------------------------------------------------------------------------------------


def test_a_recorded_run_is_in_the_state_as_its_lines_tell_it(recorded: Recorded) -> None:
    feed = Feed(recorded.folder, all_rounds=True)
    state = state_of(list(feed.news()))
    team = state.team()

    assert {(r, e, s) for (r, e), episode in team.episodes.items() for s in episode.steps} == set(recorded.steps())
    for (round_, env), episode in team.episodes.items():
        mine = {s: told for (r, e, s), told in recorded.steps().items() if (r, e) == (round_, env)}
        assert dict(episode.walk()) == mine
        assert episode.reward == pytest.approx(sum(told.reward for told in mine.values()))
        (end,) = [p for w, p in recorded.of(EpisodeFinishedPayload) if (w.round, p.env_id) == (round_, env)]
        assert episode.finished == end
    for round_ in team.rounds:
        assert team.chosen(round_) == Counter(told.op for (r, _, _), told in recorded.steps().items() if r == round_)
    assert [team.updates[r].payload for r in sorted(team.updates)] == [p for _, p in recorded.of(PpoUpdatedPayload)]
    assert state.status(0.0) is Status.DONE
    assert state.share_done == 1.0
    assert state.left is None


def test_levels_and_contributions_of_a_recorded_run_are_those_of_its_events(recorded: Recorded) -> None:
    team = state_of(list(Feed(recorded.folder, all_rounds=True).news())).team()

    for (round_, env), episode in team.episodes.items():
        changes = [(w.step, p) for w, p in recorded.of(SeedInternalLevelChangedPayload) if _there(w, p, round_, env)]
        measured = [p for w, p in recorded.of(SeedContributionMeasuredPayload) if _there(w, p, round_, env)]
        for seed in episode.seeds().values():
            mine = [(at_, told) for at_, told in changes if told.seed_id == seed.seed_id]
            assert [(change.step, change.told) for change in seed.changes] == mine
            ways = [told.to_level > told.from_level for _, told in mine]
            assert sum(change.reverses for change in seed.changes) == sum(a != b for a, b in pairwise(ways))
            off = [told for told in measured if told.seed_id == seed.seed_id and told.against == "off"]
            assert seed.contribution == (off[-1] if off else None)


def _there(where: Envelope, payload: Any, round_: int, env: int) -> bool:
    return (where.round, payload.env_id) == (round_, env)


def test_what_is_followed_in_pieces_is_what_is_read_at_once_whatever_is_torn(recorded: Recorded, tmp_path: Path):
    lines = b"".join(path.read_bytes() for path in sorted((recorded.folder / "ev").glob("r0.1-*.jsonl")))
    growing = tmp_path / "growing"
    (growing / "ev").mkdir(parents=True)
    path, draw, state = growing / "ev" / "r0.1-000000.open", random.Random(1), State(EVERY_ROUND)
    feed, done = Feed(growing, all_rounds=True), 0
    while done < len(lines):
        size = draw.randrange(1, len(lines) // 4)
        with path.open("ab") as file:
            file.write(lines[done : done + size])
        done += size
        for event in feed.news():
            state.take(*event)

    assert facts(state) == facts(state_of(list(Feed(recorded.folder, all_rounds=True).news())))


def test_steps_of_old_rounds_are_neither_read_nor_kept(recorded: Recorded) -> None:
    newest = max(round_ for round_, _, _ in recorded.steps())

    state = state_of(list(Feed(recorded.folder).news()), RETAINED)

    assert {round_ for round_, _ in state.team().episodes} == set(range(max(0, newest - RETAINED + 1), newest + 1))
    assert set(state.team().rounds) == set(range(newest + 1)), "of rounds the ends are kept"


def test_a_replay_tells_all_of_a_run_in_the_order_of_its_time(recorded: Recorded) -> None:
    replay = Replay(recorded.folder, speed=2.0)
    lasted = recorded.told[-1][0].time_s - recorded.told[0][0].time_s

    first, rest = replay.until(lasted / 4), replay.until(lasted)

    half = recorded.told[0][0].time_s + lasted / 2
    assert first
    assert all(where.time_s <= half for where, _ in first)
    assert all(where.time_s > half for where, _ in rest)
    assert {(w.writer, w.counter) for w, _ in [*first, *rest]} == {(w.writer, w.counter) for w, _ in recorded.told}
    assert replay.over


# ---- derived ---------------------------------------------------------------------------------------------------------


def test_time_left_is_rounds_times_the_median_of_the_last_ten_with_the_spread_of_their_quartiles() -> None:
    seconds = [float(s) for s in (90, 80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]
    run = started().__class__(schema_version=1, controller="ppo", task="t", envs=1, rounds=20, episode_length=4)
    events = [at(run)] + [at(finished_round(s), n + 1, round=n) for n, s in enumerate(seconds)]

    left = state_of(events).left

    last = seconds[-10:]
    low, _, high = statistics.quantiles(last, n=4, method="inclusive")
    assert left is not None
    assert left.seconds == pytest.approx(8 * statistics.median(last))
    assert left.spread == pytest.approx(8 * (high - low) / 2)
    assert state_of(events[:3]).left is None, "two rounds are no basis"


@pytest.mark.parametrize(
    ("running", "silence_s", "status"),
    [(True, 1.0, Status.LIVE), (True, SILENT_S + 1, Status.PAUSED), (False, 1.0, Status.DIED)],
)
def test_a_run_without_an_end_lives_pauses_or_has_died(running: bool, silence_s: float, status: Status) -> None:
    state = state_of([at(RunHeartbeatPayload(rss_bytes=1, buffered_bytes=0), time_s=50.0)])
    state.hear(Condition(running=running))

    assert state.status(50.0 + silence_s) is status


def test_an_attempt_that_goes_on_after_an_end_is_not_ended() -> None:
    events = [at(started()), at(RunFinishedPayload(status="interrupted", seconds=1.0), 1)]
    later = at(RunResumedPayload(from_round=0, from_step=0), 0, "r0.2", time_s=500.0)
    assert state_of(events).status(0.0) is Status.INTERRUPTED

    state = state_of([*events, later])
    state.hear(Condition(running=True))

    assert state.status(501.0) is Status.LIVE


def test_a_change_that_takes_back_the_one_before_it_is_a_reversal_and_a_rollback_is_not() -> None:
    told = [level(1, 2), level(2, 3), level(3, 2), level(2, 1, "rollback"), level(1, 2)]
    events = [at(payload, n, round=0, step=n) for n, payload in enumerate(told)]

    (seed,) = state_of(events).team().episodes[0, 0].seeds().values()

    assert [change.reverses for change in seed.changes] == [False, False, True, False, True]
    assert list(state_of(events).team().episodes[0, 0].seeds(until=1)["r0c0"].changes) == seed.changes[:2]


def test_what_is_wrong_is_an_alert() -> None:
    update = PpoUpdatedPayload(
        update=0, sequences=1, steps=1, forced_share=0.0, ratio_error=0.0, invalid_executed=2, all_masked=0,
        value_mean=0.0, value_deviation=1.0, memory_rms=0.0, lr=1.0, entropy_share=1.0,
        entropy=(("op", 0.5), ("tempo", 0.08)),
    )  # fmt: skip
    state = state_of([
        at(LogPayload(level="warning", text="hot"), 0), at(LogPayload(level="info", text="cool"), 1),
        at(update, 2, round=0),
    ])  # fmt: skip
    state.hear(Condition(bad_lines=3, incomplete="disk full"))

    alerts = state.alerts(state.team())

    assert [alert.text for alert in alerts if alert.told is None] == [
        "the run is incomplete: disk full",
        "3 lines are no events",
        "2 decisions were forbidden by their masks",
        "head 'tempo' entropy 0.08 below floor 0.10",
    ]
    assert [alert.told.payload for alert in alerts if alert.told] == [LogPayload(level="warning", text="hot")]


def test_a_stage_that_nobody_knows_is_an_empty_slot() -> None:
    payload = EnvStepPayload(
        op="WAIT", op_mask=1, params=1, effective_params=1, flops=1, stage=(3, 99), alpha=(0.0, 0.0), level=(0, 0),
        slot_params=(0, 0), grad_ratio=(None, None),
    )  # fmt: skip

    assert stages_of(payload) == [SeedStage.TRAINING, SeedStage.DORMANT]


def test_the_two_learners_of_a_run_have_states_of_their_own(folder: ByHand) -> None:
    for n, group in enumerate(("a", "b")):
        folder.write(folder.line(step(0, val_metric=float(n)), group=group, round=0, step=0))

    state = state_of(list(Feed(folder.path).news()))

    assert [state.team(name).episodes[0, 0].metrics for name in ("a", "b")] == [[0.0], [1.0]]
    assert Feed(folder.path).condition() == Condition()
