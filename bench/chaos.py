"""What do kills, damage and saving cost a run? `python -m bench.chaos` (`make chaos`) asks, and prints a table.

Every row says how often something was done to a run and what came of it; a row that promises nothing lost and lost
something makes the exit code 1. The slow tests ask more: `make chaos` runs those of checkpoints and resume first.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.scripts.zygote import Ended, Zygote
from tests.tolaria.checkpoints.spoiling import accepted, saved
from tests.tolaria.checkpoints.test_killed_saves import survived

from bench.chaos_ranks import RanksInTrouble
from bench.chaos_rows import Row
from esper.leyline.telemetry import EnvStepPayload, RoundFinishedPayload, RunResumedPayload
from esper.nissa.reader import read_events

RUN = (
    *("train", "random", "--task", "digits", "--episode-length", "8", "--rounds", "3", "--envs", "2", "--seed", "3"),
    *("--workers", "1", "--blueprints", "conv_ladder", "conv_light", "norm", "--quiet"),
    *("--set", "task.epoch_items=128", "--set", "run.checkpoint.every=1"),
)
"""Its topology grows in nearly every step, and every step is saved."""
COSTLY = (
    *("train", "heuristic", "--task", "digits", "--episode-length", "30", "--rounds", "2", "--envs", "2"),
    *("--workers", "1", "--quiet"),
)
"""As a user would run it: checkpoints come as often as their share of the time allows."""
MOST_KILLS = 6  # of one run, before it is let go on
BOUND = 0.03  # share of wall time


class Chaos:
    """Does things to runs."""

    def __init__(self, zygote: Zygote, place: Path) -> None:
        self._zygote, self._place = zygote, place
        began = time.monotonic()
        self._want = self._digest(self._zygote.run(*RUN, cwd=self._fresh("whole")))
        self._lasts_s = time.monotonic() - began

    def killed_at_random(self, kills: int, draw: random.Random) -> Row:
        """Chains of kills at any instant; how many runs ended otherwise, and the most steps that were done again."""
        done = runs = wrong = most = 0
        while done < kills:
            runs += 1
            cwd = self._fresh(f"random-{runs}")
            argv: Sequence[str] = RUN
            for _ in range(draw.randint(1, MOST_KILLS)):
                pid = self._zygote.start(*argv, cwd=cwd)
                time.sleep(draw.uniform(0.0, self._lasts_s))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    break  # it was faster
                done += self._zygote.wait(pid).code == -signal.SIGKILL
                if not list(cwd.glob("runs/latest/run.json")):
                    break  # nothing had begun
                argv = ("resume", "latest", "--quiet")
            else:
                wrong += self._digest(self._zygote.run("resume", "latest", "--quiet", cwd=cwd)) != self._want
                most = max(most, done_again(cwd / "runs" / "latest"))
        text = f"{wrong} of {runs} runs end with another digest; at most {most} steps done again"
        return Row("killed at random instants, topology growing", done, text, wrong == 0 and most <= 2)

    def _fresh(self, name: str) -> Path:
        path = self._place / name
        path.mkdir()
        return path

    def _digest(self, ended: Ended) -> str:
        assert ended.code == 0, ended.err
        return ended.out.splitlines()[-1]

    def cost(self) -> Row:
        """The share of the main loop's time that went into saving."""
        cwd = self._fresh("cost")
        self._digest(self._zygote.run(*COSTLY, cwd=cwd))
        spent: dict[str, float] = {}
        for _, payload in read_events(cwd / "runs" / "latest"):
            if isinstance(payload, RoundFinishedPayload):
                for phase, seconds in payload.phases:
                    spent[phase] = spent.get(phase, 0.0) + seconds
        share = spent["save"] / sum(spent.values())
        text = f"{100 * share:.2f} % of {sum(spent.values()):.0f} s (bound {100 * BOUND:.0f} %)"
        return Row("checkpoints of a run of `digits`, by default", 1, text, share <= BOUND)


def done_again(run: Path) -> int:
    """The most steps that one attempt had told and the next had to do again."""
    told: list[tuple[int, int]] = []  # of the attempt before
    now: list[tuple[int, int]] = []
    most, writer = 0, ""
    for envelope, payload in read_events(run):
        if envelope.writer != writer:
            told, now, writer = now or told, [], envelope.writer
        if isinstance(payload, RunResumedPayload):
            place = (payload.from_round, payload.from_step)
            most = max(most, len({step for step in told if step >= place}))
        if isinstance(payload, EnvStepPayload) and envelope.round is not None and envelope.step is not None:
            now.append((envelope.round, envelope.step))
    return most


def damaged(place: Path, count: int) -> Row:
    """Bits, zeros, truncations, swaps, links, missing and additional files."""
    saved(place / "store", 1, 2)
    wrong = accepted(place / "store", random.Random(0), count)
    return Row("checkpoints damaged", count, f"{len(wrong)} accepted", not wrong)


def cut_short(place: Path, every: int) -> Row:
    """Saves that end at a call that touches the disk."""
    (place / "calls").mkdir()
    kills, lost = survived(place / "calls", every)
    return Row("killed at a call within a save", kills, f"{len(lost)} lost more than that save", not lost)


def table(rows: Sequence[Row]) -> str:
    lines = ["| what was done | times | what came of it |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.what} | {row.times} | {row.outcome} |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="kills at random instants (200)")
    parser.add_argument("--damages", type=int, default=2000, metavar="N", help="checkpoints damaged (2000)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="kill at every Nth call of a save (1)")
    args = parser.parse_args(argv)
    zygote, rows = Zygote(), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        chaos, ranks = Chaos(zygote, place), RanksInTrouble(zygote, place)
        asked: list[Callable[[], Row]] = [
            lambda: chaos.killed_at_random(args.kills, random.Random(0)),
            lambda: cut_short(place, args.every),
            lambda: damaged(place, args.damages),
            chaos.cost,
            *ranks.rows(),
        ]
        for ask in asked:
            began = time.monotonic()
            rows.append(ask())
            print(f"{rows[-1].what}: {rows[-1].outcome}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        ranks.close()
    zygote.close()
    print(table(rows))
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
