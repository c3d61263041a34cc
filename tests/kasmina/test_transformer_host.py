"""The decoder: what it computes, where it is cut, and what it refuses. Routing is asked in tests/conformance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.support import noise, tokens, transformer
from torch import Tensor, nn

from esper.kasmina.compiling import compile_region
from esper.kasmina.model import MorphogeneticModel
from esper.kasmina.transformer_host import TransformerConfig, TransformerHost, sinusoids
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import InjectionSurface

CUTS = ("segments", "layers", "lattice")


def by_hand(host: TransformerHost, sequence: Tensor) -> Tensor:
    """Logits of one sequence [T], written out position by position and head by head."""
    weights = {name.partition(".")[2]: value for name, value in host.state_dict().items()}
    config, sublayers = host.config, [name for name, _ in host.named_modules() if name.endswith("norm")]
    paths = [name.removesuffix("norm").partition(".")[2] for name in sublayers]
    x = weights["0.tokens.weight"][sequence] + weights["0.positions"][: len(sequence)]
    size = config.width // config.heads

    def norm(path: str, h: Tensor) -> Tensor:
        mean, spread = h.mean(1, keepdim=True), h.var(1, unbiased=False, keepdim=True)
        return (h - mean) / (spread + 1e-5).sqrt() * weights[f"{path}norm.weight"] + weights[f"{path}norm.bias"]

    for place, path in enumerate(paths[:-1]):
        h = norm(path, x)
        if place % 2:
            hidden = h @ weights[f"{path}up.weight"].T
            x = x + 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))) @ weights[f"{path}out.weight"].T
            continue
        query, key, value = (h @ weights[f"{path}query_key_value.weight"].T).split(config.width, dim=1)
        heard = torch.zeros_like(h)
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(sequence)):
                scores = key[: t + 1, own] @ query[t, own] / math.sqrt(size)
                heard[t, own] = scores.softmax(0) @ value[: t + 1, own]
        x = x + heard @ weights[f"{path}out.weight"].T
    return norm(paths[-1], x) @ weights["0.tokens.weight"].T


def stirred(host: TransformerHost) -> TransformerHost:
    """Weights large enough that every part of the network is heard."""
    with torch.no_grad():
        for index, param in enumerate(host.parameters()):
            param += 0.3 * noise(*param.shape, seed=index)
    return host


@pytest.mark.parametrize("cut", CUTS)
def test_it_computes_what_the_textbook_says(cut: str) -> None:
    host, batch = stirred(transformer(cut=cut)), tokens(2, 6)

    logits = host(batch)

    for row, sequence in zip(logits, batch, strict=True):
        torch.testing.assert_close(row, by_hand(host, sequence), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_a_later_token_moves_no_earlier_logit(cut: str) -> None:
    host, batch = stirred(transformer(cut=cut)).eval(), tokens(2, 6)
    for place in range(6):
        other = batch.clone()
        other[:, place] = (other[:, place] + 1) % 11

        before, after = host(batch), host(other)

        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place:], after[:, place:])


def test_the_head_is_the_embedding_and_counts_once() -> None:
    host = transformer(vocabulary=11, context=6, layers=2, width=8)

    # Embedding 11 x 8, positions 6 x 8; a layer has 3 + 1 + 4 + 4 matrices of 8 x 8 and two norms; one norm at the end.
    layer = 12 * 64 + 2 * 16
    assert sum(param.numel() for param in host.parameters()) == 88 + 48 + 2 * layer + 16
    (embedding,) = (module for module in host.modules() if isinstance(module, nn.Embedding))
    with torch.no_grad():
        embedding.weight.zero_()
    assert host(tokens(1, 6)).abs().max() == 0.0


def test_the_slots_of_a_lattice_stand_after_attention_and_after_the_mlp_of_each_layer() -> None:
    found = [(s.slot_id, s.surface, s.order, s.host_layer) for s in transformer(cut="lattice").injection_specs]

    attention, mlp = InjectionSurface.POST_ATTN, InjectionSurface.POST_MLP
    assert found == [("r0c0", attention, 0, 0), ("r0c1", mlp, 1, 0), ("r1c0", attention, 2, 1), ("r1c1", mlp, 3, 1)]


def test_six_layers_are_three_segments_six_layers_or_a_lattice_of_twelve() -> None:
    slots = {cut: TransformerConfig(cut=cut).build().slot_order for cut in CUTS}

    assert slots["segments"] == ("r0c0", "r0c1", "r0c2")
    assert slots["layers"] == ("r0c0", "r0c1", "r0c2", "r0c3", "r0c4", "r0c5")
    assert slots["lattice"] == tuple(f"r{layer}c{column}" for layer in range(6) for column in (0, 1))


def test_a_segment_ends_with_its_last_layer() -> None:
    host = transformer(layers=6, num_segments=3)

    assert [spec.host_layer for spec in host.injection_specs] == [1, 3, 5]


def test_where_a_host_is_cut_moves_no_weight_and_no_output() -> None:
    batch = tokens(3, 6)
    first, *others = (transformer(cut=cut, layers=4)(batch) for cut in CUTS)

    for other in others:
        assert torch.equal(first, other)


def test_sinusoids_are_sines_and_cosines_of_the_position() -> None:
    table = sinusoids(7, 4)

    # Two wavelengths: 2 pi and 100 x 2 pi.
    want = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(7)]
    torch.testing.assert_close(table, torch.tensor(want))
    assert "segments.0.positions" not in dict(transformer(positions="sinusoidal").named_parameters())


def test_dropout_acts_in_training_only() -> None:
    host, batch = transformer(dropout=0.5), tokens(2, 6)

    assert not torch.equal(host(batch), host(batch))
    host.eval()
    assert torch.equal(host(batch), host(batch))


def test_a_frozen_host_gets_no_gradient_and_a_seed_in_it_does() -> None:
    model = MorphogeneticModel(transformer(frozen=True))

    assert not any(param.requires_grad for param in model.host.parameters())
    assert model.host_params == sum(param.numel() for param in transformer().parameters())
    assert not model(tokens(2, 6)).requires_grad


def test_shorter_sequences_than_the_context_are_fine_and_longer_ones_are_not() -> None:
    host = transformer(context=6)

    assert host(tokens(2, 4)).shape == (2, 4, 11)
    with pytest.raises(ConfigError, match="7 tokens is longer than the host's context of 6"):
        host(tokens(2, 7))


@pytest.mark.parametrize("cut", CUTS)
def test_compiled_segment_by_segment_it_computes_the_same(cut: str) -> None:
    host, batch = stirred(transformer(cut=cut)), tokens(2, 6)
    want = host(batch)
    for segment in host.segments:
        compile_region(segment, "eager")

    torch.testing.assert_close(host(batch), want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_segments": 4}, "task.num_segments: 4 does not divide the 6 layers of the host; use one of 1, 2, 3, 6"),
        ({"heads": 5}, "5 heads do not divide a width of 32 channels"),
        ({"width": 33, "heads": 3, "positions": "sinusoidal"}, "33 is odd"),
        ({"layers": 0}, "out of range"),
        ({"cut": "heads"}, "cut"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        TransformerConfig(**options)

    assert "\n" not in str(caught.value)


def test_a_number_of_segments_matters_only_where_the_host_is_cut_into_them() -> None:
    assert len(TransformerConfig(num_segments=4, cut="layers").build().slot_order) == 6


def test_a_lattice_slot_on_a_host_cut_in_segments_is_refused() -> None:
    with pytest.raises(ConfigError, match="slots: 'r1c1' is not in this host; it has r0c0, r0c1"):
        MorphogeneticModel(transformer(), ["r0c0", "r1c1"])
