"""What is done now and then takes no more than its share of the time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.simic.training.budget import Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    share=st.floats(0.005, 0.2),
    steps=st.lists(st.tuples(st.floats(0.001, 10.0), st.floats(0.8, 1.2)), min_size=50, max_size=200),
    cost=st.floats(0.001, 0.5),
)
def test_no_more_than_the_share_is_spent_but_for_how_costs_vary(
    share: float, steps: list[tuple[float, float]], cost: float
) -> None:
    clock = Clock()
    budget, spent = Budget(share, clock), 0.0
    for pause, dearer in steps:
        clock.now += pause
        if budget.allows:
            before = clock.now
            with budget.spending():
                clock.now += cost * dearer
            spent += clock.now - before

            # The first is bought unseen; later ones may be half as dear again as the dearest of the last two.
            assert spent <= share * (clock.now - 100.0) + 1.5 * cost


def test_a_share_of_nothing_allows_nothing() -> None:
    clock = Clock()
    budget = Budget(0.0, clock)
    clock.now += 1e9

    assert not budget.allows
    assert not budget.in_credit


def test_a_save_every_so_often_where_each_takes_a_second() -> None:
    clock = Clock()
    budget, when = Budget(0.02, clock), []
    for _ in range(200):
        clock.now += 1.0
        if budget.allows:
            when.append(round(clock.now - 100.0))
            with budget.spending():
                clock.now += 1.0

    # By hand: the first at once; the n-th when n seconds are 2 % of the time, that is after 50 n.
    assert when == [1, 100, 150, 200]
