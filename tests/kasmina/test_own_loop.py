"""What a loop of one's own measures is what gates ask for."""

from __future__ import annotations

import pytest
import torch
from tests.support import PATIENT, bring, cnn, noise
from torch import Tensor

from esper.kasmina.model import GrowingModel, MorphogeneticModel, SlottedModel
from esper.kasmina.own_loop import record_gradients, validate
from esper.leyline.errors import ConfigError
from esper.leyline.stages import SeedStage

TARGETS = torch.arange(12) % 10


def model_with(stage: SeedStage, wrapped: bool = False, blend: str = "ADD") -> GrowingModel:
    model: GrowingModel = MorphogeneticModel(cnn((4, 4)))
    model.configure(PATIENT)
    bring(model.slots["r0c1"], stage, blend=blend)
    return SlottedModel(model) if wrapped else model


def per_item(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood, and the output for the right class as a score."""
    right = outputs.gather(1, targets[:, None]).squeeze(1)
    return outputs.logsumexp(1) - right, right


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(noise(12, 1, 8, 8).split(5), TARGETS.split(5), strict=True))


def test_a_seeds_gradient_is_told_beside_the_hosts() -> None:
    model = model_with(SeedStage.BLENDING)
    slot = model.slots["r0c1"]
    model.train()
    model(noise(4, 1, 8, 8)).square().mean().backward()

    record_gradients(model)

    seed = [param for name, param in model.named_parameters() if "slots." in name]
    host = [param for name, param in model.named_parameters() if "slots." not in name]
    norms = [sum(float(p.grad.square().sum()) for p in params) ** 0.5 for params in (seed, host)]
    sizes = [sum(p.numel() for p in params) for params in (seed, host)]
    ratio = min(norms[0] / norms[1] * (sizes[1] / sizes[0]) ** 0.5, 10.0)
    report = slot.report()
    assert report.seed_grad_norm == pytest.approx(norms[0], rel=1e-5)
    assert report.host_grad_norm == pytest.approx(norms[1], rel=1e-5)
    assert report.grad_ratio == pytest.approx((1.0 + ratio) / 2, rel=1e-5), "smoothed with the 1.0 from before"


def test_a_host_without_seeds_is_not_read() -> None:
    model = MorphogeneticModel(cnn((4, 4)))

    record_gradients(model)

    assert all(slot.report().host_grad_norm is None for slot in model.slots.values())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("stage", [SeedStage.BLENDING, SeedStage.HOLDING])
def test_a_contribution_is_the_model_as_it_is_less_the_model_without_the_seed(stage: SeedStage, wrapped: bool) -> None:
    model = model_with(stage, wrapped)
    slot = model.slots["r0c1"]

    loss, score = validate(model, batches(), per_item)

    with torch.no_grad():
        inputs = noise(12, 1, 8, 8)
        as_is = per_item(model(inputs), TARGETS)
        slot.muted = True
        without = per_item(model(inputs), TARGETS)
    found = slot.report().contribution
    assert found is not None
    assert (loss, score) == pytest.approx([float(value.mean()) for value in as_is], abs=1e-5)
    assert found.loss == pytest.approx(float((without[0] - as_is[0]).mean()), abs=1e-5)
    assert found.metric == pytest.approx(float((as_is[1] - without[1]).mean()), abs=1e-5)
    assert found.loss_sem == pytest.approx(float((without[0] - as_is[0]).std() / 12**0.5), abs=1e-5)
    assert found.metric_sem == pytest.approx(float((without[1] - as_is[1]).std() / 12**0.5), abs=1e-5)
    assert found.epoch == slot.clock
    assert slot.report().metric_now == score


def test_a_gated_seed_is_weighed_by_the_pass_with_the_model_as_it_is() -> None:
    model = model_with(SeedStage.BLENDING, blend="GATE")
    slot = model.slots["r0c1"]
    slot.step_epoch()

    validate(model, batches(), per_item)

    assert 0.0 < slot.report().alpha <= float(slot.alpha)


def test_a_seed_that_is_not_heard_is_not_measured() -> None:
    model = model_with(SeedStage.TRAINING)
    slot = model.slots["r0c1"]
    before = slot.report().contribution

    validate(model, batches(), per_item)

    assert slot.report().contribution == before


def test_validating_on_nothing_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match="validate: there is no batch"):
        validate(model_with(SeedStage.HOLDING), [], per_item)
