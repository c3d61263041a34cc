"""A rule that works: plant on a plateau, advance, tune ladders, keep what measurably helps, prune what does not.

`RULES` is the whole of it: asked in order, the first that has an answer decides. What it knows of a seed is the
measured contribution to the validation loss and its standard error; it knows no task, no metric and no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.reports import Contribution, HostReport, SeedStateReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.config import HeuristicConfig
from esper.tamiyo.controller import CONTROLLERS, Build, Controller, Memory, Rule, wait
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tamiyo.rules import advance_one, epochs_to_keep, fits, free_slots, nearest_tempo, on


@dataclass(frozen=True)
class Recollection:
    """What the rule remembers of one environment."""

    losses: tuple[float, ...] = ()  # validation, newest last
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (slot, blueprint) -> seeds pruned
    settled: frozenset[str] = frozenset()  # seeds whose number of rungs is found


@dataclass(frozen=True)
class Situation:
    """Everything a rule may ask about."""

    config: HeuristicConfig
    host: HostReport
    legal: LegalActions
    memory: Recollection

    @property
    def epochs_left(self) -> int:
        return self.host.episode_length - self.host.epoch

    def epochs(self, fraction: float) -> int:
        return max(1, round(fraction * self.host.episode_length))

    def may(self, op: LifecycleOp, slot: SeedStateReport) -> bool:
        return slot.slot_id in self.legal.slots(op)

    def do(self, op: LifecycleOp, slot: SeedStateReport) -> FactoredAction:
        return on(self.legal.space, op, slot)


Decision = tuple[FactoredAction, Recollection] | None
RuleOf = Callable[[Situation], Decision]


def evidence(found: Contribution | None) -> float | None:
    """Standard errors by which the loss is lower with than without; None where nothing was measured."""
    if found is None:
        return None
    return found.loss / found.loss_sem if found.loss_sem > 0.0 else 0.0


def remove_the_broken(now: Situation) -> Decision:
    """A seed whose gradient is not finite, or that clearly hurts while it blends."""
    for slot in now.host.slots:
        hurts = evidence(slot.contribution)
        harmful = slot.stage is SeedStage.BLENDING and hurts is not None and hurts < -now.config.prune_evidence
        if (slot.broken or harmful) and now.may(LifecycleOp.PRUNE, slot):
            return _prune(now, slot)
    return None


def tune_the_ladder(now: Situation) -> Decision:
    """One rung up while the seed, and then each new rung, pays; back down when the last one did not."""
    for slot in now.host.slots:
        if not _is_tunable(slot) or slot.seed_id in now.memory.settled:
            continue
        worth = evidence(slot.contribution if slot.level_effect is None else slot.level_effect)
        enough = now.config.keep_evidence if slot.level_effect is None else now.config.grow_evidence
        paying = worth is not None and worth >= enough
        if paying and now.epochs_left > now.host.rules.min_holding + 2 and now.may(LifecycleOp.GROW_INTERNAL, slot):
            return now.do(LifecycleOp.GROW_INTERNAL, slot), now.memory
        too_far = slot.level_effect is not None and not paying and slot.internal_level > 1
        if too_far and now.may(LifecycleOp.SHRINK_INTERNAL, slot):
            assert slot.seed_id is not None
            settled = replace(now.memory, settled=now.memory.settled | {slot.seed_id})
            return now.do(LifecycleOp.SHRINK_INTERNAL, slot), settled
    return None


def keep_what_helps(now: Situation) -> Decision:
    """A held seed that measurably helps is kept for good."""
    for slot, worth in _judged(now):
        if worth >= now.config.keep_evidence and now.may(LifecycleOp.FOSSILIZE, slot):
            return now.do(LifecycleOp.FOSSILIZE, slot), now.memory
    return None


def remove_the_unproven(now: Situation) -> Decision:
    """A held seed that hurts goes, and one that does not show its worth in time."""
    # Patience begins with the first verdict: in a short episode a fraction of it may be that one epoch alone.
    patience = now.host.rules.min_holding + now.epochs(now.config.patience)
    for slot, worth in _judged(now):
        hurts = worth < -now.config.keep_evidence
        out_of_time = slot.epochs_in_stage >= patience or now.epochs_left <= 2
        if (hurts or out_of_time) and now.may(LifecycleOp.PRUNE, slot):
            return _prune(now, slot)
    return None


def advance_the_ready(now: Situation) -> Decision:
    """Whatever can go on goes on, the furthest first."""
    action = advance_one(now.host, now.legal)
    return None if action is None else (action, now.memory)


def plant_on_a_plateau(now: Situation) -> Decision:
    """A new seed where the fewest have failed, the later slot first, once the host learns slowly or time presses."""
    tempo = nearest_tempo(now.config.tempo * now.host.episode_length)
    if now.host.epoch < now.epochs(now.config.warm_up):
        return None
    if not _on_a_plateau(now) and now.host.epoch < now.epochs(now.config.latest):
        return None
    if now.epochs_left < epochs_to_keep(now.host, tempo):
        return None
    chosen = min(
        (
            (now.memory.failures.get((slot.slot_id, blueprint), 0), rank, -slot.order, slot.slot_id, blueprint)
            for slot in free_slots(now.host, now.legal)
            for rank, blueprint in enumerate(_preferences(now))
            if fits(now.legal.space, slot.slot_id, blueprint)
        ),
        default=None,
    )
    if chosen is None:
        return None
    *_, slot_id, blueprint = chosen
    return now.legal.space.action(LifecycleOp.GERMINATE, slot=slot_id, blueprint=blueprint, tempo=tempo), now.memory


RULES: tuple[RuleOf, ...] = (
    remove_the_broken,
    tune_the_ladder,
    keep_what_helps,
    remove_the_unproven,
    advance_the_ready,
    plant_on_a_plateau,
)


@CONTROLLERS.register("heuristic")
def heuristic(build: Build) -> Controller:
    """Plants on a plateau, keeps what measurably helps."""
    config = build.config.heuristic
    return Rule(lambda host, legal, memory: _decide(config, host, legal, memory), Recollection())


@CONTROLLERS.register("variants")
def variants(build: Build) -> Controller:
    """The heuristic with other settings in every environment and round, to compare them.

    Environments take the lists of settings in turn, rounds those of a list.
    """
    rows = build.variants
    if not rows or not all(rows):
        raise ConfigError("variants: takes settings of the heuristic from a file; write variants:FILE")

    def decide(host: HostReport, legal: LegalActions, memory: Memory) -> tuple[FactoredAction, Memory]:
        row = rows[host.env % len(rows)]
        return _decide(row[host.round % len(row)], host, legal, memory)

    return Rule(decide, Recollection())


def _decide(
    config: HeuristicConfig, host: HostReport, legal: LegalActions, memory: Recollection
) -> tuple[FactoredAction, Recollection]:
    losses = memory.losses if host.val_loss is None else (*memory.losses, host.val_loss)
    now = Situation(config, host, legal, replace(memory, losses=losses))
    for rule in RULES:
        decision = rule(now)
        if decision is not None:
            return decision
    return wait(legal.space), now.memory


def _is_tunable(slot: SeedStateReport) -> bool:
    """A ladder that is blended at least half and has been measured."""
    heard = slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING) and slot.alpha >= 0.5
    return heard and slot.internal_max_level > 1 and slot.contribution is not None


def _judged(now: Situation) -> Iterator[tuple[SeedStateReport, float]]:
    """Every seed that is held for as long as a verdict takes, with the evidence for it."""
    for slot in now.host.slots:
        worth = evidence(slot.contribution)
        held = slot.stage is SeedStage.HOLDING and slot.epochs_in_stage >= now.host.rules.min_holding
        if held and worth is not None:
            yield slot, worth


def _prune(now: Situation, slot: SeedStateReport) -> Decision:
    assert slot.blueprint_id is not None
    key = (slot.slot_id, slot.blueprint_id)
    failures = {**now.memory.failures, key: now.memory.failures.get(key, 0) + 1}
    return now.do(LifecycleOp.PRUNE, slot), replace(now.memory, failures=failures)


def _preferences(now: Situation) -> tuple[str, ...]:
    """The preferred blueprints that are on offer, then all others."""
    offered = now.legal.space.blueprints
    first = tuple(name for name in now.config.prefer if name in offered)
    return first + tuple(name for name in offered if name not in first)


def _on_a_plateau(now: Situation) -> bool:
    span = now.config.plateau_epochs
    if len(now.memory.losses) <= span:
        return False
    before, after = now.memory.losses[-1 - span], now.memory.losses[-1]
    return (before - after) / span < now.config.plateau * before
