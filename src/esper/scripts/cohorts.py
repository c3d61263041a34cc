"""The documents' experiments as tables: which cohorts of runs there are, and what is asked of them.

`phase0` asks whether cheap, reversible steps pay. Three cohorts: `control` may plant the standard set, `ladder` the
conv ladder alone (the documents' treatment), `both` the standard set and the ladder. Each trains a policy per seed, on
the same hosts; then every policy grows hosts of its seed that no policy has seen, taking its likeliest choices. The
gates compare each treatment with the control, seed by seed.

`pack` is the first experiment pack: run 1 with the standard set, run 2 with twice as many seeds at once and longer
episodes, run 3 as run 1 with the conv ladder too. Each trains from two rewards, and what the documents expect of it is
checked; runs 2 and 3 are compared with run 1 where it is asked for too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from esper.karn.outcomes import EXPECTED
from esper.karn.phases import gates
from esper.karn.verdicts import Verdict, answers
from esper.kasmina.blueprints import standard_set
from esper.scripts.config import EsperConfig

LADDER, CONTROL, TASK = "conv_ladder", "control", "cifar_scale"
STANDARD = standard_set("NCHW")
DOCUMENTED: Mapping[str, int] = {"rounds": 100, "envs": 8, "episode_length": 150}
"""As the documents have it; anything else is a stand-in."""
STRESS_SEEDS, STRESS_LENGTH = 4, 200  # of run 2

Found = dict[str, tuple[Verdict, ...]]
"""By what is judged: a cohort, learning or taking its likeliest choices."""
Names = Mapping[str, Sequence[str]]
"""The names of the runs of each cohort."""


@dataclass(frozen=True)
class Experiment:
    """What sets one experiment apart from another.

    cohorts: the settings of each, by name, from the experiment's own and the numbers of the runs that were asked for.
    runs: the numbers that can be asked for. max_seeds: None where each cohort has its own. grows: whether what was
    learned then grows hosts that are new to it.
    """

    cohorts: Callable[[EsperConfig, Sequence[int]], dict[str, EsperConfig]]
    judge: Callable[[duckdb.DuckDBPyConnection, Names], Found]
    runs: tuple[int, ...]
    max_seeds: int | None
    grows: bool


def _may_plant(config: EsperConfig, *blueprints: str) -> EsperConfig:
    return replace(config, body=replace(config.body, blueprints=blueprints))


# --- phase0 --------------------------------------------------------------------------------------------------------


def _three(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    """In nothing but what they may plant do the cohorts differ."""
    return {
        CONTROL: _may_plant(config, *STANDARD),
        "ladder": _may_plant(config, LADDER),
        "both": _may_plant(config, *STANDARD, LADDER),
    }


def _gates(con: duckdb.DuckDBPyConnection, names: Names) -> Found:
    controls = {name: name.replace(name.split(",")[0], CONTROL) for name in names if not name.startswith(CONTROL)}
    return {name: gates(con, names[name], names[control]) for name, control in controls.items()}


# --- pack ----------------------------------------------------------------------------------------------------------


def _pack(config: EsperConfig, numbers: Sequence[int]) -> dict[str, EsperConfig]:
    run, body = config.run, replace(config.body, max_seeds=2, blueprints=STANDARD)
    first = replace(config, run=replace(run, ab_test="shaped-vs-simplified"), body=body)
    longer = run.episode_length * STRESS_LENGTH // DOCUMENTED["episode_length"]
    runs = {
        1: first,
        2: replace(
            first,
            run=replace(first.run, episode_length=longer),
            body=replace(body, max_seeds=STRESS_SEEDS),
        ),
        3: _may_plant(first, *STANDARD, LADDER),
    }
    return {_of_pack(number): runs[number] for number in numbers}


def _outcomes(con: duckdb.DuckDBPyConnection, names: Names) -> Found:
    asked = {_of_pack(number): questions for number, questions in EXPECTED.items()}
    controls = {name: () if name == _of_pack(1) else names.get(_of_pack(1), ()) for name in names}
    return {name: answers(asked[name], con, names[name], control) for name, control in controls.items()}


def _of_pack(number: int) -> str:
    return f"run{number}"


EXPERIMENTS: Mapping[str, Experiment] = {
    "phase0": Experiment(_three, _gates, runs=(), max_seeds=2, grows=True),
    "pack": Experiment(_pack, _outcomes, runs=tuple(EXPECTED), max_seeds=None, grows=False),
}
