"""How much CPU does a redraw of Sanctum take at 120 x 40, with 16 environments of 8 slots, and how soon is it there?

The run is made up in memory: 150 steps of every environment, seeds in half of the slots. A redraw makes the lines of
all panels and the strips that Textual shows. The start is that of a process of its own until its first page is printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.segment import Segment

from bench.measuring import Effort, Finding, noise_of
from bench.memory_store import ENVS, EPISODE, generate
from esper.karn.colours import DARK
from esper.karn.sanctum import board
from esper.karn.sanctum.palette import palette
from esper.karn.sanctum.scene import About, Gaze, Scene
from esper.karn.state import State
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    Envelope,
    EnvStepPayload,
    Payload,
    RunStartedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
)

REDRAW_BOUND_MS, START_BOUND_S = 15.0, 1.5
SIZE = (120, 40)
_STYLES = palette(DARK)


def answer(effort: Effort) -> list[Finding]:
    scene = made_up(envs=16, slots=8)
    drawn(scene)
    samples = []
    for _ in range(effort.pairs):
        began = time.process_time()
        drawn(scene)
        samples.append(1000 * (time.process_time() - began))
    with tempfile.TemporaryDirectory() as root:
        generate(Path(root) / "made-up", ENVS * EPISODE)
        starts = [_start(Path(root)) for _ in range(effort.bursts)]
    redraw = statistics.median(samples)
    return [
        Finding("redraw at 120 x 40, CPU", redraw, "ms", REDRAW_BOUND_MS, noise_of(samples), {"ms": samples}),
        Finding("start to the first page, wall clock", statistics.median(starts), "s", START_BOUND_S, noise_of(starts),
                {"s": starts}),
    ]  # fmt: skip


def drawn(scene: Scene) -> int:
    """Everything that a redraw makes, for lack of a terminal without one; how many pieces that is."""
    strips = [[Segment(words, _STYLES[name]) for words, name in line] for line in board.whole(scene, *SIZE)]
    return sum(map(len, strips))


def made_up(envs: int, slots: int) -> Scene:
    """The first screen of a run in its second round."""
    state, counter = State(), 0

    def tell(payload: Payload, round_: int | None = None, step: int | None = None) -> None:
        nonlocal counter
        counter += 1
        where = Envelope(
            t=payload.type.name, counter=counter, writer="r0.1", time_s=1e9 + counter, round=round_, step=step
        )
        state.take(where, payload)

    tell(RunStartedPayload(schema_version=SCHEMA_VERSION, controller="ppo", task="t", envs=envs, rounds=9,
                           episode_length=EPISODE))  # fmt: skip
    for round_ in range(2):
        for env in range(envs):
            for slot in range(0, slots, 2):
                seed = {"env_id": env, "slot_id": f"r0c{slot}", "seed_id": f"{slot}", "blueprint_id": "conv_ladder"}
                tell(SeedGerminatedPayload(**seed, params=1, blend="ADD", tempo=5, internal_kind=1, internal_level=1,
                                           internal_max_level=4), round_, 0)  # fmt: skip
                for change in range(10):
                    tell(SeedInternalLevelChangedPayload(
                        **seed, internal_kind=1, from_level=change % 4, to_level=(change + 1) % 4, internal_max_level=4,
                        params_before=0, internal_effective_params=0,
                    ), round_, change)  # fmt: skip
        for step in range(EPISODE):
            for env in range(envs):
                stages = [SeedStage.DORMANT if slot % 2 else SeedStage.BLENDING for slot in range(slots)]
                tell(EnvStepPayload(
                    env_id=env, op="GROW_INTERNAL" if step % 3 else "WAIT", op_mask=255, val_metric=step / EPISODE,
                    params=1000, effective_params=1000, flops=1, stage=tuple(map(int, stages)),
                    alpha=(step / EPISODE,) * slots, level=(1,) * slots, slot_params=(1,) * slots,
                    grad_ratio=(None,) * slots, reward=0.1,
                ), round_, step)  # fmt: skip
    about = About("made-up", tuple(f"r0c{slot}" for slot in range(slots)))
    return Scene(about, state, Gaze(), 1e9, lambda _sql, _bound: [], lambda: None, lambda _sql: [], lambda *_: None)


def _start(root: Path) -> float:
    program = [sys.executable, "-m", "esper.scripts.main", "sanctum", "made-up", "--root", str(root), "--once"]
    began = time.perf_counter()
    subprocess.run(program, check=True, capture_output=True)
    return time.perf_counter() - began
