"""The main loop: see, choose, act, live, measure, guard, score, remember; then learn. Read this file first.

Nothing here knows an operation, a sensor or a reward term by name. Rules and learned policies are one interface, so
there is one loop. Only `engine.train_epoch()` is slow; everything else runs once per host epoch, in plain Python.

Where things go: an operation in `leyline/factored_actions.py`, a blueprint in `kasmina/blueprints/`, a rule in
`tamiyo/`, a task in `runtime/tasks.py`, an event in `leyline/telemetry.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.simic.agent.learner import Learner
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.rewards import Reward
from esper.simic.training.config import RunConfig
from esper.simic.training.publishing import Publisher
from esper.tamiyo.controller import Controller, forget
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe
from esper.tolaria.engine import Engine, Outcome
from esper.tolaria.governor import Governor


@dataclass(frozen=True)
class Team:
    """Who takes part in a run."""

    engine: Engine
    governor: Governor
    controller: Controller
    learner: Learner
    reward: Reward
    publisher: Publisher


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    outcomes: list[Outcome]
    rollout: Rollout


def train(cfg: RunConfig, team: Team) -> list[Round]:
    """Runs every round of `cfg` and returns what each came to."""
    engine, governor, controller, publisher = team.engine, team.governor, team.controller, team.publisher
    rounds = []
    for round_ in range(cfg.rounds):
        reports, memory, rollout = engine.reset(round_), controller.blank_memory(cfg.envs), Rollout()
        governor.begin(engine)
        for _ in range(cfg.episode_length):
            sight, legal = observe(reports), possible(reports, engine.space)
            choice, memory = controller.act(sight, legal, memory)
            receipts = engine.apply(choice.actions)
            engine.train_epoch()
            after = engine.measure()  # validation with and without each seed
            verdicts, settled = governor.review(engine, after)  # takes back hosts whose vital signs failed
            scores, ended = team.reward(reports, choice.actions, receipts, after, settled, verdicts)
            rollout.add(sight, legal, choice, scores, ended)
            publisher.step(round_, rollout, receipts, after, verdicts)
            memory, reports = forget(controller, memory, ended), settled
        team.learner.update(rollout)
        rounds.append(Round(engine.outcomes(), rollout))
        publisher.round(round_, rounds[-1].outcomes, rollout.returns())
    return rounds
