"""Experiments on where seeds may stand: the roadmap's phases 1 and 2, and the transformer run of its pack.

`phase1` cuts one language host in segments, in layers and in a lattice. `phase2` compares a convolutional host with
slots after its blocks with one that has them before its pools, after them, or both, and ladders of convolutions with
ladders of channels. Run 4 of the pack is a transformer in segments, with slots after attention, and with a lattice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import duckdb

from esper.karn.phases import gates
from esper.kasmina.blueprints import standard_set
from esper.scripts.config import EsperConfig
from esper.scripts.experiment_kinds import Experiment, Found, Names, against, cut_at, may_plant

RANKS = "lora_ladder"
SEQUENCES = (*standard_set("BTC"), RANKS)
IMAGES = standard_set("NCHW")
LANGUAGE_TASK, IMAGE_TASK = "tinystories", "cifar_scale"
CUTS = ("segments", "layers", "lattice")


def _cuts(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    """In nothing but where slots stand do the cohorts differ."""
    return {cut: cut_at(may_plant(config, *SEQUENCES), cut) for cut in CUTS}


def _finer(con: duckdb.DuckDBPyConnection, names: Names) -> Found:
    pairs = against((("layers", "segments"), ("lattice", "segments"), ("lattice", "layers")), names)
    return {title: gates(con, names[ours], names[theirs], phase=1) for title, ours, theirs in pairs}


def _pools(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    """Three places for the standard set, and two ladders after blocks."""
    plain = may_plant(config, *IMAGES)
    sides: Mapping[str, tuple[str, ...]] = {
        "pre_pool": ("pre_pool",),
        "post_pool": ("post_pool",),
        "both sides": ("pre_pool", "post_pool"),
    }
    return {
        "control": cut_at(plain, "blocks"),
        **{name: cut_at(plain, "pools", surfaces) for name, surfaces in sides.items()},
        **{name: cut_at(may_plant(config, name), "blocks") for name in ("conv_ladder", "channel_ladder")},
    }


def _sides(con: duckdb.DuckDBPyConnection, names: Names) -> Found:
    treated = ("pre_pool", "post_pool", "both sides", "conv_ladder", "channel_ladder")
    pairs = [(each, "control") for each in treated]
    pairs += [("pre_pool", "post_pool"), ("channel_ladder", "conv_ladder")]
    return {title: gates(con, names[ours], names[theirs], phase=2) for title, ours, theirs in against(pairs, names)}


def transformer_run(config: EsperConfig, name: str) -> dict[str, EsperConfig]:
    """The documents' command, then the slots of a lattice after attention alone, then all of them."""
    ranks = may_plant(replace(config, body=replace(config.body, max_seeds=2)), *SEQUENCES)
    return {
        name: cut_at(ranks, "segments"),
        f"{name}-post_attn": cut_at(ranks, "lattice", ("post_attn",)),
        f"{name}-lattice": cut_at(ranks, "lattice"),
    }


PHASE_1 = Experiment(_cuts, _finer, lambda _: LANGUAGE_TASK, max_seeds=2, grows=True)
PHASE_2 = Experiment(_pools, _sides, lambda _: IMAGE_TASK, max_seeds=2, grows=True)
