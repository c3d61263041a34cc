"""Operations on a growing model: one handler per row of `leyline/factored_actions.OPS`.

`apply` is the only entry: it asks the table whether the action is possible, lets the handler do it, and says how far
the model's output moved. A refusal is a receipt, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.model import GrowingModel, probe_output
from esper.kasmina.slot import SeedSlot
from esper.leyline.decisions import Receipt
from esper.leyline.factored_actions import OPS, FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport

Handler = Callable[[SeedSlot, FactoredAction], Receipt]

HANDLERS: dict[LifecycleOp, Handler] = {
    LifecycleOp.GERMINATE: lambda slot, action: slot.germinate(
        action.chosen("blueprint"), action.style, action.tempo, action.alpha_target
    ),
    LifecycleOp.SET_ALPHA_TARGET: lambda slot, action: slot.set_alpha_target(
        action.alpha_target, action.alpha_speed, action.alpha_curve
    ),
    LifecycleOp.PRUNE: lambda slot, action: slot.prune(action.alpha_speed, action.alpha_curve),
    LifecycleOp.FOSSILIZE: lambda slot, _action: slot.fossilize(),
    LifecycleOp.ADVANCE: lambda slot, _action: slot.advance_stage(),
    LifecycleOp.GROW_INTERNAL: lambda slot, _action: slot.grow_internal(),
    LifecycleOp.SHRINK_INTERNAL: lambda slot, _action: slot.shrink_internal(),
}
assert set(HANDLERS) == {op for op, row in OPS.items() if row.needs_slot}, "every operation on a slot has a handler"


def apply(model: GrowingModel, action: FactoredAction, report: HostReport, probe: Tensor) -> Receipt:
    """Does `action` to `model`, of which `report` is the current report.

    probe: a fixed batch of inputs on which the change of output is measured. New weights are drawn from torch's
    global generator, which the caller lends.
    """
    slot_id = action.slot_id
    if slot_id is None:
        return Receipt(action.op, None, True)
    slot, seen = model.slots[slot_id], report.slots[action.slot_idx]
    if not OPS[action.op].possible(seen, report):
        why = f"not possible: {slot_id} is {seen.stage.name}, {report.seeds_in_use} of {report.rules.max_seeds} seeds"
        return Receipt(action.op, slot_id, False, why, "illegal")
    if not action.fits:
        why = f"not possible: {BLUEPRINTS[action.chosen('blueprint')].why_not(slot.spec)}"
        return Receipt(action.op, slot_id, False, why, "illegal")
    before = probe_output(model, probe)
    receipt = HANDLERS[action.op](slot, action)
    if not receipt.done:
        return receipt
    change = (probe_output(model, probe) - before).abs().max()
    return replace(receipt, output_change=float(change))
