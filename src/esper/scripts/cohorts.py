"""The documents' experiments as tables: which cohorts of runs there are, and what is asked of them.

`phase0` asks whether cheap, reversible steps pay. Three cohorts: `control` may plant the standard set, `ladder` the
conv ladder alone (the documents' treatment), `both` the standard set and the ladder. Each trains a policy per seed, on
the same hosts; then every policy grows hosts of its seed that no policy has seen, taking its likeliest choices. The
gates compare each treatment with the control, seed by seed.

`pack` is the first experiment pack: run 1 with the standard set, run 2 with twice as many seeds at once and longer
episodes, run 3 as run 1 with the conv ladder too. Each trains from two rewards, and what the documents expect of it is
checked; runs 2 and 3 are compared with run 1 where it is asked for too. Run 4 is of a transformer and runs by itself.

`surfaces.py` has phases 1 and 2, `studies.py` experiments under a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import duckdb

from esper.karn.outcomes import EXPECTED
from esper.karn.phases import gates
from esper.karn.verdicts import answers
from esper.kasmina.blueprints import standard_set
from esper.leyline.errors import ConfigError
from esper.scripts.config import EsperConfig
from esper.scripts.experiment_kinds import DOCUMENTED, Experiment, Found, Names, may_plant
from esper.scripts.studies import STUDIES
from esper.scripts.surfaces import LANGUAGE_TASK, PHASE_1, PHASE_2, transformer_run

LADDER, CONTROL, TASK = "conv_ladder", "control", "cifar_scale"
STANDARD = standard_set("NCHW")
STRESS_SEEDS, STRESS_LENGTH = 4, 200  # of run 2
TRANSFORMER_RUN = 4


# --- phase0 --------------------------------------------------------------------------------------------------------


def _three(config: EsperConfig, _: Sequence[int]) -> dict[str, EsperConfig]:
    """In nothing but what they may plant do the cohorts differ."""
    return {
        CONTROL: may_plant(config, *STANDARD),
        "ladder": may_plant(config, LADDER),
        "both": may_plant(config, *STANDARD, LADDER),
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
        3: may_plant(first, *STANDARD, LADDER),
    }
    found = {_of_pack(number): runs[number] for number in numbers if number in runs}
    return found | (transformer_run(config, _of_pack(TRANSFORMER_RUN)) if TRANSFORMER_RUN in numbers else {})


def _outcomes(con: duckdb.DuckDBPyConnection, names: Names) -> Found:
    """Cohorts of one run of the pack (`run4-lattice`) are asked what that run is, and held against its first one."""
    found: Found = {}
    for name, runs in names.items():
        run, _, part = name.partition("-")
        control = names.get(run if part else _of_pack(1), ()) if name != _of_pack(1) else ()
        found[name] = answers(EXPECTED[int(run.removeprefix("run"))], con, runs, control)
    return found


def _of_pack(number: int) -> str:
    return f"run{number}"


def _task_of_pack(numbers: Sequence[int]) -> str:
    if TRANSFORMER_RUN not in numbers:
        return TASK
    if len(numbers) > 1:
        raise ConfigError(
            f"--run {TRANSFORMER_RUN}: its hosts read text, those of the other runs images; ask for it alone"
        )
    return LANGUAGE_TASK


EXPERIMENTS: Mapping[str, Experiment] = {
    "phase0": Experiment(_three, _gates, lambda _: TASK, max_seeds=2, grows=True),
    "phase1": PHASE_1,
    "phase2": PHASE_2,
    "pack": Experiment(
        _pack, _outcomes, _task_of_pack, runs=tuple(EXPECTED), usual=tuple(n for n in EXPECTED if n != TRANSFORMER_RUN)
    ),
    **STUDIES,
}
