"""Who takes part in a run, made from its settings: engine, controller, learner, reward; twice for an A/B test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import esper.tamiyo.baselines
import esper.tamiyo.heuristic
from esper.leyline.errors import ConfigError, did_you_mean
from esper.leyline.factored_actions import ActionSpace
from esper.leyline.randomness import stream_seed
from esper.scripts.config import EsperConfig
from esper.scripts.sources import POLICY, READ_FROM, SCHEDULE, SCRIPT, VARIANTS, load_script, load_variants, policy_file
from esper.simic.agent.learner import Learner, NoLearner
from esper.simic.agent.ppo import PPO
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.rewards import ModeReward, Reward
from esper.tamiyo.controller import CONTROLLERS, Build, Controller
from esper.tamiyo.policy.blindfold import ShuffledSensors
from esper.tamiyo.policy.learned import LearnedPolicy, load_policy, new_policy
from esper.tamiyo.policy.taught import Taught
from esper.tolaria.protocol import EngineProtocol, GovernorProtocol

_ = (esper.tamiyo.baselines, esper.tamiyo.heuristic)  # importing them fills the registry
PPO_NAME = "ppo"
VERSUS = "-vs-"
_READING = {SCRIPT: "scripted", SCHEDULE: "schedule", VARIANTS: "variants"}
"""Rules that read a run or a file, by what is written before its name; by their own names they cannot be called."""


@dataclass(frozen=True)
class Side:
    """One team before the run has a folder."""

    group: str | None  # its name in events; None where it plays alone
    engine: EngineProtocol
    governor: GovernorProtocol
    controller: Controller
    learner: Learner
    reward: Reward

    @property
    def policy(self) -> LearnedPolicy | None:
        """What is being learned."""
        if not isinstance(self.learner, PPO):
            return None
        learning = self.controller.policy if isinstance(self.controller, Taught) else self.controller
        assert isinstance(learning, LearnedPolicy)
        return learning


Trainers = Callable[[], tuple[EngineProtocol, GovernorProtocol]]
"""Makes an engine and its governor, in this process or over several."""


def sides_of(config: EsperConfig, trainers: Trainers, stack: ExitStack) -> list[Side]:
    """The team of the settings, or the two of an A/B test. `stack` closes their engines, also if one cannot be made.

    Raises ConfigError for settings that contradict each other.
    """
    _check(config)
    return [_side(group, config_, trainers, stack) for group, config_ in _groups(config)]


def learns(controller: str) -> bool:
    """Whether the controller of that name is made better while it runs."""
    return controller == PPO_NAME


def shares_init(config: EsperConfig) -> bool:
    """Whether the hosts of a round start alike and see the same data."""
    return learns(config.run.controller) if config.run.shared_init is None else config.run.shared_init


def _check(config: EsperConfig) -> None:
    """Refuses what could be run, but would not be what it is called."""
    who, policy = config.run.controller, config.policy
    if learns(who) and config.ppo.baseline == "group" and not shares_init(config):
        raise ConfigError(
            "ppo.baseline: group compares the hosts of a round with each other, and run.shared_init=false makes them "
            "differ; set ppo.baseline=none or run.shared_init=true"
        )
    if learns(who):
        _check_teacher(config)
    if learns(who) and policy.greedy:
        raise ConfigError("policy.greedy: ppo learns from decisions that it draws; leave this out, or use policy:RUN")
    if policy.shuffle_sensors and not who.startswith(POLICY):
        raise ConfigError(f"policy.shuffle_sensors: is for what has been learned; use policy:RUN, not {who!r}")


def _check_teacher(config: EsperConfig) -> None:
    teacher, rules = config.ppo.teacher, _rules()
    if teacher.rule is not None and teacher.rule not in rules:
        asked = teacher.rule[:80]
        raise ConfigError(f"ppo.teacher.rule: {asked!r} is no rule{did_you_mean(asked, rules)}: {', '.join(rules)}")
    if config.ppo.taught_rounds > config.run.rounds:
        raise ConfigError(
            f"ppo.teacher.rounds: {teacher.rounds} of {config.run.rounds} rounds; "
            "give the teacher fewer, or use --rounds"
        )


def _groups(config: EsperConfig) -> Sequence[tuple[str | None, EsperConfig]]:
    asked = config.run.ab_test
    if asked is None:
        return [(None, config)]
    modes = asked.split(VERSUS)
    if len(modes) != 2 or modes[0] == modes[1] or not all(mode in MODES for mode in modes):
        raise ConfigError(f"run.ab_test: {asked!r} is not two reward modes; write A{VERSUS}B with {', '.join(MODES)}")
    if not learns(config.run.controller):
        raise ConfigError(
            f"run.ab_test: compares what is learned from two rewards; use ppo, not {config.run.controller!r}"
        )
    return [(mode, replace(config, reward=replace(config.reward, mode=mode))) for mode in modes]


def _side(group: str | None, config: EsperConfig, trainers: Trainers, stack: ExitStack) -> Side:
    engine, governor = trainers()
    stack.callback(engine.close)
    controller, learner = _decider(config, engine.space)
    return Side(group, engine, governor, controller, learner, ModeReward(config.reward))


def _decider(config: EsperConfig, space: ActionSpace) -> tuple[Controller, Learner]:
    """Raises ConfigError for a controller that does not exist, or a script or policy that cannot be used here."""
    run, seed = config.run, stream_seed(config.run.seed, "controller")
    if learns(run.controller):
        policy = new_policy(space, config.policy.network, seed)
        learner, teacher = PPO(policy.network, config.ppo, seed, run.rounds), config.ppo.teacher
        if teacher.rule is None:
            return policy, learner
        return Taught(policy, _rule(teacher.rule, config, space, seed), teacher.rounds), learner
    if run.controller.startswith(POLICY):
        path = policy_file(Path(run.root), run.controller.removeprefix(POLICY))
        greedy = True if config.policy.greedy is None else config.policy.greedy
        policy = load_policy(path, space, seed, greedy)
        return ShuffledSensors(policy) if config.policy.shuffle_sensors else policy, NoLearner()
    for prefix, name in _READING.items():
        if run.controller.startswith(prefix):
            return CONTROLLERS[name](_reading(prefix, config, space, seed)), NoLearner()
    return _rule(run.controller, config, space, seed), NoLearner()


def _rule(name: str, config: EsperConfig, space: ActionSpace, seed: int) -> Controller:
    if name not in CONTROLLERS:
        asked, known = name[:80], _typed()  # a pasted file should not fill the screen
        raise ConfigError(f"unknown controller {asked!r}{did_you_mean(asked, known) or ';'} known: {', '.join(known)}")
    return CONTROLLERS[name](Build(config.policy, space, seed))


def _reading(prefix: str, config: EsperConfig, space: ActionSpace, seed: int) -> Build:
    """What a rule is made from that reads a run or a file."""
    source = config.run.controller.removeprefix(prefix)
    if prefix == VARIANTS:
        return Build(config.policy, space, seed, variants=load_variants(source))
    return Build(config.policy, space, seed, load_script(Path(config.run.root), source))


def _typed() -> list[str]:
    """Everything that can be written for a controller."""
    return [PPO_NAME, *_rules(), *(prefix + what for prefix, what in READ_FROM.items())]


def _rules() -> list[str]:
    """Rules that need nothing but their name."""
    return [name for name in CONTROLLERS if name not in _READING.values()]
