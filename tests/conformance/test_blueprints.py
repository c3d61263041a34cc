"""What every blueprint promises: shape, dtype and layout kept, the identity at birth, alive, nothing random.

In a cut the identity is the input, around a weight it is a correction of zero.
"""

from __future__ import annotations

import re

import pytest
import torch
from tests.places import AROUND, Around, built, entry, spec_at, unmoved
from tests.support import BLENDS, SHAPES, activation, find_healthy, noise, plant

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder, count_params
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import Place
from esper.leyline.reports import SeedStateReport
from esper.leyline.stages import SeedStage

PAIRS = [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms]
CHANNELS = [1, 4, 8, 16, 17, 32, 64]


def fitting(name: str, place: Place, widths: list[int] = CHANNELS) -> list[int]:
    return [channels for channels in widths if BLUEPRINTS[name].fits(spec_at(place, channels))]


WIDE = {pair: next(width for width in (8, 64) if fitting(*pair, [width])) for pair in PAIRS}
every_blueprint = pytest.mark.parametrize(("name", "place"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
every_width = pytest.mark.parametrize(
    ("name", "place", "channels"), [(*pair, channels) for pair in PAIRS for channels in fitting(*pair)]
)
every_image_width = pytest.mark.parametrize(
    ("name", "channels"), [(name, channels) for name, place in PAIRS if place == "NCHW" for channels in CHANNELS]
)


@every_width
def test_a_seed_is_the_identity_at_birth(name: str, place: Place, channels: int):
    x = entry(place, channels)

    assert torch.equal(built(name, channels, place)(x), unmoved(place, channels, x))


@every_width
def test_a_seed_keeps_shape_and_dtype_and_leaves_its_input_alone(name: str, place: Place, channels: int):
    seed, x = built(name, channels, place, stirred=True), entry(place, channels)
    before = x.clone()

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = seed.to(dtype)(x.to(dtype))
        assert (out.shape, out.dtype) == (unmoved(place, channels, x).shape, dtype)
        assert out.isfinite().all()
    assert torch.equal(x, before)


@every_blueprint
def test_a_slot_that_is_too_narrow_is_refused_and_no_other(name: str, place: Place):
    rank = BLUEPRINTS[name].forms[place].rank

    assert [channels for channels in CHANNELS if channels >= rank] == fitting(name, place)
    if rank > 1:
        with pytest.raises(ConfigError, match=f"has rank {rank}, which is above the width of slot r0c0, {rank - 1}"):
            BLUEPRINTS[name].build(spec_at(place, rank - 1))


@every_image_width
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (1, 3), (9, 5)])
def test_a_seed_works_on_images_of_any_size(name: str, channels: int, size: tuple[int, int]):
    seed, x = built(name, channels, stirred=True), noise(3, channels, *size).requires_grad_()

    out = seed(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(param.grad is None or param.grad.isfinite().all() for param in seed.parameters())


@every_image_width
def test_a_seed_keeps_the_memory_format(name: str, channels: int):
    seed, x = built(name, channels, stirred=True), noise(3, channels, 4, 4)

    # One channel is contiguous in both formats.
    nchw, nhwc = seed(x), seed(x.contiguous(memory_format=torch.channels_last))

    assert nchw.is_contiguous()
    assert nhwc.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(nchw, nhwc, rtol=1e-4, atol=1e-5)


@every_blueprint
def test_each_item_of_a_batch_is_treated_by_itself(name: str, place: Place):
    width = WIDE[name, place]
    seed, x = built(name, width, place, stirred=True), entry(place, width)

    torch.testing.assert_close(seed(x)[1:2], seed(x[1:2]), rtol=1e-4, atol=1e-5)


@every_blueprint
def test_a_seed_draws_nothing_at_random(name: str, place: Place):
    width = WIDE[name, place]
    seed, x = built(name, width, place, stirred=True).train(), entry(place, width).requires_grad_()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    outputs = []
    for _ in range(2):
        outputs.append(seed(x))
        outputs[-1].sum().backward()

    assert torch.equal(*outputs)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_blueprint
def test_a_seed_computes_the_same_in_training_and_in_evaluation(name: str, place: Place):
    width = WIDE[name, place]
    seed, x = built(name, width, place, stirred=True), entry(place, width)

    assert torch.equal(seed.train()(x), seed.eval()(x))
    assert list(seed.buffers()) == []


@every_blueprint
def test_building_is_a_function_of_the_generator(name: str, place: Place):
    one, again = (built(name, WIDE[name, place], place, seed=1) for _ in range(2))

    assert all(map(torch.equal, one.parameters(), again.parameters()))


# --- alive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "channels"), [(*pair, width) for pair in PAIRS for width in fitting(*pair, [4, 16, 64])[:2]]
)
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING])
def test_every_parameter_moves_within_three_steps(name, place, channels, blend, stage):
    host = Around(place, channels)
    slot = host.slot
    plant(slot, name, blend)
    slot.advance_stage()
    while slot.report().internal_level < slot.report().internal_max_level:
        slot.grow_internal()
    if stage is SeedStage.BLENDING:
        find_healthy(slot)
        slot.step_epoch()
        assert slot.advance_stage().done
        slot.step_epoch()
    start = {key: param.clone() for key, param in slot.named_parameters()}
    optimiser = torch.optim.SGD(slot.parameters(), lr=0.3)

    for _ in range(3):
        optimiser.zero_grad()
        host.loss().backward()
        optimiser.step()

    still = [key for key, param in slot.named_parameters() if torch.equal(param, start[key])]
    assert still == []


@every_blueprint
def test_a_seed_can_learn_something_the_identity_cannot(name: str, place: Place):
    host = Around(place, WIDE[name, place])
    slot = host.slot
    plant(slot, name)
    slot.advance_stage()
    find_healthy(slot)
    slot.step_epoch()
    slot.advance_stage()
    slot.alpha.fill_(1.0)
    optimiser = torch.optim.Adam(slot.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = host.loss()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()

    assert losses[-1] < 0.99 * losses[0]


# --- in a slot --------------------------------------------------------------------------------------------------


def reported(name: str, place: Place) -> SeedStateReport:
    slot = Around(place, WIDE[name, place]).slot
    plant(slot, name)
    return slot.report()


@every_blueprint
def test_a_slot_reports_the_kind_and_levels_the_blueprint_declares(name: str, place: Place):
    report, seed = reported(name, place), built(name, WIDE[name, place], place)

    assert report.internal_kind == BLUEPRINTS[name].kind
    assert report.params == count_params(seed) > 0
    assert report.internal_level == 1 <= report.internal_max_level == len(report.rungs)
    assert isinstance(seed, Ladder) == bool(report.internal_kind)
    assert (report.internal_group_size is None) == (report.internal_active_groups is None)
    assert report.internal_active_groups in (None, report.internal_level)
    assert report.blueprint_id == name


def test_blueprints_are_known_by_the_name_they_are_registered_under():
    assert all(BLUEPRINTS[name].name == name for name in BLUEPRINTS)
    assert {place for _, place in PAIRS} <= {*SHAPES, *AROUND}
    assert all(item.forms for _, item in BLUEPRINTS.items())


def test_what_looks_along_a_sequence_sees_no_later_place():
    for name in (name for name, place in PAIRS if place == "BTC"):
        width = WIDE[name, "BTC"]
        seed, x = built(name, width, "BTC", stirred=True), activation("BTC", width)
        later = torch.cat([x[:, :3], noise(3, 2, width, seed=9)], 1)

        torch.testing.assert_close(seed(later)[:, :3], seed(x)[:, :3], msg=name)
        assert not torch.allclose(seed(later)[:, 3:], seed(x)[:, 3:]), name


@pytest.mark.parametrize("length", [1, 2, 33])
def test_sequences_may_be_of_any_length(length: int):
    for name in (name for name, place in PAIRS if place == "BTC"):
        width = WIDE[name, "BTC"]
        x = noise(3, length, width)

        assert built(name, width, "BTC", stirred=True)(x).shape == x.shape, name


@pytest.mark.parametrize(("name", "place"), [pair for pair in PAIRS if pair[1] in AROUND])
def test_around_a_weight_a_seed_is_linear(name: str, place: Place):
    seed = built(name, 64, place, stirred=True)
    x, y = entry(place, 64), entry(place, 64, seed=1)

    torch.testing.assert_close(seed(2 * x - y), 2 * seed(x) - seed(y), rtol=1e-4, atol=1e-4)


# --- documented sizes -------------------------------------------------------------------------------------------

TERM = re.compile(r"(?P<factor>\d*)(?P<powers>(?:[CbIGKR](?:\^\d)?)*)(?: / (?P<divisor>\d+))?")


def evaluated(formula: str, sizes: dict[str, int]) -> float:
    """The value of a sum of terms like `9C^2`, `2Cb`, `C^2 / 2` or `1`."""
    total = 0.0
    for term in formula.split(" + "):
        match = TERM.fullmatch(term.strip())
        if match is None:
            pytest.skip(f"no formula: {formula!r}")
        value = float(match["factor"] or 1)
        for symbol, power in re.findall(r"([CbIGKR])(?:\^(\d))?", match["powers"]):
            value *= sizes[symbol] ** int(power or 1)
        total += value / int(match["divisor"] or 1)
    return total


@pytest.mark.parametrize(
    ("name", "place", "channels"), [(*pair, width) for pair in PAIRS for width in fitting(*pair, [8, 16, 32, 64])]
)
def test_the_summary_tells_the_number_of_parameters(name: str, place: Place, channels: int):
    text = BLUEPRINTS[name].forms[place].summary.rpartition("; ")[2]
    roughly, each = text.startswith("about "), text.endswith(" each")
    formula = re.sub(r"^about | parameters| each$| with .*$", "", text)
    seed = built(name, channels, place)
    groups = len(seed.rungs) if isinstance(seed, Ladder) else 0
    sizes = {"C": channels, "b": max(8, channels // 4), "I": channels + 3, "G": groups, "K": 9}
    sizes["R"] = max((rank for rank in (4, 8, 16, 32) if rank <= channels), default=0)

    promised = evaluated(formula, sizes)

    actual = count_params(seed.rungs[0] if each and isinstance(seed, Ladder) else seed)
    assert actual == pytest.approx(promised, rel=0.1) if roughly else actual == promised
