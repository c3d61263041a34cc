"""Real runs that are asked in several files: what they are, and a run as its lines and as SQL tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from esper.leyline.config import read_json
from esper.leyline.stages import LIVE, SeedStage
from esper.leyline.telemetry import Envelope, EnvStepPayload, Payload, SeedGerminatedPayload

P = TypeVar("P", bound=Payload)
Place = tuple[int, int, int]  # round, environment, step


@dataclass(frozen=True)
class Recorded:
    """A run as its lines tell it, and as SQL does."""

    folder: Path
    con: duckdb.DuckDBPyConnection
    told: list[tuple[Envelope, Payload]]

    @property
    def run(self) -> str:
        return self.folder.name

    def of(self, kind: type[P]) -> list[tuple[Envelope, P]]:
        return [(where, payload) for where, payload in self.told if isinstance(payload, kind)]

    def steps(self) -> dict[Place, EnvStepPayload]:
        return {(w.round or 0, p.env_id, w.step or 0): p for w, p in self.of(EnvStepPayload)}

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json")

    @property
    def slots(self) -> list[str]:
        return [slot["id"] for slot in self.manifest["slots"]]

    @property
    def envs(self) -> int:
        return int(self.manifest["config"]["run"]["envs"])

    @property
    def rent(self) -> float:
        return float(self.manifest["config"]["reward"]["rent"])


TINY = ("--preset", "digits", "--set", "task.widths=4,4,8", "--set", "task.epoch_items=64", "--workers", "1", "--quiet")
LADDERS = ("--blueprints", "conv_ladder", "conv_light", "norm")
EVEN = ("--set", "policy.network.prior=0", "--set", "body.auto_advance=G1")  # so that levels change
RUNS = {
    "learned": ("ppo", *TINY, *LADDERS, *EVEN, "--rounds", "4", "--envs", "3", "--episode-length", "26"),
    "ruled": ("heuristic", *TINY, *LADDERS, "--envs", "2", "--episode-length", "26"),
}
"""`learned`: PPO, several rounds. `ruled`: one round of the heuristic. Both with ladders among others."""


def holders(recorded: Recorded) -> dict[tuple[int, int, int, str], SeedGerminatedPayload]:
    """Of every step and slot with a seed in it, the event by which that seed was planted."""
    planted = sorted(
        ((w.round or 0, p.env_id, p.slot_id, w.step or 0, w.counter, p) for w, p in recorded.of(SeedGerminatedPayload)),
        key=lambda row: row[:5],
    )
    found = {}
    for (round_, env, step), told in recorded.steps().items():
        for index, slot in enumerate(recorded.slots):
            stage = SeedStage(told.stage[index])
            if stage in LIVE or stage is SeedStage.FOSSILIZED:
                last = [row for row in planted if row[:3] == (round_, env, slot) and row[3] <= step][-1]
                found[round_, env, step, slot] = last[5]
    return found


def near(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
