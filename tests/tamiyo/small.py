"""Reports made by hand for rules to decide on. Read `slot` and `host`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from esper.leyline.decisions import Sight
from esper.leyline.factored_actions import ActionSpace, FactoredAction
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import AlphaMode, Contribution, HostReport, Rules, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.slot_config import SlotConfig
from esper.leyline.stages import SEEDED, SeedStage
from esper.tamiyo.config import PolicyConfig
from esper.tamiyo.controller import CONTROLLERS, Build, Controller
from esper.tamiyo.heuristic import Recollection
from esper.tamiyo.policy.action_masks import LegalActions, possible

RULES = Rules(max_seeds=9, min_prune_age=3, min_training=4, min_holding=2)
LENGTH = 100  # epochs, so that a setting that is a fraction of the episode reads as per cent
BLANK = Recollection()
SEM = 0.125  # a power of two, so that evidence comes out of the division as it was put in


def brings(evidence: float) -> Contribution:
    """Evidence in standard errors of the loss; the metric says the opposite, and no rule may listen to it."""
    return Contribution(metric=-evidence, metric_sem=0.01, loss=evidence * SEM, loss_sem=SEM, epoch=1)


def slot(index: int, stage: SeedStage = SeedStage.DORMANT, **facts: Any) -> SeedStateReport:
    """Slot r0c<index>. A seed in it is old, sound and called after its slot."""
    slot_id = f"r0c{index}"
    report = SeedStateReport(slot_id, (slot_id,), 8, "NCHW", InjectionSurface.BLOCK_END, index, stage)
    if stage in SEEDED:
        report = replace(report, seed_id=f"seed-{slot_id}", blueprint_id="conv_light", age=30, seed_grad_norm=1.0)
        report = replace(report, internal_level=1)
    return replace(report, **facts)


def host(*slots: SeedStateReport, left: int = 50, **facts: Any) -> HostReport:
    """A host with `left` epochs to go."""
    return replace(HostReport(0, LENGTH - left, LENGTH, RULES, slots, 100, 100, 100), **facts)


def space(slots: int, blueprints: tuple[str, ...] = ("conv_light", "norm"), **never: tuple[str, ...]) -> ActionSpace:
    """An action space of so many slots; `never` names the blueprints that do not fit a slot."""
    ids = [f"r0c{index}" for index in range(slots)]
    specs = [InjectionSpec(each, 8, "NCHW", InjectionSurface.BLOCK_END, i, i, i) for i, each in enumerate(ids)]
    fits = tuple(tuple(name not in never.get(each, ()) for name in blueprints) for each in ids)
    return ActionSpace(SlotConfig.from_specs(specs), blueprints, fits)


def masks(report: HostReport, offered: ActionSpace | None = None) -> LegalActions:
    """What is possible, in a space with the report's number of slots unless one is given."""
    return possible([report], space(len(report.slots)) if offered is None else offered)[0]


def words(action: FactoredAction | None) -> str:
    """The operation and its slot, or `-` for no answer."""
    if action is None:
        return "-"
    return action.op.name if action.slot_id is None else f"{action.op.name} {action.slot_id}"


# --- for the heuristic -----------------------------------------------------------------------------------------


def held(index: int = 0, worth: float | None = 0.0, epochs: int = 5, **facts: Any) -> SeedStateReport:
    found = None if worth is None else brings(worth)
    return slot(index, SeedStage.HOLDING, contribution=found, epochs_in_stage=epochs, alpha=1.0, **facts)


def blending(index: int = 0, worth: float | None = 0.0, **facts: Any) -> SeedStateReport:
    found = None if worth is None else brings(worth)
    defaults: dict[str, Any] = {"stage": SeedStage.BLENDING, "alpha_mode": AlphaMode.UP}
    return slot(index, contribution=found, **defaults | facts)


def ladder(index: int = 0, effect: float | None = None, worth: float | None = 9.0, **facts: Any) -> SeedStateReport:
    """A half blended ladder at level 2 of 4; `effect` is what its last change of level brought."""
    rungs: dict[str, Any] = {
        "internal_kind": SeedInternalKind.CONV_LADDER,
        "internal_level": 2,
        "internal_max_level": 4,
    }
    brought = None if effect is None else brings(effect)
    return blending(index, worth, **{"alpha": 0.5, "level_effect": brought} | rungs | facts)


def heuristic(offered: ActionSpace) -> Controller:
    return CONTROLLERS["heuristic"](Build(PolicyConfig(), offered, 0))


def decide(report: HostReport, memory: Recollection = BLANK) -> tuple[str, Recollection]:
    """What the whole controller says, and what it remembers."""
    legal = masks(report)
    choice, (after,) = heuristic(legal.space).act(Sight([report]), [legal], (memory,))
    return words(choice.actions[0]), after
