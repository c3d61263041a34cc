"""Running statistics, held against numpy over all the data at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import noise
from tests.tamiyo.small import space

from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.policy.learned import new_policy
from esper.tamiyo.policy.normaliser import RunningNormaliser

NUMBERS = (1.0, 1.0, 1.0)


@st.composite
def splits(draw: st.DrawFn) -> list[torch.Tensor]:
    """Data of 3 features far from 0, in pieces of any length; some of them empty."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    data = torch.tensor([1.0, 100.0, 1e-3]) * noise(sum(lengths), 3, seed=draw(st.integers(0, 999)))
    return list((data + torch.tensor([5.0, -1000.0, 0.0])).split(lengths))


@given(splits())
def test_mean_and_variance_are_those_of_all_data_however_it_came(pieces: list[torch.Tensor]):
    normaliser, data = RunningNormaliser(NUMBERS), torch.cat(pieces).double().numpy()

    for piece in pieces:
        normaliser.update(piece)

    assert normaliser.count == len(data)
    np.testing.assert_allclose(normaliser.mean, data.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(normaliser.var, data.var(axis=0), rtol=1e-9, atol=1e-12)


def test_what_was_taken_in_comes_out_with_mean_zero_and_deviation_one():
    normaliser, data = RunningNormaliser(NUMBERS), 7 + 3 * noise(20, 50, 3)

    normaliser.update(data)
    out = normaliser(data)

    assert (out.shape, out.dtype) == (data.shape, torch.float32)
    assert out.mean((0, 1)).tolist() == pytest.approx([0.0] * 3, abs=1e-5)
    assert out.std((0, 1), unbiased=False).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_flags_are_left_alone_bit_for_bit():
    normaliser = RunningNormaliser((None, 1.0, None))
    data = torch.stack(((noise(40) > 0).float(), noise(40, seed=1), (noise(40, seed=2) > 1).float()), dim=1)

    normaliser.update(data)
    out = normaliser(data)

    assert torch.equal(out[:, [0, 2]], data[:, [0, 2]])
    assert not torch.equal(out[:, 1], data[:, 1])


def test_before_the_first_observation_everything_passes_as_it_is():
    normaliser, x = RunningNormaliser(NUMBERS), 1e6 * noise(5, 3)

    assert torch.equal(normaliser(x), x)
    normaliser.update(torch.empty(0, 3))
    assert torch.equal(normaliser(x), x)


def test_only_update_changes_it():
    normaliser = RunningNormaliser(NUMBERS)
    normaliser.update(noise(10, 3))
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    first = normaliser(noise(4, 3, seed=1))

    normaliser.train()
    normaliser(100 * noise(50, 3, seed=2))
    normaliser.eval()

    assert all(torch.equal(value, before[name]) for name, value in normaliser.state_dict().items())
    assert torch.equal(normaliser(noise(4, 3, seed=1)), first)


def test_what_is_saved_goes_on_where_it_was(tmp_path):
    one, other = RunningNormaliser((1.0, None, 1.0)), RunningNormaliser((1.0, None, 1.0))
    one.update(5 + noise(10, 3))
    torch.save(one.state_dict(), tmp_path / "statistics.pt")
    other.load_state_dict(torch.load(tmp_path / "statistics.pt"))

    one.update(noise(7, 3, seed=1))
    other.update(noise(7, 3, seed=1))

    x = noise(4, 3, seed=2)
    assert torch.equal(one(x), other(x))
    assert one.count == other.count == 17


def test_a_sensor_that_never_moved_neither_divides_by_zero_nor_shouts_when_it_does():
    """Ranges of 1, of 18 (-9 to 9) and of 64: a move reads as the share of the range that it is."""
    normaliser = RunningNormaliser((1.0, 18.0, 64.0))
    for _ in range(30):
        normaliser.update(torch.tensor([0.1, -0.7, 1 / 3]).expand(11, 3))

    out = normaliser(torch.tensor([[0.1, -0.7, 1 / 3], [0.35, 8.3, 64 + 1 / 3], [-0.9, -0.7 - 4.5, -16 + 1 / 3]]))

    want = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.5, 1.0], [-1.0, -0.25, -0.25]])
    torch.testing.assert_close(out, want, atol=1e-6, rtol=0.0)


def test_the_first_move_of_any_sensor_reads_as_the_share_of_its_range():
    """From the middle of the range to its end: a half. Flags are as they are."""
    network = new_policy(space(2), NetworkConfig(size=8, slot_size=8), 0).network
    for normaliser, sensors in ((network.base_norm, HOST_SENSORS), (network.slot_norm, SLOT_SENSORS)):
        normaliser.update(torch.tensor([(sensor.low + sensor.high) / 2 for sensor in sensors]).expand(240, -1))

        out = normaliser(torch.tensor([float(sensor.high) for sensor in sensors]))

        assert out.tolist() == pytest.approx([1.0 if sensor.kind == "flag" else 0.5 for sensor in sensors])


def test_a_sensor_that_trembles_within_the_rounding_of_a_float_has_not_moved():
    normaliser = RunningNormaliser((1.0,))
    normaliser.update(torch.tensor([[0.3], [0.3 + 3e-8]]))
    assert normaliser.var > 0

    assert normaliser(torch.tensor([[0.8]])).item() == pytest.approx(0.5)


def test_a_sensor_that_has_moved_goes_by_how_far_and_not_by_its_range():
    """Half a thousandth on average: its deviation, but no less than a thousandth."""
    normaliser = RunningNormaliser((18.0, 18.0))
    normaliser.update(torch.tensor([[0.0, 0.0], [0.4, 1e-3]]))

    assert normaliser(torch.tensor([[0.6, 1e-3]])).flatten().tolist() == pytest.approx([2.0, 0.5], rel=1e-5)
    assert normaliser(torch.tensor([[9.0, -9.0]])).flatten().tolist() == [10.0, -10.0]


def test_ranges_are_declared_and_no_part_of_what_is_saved():
    normaliser = RunningNormaliser((18.0, None))

    assert set(normaliser.state_dict()) == {"mean", "var", "count", "is_flag"}
    with pytest.raises(AssertionError, match=r"the width of a range is 0\.0, want more than 0"):
        RunningNormaliser((1.0, 0.0))


def test_statistics_ask_for_no_gradient_and_pass_it_on():
    normaliser = RunningNormaliser(NUMBERS)
    normaliser.update(4 * noise(100, 3))
    x = noise(2, 3, seed=1).requires_grad_()

    normaliser(x).sum().backward()

    assert not list(normaliser.parameters())
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx((1 / normaliser.var.sqrt()).tolist(), rel=1e-5)
