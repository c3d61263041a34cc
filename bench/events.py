"""How long does telling an event hold up training, and is one ever lost in a burst of 100,000?"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.measuring import Effort, Finding, noise_of
from esper.leyline.telemetry import EnvStepPayload, Payload, SeedContributionMeasuredPayload
from esper.nissa.segments import segment_files
from esper.nissa.writer import EventWriter

BURST = 100_000
BOUND_US = 10.0  # of the 99th percentile

SMALL = SeedContributionMeasuredPayload(
    env_id=0,
    slot_id="r0c0",
    seed_id="r0c0.1",
    blueprint_id="conv_light",
    against="off",
    metric=1.9444444444444444,
    metric_sem=0.7267403,
    loss=0.07365122344,
    loss_sem=0.019823412,
)
LARGE = EnvStepPayload(
    env_id=0,
    op="GERMINATE",
    slot="r0c0",
    blueprint="conv_light",
    style="linear_add",
    tempo="medium",
    alpha_target="full",
    op_mask=255,
    slot_mask=3,
    log_prob=-2.345678,
    value=0.1234567,
    reward=0.1234567,
    terms=(("outcome", 0.1234567), ("progress", -1.234567), ("intervention", -0.02), ("alpha_shock", -0.01234567)),
    train_loss=0.4321235,
    val_loss=0.5432123,
    val_metric=87.5,
    params=12_345,
    effective_params=11_111,
    flops=123_456_789_012,
    stage=(0, 3, 4, 5, 6),
    alpha=(0.0, 0.0, 0.35, 1.0, 1.0),
    level=(0, 1, 2, 1, 1),
    slot_params=(0, 592, 1184, 152, 17),
    grad_ratio=(None, 0.75, 0.5, 1.25, 1.0),
    output_change=0.01234568,
)
EVENTS: dict[str, Payload] = {"env.step of five slots": LARGE, "seed.cf": SMALL}


def answer(effort: Effort) -> list[Finding]:
    found = []
    for name, payload in EVENTS.items():
        results = [_burst(payload) for _ in range(effort.bursts)]
        p99 = [statistics.quantiles(times, n=100)[98] for times, _ in results]
        lost = [float(count) for _, count in results]
        samples = {"p50_us": [statistics.median(times) for times, _ in results], "p99_us": p99}
        what = f"{name}, 99th percentile in a burst"
        found.append(Finding(what, statistics.median(p99), "µs", BOUND_US, noise_of(p99), samples))
        found.append(Finding(f"{name}, lost of {BURST:,}", max(lost), "events", 0.0, 0.0, {"lost": lost}))
    return found


def _burst(payload: Payload) -> tuple[list[float], int]:
    """Microseconds of every `emit`, by the wall clock since waiting counts; and how many lines are not on the disk."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        with EventWriter(Path(folder)) as writer:
            for step in range(BURST):
                began = time.perf_counter_ns()
                writer.emit(payload, round=0, step=step)
                times.append((time.perf_counter_ns() - began) / 1000)
        told = sum(f'"t":"{payload.type.name}"'.encode() in line for line in _lines(Path(folder)))
    return times, BURST - told


def _lines(folder: Path) -> list[bytes]:
    return [line for path in segment_files(folder) for line in path.read_bytes().splitlines()]
