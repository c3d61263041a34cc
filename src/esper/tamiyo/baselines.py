"""Controllers to be beaten: by the clock, by lot, by recording, and not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, OPS, ActionSpace, FactoredAction, LifecycleOp
from esper.leyline.randomness import stream
from esper.leyline.reports import HostReport
from esper.tamiyo.controller import CONTROLLERS, Build, Controller, Memory, Rule, wait
from esper.tamiyo.policy.action_masks import LegalActions, Mask
from esper.tamiyo.rules import advance_one, epochs_to_keep, fits, free_slots, nearest_tempo, on


@CONTROLLERS.register("static")
def static(_build: Build) -> Controller:
    """Never grows anything."""
    return Rule(lambda _host, legal, memory: (wait(legal.space), memory), None)


@CONTROLLERS.register("random")
def random(build: Build) -> Controller:
    """Uniform over what is legal: first the operation, then the slot, then each further head.

    With `operations` given, a lot decides first whether to wait, so that there are as many in an episode on average.
    """
    operations = build.config.random.operations

    def decide(host: HostReport, legal: LegalActions, memory: Memory) -> tuple[FactoredAction, Memory]:
        # A stream for every decision, so that none moves another and there is nothing to remember.
        generator = stream(build.seed, "random controller", host.round, host.env, host.epoch)
        if operations is None:
            return draw(legal, generator), memory
        waits = float(torch.rand((), generator=generator)) * host.episode_length >= operations
        busy = replace(legal, op=(False, *legal.op[1:]))
        return wait(legal.space) if waits or not any(busy.op) else draw(busy, generator), memory

    return Rule(decide, None)


def draw(legal: LegalActions, generator: torch.Generator) -> FactoredAction:
    """A legal action, each head uniform given the heads before it."""
    op = LifecycleOp(_one_of(legal.op, generator))
    indices = dict.fromkeys(HEADS, 0) | {"op": int(op)}
    for head in OPS[op].heads:
        indices[head] = _one_of(legal.head_mask(head, op, indices["slot"]), generator)
    return legal.space.from_indices(tuple(indices.values()))


def _one_of(mask: Mask, generator: torch.Generator) -> int:
    free = [index for index, is_free in enumerate(mask) if is_free]
    return free[int(torch.randint(len(free), (1,), generator=generator))]


@dataclass(frozen=True)
class Clock:
    """What the periodic rule remembers."""

    planted: int = 0


@CONTROLLERS.register("periodic")
def periodic(build: Build) -> Controller:
    """Plants every so often, slots and blueprints in turn, and keeps everything."""
    interval = build.config.periodic.interval

    def decide(host: HostReport, legal: LegalActions, clock: Memory) -> tuple[FactoredAction, Memory]:
        held = [slot for slot in host.slots if slot.slot_id in legal.slots(LifecycleOp.FOSSILIZE)]
        ripe = [slot for slot in held if slot.epochs_in_stage >= host.rules.min_holding and slot.contribution]
        if ripe:
            return on(legal.space, LifecycleOp.FOSSILIZE, ripe[0]), clock
        action = advance_one(host, legal)
        if action is not None:
            return action, clock
        every = max(1, round(interval * host.episode_length))
        due = host.epoch >= (clock.planted + 1) * every
        return _plant(host, legal, clock) if due else (wait(legal.space), clock)

    return Rule(decide, Clock())


def _plant(host: HostReport, legal: LegalActions, clock: Clock) -> tuple[FactoredAction, Clock]:
    tempo = nearest_tempo(0.1 * host.episode_length)
    free = list(free_slots(host, legal))
    if not free or host.episode_length - host.epoch < epochs_to_keep(host, tempo):
        return wait(legal.space), clock
    slot = free[clock.planted % len(free)]
    names = [name for name in legal.space.blueprints if fits(legal.space, slot.slot_id, name)]
    blueprint = names[clock.planted % len(names)]
    action = legal.space.action(LifecycleOp.GERMINATE, slot=slot.slot_id, blueprint=blueprint, tempo=tempo)
    return action, Clock(clock.planted + 1)


@CONTROLLERS.register("scripted")
def scripted(build: Build) -> Controller:
    """Repeats recorded decisions, a list per environment, one per epoch; waits when a list ends.

    Raises ConfigError for a decision that this action space does not have, and while it acts for one that is not
    possible where it is to be repeated.
    """
    if not build.script:
        raise ConfigError("scripted: repeats decisions that were recorded; write script:RUN or script:FILE")
    script = [[_known(build.space, line) for line in lines] for lines in build.script]

    def decide(host: HostReport, legal: LegalActions, memory: Memory) -> tuple[FactoredAction, Memory]:
        # By the epoch: a rollback ends a sequence, and a count kept in memory would begin again.
        lines, step = script[host.env] if host.env < len(script) else [], host.epoch
        if step >= len(lines):
            return wait(legal.space), memory
        if not legal.allows(lines[step]):
            stages = ", ".join(f"{slot.slot_id} {slot.stage.name}" for slot in host.slots)
            where, asked = f"step {step} of environment {host.env}", lines[step].as_names()
            raise ConfigError(f"script: {where} is {asked}, not possible: {stages}")
        return lines[step], memory

    return Rule(decide, None)


@CONTROLLERS.register("schedule")
def schedule(build: Build) -> Controller:
    """Follows a list of decisions by epoch, whatever the host; waits where one is not possible.

    Environments take the lists in turn, and wait when one ends. A list as long as several episodes has one for each
    round, and begins anew at its end. Raises ConfigError for decisions that this action space does not have, and while
    it acts for a list that is longer than an episode and no multiple of it.
    """
    if not build.script:
        raise ConfigError("schedule: follows decisions from a file; write schedule:FILE")
    script = [[_known(build.space, line) for line in lines] for lines in build.script]

    def decide(host: HostReport, legal: LegalActions, memory: Memory) -> tuple[FactoredAction, Memory]:
        lines, length = script[host.env % len(script)], host.episode_length
        if len(lines) > length and len(lines) % length:
            raise ConfigError(f"schedule: {len(lines)} decisions, and an episode has {length}; set run.episode_length")
        step = (host.round * length + host.epoch) % max(len(lines), length)
        action = lines[step] if step < len(lines) else wait(legal.space)
        return action if legal.allows(action) else wait(legal.space), memory

    return Rule(decide, None)


def _known(space: ActionSpace, line: Mapping[str, str]) -> FactoredAction:
    try:
        return space.action(**line)
    except ConfigError as error:
        raise ConfigError(f"script: {error}") from error
