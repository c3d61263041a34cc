"""Which slots a run uses, in which order: what every size that depends on slots is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface, in_order
from esper.leyline.slot_id import parse_slot_id, slot_sort_key


@dataclass(frozen=True)
class SlotConfig:
    """The enabled slots in execution order, with each one's order in the whole host and its surface."""

    slot_ids: tuple[str, ...]
    order_map: Mapping[str, int] = field(hash=False)
    surface_map: Mapping[str, InjectionSurface] = field(hash=False)

    @property
    def num_slots(self) -> int:
        return len(self.slot_ids)

    def slot_id_for_index(self, idx: int) -> str:
        return self.slot_ids[idx]

    def index_of(self, slot_id: str) -> int:
        if slot_id not in self.slot_ids:
            parse_slot_id(slot_id, self.slot_ids)
            raise ConfigError(f"slot {slot_id!r} is not enabled here; enabled are {', '.join(self.slot_ids)}")
        return self.slot_ids.index(slot_id)

    @classmethod
    def from_specs(cls, specs: Iterable[InjectionSpec], enabled: Sequence[str] | None = None) -> SlotConfig:
        """The host's slots, or the `enabled` ones among them; raises ConfigError for any other name."""
        ordered = in_order(specs)
        known = {spec.slot_id: spec for spec in ordered}
        chosen = list(known) if enabled is None else list(enabled)
        for slot_id in chosen:
            parse_slot_id(slot_id, known)
            if slot_id not in known:
                raise ConfigError(f"slots: {slot_id!r} is not in this host; it has {', '.join(known)}")
        if not chosen or len(set(chosen)) != len(chosen):
            raise ConfigError(f"slots: {' '.join(chosen) or 'none'}: name at least one slot, each once")
        chosen.sort(key=slot_sort_key)
        return cls(
            slot_ids=tuple(chosen),
            order_map={slot_id: known[slot_id].order for slot_id in chosen},
            surface_map={slot_id: known[slot_id].surface for slot_id in chosen},
        )


def enabled_slots(
    specs: Iterable[InjectionSpec], slots: Sequence[str] | None, surfaces: Sequence[str] | None
) -> Sequence[str] | None:
    """The slots that a run enables by naming slots, surfaces in lower case (`post_attn`), or both; None for all.

    Raises ConfigError for a surface that the host lacks, and for a named slot that stands at none of the surfaces
    named. That the slots exist is checked where they are used.
    """
    if surfaces is None:
        return slots
    known = {spec.slot_id: spec.surface.name.lower() for spec in specs}
    for surface in surfaces:
        if surface not in known.values():
            has = ", ".join(sorted(set(known.values()))) or "none"
            raise ConfigError(f"surfaces: this host has no slot at {surface!r}; its surfaces are {has}")
    for slot_id in slots or ():
        if slot_id in known and known[slot_id] not in surfaces:
            raise ConfigError(
                f"surfaces: slot {slot_id} stands at {known[slot_id]}, which is not among {' '.join(surfaces)}; "
                "leave the slot or --surfaces out"
            )
    return [slot_id for slot_id, surface in known.items() if surface in surfaces] if slots is None else slots
