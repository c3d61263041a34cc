"""The main loop: see, choose, act, live, measure, guard, score, remember; then learn. Read this file first.

Nothing here knows an operation, a sensor or a reward term by name. Rules and learned policies are one interface, so
there is one loop. Only `engine.train_epoch()` is slow; everything else runs once per host epoch, in plain Python.

Where things go: an operation in `leyline/factored_actions.py`, a sensor in `leyline/sensors.py`, a blueprint in
`kasmina/blueprints/`, a rule in `tamiyo/`, a reward term in `simic/rewards/terms.py`, a task in `runtime/tasks.py`, an
event in `leyline/telemetry.py`.
"""

from __future__ import annotations

from esper.simic.training.config import RunConfig
from esper.simic.training.keeping import Moment, Round
from esper.simic.training.team import Team
from esper.tamiyo.controller import forget
from esper.tamiyo.policy.action_masks import possible
from esper.tamiyo.policy.features import observe


def train(cfg: RunConfig, *teams: Team) -> list[list[Round]]:
    """Every team plays every round of `cfg`, the teams in turn; returns each team's rounds."""
    for round_ in range(cfg.rounds):
        for team in teams:
            if round_ == len(team.keeper.played):  # those before it have been played in an earlier process
                team.keeper.round(play(round_, cfg, team))
    return [team.keeper.played for team in teams]


def play(round_: int, cfg: RunConfig, team: Team) -> Round:
    """One round: all environments from the start to the end of their episodes, then one update of the learner."""
    engine, governor, controller, publisher = team.engine, team.governor, team.controller, team.publisher
    reports, memory, rollout, spent = team.begin(round_, cfg.envs)
    for _ in range(len(rollout.steps), cfg.episode_length):
        sight, legal = observe(reports, controller.reads), possible(reports, engine.space)
        choice, memory = controller.act(sight, legal, memory)
        spent.on("decide")
        receipts = engine.apply(choice.actions)
        engine.train_epoch()
        spent.on("train")
        after = engine.measure()  # validation with and without each seed
        spent.on("measure")
        verdicts, settled = governor.review(engine, after)  # takes back hosts whose vital signs failed
        spent.on("guard")
        scores, ended = team.reward(reports, choice.actions, receipts, after, settled, verdicts)
        rollout.add(sight, legal, choice, scores, ended)
        publisher.step(round_, rollout, receipts, after, verdicts)
        memory, reports = forget(controller, memory, ended), settled
        spent.on("record")
        team.keeper.step(Moment(reports, memory, rollout, spent))
        spent.on("save")
    rollout.horizon = observe(reports, controller.reads)
    outcomes = engine.outcomes()
    spent.on("test")
    learned = team.learner.update(rollout)
    spent.on("learn")
    publisher.round(round_, outcomes, rollout.returns(), learned, spent)
    return Round(outcomes, rollout)
