"""What has to be the same on all ranks that train one host, by name, so that a difference can be named.

Ranks first compare one number, and only where that differs do they show each other everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from esper.kasmina.optimiser import state_by_name
from esper.leyline.errors import LifecycleDivergence
from esper.leyline.factored_actions import FactoredAction
from esper.tolaria.digest import digest_of_state
from esper.tolaria.environment import Environment
from esper.tolaria.ranks.group import Group

SHOWN = 16  # digits of a hash


def lifecycle_of(
    environments: Sequence[Environment], actions: Sequence[FactoredAction] | None = None
) -> dict[str, str]:
    """What an operation starts from: stage, alpha, level and mask of every slot, parameters, and what is decided.

    actions: what is about to be done, one per environment; None where only time passes.
    """
    found: dict[str, str] = {}
    for place, environment in enumerate(environments):
        where = f"environment {environment.env}"
        for slot_id, slot in environment.model.slots.items():
            report = slot.report()
            mask = "".join("+" if active else "-" for active in report.rungs)
            found |= {
                f"{where}, slot {slot_id}: stage": report.stage.name,
                f"{where}, slot {slot_id}: seed": str(report.seed_id),
                f"{where}, slot {slot_id}: alpha": repr(report.alpha),
                f"{where}, slot {slot_id}: level": str(report.internal_level),
                f"{where}, slot {slot_id}: mask": mask or "none",
            }
        named = environment.model.named_parameters()
        shapes = [[name, list(param.shape), param.requires_grad] for name, param in named]
        found[f"{where}: parameters"] = digest_of_state(shapes)[:SHOWN]
        found[f"{where}: generator of growth"] = digest_of_state(environment.growth.get_state())[:SHOWN]
        if actions is not None:
            found[f"{where}: decision"] = " ".join(actions[place].as_names().values())
    return found


def weights_of(environments: Sequence[Environment]) -> dict[str, str]:
    """Hashes of all that training changes: parameters, buffers, moments, generators, vital signs."""
    found: dict[str, str] = {}
    for environment in environments:
        where = f"environment {environment.env}"
        optimiser = state_by_name(environment.model, environment.optimiser)
        parts = {f"{where}: {name}": value for name, value in environment.model.state_dict().items()}
        parts |= {f"{where}: optimiser's {name}": value for name, value in optimiser.items()}
        parts |= {
            f"{where}: generator of training": environment.draws.get_state(),
            f"{where}: governor's detector": environment.vitals.state_dict(),
        }
        found |= {name: digest_of_state(value)[:SHOWN] for name, value in parts.items()}
    return found


def refuse_divergence(group: Group, step: int, own: Mapping[str, str]) -> None:
    """Raises LifecycleDivergence, on all ranks, where one of them has something else than the others."""
    if len(set(group.gather_number(_number(own)))) == 1:
        return
    ranks = group.gather(dict(own))
    for field in dict.fromkeys(name for rank in ranks for name in rank):
        values = [rank.get(field, "nothing") for rank in ranks]
        if len(set(values)) > 1:
            raise LifecycleDivergence(step, field, values)
    raise AssertionError("ranks differ in a number, and in nothing that it stands for")


def _number(values: Mapping[str, str]) -> int:
    told = "\n".join(f"{name}={value}" for name, value in values.items())
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])
