"""Shuffled sensors: the neighbour's sights, masks and reports of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from tests.tamiyo.small import host, slot, space

from esper.leyline.decisions import Choice, Sight
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import ActionSpace
from esper.tamiyo.controller import Memory, wait
from esper.tamiyo.policy.action_masks import LegalActions, possible
from esper.tamiyo.policy.blindfold import ShuffledSensors
from esper.tamiyo.policy.features import observe

SPACE = space(2)
REPORTS = [host(slot(0), slot(1), env=env, val_loss=1.0 + env, left=50) for env in range(3)]


@dataclass(frozen=True)
class Witness:
    """Waits, and keeps what it was shown."""

    shown: list[tuple[Sight, Sequence[LegalActions]]] = field(default_factory=list)
    reads: ActionSpace = SPACE

    def blank_memory(self, envs: int) -> Memory:
        return (None,) * envs

    def act(self, sight: Sight, legal: Sequence[LegalActions], memory: Memory) -> tuple[Choice, Memory]:
        self.shown.append((sight, legal))
        return Choice((wait(SPACE),) * len(legal)), memory


def test_every_environment_gets_the_sensors_of_another_and_keeps_its_masks() -> None:
    witness = Witness()
    sight, legal = observe(REPORTS, SPACE), possible(REPORTS, SPACE)
    ShuffledSensors(witness).act(sight, legal, (None,) * 3)
    ((seen, masks),) = witness.shown

    assert sight.base is not None
    assert seen.base is not None
    assert len(sight.base.unique(dim=0)) == 3
    for env, other in ((0, 2), (1, 0), (2, 1)):
        assert torch.equal(seen.base[env], sight.base[other])
    assert (seen.reports, masks) == (REPORTS, legal)


def test_one_environment_has_nobody_to_look_at() -> None:
    with pytest.raises(ConfigError, match="use --envs 2 or more"):
        ShuffledSensors(Witness()).blank_memory(1)
