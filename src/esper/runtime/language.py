"""Language tasks: characters to be guessed one by one, by a transformer with slots in its cuts or around its weights.

Loss is the mean over an item's characters, so that an item is a context of text; the metric is the same in bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from esper.kasmina.transformer_host import Cut, TransformerConfig
from esper.leyline.task import Metric, Recipe
from esper.runtime.config import TaskConfig
from esper.runtime.data import (
    VOCABULARY,
    Texts,
    first_half,
    second_half,
    stdlib_text,
    synthetic_stories,
    texts_to_splits,
    tinystories,
)
from esper.runtime.hosts import HostConfig, MakeHost, or_default
from esper.runtime.pretraining import Lessons
from esper.runtime.shelf import Measures, Shelf

_RECIPE = Recipe(
    batch_size=16, eval_batch_size=64, optimiser="adamw", lr=0.01, weight_decay=0.01, schedule="warmup_cosine"
)
_EPOCH = 512  # contexts; half a second for the host on one core


def nats_per_character(outputs: Tensor, targets: Tensor) -> Tensor:
    """[N]: the mean over the T characters of each item. outputs: [N, T, V] logits. targets: [N, T] int64."""
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


BITS = Metric(
    "bits per character",
    "bits",
    higher_is_better=False,
    per_item=nats_per_character,
    scale=1 / math.log(2),
    digits=3,
)
CHARACTERS = Measures(nats_per_character, BITS)


def stdlib_lm() -> Shelf:
    """All topics of Python's own help."""
    return _language("Python's help topics, character by character", _host("segments"), _stdlib)


def stdlib_adapt() -> Shelf:
    """A host that knows half of the topics and stays as it is; what it lacks about the rest, seeds learn."""
    shelf = _language(
        "a host pre-trained on half of Python's help topics and frozen; seeds adapt it to the other half",
        replace(_host("lattice"), frozen=True),
        lambda config, seed: second_half(seed, config.text),
    )
    return replace(shelf, make=_pretrained)


def stories(summary: str, cut: Cut) -> Shelf:
    """TinyStories, or procedural ones, under a host cut as asked."""
    return replace(_language(summary, _host(cut), _stories), sources=("hub", "synthetic"))


def _host(cut: Cut) -> TransformerConfig:
    return TransformerConfig(vocabulary=VOCABULARY, cut=cut)


def _language(summary: str, host: TransformerConfig, texts: Callable[[TaskConfig, int], Texts]) -> Shelf:
    return Shelf(
        summary,
        host,
        _RECIPE,
        lambda config, seed: texts_to_splits(texts(config, seed), or_default(config.context, host.context)),
        CHARACTERS,
        epoch_items=_EPOCH,
    )


def _stdlib(config: TaskConfig, seed: int) -> Texts:
    return stdlib_text(seed, config.text)


def _pretrained(host: HostConfig, config: TaskConfig) -> MakeHost:
    """The lessons do not depend on where slots stand."""
    assert isinstance(host, TransformerConfig)
    taught = replace(host, cut="layers", num_segments=1, frozen=False)
    return MakeHost(host, Lessons(taught, first_half(config.text), config.pretrain_steps), config.cache_dir)


def _stories(config: TaskConfig, seed: int) -> Texts:
    if config.data == "synthetic":
        return synthetic_stories(seed)
    return tinystories(config.data_dir, config.download, seed)
