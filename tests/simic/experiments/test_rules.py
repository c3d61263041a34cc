"""Settings by lot are settings, reach far on both sides of the usual ones, and follow from their generator."""

from __future__ import annotations

import torch

from esper.simic.experiments.rules import drawn_settings
from esper.tamiyo.config import HeuristicConfig

OFFERED = ("norm", "conv_light", "conv_heavy")


def some(count: int, seed: int = 0) -> list[HeuristicConfig]:
    generator = torch.Generator().manual_seed(seed)
    return [drawn_settings(OFFERED, generator) for _ in range(count)]


def test_every_number_is_drawn_from_both_sides_of_the_usual_one() -> None:
    usual, found = HeuristicConfig(), some(60)

    for name in ("warm_up", "latest", "plateau", "plateau_epochs", "keep_evidence", "prune_evidence", "grow_evidence"):
        values = [getattr(each, name) for each in found]
        assert min(values) < getattr(usual, name) < max(values), name
    for name in ("patience", "tempo"):
        values = [getattr(each, name) for each in found]
        assert min(values) < getattr(usual, name) < max(values), name


def test_blueprints_come_in_every_order() -> None:
    orders = {each.prefer for each in some(60)}

    assert len(orders) == 6
    assert all(sorted(order) == sorted(OFFERED) for order in orders)


def test_some_wait_for_a_plateau_for_ever() -> None:
    waiting = sum(each.latest == 1.0 for each in some(200))

    assert 25 <= waiting <= 80


def test_the_same_generator_draws_the_same() -> None:
    assert some(5) == some(5)
    assert some(5) != some(5, seed=1)
