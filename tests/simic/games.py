"""Small games whose best return is known, each asking one thing of a learner: masks, arguments, memory, all of them.

To add a game subclass `Game`. The same games are played by others' learners in `bench/rl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from esper.tamiyo.policy.heads import HeadTable

NO, YES = False, True


def only_ops(count: int) -> HeadTable:
    """Operations without arguments; one of them has to point at the only slot there is."""
    return HeadTable(("op", "slot"), (count, 1), ((YES, YES), *((YES, NO),) * (count - 1)))


class Game:
    """Has episodes. `base` and `slots` are what is seen of it, [B] and [S][F]."""

    table: HeadTable
    base: Sequence[float]
    slots: Sequence[Sequence[float]] = ((0.0,),)

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        raise NotImplementedError

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        """Reward of one index per head, and whether the episode is over."""
        raise NotImplementedError

    def ops(self) -> Sequence[bool]:
        return (YES,) * self.table.num_ops

    def slots_by_op(self) -> Sequence[Sequence[bool]]:
        return [(row[1],) * self.table.num_slots for row in self.table.relevant]


class Identity(Game):
    """100 times: say which two of four lamps are lit. 1 a time for both."""

    table = HeadTable(("op", "slot", "second"), (4, 1, 4), ((YES, YES, YES), *((YES, NO, YES),) * 3))
    length = 100

    def begin(self) -> None:
        self.step = 0
        self._light()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        right = decision[0] == self.lamps[0] and decision[2] == self.lamps[1]
        self.step += 1
        self._light()
        return float(right), self.step == self.length

    def _light(self) -> None:
        self.lamps = self.random.integers(4, size=2)
        self.base = np.eye(4)[self.lamps].ravel().tolist()


class ShortIdentity(Identity):
    """The same in episodes of ten steps, to learn from."""

    length = 10


class ManyMasked(Game):
    """One step: say which of 70 lamps is lit, 55 of the dark ones being forbidden (after a test of sb3-contrib's)."""

    table = only_ops(70)

    def begin(self) -> None:
        self.lamp = int(self.random.integers(70))
        dark = [lamp for lamp in range(70) if lamp != self.lamp]
        forbidden = self.random.choice(dark, 55, replace=False)
        self.free = [lamp not in forbidden for lamp in range(70)]
        self.base = np.eye(70)[self.lamp].tolist()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        return float(decision[0] == self.lamp), True

    def ops(self) -> Sequence[bool]:
        return self.free

    def slots_by_op(self) -> Sequence[Sequence[bool]]:
        return [(bool(self.free[0]),), *((NO,),) * 69]


class FactoredBandit(Game):
    """One step. Waiting pays 0.2; planting a quarter for each of four arguments that is right; tuning never pays."""

    table = HeadTable(
        ("op", "slot", "kind", "style", "tempo"),
        (3, 32, 8, 6, 4),
        ((YES, NO, NO, NO, NO), (YES, YES, YES, YES, YES), (YES, YES, NO, NO, YES)),
    )
    slots = tuple((float(lamp == 13),) for lamp in range(32))
    base = (1.0,)

    def begin(self) -> None:
        pass

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        op, *arguments = decision
        rights = [got == want for got, want in zip(arguments, (13, 5, 2, 3), strict=True)]
        return (0.2, sum(rights) / 4, 0.0)[op], True


class Gamble(Game):
    """One step. Sure pays 0.6; gambling pays 1 with the right one of five arguments and 0.2 with the others."""

    table = HeadTable(("op", "slot", "bet"), (2, 1, 5), ((YES, NO, NO), (YES, YES, YES)))
    base = (1.0,)

    def begin(self) -> None:
        pass

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        op, _, bet = decision
        return (0.6 if op == 0 else 1.0 if bet == 3 else 0.2), True


class TMaze(Game):
    """A cue at the first step, `length` steps of nothing, then a turn: 1 if it is the cue's, -1 if not."""

    table = only_ops(2)
    length = 10

    def begin(self) -> None:
        self.step, self.cue = 0, int(self.random.integers(2))
        self._look()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        over = self.step == self.length
        self.step += 1
        self._look()
        return (1.0 if decision[0] == self.cue else -1.0) if over else 0.0, over

    def _look(self) -> None:
        first = self.step == 0
        self.base = (float(first) * (2 * self.cue - 1), float(self.step >= self.length), self.step / self.length)


class CartPoleNoVel(Game):
    """gymnasium's CartPole-v1 without the two velocities: 1 for each of at most 500 steps."""

    table = only_ops(2)

    def __init__(self, seed: int) -> None:
        self.env = gymnasium.make("CartPole-v1")
        self.env.reset(seed=seed)
        super().__init__(seed)

    def begin(self) -> None:
        self._look(self.env.reset()[0])

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        seen, reward, terminated, truncated, _ = self.env.step(int(decision[0]))
        self._look(seen)
        return float(reward), terminated or truncated

    def _look(self, seen: np.ndarray) -> None:
        self.base = (float(seen[0]), float(seen[2]))


class MemoryMaskedFactored(Game):
    """A cue of four at the first step; at the fifth, and then only, something can be done, in three of eight slots.

    Cue 0: there is nothing to win. Others: planting the cue's blueprint where it is possible wins 1. A wrong one
    costs 1/6, pruning likewise, waiting nothing. What the masks forbid costs 1/2 and changes nothing. So waiting
    earns 0, planting always the same 1/8, remembering 3/4. The tempo is idle.
    """

    table = HeadTable(
        ("op", "slot", "blueprint", "tempo"),
        (3, 8, 3, 3),
        ((YES, NO, NO, NO), (YES, YES, YES, NO), (YES, YES, NO, NO)),
    )
    delay = 4

    def begin(self) -> None:
        self.step, self.cue = 0, int(self.random.integers(4))
        self._look()

    def act(self, decision: Sequence[int]) -> tuple[float, bool]:
        op, slot, blueprint, _ = decision
        over = self.step == self.delay
        legal = self.ops()[op] and (op == 0 or self.slots_by_op()[op][slot])
        pays = 0.0 if op == 0 else 1.0 if op == 1 and self.cue > 0 and blueprint == self.cue - 1 else -1 / 6
        self.step += 1
        self._look()
        return (pays if legal else -0.5), over

    def ops(self) -> Sequence[bool]:
        return (YES, self.open, self.open)

    def slots_by_op(self) -> Sequence[Sequence[bool]]:
        return [(NO,) * 8, *([bool(free) and self.open for free in row] for row in self.free)]

    def _look(self) -> None:
        first, self.open = self.step == 0, self.step == self.delay
        self.free = np.zeros((2, 8))
        for row in self.free:
            row[self.random.choice(8, 3, replace=False)] = 1.0
        cue = np.eye(4)[self.cue] * first
        self.base = (*cue.tolist(), self.step / self.delay, float(self.open))
        self.slots = (self.free * self.open).T.tolist()
