"""Settings of the body, and how fractions of an episode become epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.kasmina.gates import GatesConfig
from esper.leyline.config import check_ranges, setting
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSurface
from esper.leyline.reports import Rules
from esper.leyline.stages import GateName

SEED_LR_SCALE = 0.3

TimedGate = Literal["G1", "G2", "G3"]
"""Gates of the edges that time may drive in the place of ADVANCE."""


@dataclass(frozen=True)
class BodyConfig:
    """What may grow where, and how long things take. Durations are fractions of the episode, at least 1 epoch."""

    slots: tuple[str, ...] | None = setting(None, help="enabled slots; all of the host's if not given")
    surfaces: tuple[str, ...] | None = setting(
        None,
        choices=[surface.name.lower() for surface in InjectionSurface],
        help="enable the slots that stand at these",
    )
    blueprints: tuple[str, ...] | None = setting(None, help="offered blueprints; the standard set if not given")
    max_seeds: int | None = setting(None, low=1, help="most seeds at once, fossilised ones included")
    ladder_start: int = setting(1, low=0, help="level at which a ladder germinates")
    seed_lr_scale: float | None = setting(
        None, low=0.0, help="learning rate of a seed over the host's; 0.3 if not given, 1 beside a host that is frozen"
    )
    leash: float = setting(0.2, above=0.0, help="how far an isolated seed may stray, over the norm of its input")
    min_training: float = setting(0.03, low=0.0, high=1.0, help="time in TRAINING before G2 lets go")
    min_holding: float = setting(0.02, low=0.0, high=1.0, help="time in HOLDING before G5 lets go")
    embargo: float = setting(0.035, low=0.0, high=1.0, help="rest of a slot after a prune")
    min_prune_age: float = setting(0.035, low=0.0, high=1.0, help="age at which a seed may be pruned")
    internal_needs_hold: bool = setting(False, help="switch rungs only while alpha rests")
    auto_advance: tuple[TimedGate, ...] = setting((), help="gates that time passes without ADVANCE")
    isolate_blending: bool | None = setting(None, help="keep the seed's gradient out of the host after TRAINING too")
    fossil_train: bool = setting(True, help="weights of fossilised seeds go on training")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.surfaces == ():
            raise ConfigError("body.surfaces: none is given; name one, or leave the setting out for all slots")

    def lr_scale(self, host_learns: bool = True) -> float:
        """A seed's learning rate over the recipe's. A host that learns is not to be outrun by its seeds; a frozen one
        has nothing to lose."""
        if self.seed_lr_scale is not None:
            return self.seed_lr_scale
        return SEED_LR_SCALE if host_learns else 1.0

    def settings(self, gates: GatesConfig, episode_length: int, slots: int, isolate_blending: bool) -> SlotSettings:
        """What a slot needs to know in a run of `episode_length` epochs on a host with this many enabled slots.

        isolate_blending: the host family's default, used where the setting is None.
        """
        return SlotSettings(
            rules=Rules(
                max_seeds=slots if self.max_seeds is None else self.max_seeds,
                min_prune_age=_epochs(self.min_prune_age, episode_length),
                min_training=_epochs(self.min_training, episode_length),
                min_holding=_epochs(self.min_holding, episode_length),
                internal_needs_hold=self.internal_needs_hold,
            ),
            gates=gates,
            embargo=_epochs(self.embargo, episode_length),
            ladder_start=self.ladder_start,
            leash=self.leash,
            auto_advance=self.auto_advance,
            isolate_blending=isolate_blending if self.isolate_blending is None else self.isolate_blending,
            fossil_train=self.fossil_train,
        )


@dataclass(frozen=True)
class SlotSettings:
    """The body's settings with every duration in epochs."""

    rules: Rules = Rules(max_seeds=1)
    gates: GatesConfig = GatesConfig()
    embargo: int = 5
    ladder_start: int = 1
    leash: float = 0.2
    auto_advance: tuple[GateName, ...] = ()
    isolate_blending: bool = True
    fossil_train: bool = True


def _epochs(fraction: float, episode_length: int) -> int:
    return max(1, round(fraction * episode_length))
