"""What every blueprint promises: shape, dtype and layout kept, the identity at birth, alive, nothing random."""

from __future__ import annotations

import re

import pytest
import torch
from tests.support import BLENDS, PATIENT, SHAPES, activation, empty_slot, find_healthy, noise, plant, seeded
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.ladder import Ladder, count_params
from esper.kasmina.slot import SeedSlot
from esper.leyline.injection_spec import Layout
from esper.leyline.reports import SeedStateReport
from esper.leyline.stages import SeedStage

PAIRS = [(name, layout) for name in BLUEPRINTS for layout in BLUEPRINTS[name].layouts]
IMAGE_BLUEPRINTS = [name for name, layout in PAIRS if layout == "NCHW"]
CHANNELS = [1, 4, 8, 16, 17, 64]
every_blueprint = pytest.mark.parametrize(("name", "layout"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
every_width = pytest.mark.parametrize("channels", CHANNELS)
every_image_blueprint = pytest.mark.parametrize("name", IMAGE_BLUEPRINTS)


def built(name: str, channels: int, *, stirred: bool = False, seed: int = 0) -> nn.Module:
    """A seed with all its rungs on; `stirred`: moved away from the identity."""
    with seeded(seed):
        module = BLUEPRINTS[name].build(channels)
        if isinstance(module, Ladder):
            module.set_active((True,) * module.max_level)
        if stirred:
            with torch.no_grad():
                for param in module.parameters():
                    param += 0.1 * torch.randn_like(param)
    return module


@every_blueprint
@every_width
def test_a_seed_is_the_identity_at_birth(name: str, layout: Layout, channels: int):
    x = activation(layout, channels)

    assert torch.equal(built(name, channels)(x), x)


@every_blueprint
@every_width
def test_a_seed_keeps_shape_and_dtype_and_leaves_its_input_alone(name: str, layout: Layout, channels: int):
    seed, x = built(name, channels, stirred=True), activation(layout, channels)
    before = x.clone()

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = seed.to(dtype)(x.to(dtype))
        assert (out.shape, out.dtype) == (x.shape, dtype)
        assert out.isfinite().all()
    assert torch.equal(x, before)


@every_image_blueprint
@every_width
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (1, 3), (9, 5)])
def test_a_seed_works_on_images_of_any_size(name: str, channels: int, size: tuple[int, int]):
    seed, x = built(name, channels, stirred=True), noise(3, channels, *size).requires_grad_()

    out = seed(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(param.grad is None or param.grad.isfinite().all() for param in seed.parameters())


@every_image_blueprint
@pytest.mark.parametrize("channels", [4, 8, 17, 64])
def test_a_seed_keeps_the_memory_format(name: str, channels: int):
    seed, x = built(name, channels, stirred=True), noise(3, channels, 4, 4)

    nchw, nhwc = seed(x), seed(x.contiguous(memory_format=torch.channels_last))

    assert nchw.is_contiguous()
    assert nhwc.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(nchw, nhwc, rtol=1e-4, atol=1e-5)


@every_blueprint
def test_each_item_of_a_batch_is_treated_by_itself(name: str, layout: Layout):
    seed, x = built(name, 8, stirred=True), activation(layout, 8)

    torch.testing.assert_close(seed(x)[1:2], seed(x[1:2]), rtol=1e-4, atol=1e-5)


@every_blueprint
def test_a_seed_draws_nothing_at_random(name: str, layout: Layout):
    seed, x = built(name, 8, stirred=True).train(), activation(layout, 8).requires_grad_()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    outputs = []
    for _ in range(2):
        outputs.append(seed(x))
        outputs[-1].sum().backward()

    assert torch.equal(*outputs)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_blueprint
def test_a_seed_computes_the_same_in_training_and_in_evaluation(name: str, layout: Layout):
    seed, x = built(name, 8, stirred=True), activation(layout, 8)

    assert torch.equal(seed.train()(x), seed.eval()(x))
    assert list(seed.buffers()) == []


@every_blueprint
def test_building_is_a_function_of_the_generator(name: str, layout: Layout):
    one, again = built(name, 8, seed=1), built(name, 8, seed=1)

    assert all(map(torch.equal, one.parameters(), again.parameters()))


# --- alive ------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A fixed host around a slot, with a target that no identity reaches."""

    def __init__(self, slot: SeedSlot) -> None:
        super().__init__()
        self.slot = slot

    def loss(self, layout: Layout) -> Tensor:
        x = activation(layout, self.slot.spec.dim)
        target = activation(layout, self.slot.spec.dim, seed=1)
        loss: Tensor = (self.slot(x) - target).square().mean()
        return loss


@every_blueprint
@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING])
def test_every_parameter_moves_within_three_steps(name, layout, channels, blend, stage):
    slot = empty_slot(channels, layout)
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
        Around(slot).loss(layout).backward()
        optimiser.step()

    still = [key for key, param in slot.named_parameters() if torch.equal(param, start[key])]
    assert still == []


@every_blueprint
def test_a_seed_can_learn_something_the_identity_cannot(name: str, layout: Layout):
    slot = empty_slot(8, layout)
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
        loss = Around(slot).loss(layout)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()

    assert losses[-1] < 0.99 * losses[0]


# --- in a slot --------------------------------------------------------------------------------------------------


def reported(name: str, layout: Layout) -> SeedStateReport:
    slot = empty_slot(8, layout, PATIENT)
    plant(slot, name)
    return slot.report()


@every_blueprint
def test_a_slot_reports_the_kind_and_levels_the_blueprint_declares(name: str, layout: Layout):
    report, seed = reported(name, layout), built(name, 8)

    assert report.internal_kind == BLUEPRINTS[name].kind
    assert report.params == count_params(seed) > 0
    assert 1 <= report.internal_level <= report.internal_max_level <= 4
    assert isinstance(seed, Ladder) == bool(report.internal_kind)
    assert report.blueprint_id == name


def test_blueprints_are_known_by_the_name_they_are_registered_under():
    assert all(BLUEPRINTS[name].name == name for name in BLUEPRINTS)
    assert all(set(BLUEPRINTS[name].layouts) <= set(SHAPES) and BLUEPRINTS[name].layouts for name in BLUEPRINTS)


# --- documented sizes -------------------------------------------------------------------------------------------

TERM = re.compile(r"(?P<factor>\d*)(?P<powers>(?:[Cb](?:\^\d)?)*)(?: / (?P<divisor>\d+))?")


def evaluated(formula: str, sizes: dict[str, int]) -> float:
    """The value of a sum of terms like `9C^2`, `2Cb`, `C^2 / 2` or `1`."""
    total = 0.0
    for term in formula.split(" + "):
        match = TERM.fullmatch(term.strip())
        if match is None:
            pytest.skip(f"no formula: {formula!r}")
        value = float(match["factor"] or 1)
        for symbol, power in re.findall(r"([Cb])(?:\^(\d))?", match["powers"]):
            value *= sizes[symbol] ** int(power or 1)
        total += value / int(match["divisor"] or 1)
    return total


@every_blueprint
@pytest.mark.parametrize("channels", [8, 16, 64])
def test_the_summary_tells_the_number_of_parameters(name: str, layout: Layout, channels: int):
    text = BLUEPRINTS[name].summary.partition("; ")[2]
    roughly, each = text.startswith("about "), text.endswith(" each")
    formula = re.sub(r"^about | parameters$| each$| with b = .*$", "", text)

    promised = evaluated(formula, {"C": channels, "b": max(8, channels // 4)})

    seed = built(name, channels)
    actual = count_params(seed.rungs[0] if each and isinstance(seed, Ladder) else seed)
    assert actual == pytest.approx(promised, rel=0.1) if roughly else actual == promised
