"""What can be done: one row per operation. Heads, masks, prices, names and the README table follow from the rows.

To add an operation write a row in `OPS` and a handler in `kasmina/operations.py`. The action space is a value
built at run time from the task's slots and blueprints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from esper.leyline.errors import ConfigError, did_you_mean
from esper.leyline.reports import AlphaMode, BlendName, HostReport, SeedStateReport
from esper.leyline.seed_internal import SeedInternalKind
from esper.leyline.slot_config import SlotConfig
from esper.leyline.stages import ADVANCES, LIVE, TUNABLE, SeedStage

CurveName = Literal["LINEAR", "COSINE", "SIGMOID"]


class LifecycleOp(IntEnum):
    """Values are stored in checkpoints and never change."""

    WAIT = 0
    GERMINATE = 1
    SET_ALPHA_TARGET = 2
    PRUNE = 3
    FOSSILIZE = 4
    ADVANCE = 5
    GROW_INTERNAL = 6
    SHRINK_INTERNAL = 7


@dataclass(frozen=True)
class Curve:
    """A way from 0 to 1. `steepness` matters to the sigmoid alone."""

    name: CurveName
    steepness: float = 12.0


@dataclass(frozen=True)
class Style:
    """How a new seed is blended in: by which formula and along which curve."""

    blend: BlendName
    curve: Curve


CURVES: dict[str, Curve] = {
    "linear": Curve("LINEAR"),
    "cosine": Curve("COSINE"),
    "sigmoid_gentle": Curve("SIGMOID", 6.0),
    "sigmoid": Curve("SIGMOID", 12.0),
    "sigmoid_sharp": Curve("SIGMOID", 24.0),
}
STYLES: dict[str, Style] = {
    "linear_add": Style("ADD", CURVES["linear"]),
    "sigmoid_add": Style("ADD", CURVES["sigmoid"]),
    "linear_multiply": Style("MULTIPLY", CURVES["linear"]),
    "linear_gate": Style("GATE", CURVES["linear"]),
}
TEMPOS: dict[str, int] = {"fast": 3, "medium": 5, "slow": 8}  # epochs from alpha 0 to its target
ALPHA_TARGETS: dict[str, float] = {"full": 1.0, "most": 0.7, "half": 0.5}
ALPHA_SPEEDS: dict[str, int] = {"instant": 0, "fast": 3, "medium": 5, "slow": 8}  # epochs

CHOICES: dict[str, tuple[str, ...]] = {
    "style": tuple(STYLES),
    "tempo": tuple(TEMPOS),
    "alpha_target": tuple(ALPHA_TARGETS),
    "alpha_speed": tuple(ALPHA_SPEEDS),
    "alpha_curve": tuple(CURVES),
}
HEADS: tuple[str, ...] = ("op", "slot", "blueprint", *CHOICES)
"""Every head of the policy. The first three are sized by the action space, the others by their tables."""

Possible = Callable[[SeedStateReport, HostReport], bool]


@dataclass(frozen=True)
class OpRow:
    """All that is to be said about one operation."""

    op: LifecycleOp
    meaning: str
    heads: tuple[str, ...]  # the heads besides `op` that matter to it
    possible: Possible  # physically, in this slot of this host
    price: float  # intervention price in points of the objective

    @property
    def needs_slot(self) -> bool:
        return "slot" in self.heads


def _can_germinate(slot: SeedStateReport, host: HostReport) -> bool:
    return slot.stage is SeedStage.DORMANT and host.seeds_in_use < host.rules.max_seeds


def _can_set_alpha(slot: SeedStateReport, _host: HostReport) -> bool:
    return slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING) and slot.alpha_mode is AlphaMode.HOLD


def _can_prune(slot: SeedStateReport, host: HostReport) -> bool:
    old_enough = slot.age >= host.rules.min_prune_age
    return slot.stage in LIVE and old_enough and slot.alpha_mode is not AlphaMode.DOWN


def _can_fossilize(slot: SeedStateReport, _host: HostReport) -> bool:
    return slot.stage is SeedStage.HOLDING


def _can_advance(slot: SeedStateReport, _host: HostReport) -> bool:
    return slot.stage in ADVANCES and slot.alpha_mode is not AlphaMode.DOWN


def _has_rungs(slot: SeedStateReport, host: HostReport) -> bool:
    rests = slot.alpha_mode is AlphaMode.HOLD or not host.rules.internal_needs_hold
    return slot.internal_kind != SeedInternalKind.NONE and slot.stage in TUNABLE and rests


def _can_grow(slot: SeedStateReport, host: HostReport) -> bool:
    return _has_rungs(slot, host) and slot.internal_level < slot.internal_max_level


def _can_shrink(slot: SeedStateReport, host: HostReport) -> bool:
    return _has_rungs(slot, host) and slot.internal_level > 0


OPS: dict[LifecycleOp, OpRow] = {
    row.op: row
    for row in (
        OpRow(LifecycleOp.WAIT, "let everything train on", (), lambda _slot, _host: True, 0.0),
        OpRow(
            LifecycleOp.GERMINATE,
            "plant a seed in an empty slot",
            ("slot", "blueprint", "style", "tempo", "alpha_target"),
            _can_germinate,
            0.02,
        ),
        OpRow(
            LifecycleOp.SET_ALPHA_TARGET,
            "blend a seed further in or out",
            ("slot", "alpha_target", "alpha_speed", "alpha_curve"),
            _can_set_alpha,
            0.005,
        ),
        OpRow(
            LifecycleOp.PRUNE,
            "remove a seed, at once or fading",
            ("slot", "alpha_speed", "alpha_curve"),
            _can_prune,
            0.005,
        ),
        OpRow(LifecycleOp.FOSSILIZE, "keep a held seed for good", ("slot",), _can_fossilize, 0.01),
        OpRow(LifecycleOp.ADVANCE, "move a seed to its next stage", ("slot",), _can_advance, 0.0),
        OpRow(LifecycleOp.GROW_INTERNAL, "switch on a seed's next rung", ("slot",), _can_grow, 0.005),
        OpRow(LifecycleOp.SHRINK_INTERNAL, "switch off a seed's last rung", ("slot",), _can_shrink, 0.005),
    )
}
assert list(OPS) == list(LifecycleOp), "every operation has one row, in order"


@dataclass(frozen=True)
class ActionSpace:
    """The actions of one run: its slots, its blueprints and which blueprint fits which slot."""

    slot_config: SlotConfig
    blueprints: tuple[str, ...]
    fits: tuple[tuple[bool, ...], ...] = field(hash=False)  # [slots][blueprints]
    params: tuple[tuple[int, ...], ...] = field(default=(), hash=False)  # likewise, of a seed as planted, 0 if unfit

    def __post_init__(self) -> None:
        if not self.blueprints or not any(map(any, self.fits)):
            raise ConfigError(f"blueprints {', '.join(self.blueprints) or 'none'}: none fits a slot of this host")
        assert len(self.fits) == self.slot_config.num_slots
        assert all(len(row) == len(self.blueprints) for row in (*self.fits, *self.params))

    def choices(self, head: str) -> tuple[str, ...]:
        """The names a head chooses from, in index order."""
        if head == "op":
            return tuple(op.name for op in LifecycleOp)
        if head == "slot":
            return self.slot_config.slot_ids
        return self.blueprints if head == "blueprint" else CHOICES[head]

    @property
    def head_sizes(self) -> dict[str, int]:
        return get_action_head_sizes(self.slot_config, self.blueprints)

    def names(self) -> dict[str, list[str]]:
        """What a checkpoint stores, to be compared with `require_same`."""
        return {head: list(self.choices(head)) for head in HEADS}

    def require_same(self, stored: Mapping[str, Sequence[str]], owner: str) -> None:
        """Raises ConfigError when `owner` was made for another action space."""
        for head, names in self.names().items():
            if list(stored.get(head, ())) != names:
                was = " ".join(stored.get(head, ())) or "nothing"
                raise ConfigError(f"{owner} chooses its {head} from [{was}], but this run offers [{' '.join(names)}]")

    def action(self, op: LifecycleOp | str, **choices: str) -> FactoredAction:
        """An action by names, e.g. `space.action("GERMINATE", slot="r0c0", blueprint="norm")`.

        Heads that are not named, or do not matter to the operation, stand at their first choice.
        """
        name = op if isinstance(op, str) else op.name
        indices = dict.fromkeys(HEADS, 0)
        for head, chosen in {"op": name, **choices}.items():
            known = self.choices(head) if head in HEADS else ()
            if chosen not in known:
                raise ConfigError(f"{head} {chosen!r} is not in this action space{did_you_mean(chosen, known)}")
            indices[head] = known.index(chosen)
        return self.from_indices(tuple(indices.values()))

    def from_indices(self, indices: Sequence[int]) -> FactoredAction:
        """An action from one index per head; heads that do not matter are set to their first choice."""
        assert len(indices) == len(HEADS), f"{len(indices)} indices, want {len(HEADS)}"
        row = OPS[LifecycleOp(indices[0])]
        kept = (value if head == "op" or head in row.heads else 0 for head, value in zip(HEADS, indices, strict=True))
        return FactoredAction(tuple(kept), self)


@dataclass(frozen=True)
class FactoredAction:
    """One decision: an index per head and the space that gives the indices meaning."""

    indices: tuple[int, ...]
    space: ActionSpace = field(repr=False, compare=False)

    @property
    def op(self) -> LifecycleOp:
        return LifecycleOp(self.indices[0])

    @property
    def slot_idx(self) -> int:
        return self.indices[1]

    @property
    def slot_config(self) -> SlotConfig:
        return self.space.slot_config

    @property
    def slot_id(self) -> str | None:
        """None where the operation needs no slot."""
        return self.slot_config.slot_id_for_index(self.slot_idx) if OPS[self.op].needs_slot else None

    @property
    def fits(self) -> bool:
        """Whether the blueprint, if the operation needs one, is for tensors like this slot's."""
        blueprint = self.indices[HEADS.index("blueprint")]
        return "blueprint" not in OPS[self.op].heads or self.space.fits[self.slot_idx][blueprint]

    def chosen(self, head: str) -> str:
        return self.space.choices(head)[self.indices[HEADS.index(head)]]

    @property
    def style(self) -> Style:
        return STYLES[self.chosen("style")]

    @property
    def tempo(self) -> int:
        """Epochs."""
        return TEMPOS[self.chosen("tempo")]

    @property
    def alpha_target(self) -> float:
        return ALPHA_TARGETS[self.chosen("alpha_target")]

    @property
    def alpha_speed(self) -> int:
        """Epochs; 0 is at once."""
        return ALPHA_SPEEDS[self.chosen("alpha_speed")]

    @property
    def alpha_curve(self) -> Curve:
        return CURVES[self.chosen("alpha_curve")]

    def as_names(self) -> dict[str, str]:
        """The operation and the heads that matter to it; `space.action(**names)` gives the action back."""
        return {"op": self.op.name, **{head: self.chosen(head) for head in OPS[self.op].heads}}


def get_action_head_sizes(slot_config: SlotConfig, blueprints: Sequence[str] = ()) -> dict[str, int]:
    """Choices per head for a run with these slots and blueprints; without blueprints nothing can germinate."""
    own = {"op": len(LifecycleOp), "slot": slot_config.num_slots, "blueprint": len(blueprints)}
    return own | {head: len(names) for head, names in CHOICES.items()}
