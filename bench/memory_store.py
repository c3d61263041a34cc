"""How long does a run of a million steps take to open, from its lines and from Parquet, and in how much memory?

The run is made up, told through the real encoder into real segments: 8 hosts of 5 slots and at most 2 seeds, episodes
of 150 steps, seeds that are planted, measured and kept or pruned. Each opening has a process of its own.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measuring import Effort, Finding, noise_of
from esper.leyline.factored_actions import CHOICES, HEADS, LifecycleOp
from esper.leyline.sensors import NUM_OPS
from esper.leyline.stages import EFFECTIVE, LIVE, SEEDED, SeedStage
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    ZERO,
    Envelope,
    EnvStepPayload,
    EpisodeFinishedPayload,
    ObservationsPayload,
    Payload,
    PpoUpdatedPayload,
    RoundFinishedPayload,
    RunFinishedPayload,
    RunStartedPayload,
    SeedContributionMeasuredPayload,
    SeedFossilizedPayload,
    SeedGateEvaluatedPayload,
    SeedGerminatedPayload,
    SeedInternalLevelChangedPayload,
    SeedPrunedPayload,
    SeedStageChangedPayload,
    encode_event,
)
from esper.nissa.run_folder import RunFolder
from esper.nissa.segments import Segments, segment_files

STEPS = 1_000_000
JSONL_BOUND_S, PARQUET_BOUND_S = 8.0, 1.5  # on two cores
STEP_BOUND_BYTES = 600.0

ENVS, EPISODE, SLOTS, MAX_SEEDS, RUNGS = 8, 150, 5, 2, 4
_SEGMENT_BYTES = 64 << 20
_BLUEPRINTS = ("conv_light", "conv_heavy", "conv_ladder", "depthwise", "norm")
_TERMS_PER_STEP = (0, 1, 1, 1, 1, 1, 1, 1, 2, 3)  # the others are 0 and left out
_TERMS = ("outcome", "progress", "contribution", "rent", "intervention", "alpha_shock", "churn")

# The peak of a process counts from before its exec, so it must not be started by one as large as this.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
OPEN = """
import json, resource, sys, time
from pathlib import Path
from esper.karn.store import Store
wall, cpu = time.perf_counter(), time.process_time()
store = Store.open([Path(sys.argv[1])], cache=sys.argv[2] == "cache")
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(steps,), = store.con.execute("SELECT count(*) FROM live_env_step").fetchall()
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "steps": steps,
                  "peak_mib": peak / 2**20 if sys.platform == "darwin" else peak / 2**10}))
"""


def answer(effort: Effort) -> list[Finding]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "made-up"
        generate(folder, STEPS)
        ev = folder / "ev"
        lines, step = sum(path.stat().st_size for path in segment_files(ev)) / STEPS, bytes_of_a_step(ev)
        from_lines = [_opened(folder, "lines") for _ in range(effort.bursts)]
        first = []
        for _ in range(effort.bursts):
            for path in ev.glob("*.parquet"):
                path.unlink()
            first.append(_opened(folder, "cache"))
        from_parquet = [_opened(folder, "cache") for _ in range(effort.bursts)]
        parquet = sum(path.stat().st_size for path in ev.glob("*.parquet")) / STEPS
    return [
        *_findings("from JSONL", from_lines, JSONL_BOUND_S),
        *_findings("from JSONL, writing Parquet", first, None),
        *_findings("from Parquet", from_parquet, PARQUET_BOUND_S),
        _size("JSONL of an env.step", step, STEP_BOUND_BYTES),
        _size("JSONL of everything, per step", lines, None),
        _size("Parquet of everything, per step", parquet, None),
    ]


def bytes_of_a_step(ev: Path) -> float:
    """Mean length of the `env.step` lines among these events; they grow with the counters in them."""
    lengths = []
    for path in segment_files(ev):
        with path.open("rb") as file:
            lengths += [len(line) for line in file if line.startswith(b'{"t":"ENV_STEP"')]
    return statistics.fmean(lengths)


def generate(folder: Path, steps: int, seed: int = 0) -> None:
    """Makes a run folder with so many steps; all its segments are sealed."""
    with RunFolder.create_in(folder) as made:
        made.write_manifest(_manifest(steps))
        segments = Segments(made.ev, "r0.1")
        waiting = bytearray()
        for line in _Run(steps, seed).lines():
            waiting += line
            if len(waiting) >= 1 << 20:
                segments.append(waiting)
                waiting.clear()
                if segments.size >= _SEGMENT_BYTES:
                    segments.roll()
        segments.append(waiting)
        segments.close()


def _opened(folder: Path, how: str) -> dict[str, float]:
    child = [sys.executable, "-c", BETWEEN, sys.executable, "-c", OPEN, str(folder), how]
    told = subprocess.run(child, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(told.stdout)
    assert found["steps"] == STEPS
    return found


def _findings(what: str, opened: Sequence[dict[str, float]], bound_s: float | None) -> Iterator[Finding]:
    named = {"wall_s": ("wall clock", "s", bound_s), "cpu_s": ("CPU", "s", None), "peak_mib": ("peak", "MiB", None)}
    for key, (name, unit, bound) in named.items():
        samples = [found[key] for found in opened]
        yield Finding(f"{what}, {name}", statistics.median(samples), unit, bound, noise_of(samples), {key: samples})


def _size(what: str, size: float, bound: float | None) -> Finding:
    return Finding(what, size, "bytes", bound, 0.0, {"bytes": [size]})


def _manifest(steps: int) -> dict[str, object]:
    rounds = -(-steps // (ENVS * EPISODE))
    return {
        "schema_version": SCHEMA_VERSION,
        "config": {
            "task": {"name": "made_up"},
            "run": {"controller": "ppo", "seed": 0, "envs": ENVS, "rounds": rounds, "episode_length": EPISODE},
            "reward": {"rent": 3.0},
        },
        "slots": [{"id": f"r0c{i}", "order": i, "surface": "BLOCK_END", "channels": 8 << i} for i in range(SLOTS)],
        "heads": {
            "op": [op.name for op in LifecycleOp],
            "slot": [f"r0c{i}" for i in range(SLOTS)],
            "blueprint": list(_BLUEPRINTS),
            **{head: list(names) for head, names in CHOICES.items()},
        },
        "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
    }


# ---- what is told ----------------------------------------------------------------------------------------------------


@dataclass
class _Slot:
    """A slot and the seed in it."""

    index: int
    stage: SeedStage = SeedStage.DORMANT
    age: int = 0  # steps in the stage
    alpha: float = 0.0
    level: int = 0
    planted: int = 0
    blueprint: str = ""

    @property
    def seed(self) -> dict[str, str]:
        name = f"r0c{self.index}"
        return {"slot_id": name, "seed_id": f"{name}.{self.planted}", "blueprint_id": self.blueprint}


@dataclass
class _Host:
    """One environment during one episode."""

    env: int
    slots: list[_Slot] = field(default_factory=lambda: [_Slot(index) for index in range(SLOTS)])
    flops: int = 0
    metric: float = 10.0


class _Run:
    """Hosts whose seeds live a plausible life; every number is drawn."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        self._steps, self._draw, self._counter = steps, random.Random(seed), 0

    def lines(self) -> Iterator[bytes]:
        rounds = -(-self._steps // (ENVS * EPISODE))
        started = RunStartedPayload(
            schema_version=SCHEMA_VERSION, controller="ppo", task="made_up", envs=ENVS, rounds=rounds,
            episode_length=EPISODE,
        )  # fmt: skip
        yield self._line(started)
        left = self._steps
        for round_ in range(rounds):
            hosts = [_Host(env) for env in range(ENVS)]
            for step in range(EPISODE):
                for host in hosts[:left]:
                    payload, events = self._step(host)
                    for event in events:
                        yield self._line(event, round_, None, step)
                    yield self._line(payload, round_, round_ * ENVS + host.env, step)
                left -= len(hosts[:left])
            for host in hosts:
                yield self._line(self._episode(host), round_, round_ * ENVS + host.env)
            for event in self._learned(round_):
                yield self._line(event, round_)
        yield self._line(RunFinishedPayload(status="done", digest="0" * 64, seconds=0.0123 * self._counter))

    def _line(
        self, payload: Payload, round_: int | None = None, episode: int | None = None, step: int | None = None
    ) -> bytes:
        time_s = round(1.79e9 + 0.0123 * self._counter, 6)
        envelope = Envelope(
            t=payload.type.name, counter=self._counter, writer="r0.1", time_s=time_s, round=round_, episode=episode,
            step=step,
        )  # fmt: skip
        self._counter += 1
        return encode_event(envelope, payload) + b"\n"

    def _step(self, host: _Host) -> tuple[Payload, list[Payload]]:
        draw = self._draw
        chosen, events = self._decision(host)
        for slot in host.slots:
            slot.age += 1
            if slot.stage is SeedStage.BLENDING:
                slot.alpha = min(1.0, slot.alpha + 0.2)
            if slot.stage in (SeedStage.BLENDING, SeedStage.HOLDING):
                events.append(self._contribution(host, slot))
        host.flops += draw.randrange(10**9, 2 * 10**9)
        host.metric += (85 - host.metric) * 0.02 + draw.gauss(0, 0.5)
        terms = [(name, self._number(0.1)) for name in draw.sample(_TERMS, draw.choice(_TERMS_PER_STEP))]
        sizes = tuple(1024 * slot.level if slot.stage in SEEDED else 0 for slot in host.slots)
        active = sum(sizes)
        payload = EnvStepPayload(
            env_id=host.env,
            **chosen,
            op_mask=draw.randrange(1, 1 << NUM_OPS),
            log_prob=-abs(self._number(1.5)),
            value=self._number(1.0),
            reward=round(sum((value for _, value in terms), 0.0), 7) or ZERO,
            terms=tuple(terms),
            train_loss=abs(self._number(0.5)),
            val_loss=abs(self._number(0.6)),
            val_metric=float(f"{host.metric:.7g}"),
            params=98_765 + active,
            effective_params=98_765 + active,
            effective_seed_params=active,
            effective_seed_params_alpha=float(f"{active * host.slots[0].alpha:.7g}") or ZERO,
            alpha_delta_sq_sum=abs(self._number(0.001)) if active else ZERO,
            flops=host.flops,
            stage=tuple(int(slot.stage) for slot in host.slots),
            alpha=tuple(float(f"{slot.alpha:.7g}") for slot in host.slots),
            level=tuple(slot.level for slot in host.slots),
            slot_params=sizes,
            grad_ratio=tuple(abs(self._number(1.0, 4)) if size else None for size in sizes),
            output_change=None if chosen["op"] == "WAIT" else abs(self._number(0.01)),
        )
        return payload, events

    def _decision(self, host: _Host) -> tuple[dict[str, object], list[Payload]]:
        """What is done, in the words of `EnvStepPayload`, and what it leads to."""
        draw = self._draw
        slot = draw.choice(host.slots)
        name = f"r0c{slot.index}"
        acted = {"slot": name, "slot_mask": draw.randrange(1, 1 << SLOTS)}
        if draw.random() < 0.4:
            return {"op": "WAIT"}, []
        if slot.stage is SeedStage.DORMANT and sum(other.stage in SEEDED for other in host.slots) < MAX_SEEDS:
            choices = {head: draw.choice(CHOICES[head]) for head in ("style", "tempo", "alpha_target")}
            slot.planted, slot.blueprint = slot.planted + 1, draw.choice(_BLUEPRINTS)
            slot.level, slot.alpha = 1, 0.0
            planted = SeedGerminatedPayload(
                env_id=host.env, **slot.seed, params=4096, blend="ADD", tempo=5, internal_kind=1, internal_level=1,
                internal_max_level=RUNGS,
            )  # fmt: skip
            moved = self._moved(host, slot, "GERMINATE", SeedStage.GERMINATED)
            return {"op": "GERMINATE", **acted, "blueprint": slot.blueprint, **choices}, [planted, *moved]
        if slot.stage in (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING):
            if slot.age < 3 or draw.random() < 0.3:
                gate = self._gate(host, slot, passed=False)
                why = f"age is {slot.age}, wants 3"
                return {"op": "ADVANCE", **acted, "done": False, "refused_by": gate.gate, "why": why}, [gate]
            stages = {SeedStage.GERMINATED: SeedStage.TRAINING, SeedStage.TRAINING: SeedStage.BLENDING}
            later = stages.get(slot.stage, SeedStage.HOLDING)
            return {"op": "ADVANCE", **acted}, self._moved(host, slot, "ADVANCE", later)
        if slot.stage is SeedStage.HOLDING and draw.random() < 0.5:
            up = slot.level < RUNGS and (slot.level == 0 or draw.random() < 0.6)
            before, slot.level = slot.level, slot.level + (1 if up else -1)
            changed = SeedInternalLevelChangedPayload(
                env_id=host.env, **slot.seed, internal_kind=1, from_level=before, to_level=slot.level,
                internal_max_level=RUNGS, params_before=1024 * before, internal_effective_params=1024 * slot.level,
            )  # fmt: skip
            return {"op": "GROW_INTERNAL" if up else "SHRINK_INTERNAL", **acted}, [changed]
        if slot.stage is SeedStage.HOLDING:
            return self._settled(host, slot, acted)
        return {"op": "WAIT"}, []

    def _settled(self, host: _Host, slot: _Slot, acted: dict[str, object]) -> tuple[dict[str, object], list[Payload]]:
        contribution = self._number(1.0)
        if contribution > 0:
            kept = SeedFossilizedPayload(
                env_id=host.env, **slot.seed, age=slot.age, params=4096, params_removed=1024, internal_level=slot.level,
                contribution=contribution,
            )  # fmt: skip
            return {"op": "FOSSILIZE", **acted}, [kept, *self._moved(host, slot, "FOSSILIZE", SeedStage.FOSSILIZED)]
        speed = {head: self._draw.choice(CHOICES[head]) for head in ("alpha_speed", "alpha_curve")}
        lost = SeedPrunedPayload(
            env_id=host.env, **slot.seed, initiator="controller", age=slot.age, params=4096, contribution=contribution
        )
        moved = self._moved(host, slot, "PRUNE", SeedStage.DORMANT)
        slot.level, slot.alpha = 0, 0.0
        return {"op": "PRUNE", **acted, **speed}, [lost, *moved]

    def _moved(self, host: _Host, slot: _Slot, driver: str, to: SeedStage) -> list[Payload]:
        moved = SeedStageChangedPayload(
            env_id=host.env, **slot.seed, from_stage=slot.stage.name, to_stage=to.name, driver=driver, alpha=slot.alpha,
            age=slot.age,
        )  # fmt: skip
        gate = self._gate(host, slot, passed=True)
        slot.stage, slot.age = to, 0
        return [gate, moved] if to in LIVE or to in EFFECTIVE else [moved]

    def _gate(self, host: _Host, slot: _Slot, passed: bool) -> SeedGateEvaluatedPayload:
        checks = (("age", float(slot.age), 3.0, passed), ("gradient ratio", abs(self._number(1.0, 4)), 0.05, True))
        return SeedGateEvaluatedPayload(env_id=host.env, **slot.seed, gate="G2", passed=passed, checks=checks)

    def _contribution(self, host: _Host, slot: _Slot) -> Payload:
        return SeedContributionMeasuredPayload(
            env_id=host.env, **slot.seed, against="off", metric=self._number(1.0), metric_sem=abs(self._number(0.3)),
            loss=self._number(0.05), loss_sem=abs(self._number(0.01)),
        )  # fmt: skip

    def _episode(self, host: _Host) -> Payload:
        return EpisodeFinishedPayload(
            env_id=host.env, val_metric=host.metric, val_loss=abs(self._number(0.6)), test_metric=host.metric - 0.5,
            test_loss=abs(self._number(0.6)), host_params=98_765, params=110_000, flops=host.flops, flops_wasted=0,
            fossilized=sum(slot.stage is SeedStage.FOSSILIZED for slot in host.slots), reward=self._number(10.0),
        )  # fmt: skip

    def _learned(self, round_: int) -> Iterator[Payload]:
        def by(names: Sequence[str]) -> tuple[tuple[str, float], ...]:
            return tuple((name, abs(self._number(0.5))) for name in names)

        ops = [op.name for op in LifecycleOp]
        yield PpoUpdatedPayload(
            update=round_, sequences=ENVS, steps=ENVS * EPISODE, forced_share=0.1, ratio_error=1e-7, invalid_executed=0,
            all_masked=0, explained_variance=self._number(0.3), value_mean=self._number(1.0), value_deviation=1.0,
            memory_rms=0.4, lr=3e-4, entropy_share=1.0, epochs=4, policy_loss=self._number(0.01),
            value_loss=abs(self._number(0.5)), entropy_bonus=0.01, op_value_loss=abs(self._number(0.5)),
            grad_norm=abs(self._number(0.5)), approx_kl=abs(self._number(0.01)), clip_fraction=abs(self._number(0.1)),
            entropy=by(HEADS), kl=by(HEADS), clipped=by(HEADS), relevant=tuple((head, 1000) for head in HEADS),
            head_grad_norm=by(HEADS), op_values=by(ops),
        )  # fmt: skip
        sensors = tuple((f"sensor_{i}", self._number(1.0), 1.0, 0.0, 0.0) for i in range(60))
        yield ObservationsPayload(sensors=sensors)
        phases = by(("observe", "act", "apply", "train", "measure", "learn"))
        yield RoundFinishedPayload(episodes=ENVS, metric_mean=70.0, reward_mean=1.0, seconds=9.0, phases=phases)

    def _number(self, deviation: float, digits: int = 7) -> float:
        return float(f"{self._draw.gauss(0, deviation):.{digits}g}")
