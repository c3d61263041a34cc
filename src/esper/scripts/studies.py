"""Experiments under a rule, which need no training of a policy: each is one table over seeds.

`surfaces`: a language host with slots in three segments, six layers or a lattice of twelve, three seeds of one kind at
most, so that what is kept is of one size. `pools`: a convolutional host with slots before its pools or after them, and
heavy seeds against ladders after its blocks. All cohorts of a seed train on the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from esper.leyline.statistics import Estimate, estimate, paired_difference, seed_means
from esper.scripts.columns import markdown
from esper.scripts.config import EsperConfig
from esper.scripts.exam_arms import HostResult, RunResult
from esper.scripts.experiment_kinds import Experiment, Seen, cut_at, may_plant
from esper.scripts.runner import NEVER
from esper.scripts.surfaces import CUTS
from esper.scripts.tables import shown

RULE = "heuristic"
WHOLE, SAME_SIZE = "mlp", 3  # planted at every surface alike, and how many at most
POOL_SEEDS, AT_POOLS = 2, "conv_light"
AFTER_BLOCKS = ("conv_ladder", "channel_ladder", "conv_heavy")
ALONE = "never grown"
LENGTHS = {"stdlib_lm": 24, "digits_clutter": 30}


def _decided(config: EsperConfig, who: str, max_seeds: int) -> EsperConfig:
    return replace(config, run=replace(config.run, controller=who), body=replace(config.body, max_seeds=max_seeds))


def _cuts(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    grown = may_plant(_decided(config, RULE, SAME_SIZE), WHOLE)
    return {
        ALONE: _decided(cut_at(config, CUTS[0]), NEVER, SAME_SIZE),
        **{cut: cut_at(grown, cut) for cut in CUTS},
    }


def _pools(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    grown = _decided(config, RULE, POOL_SEEDS)
    sides = {side: cut_at(may_plant(grown, AT_POOLS), "pools", (side,)) for side in ("pre_pool", "post_pool")}
    after = {name: cut_at(may_plant(grown, name), "blocks") for name in AFTER_BLOCKS}
    return {ALONE: _decided(cut_at(config, "blocks"), NEVER, POOL_SEEDS), **sides, **after}


@dataclass(frozen=True)
class _Figure:
    """A number of a host at the end, and how it is written."""

    head: str
    of: Callable[[HostResult], float | None]
    digits: int


def _table(seen: Seen) -> str:
    """A row per cohort; means over seeds, with intervals where they are compared."""
    metric = seen.metric
    figures = (
        _Figure(f"test {metric.name} ({metric.unit})", lambda host: host.test_metric, metric.digits),
        _Figure(f"J ({metric.points})", lambda host: host.j, metric.digits),
        _Figure("exported parameters", lambda host: host.params, 0),
        _Figure("kept", lambda host: host.fossilized, 1),
        _Figure("GFLOPs", lambda host: host.flops / 1e9, 1),
    )
    head = ("cohort", *(figure.head for figure in figures), f"J against {ALONE}", "planted (kept)", "CPU ms per step")
    rows = []
    for name, runs in seen.runs.items():
        cells = [_written(_over_seeds(runs, figure.of), figure.digits) for figure in figures]
        gain = "" if name == ALONE else _written(_gain(runs, seen.runs[ALONE]), metric.digits)
        spent = estimate([1000 * run.cpu_seconds / seen.steps for run in runs])
        rows.append((name, *cells, gain, _placed(seen, name), _written(spent, 1)))
    note = "CPU time per training step has validation, counterfactual passes and decisions in it; GFLOPs do too."
    return f"{markdown((head, rows))}\n\n{note}"


def _over_seeds(runs: Sequence[RunResult], of: Callable[[HostResult], float | None]) -> Estimate | None:
    """None where a host has no such number."""
    found = [(host.seed, of(host)) for run in runs for host in run.hosts]
    values = [(seed, value) for seed, value in found if value is not None]
    return estimate(seed_means(values)) if len(values) == len(found) else None


def _gain(runs: Sequence[RunResult], alone: Sequence[RunResult]) -> Estimate:
    """Of J, seed by seed."""
    ours, theirs = (seed_means((host.seed, host.j) for run in each for host in run.hosts) for each in (runs, alone))
    return paired_difference(ours, theirs)


def _placed(seen: Seen, cohort: str) -> str:
    """How many seeds were planted at each surface, and how many of them were kept."""
    rows = seen.con.execute(
        "select lower(surface), sum(germinated), sum(fossilized) from surface_usage where list_contains(?, run) "
        "group by all order by 2 desc, 1",
        [list(seen.names[cohort])],
    ).fetchall()
    return ", ".join(f"{surface} {planted} ({kept})" for surface, planted, kept in rows)


def _written(found: Estimate | None, digits: int) -> str:
    return "–" if found is None else shown(found, digits)


def _study(cohorts: Callable[[EsperConfig, Sequence[int]], dict[str, EsperConfig]], task: str) -> Experiment:
    numbers = {"rounds": 1, "envs": 1, "episode_length": LENGTHS[task]}
    return Experiment(cohorts, lambda _con, _names: {}, lambda _: task, controller=None, numbers=numbers, show=_table)


STUDIES: Mapping[str, Experiment] = {
    "surfaces": _study(_cuts, "stdlib_lm"),
    "pools": _study(_pools, "digits_clutter"),
}
