"""What others' learners are told of our games. No learner is trained here."""

from __future__ import annotations

import numpy as np
from bench.rl import TRIALS, AsGym
from tests.simic.games import TMaze

CART_POLE = TRIALS["T5 cart pole without velocities"]


def steadied(game: AsGym) -> np.ndarray:
    """The push that keeps the pole up, by the angle and the velocities that players do not see."""
    x, speed, angle, turning = game.game.env.unwrapped.state
    return np.array([int(0.1 * x + 0.3 * speed + 3 * angle + turning > 0)])


def played(game: AsGym, steady: bool) -> tuple[int, bool, bool]:
    """Steps of one episode, and whether it ended or was cut."""
    game.reset()
    steps, ended, cut = 0, False, False
    while not (ended or cut):
        _, _, ended, cut, _ = game.step(steadied(game) if steady else np.zeros(1, int))
        steps += 1
    return steps, ended, cut


def test_a_pole_that_stands_at_the_time_limit_is_cut_and_one_that_falls_has_ended() -> None:
    game = AsGym(CART_POLE.game, seed=0, limit=CART_POLE.limit)

    assert played(game, steady=True) == (500, False, True)
    steps, ended, cut = played(game, steady=False)
    assert (steps < 20, ended, cut) == (True, True, False)
    assert played(game, steady=True) == (500, False, True), "every episode has its own count"


def test_a_game_without_a_time_limit_is_never_cut() -> None:
    game = AsGym(TMaze, seed=0)

    assert played(game, steady=False) == (11, True, False)
