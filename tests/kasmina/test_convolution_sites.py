"""A slot around a convolution of images, whatever its geometry: y = W * x + b + alpha seed(x), then one convolution.

What holds around any weight is in `test_weight_sites.py`. The map of a seed is written out here as one kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kasmina.sequences import grown_to
from tests.support import PATIENT, noise, plant, seeded
from torch import Tensor, nn

from esper.kasmina.ladder import Ladder
from esper.kasmina.weight_site import WeightSite, merged
from esper.leyline.errors import ConfigError
from esper.leyline.stages import SeedStage

S = SeedStage
GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "same": {"kernel_size": (3, 2), "padding": "same", "dilation": (2, 1)},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "strided": {"kernel_size": (3, 1), "stride": (2, 3), "padding": (2, 0)},
    "dilated beyond the probe": {"kernel_size": 3, "dilation": (1, 3), "padding": (0, 3)},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular", "bias": False},
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def site(geometry: dict[str, Any], stage: SeedStage, blueprint: str = "lora", **options: Any) -> WeightSite:
    """Around 9 -> 8 channels in double precision, with a stirred seed."""
    with seeded():
        made = WeightSite(nn.Conv2d(9, 8, **geometry), "r0c0").double()
    made.slot.settings = PATIENT
    return made if stage is S.DORMANT else _with_seed(made, stage, blueprint, **options)


def _with_seed(made: WeightSite, stage: SeedStage, blueprint: str, **options: Any) -> WeightSite:
    grown_to(made.slot, stage, blueprint, **options)
    return made


def reads() -> Tensor:
    return noise(3, 9, 6, 7, dtype=torch.float64)


def with_kernel_added(made: WeightSite, share: float, *factors: tuple[Tensor, Tensor]) -> nn.Conv2d:
    """A convolution like the site's, with `share` of the kernel 2 sum_r B[c, r] A[r, i] added to its own."""
    assert isinstance(made.layer, nn.Conv2d)
    geometry = made.layer.kernel_size, made.layer.stride, made.layer.padding, made.layer.dilation
    has_bias = made.layer.bias is not None
    whole = nn.Conv2d(9, 8, *geometry, bias=has_bias, padding_mode=made.layer.padding_mode).double()
    whole.load_state_dict(made.layer.state_dict())
    with torch.no_grad():
        for down, up in factors:
            whole.weight += share * 2 * torch.einsum("cr,rikl->cikl", up[:, :, 0, 0], down)
    return whole


@every_geometry
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_add_is_a_convolution_with_alpha_times_the_seeds_kernel_added(geometry, alpha: float):
    made, x = site(geometry, S.BLENDING), reads()
    made.slot.state.alpha.settle(alpha)
    made.slot.alpha.fill_(alpha)
    down, up = made.slot.seed.parameters()

    torch.testing.assert_close(made(x), with_kernel_added(made, alpha, (down, up))(x))


@every_geometry
def test_of_a_ladder_at_level_zero_nothing_is_added(geometry):
    made, x = site(geometry, S.HOLDING, "lora_ladder"), reads()
    assert isinstance(made.slot.seed, Ladder)
    made.slot.seed.set_active((False, False))

    assert torch.equal(made(x), made.layer(x))
    assert torch.equal(made.slot.seed(x), torch.zeros_like(made.layer(x)))


@every_geometry
@pytest.mark.parametrize(("blueprint", "level"), [("lora", None), ("lora_ladder", 1), ("lora_ladder", 2)])
def test_a_fossilised_seed_can_be_merged_and_the_convolution_computes_the_same(geometry, blueprint, level):
    made, x = site(geometry, S.FOSSILIZED, blueprint, level=level).float(), reads().float()

    whole = merged(made)

    assert type(whole) is nn.Conv2d
    torch.testing.assert_close(whole(x), made(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole(x), made.layer(x), atol=0.1)


def test_a_gate_weighs_each_image_by_what_the_convolution_returns():
    made, x = site(GEOMETRIES["strided"], S.BLENDING, blend="GATE"), reads()
    made.slot.state.alpha.settle(0.25)
    made.slot.alpha.fill_(0.25)
    y = made.layer(x)
    openness = torch.sigmoid(made.slot.gate.score(y.mean((2, 3)))).reshape(-1, 1, 1, 1)

    weight = 0.25 * (openness + 0.25 * (1 - openness))

    down, up = made.slot.seed.parameters()
    torch.testing.assert_close(made(x), y + weight * (with_kernel_added(made, 1.0, (down, up))(x) - y))


@pytest.mark.parametrize(
    ("channels", "ranks"), [(4, [4]), (8, [4, 4]), (15, [4, 4]), (16, [4, 4, 8]), (32, [4, 4, 8, 16])]
)
def test_a_ladder_has_the_rungs_that_its_channels_have_room_for(channels: int, ranks: list[int]):
    with seeded():
        made = WeightSite(nn.Conv2d(9, channels, 3), "r0c0")
    made.slot.settings = PATIENT
    plant(made.slot, "lora_ladder")

    assert isinstance(made.slot.seed, Ladder)
    assert [rung.down.weight.shape[0] for rung in made.slot.seed.rungs] == ranks
    assert made.slot.report().internal_max_level == len(ranks)


def test_the_width_is_the_smaller_of_what_it_returns_and_all_that_it_reads():
    assert WeightSite(nn.Conv2d(2, 64, 3), "r0c0").slot.spec.width == 18  # two channels of nine pixels each
    assert WeightSite(nn.Conv2d(2, 5, 3), "r0c0").slot.spec.width == 5


def test_images_in_channels_last_stay_so():
    with seeded():
        made = WeightSite(nn.Conv2d(9, 8, 3).to(memory_format=torch.channels_last), "r0c0")
    made.slot.settings = PATIENT
    grown_to(made.slot, S.HOLDING, "lora_ladder", level=2)
    x = reads().float().contiguous(memory_format=torch.channels_last)

    assert made(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made(x), made(x.contiguous()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "layout", "why"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), None, "its convolution has 4 groups; seeds are made for 1"),
        (nn.Conv2d(8, 8, 3), "BTC", "a convolution's output is NCHW, not BTC"),
        (nn.Conv1d(8, 8, 3), None, "it stands around a Linear or a Conv2d, not a Conv1d"),
    ],
)
def test_what_no_seed_is_made_for_is_refused_in_one_line(layer: Any, layout: Any, why: str):
    with pytest.raises(ConfigError) as caught:
        WeightSite(layer, "r0c0", layout)

    assert str(caught.value) == f"slot r0c0: {why}"
