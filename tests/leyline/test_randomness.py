"""Named random streams: independent, reproducible, and without a trace in the global generator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.randomness import drawing_from, stream, stream_seed


@pytest.mark.parametrize(
    ("seed", "purpose", "path", "digest"),
    [
        # printf '0/init' | b2sum -l 64
        (0, "init", (), "d86b2afa9b31976c"),
        # printf '7/data order/3/12' | b2sum -l 64
        (7, "data order", (3, 12), "0504f384c548a37f"),
    ],
)
def test_a_streams_seed_is_the_blake2_hash_of_its_name(seed: int, purpose: str, path: tuple[int, ...], digest: str):
    low_byte_first = int("".join(reversed([digest[i : i + 2] for i in range(0, 16, 2)])), 16)

    assert stream_seed(seed, purpose, *path) == low_byte_first // 2


@given(st.integers(), st.text(max_size=20), st.lists(st.integers(), max_size=3))
def test_every_stream_seed_is_one_that_torch_accepts(seed: int, purpose: str, path: list[int]):
    value = stream_seed(seed, purpose, *path)

    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


def test_streams_of_other_seeds_purposes_environments_and_epochs_differ():
    names = [
        (seed, purpose, env, epoch)
        for seed in range(4)
        for purpose in ("init", "order")
        for env in range(12)
        for epoch in range(12)
    ]

    assert len({stream_seed(*name) for name in names}) == len(names)


def test_environment_1_epoch_12_is_not_environment_11_epoch_2():
    assert stream_seed(0, "order", 1, 12) != stream_seed(0, "order", 11, 2)


def test_a_stream_begins_where_it_began_before():
    draws = [torch.rand(5, generator=stream(3, "order", 0, 1)) for _ in range(2)]

    assert torch.equal(*draws)


def test_adding_an_environment_moves_no_other_stream():
    def draws(envs: int) -> list[torch.Tensor]:
        generators = [stream(0, "training", env) for env in range(envs)]
        return [torch.rand(3, generator=generator) for generator in generators]

    assert all(map(torch.equal, draws(2), draws(5)))


def test_inside_the_block_the_global_generator_is_the_lent_one():
    torch.manual_seed(11)
    expected = torch.rand(4)

    with drawing_from(torch.Generator().manual_seed(11)):
        drawn = torch.rand(4)

    assert torch.equal(drawn, expected)


def test_outside_the_block_nothing_has_moved():
    torch.manual_seed(0)
    torch.rand(1)
    expected = torch.rand(3)

    torch.manual_seed(0)
    torch.rand(1)
    with drawing_from(stream(5, "init")):
        torch.nn.Linear(4, 4)

    assert torch.equal(torch.rand(3), expected)


def test_a_second_block_goes_on_where_the_first_ended():
    whole = torch.rand(6, generator=stream(1, "training"))
    generator = stream(1, "training")

    with drawing_from(generator):
        first = torch.rand(2)
    torch.rand(100)
    with drawing_from(generator):
        second = torch.rand(4)

    assert torch.equal(torch.cat([first, second]), whole)


def test_an_error_inside_the_block_gives_the_global_generator_back():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    with pytest.raises(RuntimeError), drawing_from(stream(1, "init")):
        torch.nn.Linear(4, 4)(torch.rand(7))

    assert torch.equal(torch.rand(3), expected)


def test_blocks_nest():
    outer, inner = stream(0, "outer"), stream(0, "inner")
    expected = torch.rand(2, generator=stream(0, "outer"))

    with drawing_from(outer):
        first = torch.rand(1)
        with drawing_from(inner):
            torch.rand(9)
        second = torch.rand(1)

    assert torch.equal(torch.cat([first, second]), expected)
