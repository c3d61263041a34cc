"""Compiled host segments and seeds: growing compiles no segment again, and the number of graphs is bounded.

The backend counts graphs and runs them as they are, so that nothing is generated or measured here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.places import Around, entry
from tests.support import LINEAR, PATIENT, bring, cnn, find_healthy, noise, plant, seeded, snapshot, tokens, transformer
from tests.support import same as same_state
from torch import Tensor, nn
from torch._dynamo.utils import counters

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.cnn_host import CNNConfig, CNNHost
from esper.kasmina.host import Host
from esper.kasmina.model import Configuration, MorphogeneticModel, SlottedModel, probe_output
from esper.leyline.injection_spec import InjectionSpec, InjectionSurface
from esper.leyline.stages import SeedStage

IMAGES = (4, 1, 8, 8)

shares_graphs = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10),
    reason="this dynamo compiles every region for itself; the bound on graphs is tested all the same",
)


class Counting:
    """A backend that remembers each graph it was given."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    @property
    def count(self) -> int:
        return len(self.graphs)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """Also asserts that dynamo never gave up on a frame."""
    # Dynamo traces itself into a logger, of which pytest would keep every line.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    counters.clear()
    yield Counting()
    given_up = [reason for reason in counters["unimplemented"] if "limit" in reason]
    torch._dynamo.reset()
    assert given_up == []


def compiled(backend: Counting, widths: tuple[int, ...] = (4, 6)) -> MorphogeneticModel:
    model = MorphogeneticModel(cnn(widths))
    model.configure(PATIENT)
    model.compile_regions(backend)
    return model


def train_and_measure(model: MorphogeneticModel, x: Tensor) -> Tensor:
    """One step as the engine takes it: a training pass, then one without gradients."""
    model.train()
    model(x).square().mean().backward()
    model.zero_grad()
    return probe_output(model, x)


def test_every_segment_is_one_whole_graph_for_training_and_one_for_evaluation(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)

    for _ in range(3):
        train_and_measure(model, x)

    assert backend.count == 2 * len(model.host.segments)
    calls = [[node.op for node in graph.graph.nodes].count("call_function") for graph in backend.graphs]
    assert calls[:2] == [4, 3]  # convolution, norm, ReLU and, in the first block, a pool


@pytest.mark.parametrize("cut", ["segments", "layers", "lattice"])
def test_a_transformer_is_a_graph_per_segment_and_mode_at_most_and_none_is_broken(backend: Counting, cut: str):
    model, batch = MorphogeneticModel(transformer(cut=cut, layers=4)), tokens(2, 6)
    model.compile_regions(backend)

    for _ in range(2):
        train_and_measure(model, batch)

    assert 2 <= backend.count <= 2 * len(model.host.segments)
    assert not counters["graph_break"]
    attention = [graph for graph in backend.graphs if "scaled_dot_product_attention" in graph.code]
    assert len(attention) >= 2


def test_planting_into_a_lattice_compiles_no_segment_of_the_transformer_again(backend: Counting):
    model, batch = MorphogeneticModel(transformer(cut="lattice", layers=4)), tokens(2, 6)
    model.configure(PATIENT)
    model.compile_regions(backend)
    train_and_measure(model, batch)
    host_graphs = backend.count

    for slot_id in ("r0c0", "r3c1"):
        bring(model.slots[slot_id], SeedStage.HOLDING, blueprint="mlp_small")
        train_and_measure(model, batch)

    # Graphs of seeds only: one each for training and for measuring, alone and beside one another.
    assert backend.count - host_graphs <= 2 * 2 * 2


def test_probing_and_measuring_share_their_graphs(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    probe_output(model, x)

    with torch.inference_mode():
        model.eval().outputs(x, [Configuration(), Configuration(frozenset({"r0c0"}))])

    assert backend.count == len(model.host.segments)


def test_planting_and_pruning_compiles_no_host_segment_again(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    train_and_measure(model, x)
    host_graphs, slot = backend.count, model.slots["r0c1"]

    bring(slot, SeedStage.TRAINING, blueprint="conv_light")
    train_and_measure(model, x)
    assert backend.count == host_graphs + 1  # the seed while it trains; it is silent in evaluation

    find_healthy(slot)
    slot.step_epoch()
    slot.advance_stage()
    slot.step_epoch()
    train_and_measure(model, x)
    assert backend.count == host_graphs + 2  # and in evaluation

    slot.prune(0, LINEAR)
    train_and_measure(model, x)
    assert backend.count == host_graphs + 2


@shares_graphs
def test_a_second_seed_of_the_same_blueprint_and_width_compiles_nothing(backend: Counting):
    model, x = compiled(backend, (4,) * 3), noise(*IMAGES)
    bring(model.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_light")
    train_and_measure(model, x)
    graphs = backend.count

    for slot_id in ("r0c1", "r0c2"):
        bring(model.slots[slot_id], SeedStage.HOLDING, blueprint="conv_light")
        train_and_measure(model, x)

    assert backend.count == graphs


@shares_graphs
def test_blending_and_levels_compile_nothing_that_was_not_met_before(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    slot = bring(model.slots["r0c0"], SeedStage.BLENDING, blueprint="conv_ladder", tempo=8)
    train_and_measure(model, x)
    graphs = backend.count

    for move in (*[slot.step_epoch] * 2, *[slot.grow_internal] * 2, *[slot.shrink_internal] * 4, slot.grow_internal):
        move()
        train_and_measure(model, x)
    with torch.inference_mode():
        model.eval().outputs(x, [Configuration(rungs=(("r0c0", (True,) * 4),)), Configuration(frozenset({"r0c0"}))])

    assert backend.count == graphs  # all rungs are of one shape


def test_fossilising_a_ladder_compiles_nothing(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    model.configure(replace(PATIENT, isolate_blending=False))
    slot = bring(model.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_ladder")
    train_and_measure(model, x)
    graphs = backend.count
    find_healthy(slot)
    slot.step_epoch()

    assert slot.fossilize().done
    train_and_measure(model, x)

    assert backend.count == graphs


def test_a_seed_is_two_graphs_in_its_whole_life_trained_and_measured(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    train_and_measure(model, x)
    host_graphs, counts = backend.count, {}
    for stage in (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED):
        slot = model.slots["r0c0"]
        if stage is SeedStage.TRAINING:
            bring(slot, stage, blueprint="conv_light")
        elif stage is SeedStage.FOSSILIZED:
            slot.step_epoch()
            slot.fossilize()
        else:
            find_healthy(slot)
            while not slot.advance_stage().done:
                slot.step_epoch()
        train_and_measure(model, x)
        counts[slot.stage.name] = backend.count - host_graphs

    assert counts == {"TRAINING": 1, "BLENDING": 2, "HOLDING": 2, "FOSSILIZED": 2}


def test_graphs_are_bounded_by_regions_modes_and_batch_shapes_whatever_grows(backend: Counting):
    widths, blueprints = (4, 6), ("conv_light", "norm", "conv_ladder")
    batches = (noise(4, 1, 8, 8), noise(7, 1, 8, 8))
    model = compiled(backend, widths)
    for turn in range(6):
        slot = model.slots[f"r0c{turn % 2}"]
        while slot.stage is not SeedStage.DORMANT:
            slot.step_epoch()
        plant(slot, blueprints[turn % 3])
        for _ in range(2):
            slot.advance_stage()
            for x in batches:
                train_and_measure(model, x)
            find_healthy(slot)
            slot.step_epoch()
        slot.prune(0, LINEAR)

    regions = len(widths) + 1 + len(widths) * len(blueprints)
    assert backend.count <= regions * 2 * len(batches)
    assert backend.count >= (len(widths) + 1) * 2 * len(batches)


DISTINCT_RUNGS = {
    ("conv_ladder", "NCHW"): 1,  # all of one shape
    ("channel_ladder", "NCHW"): 3,  # each writes to other channels
    ("lora_ladder", "BTC"): 3,  # ranks 4, 8, 16
    ("lora_ladder", "weight"): 3,
    ("lora_ladder", "conv"): 3,
    ("attn_head_ladder", "BTC"): 2,  # groups of two heads and of one
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, item in BLUEPRINTS.items() for place in item.forms if item.kind]
)
def test_graphs_of_a_ladder_are_bounded_by_its_distinct_rungs_whatever_its_level(backend: Counting, name, place):
    host, x = Around(place, 48), entry(place, 48)
    before = nn.Conv2d(x.shape[1], x.shape[1], 1) if x.dim() == 4 else nn.Linear(x.shape[-1], x.shape[-1])
    model = SlottedModel(nn.Sequential(before, host.site))
    model.configure(PATIENT)
    model.compile_regions(backend)
    batches = [x, torch.cat([x, x])]

    for stage in (SeedStage.TRAINING, SeedStage.HOLDING):
        bring(host.slot, stage, blueprint=name)
        for move in (*[host.slot.grow_internal] * 4, *[host.slot.shrink_internal] * 4):
            for x in batches:
                model.train()
                model(x).square().mean().backward()
                probe_output(model, x)
            move()
        host.slot.step_epoch()
        assert host.slot.prune(0, LINEAR).done
        while host.slot.stage is not SeedStage.DORMANT:
            host.slot.step_epoch()

    modes, rungs = 2, DISTINCT_RUNGS[name, place]
    assert backend.count <= rungs * modes * len(batches)
    assert backend.count >= rungs * modes


@pytest.mark.parametrize("place", ["BTC", "weight", "conv"])
def test_compiled_and_plain_seeds_train_alike(backend: Counting, place):
    name = {"BTC": "attention"}.get(place, "lora")
    outputs, grads = [], []
    for is_compiled in (False, True):
        host = Around(place, 48)
        host.slot.settings = replace(PATIENT, isolate_blending=False)
        if is_compiled:
            host.slot.compile_seeds(backend)
        bring(host.slot, SeedStage.BLENDING, blueprint=name, blend="GATE")
        host.slot.step_epoch()
        x = entry(place, 48).requires_grad_()
        outputs.append(host.site(x))
        outputs[-1].square().mean().backward()
        grads.append([x.grad, *(param.grad for param in host.slot.parameters())])

    assert backend.count == 1
    torch.testing.assert_close(*outputs)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_more_distinct_segments_than_dynamos_own_limit_are_all_compiled(backend: Counting):
    blocks, dynamos_own_limit = 11, 8
    model = compiled(backend, tuple(range(4, 4 + blocks)))

    for _ in range(2):
        train_and_measure(model, noise(*IMAGES))

    assert backend.count == 2 * (blocks + 1) > 2 * dynamos_own_limit


def test_compiled_and_plain_models_train_alike(backend: Counting):
    plain, x = MorphogeneticModel(cnn((8, 8))), noise(*IMAGES)
    plain.configure(PATIENT)
    for slot, blueprint in zip(plain.slots.values(), ("conv_ladder", "attention"), strict=True):
        bring(slot, SeedStage.BLENDING, blueprint=blueprint, blend="GATE")
        slot.step_epoch()
    twin = copy.deepcopy(plain)
    twin.compile_regions(backend)

    outputs, grads = [], []
    for model in (plain, twin):
        out = model(x)
        out.square().mean().backward()
        outputs.append(out)
        grads.append([param.grad for param in model.parameters() if param.grad is not None])

    assert backend.count == len(plain.host.segments) + 2
    torch.testing.assert_close(*outputs)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_seeds_that_were_there_before_are_compiled_too(backend: Counting):
    model, x = MorphogeneticModel(cnn((4, 6))), noise(*IMAGES)
    model.configure(PATIENT)
    bring(model.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_light")

    model.compile_regions(backend)
    train_and_measure(model, x)

    assert backend.count == 2 * (len(model.host.segments) + 1)


def test_a_compiled_model_loads_a_grown_one_and_compiles_its_seeds(backend: Counting):
    grown, x = MorphogeneticModel(cnn((4, 6))), noise(*IMAGES)
    grown.configure(PATIENT)
    bring(grown.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_light")
    model = compiled(backend)
    train_and_measure(model, x)
    graphs = backend.count

    model.load_state_dict(snapshot(grown))
    output = train_and_measure(model, x)

    assert backend.count == graphs + 2
    torch.testing.assert_close(output, probe_output(grown, x))


def test_names_in_the_state_dict_do_not_change(backend: Counting):
    model = compiled(backend)
    bring(model.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_ladder")
    plain = MorphogeneticModel(cnn((4, 6)))
    plain.configure(PATIENT)
    bring(plain.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_ladder")

    assert same_state(snapshot(model), snapshot(plain))


def test_a_copy_of_a_compiled_model_is_independent_and_computes_the_same(backend: Counting):
    model, x = compiled(backend), noise(*IMAGES)
    bring(model.slots["r0c0"], SeedStage.HOLDING, blueprint="conv_ladder")
    before = train_and_measure(model, x)

    twin = copy.deepcopy(model)
    assert torch.equal(probe_output(twin, x), before)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()

    assert torch.equal(probe_output(twin, x), before)


def test_hosts_may_be_made_of_any_modules_of_torch(backend: Counting):
    with seeded():
        segments = [nn.Flatten(), nn.Linear(64, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 3)]
    host = Host(segments, [InjectionSpec("r0c0", 8, "BC", InjectionSurface.BLOCK_END, 0, 1, 1)], isolate_blending=True)
    model = MorphogeneticModel(host)
    model.compile_regions(backend)

    train_and_measure(model, noise(*IMAGES))

    assert backend.count == 2 * len(segments)


def test_the_limit_is_raised_once_for_all_and_never_lowered(backend: Counting):
    config = torch._dynamo.config
    with config.patch(recompile_limit=5000):
        compiled(backend)
        assert config.recompile_limit == 5000
    with config.patch(recompile_limit=8):
        compiled(backend)
        assert config.recompile_limit > 500
    assert config.wrap_top_frame is False


def test_channels_last_hosts_compile_too(backend: Counting):
    with seeded():
        host = CNNHost(CNNConfig(widths=(4, 8), pools=(True, False), in_channels=3, channels_last=True))
    plain = copy.deepcopy(host)
    model, x = MorphogeneticModel(host), noise(4, 3, 8, 8)
    model.compile_regions(backend)

    torch.testing.assert_close(train_and_measure(model, x), probe_output(plain, x))
    assert backend.count == 2 * 3
