"""The toy world: a host that grows by arithmetic instead of training, with a best policy that is known exactly.

Slots, stages, gates, operations, masks and reports are the real ones (`rules.py`, `reports.py`); only training is
replaced. A host of 1000 parameters learns by itself, whatever is done. In every epoch in which a seed can be heard each
active rung of it learns at a fixed rate, and what it has learned, times alpha, is its contribution to the metric. Blend
formula and curve change nothing. One seed fits at a time, so that a wrong one has to be pruned; time alone takes a seed
to HOLDING (`engine.TOY_BODY`), which is not kept unless somebody says so.

An episode draws one of four worlds, and sensors show which:
- data is *plenty* or scarce (`train_items`): the ladder's second rung pays only with plenty of it, and then
  conv_light is too small;
- the host starts clean, or with a *weed* in r0c1, which has to go before anything can be planted.
The slot before the bottleneck, r0c0, is the right one: in r0c1 whatever is planted lifts the metric and does not pay
its rent. `best` is the best policy of each world in the reward mode `basic`; `tests/gym/test_toy.py` searches all.
"""

from __future__ import annotations

from typing import NamedTuple

from esper.kasmina.alpha import AlphaController
from esper.leyline.factored_actions import CURVES
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.reports import BlendName
from esper.leyline.stages import EFFECTIVE, SeedStage

SPECS = tuple(InjectionSpec(f"r0c{i}", 8, "BC", InjectionSurface.BLOCK_END, i, i, i) for i in range(2))
HOST_PARAMS = 1000
EPISODE_LENGTH = 12
ITEMS = {True: 4096, False: 256}  # training items where data is plenty, and where it is scarce
PARAMS: dict[str, tuple[int, ...]] = {"norm": (100,), "conv_light": (1000,), "conv_ladder": (1050, 1950)}  # by rung

# Tenths of a point that a rung learns per epoch: before the bottleneck with scarce data and with plenty, and behind it.
_SCARCE: dict[str, tuple[int, ...]] = {"norm": (5,), "conv_light": (30,), "conv_ladder": (29, -15)}
_PLENTY: dict[str, tuple[int, ...]] = {"norm": (5,), "conv_light": (15,), "conv_ladder": (29, 21)}
_BEHIND: dict[str, tuple[int, ...]] = {"norm": (1,), "conv_light": (2,), "conv_ladder": (2, 1)}
_WEED = -60  # tenths of a point
_CURVES = tuple(CURVES.values())


class World(NamedTuple):
    """What an episode draws."""

    plenty: bool
    weedy: bool


WORLDS = tuple(World(plenty, weedy) for plenty in (False, True) for weedy in (False, True))


def rates(world: World, slot_id: str, blueprint: str) -> tuple[int, ...]:
    """Tenths of a point per epoch, rung by rung."""
    if slot_id != "r0c0":
        return _BEHIND[blueprint]
    return (_PLENTY if world.plenty else _SCARCE)[blueprint]


_WEEDING = ({"op": "PRUNE", "slot": "r0c1", "alpha_speed": "instant"},)
_PLANT, _WAIT = {"op": "GERMINATE", "slot": "r0c0"}, {"op": "WAIT"}
_LIGHT = ({**_PLANT, "blueprint": "conv_light"}, _WAIT)
_LADDER = ({**_PLANT, "blueprint": "conv_ladder"}, {"op": "GROW_INTERNAL", "slot": "r0c0"})
_KEEP = (_WAIT, _WAIT, _WAIT, {"op": "FOSSILIZE", "slot": "r0c0"})


def best(world: World) -> tuple[dict[str, str], ...]:
    """Decisions that none beat in `EPISODE_LENGTH` epochs: weed, plant at once, grow at once, keep; then wait."""
    return (*(_WEEDING if world.weedy else ()), *(_LADDER if world.plenty else _LIGHT), *_KEEP)


class Alpha(NamedTuple):
    """`AlphaController` as a value."""

    alpha: float = 0.0
    start: float = 0.0
    target: float = 0.0
    steps_total: int = 0
    steps_done: int = 0
    curve: int = 0  # index into `CURVES`

    @property
    def mover(self) -> AlphaController:
        """A controller that stands here."""
        curve = _CURVES[self.curve]
        return AlphaController(self.alpha, self.start, self.target, self.steps_total, self.steps_done, curve)

    @classmethod
    def of(cls, mover: AlphaController) -> Alpha:
        curve = _CURVES.index(mover.curve)
        return cls(mover.alpha, mover.start, mover.target, mover.steps_total, mover.steps_done, curve)


FULL = Alpha(1.0, 1.0, 1.0)


class ToySlot(NamedTuple):
    """One slot and the seed in it."""

    stage: SeedStage = SeedStage.DORMANT
    germinations: int = 0
    blueprint: str = ""
    blend: BlendName = "ADD"
    age: int = 0
    in_stage: int = 0
    alpha: Alpha = Alpha()
    first: Alpha = Alpha()  # the first blend, as it was asked for at planting
    fading: bool = False
    level: int = 0
    previous_level: int | None = None
    learned: tuple[int, ...] = ()  # tenths of a point, rung by rung

    def skill(self, level: int) -> float:
        """Points at alpha 1 with this many rungs."""
        return sum(self.learned[:level]) / 10

    @property
    def contribution(self) -> float:
        """Points that the metric would be lower without the seed."""
        return self.alpha.alpha * self.skill(self.level) if self.stage in EFFECTIVE else 0.0

    @property
    def level_effect(self) -> float:
        """Points that the metric would be lower at the level before the last change of it; 0 if there was none."""
        if self.previous_level is None:
            return 0.0
        return self.alpha.alpha * (self.skill(self.level) - self.skill(self.previous_level))

    @property
    def is_ladder(self) -> bool:
        return len(PARAMS[self.blueprint]) > 1

    @property
    def params(self) -> int:
        """Of all rungs."""
        return sum(PARAMS[self.blueprint][: len(self.learned)])

    @property
    def active_params(self) -> int:
        return sum(PARAMS[self.blueprint][: self.level])


# It stays in BLENDING, since it rests below alpha 1: nobody keeps it by mistake.
WEED = ToySlot(SeedStage.BLENDING, 1, "conv_light", "ADD", 9, 1, Alpha(0.7, 0.7, 0.7), level=1, learned=(_WEED,))


class ToyState(NamedTuple):
    """One environment between two steps."""

    world: World
    slots: tuple[ToySlot, ...]
    epoch: int = 0
    metric: float | None = None  # accuracy in percent, as measured after the last epoch
    previous: float | None = None  # the same an epoch earlier
    last_op: int = 0
    last_done: bool = True


def own_skill(epoch: int) -> float:
    """Accuracy in percent of the host alone."""
    return 5.0 + 25.0 * (1.0 - 0.8**epoch)
