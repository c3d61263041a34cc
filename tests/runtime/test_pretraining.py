"""Hosts with a past: the same lessons make the same host, they are kept on disk, and a frozen host stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support import noise, small_task, tokens
from tests.tolaria.small import QUICK, by_plan, do, engine_on, live

from esper.kasmina.cnn_host import CNNConfig
from esper.kasmina.groups import host_parameters
from esper.kasmina.transformer_host import Cut, Positions, TransformerConfig
from esper.leyline.stages import SeedStage
from esper.runtime.data.text import windows
from esper.runtime.hosts import MakeHost
from esper.runtime.pretraining import Lessons, default_cache, pretrained, taught
from esper.runtime.tasks import make_task

TINY = TransformerConfig(vocabulary=97, context=8, layers=2, width=8, heads=2, cut="layers")
LESSONS = Lessons(TINY, "the quick brown fox jumps over the lazy dog. " * 20, steps=60)


def test_the_same_lessons_make_the_same_host_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    once = taught(LESSONS).state_dict()
    torch.manual_seed(2)
    torch.rand(7)
    again = taught(LESSONS).state_dict()

    assert all(torch.equal(once[name], again[name]) for name in once)


def test_lessons_lower_the_loss_on_their_text() -> None:
    split = windows(LESSONS.text, 8, "test")

    @torch.inference_mode()
    def loss(host: torch.nn.Module) -> float:
        return float(torch.nn.functional.cross_entropy(host(split.inputs).flatten(0, 1), split.targets.flatten()))

    few, many = taught(replace(LESSONS, steps=1)), taught(LESSONS)

    assert loss(many) < 0.7 * loss(few)


def test_what_was_learned_is_kept_and_read_again(tmp_path: Path) -> None:
    lessons = replace(LESSONS, steps=3)
    first = pretrained.__wrapped__(lessons, str(tmp_path))
    (kept,) = tmp_path.iterdir()
    changed = {name: value + 1 for name, value in first.items()}
    torch.save(changed, kept)

    found = pretrained.__wrapped__(lessons, str(tmp_path))

    assert all(torch.equal(found[name], changed[name]) for name in changed)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    lessons = replace(LESSONS, steps=3)
    first = pretrained.__wrapped__(lessons, str(tmp_path))
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(content)

    again = pretrained.__wrapped__(lessons, str(tmp_path))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert kept.stat().st_size > 1000


def test_other_lessons_have_another_name() -> None:
    others = [replace(LESSONS, steps=61), replace(LESSONS, text="other"), replace(LESSONS, host=replace(TINY, heads=1))]

    assert len({LESSONS.key, *(other.key for other in others)}) == 4


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "esper"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "esper"


@pytest.mark.parametrize("cut", ["segments", "layers", "lattice", "weights"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_what_was_learned_fits_the_host_wherever_it_is_cut(cut: Cut, positions: Positions, tmp_path: Path) -> None:
    tiny = replace(TINY, positions=positions)
    lessons = replace(LESSONS, host=tiny, steps=3)
    batch = tokens(2, 8, symbols=97)

    host = MakeHost(replace(tiny, cut=cut, num_segments=2, frozen=True), lessons, str(tmp_path))()

    assert torch.equal(host(batch), taught(lessons)(batch))


def test_beside_a_frozen_host_seeds_learn_and_nothing_else() -> None:
    task = make_task(small_task("stdlib_adapt", epoch_items=32), 0)
    engine = engine_on(task, length=12, body=replace(QUICK, blueprints=("mlp_small",)))
    (environment,) = engine.environments
    before = {name: param.detach().clone() for name, param in environment.model.named_parameters()}
    plant = do("GERMINATE", "r2c1", blueprint="mlp_small", tempo="fast")
    path = [None, plant, *[do("ADVANCE", "r2c1")] * 3]

    live(engine, by_plan(*path), 8)

    assert host_parameters(environment.model) == []
    slot = environment.model.slots["r2c1"]
    assert slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING)
    assert slot.report().host_grad_norm == 0.0
    assert slot.report().grad_ratio is None
    after = dict(environment.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(param.grad is None for name, param in environment.model.named_parameters() if name.startswith("host."))
    held = [param for group in environment.optimiser.param_groups for param in group["params"]]
    assert {id(param) for param in held} == {id(param) for param in slot.parameters()}
    assert slot.seed is not None
    *_, zero_at_birth = slot.seed.parameters()
    assert zero_at_birth.abs().max() > 0


def test_a_convolutional_host_can_be_frozen_too() -> None:
    host = CNNConfig((4, 4), (True, False), frozen=True).build()

    assert not any(param.requires_grad for param in host.parameters())
    assert not host(noise(2, 1, 8, 8)).requires_grad
