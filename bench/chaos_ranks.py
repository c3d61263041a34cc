"""What do death, silence and disagreement of a rank cost a run? Rows for `bench.chaos`, one for each kind of trouble.

Real processes and real gloo throughout. What two ranks do in a case is in `tests/ddp/cases.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tests.ddp import cases
from tests.ddp.launched import ALWAYS, HOST, PPO, RULE, Ranks, newest, until
from tests.ddp.pair import Pair, free_port
from tests.scripts.zygote import Zygote

import esper
from bench.chaos_rows import Row
from esper.leyline.errors import ExitCode
from esper.leyline.factored_actions import OPS
from esper.leyline.telemetry import RanksTroubledPayload
from esper.nissa.reader import read_events

LONG = ("--rounds", "400")
SOON_S = 3.0
SOON = ("--set", f"run.ranks.timeout_s={SOON_S:g}")
LIMIT_S = 5.0  # for all ranks to end once it is known that one is lost
PLACES: tuple[tuple[Sequence[str], int, str], ...] = (
    ((), 0, "run.step=kill@5"),
    ((), 0, "checkpoint.rename=kill@2"),
    ((), 1, "ranks.answer=kill@5"),
    (HOST, 0, "ranks.collective=kill@20"),
    (HOST, 0, "ranks.collected=kill@20"),
    (HOST, 0, "checkpoint.before_manifest=kill@2"),
    (HOST, 1, "ranks.collective=kill@20"),
    (HOST, 1, "ranks.collected=kill@20"),
)


class RanksInTrouble:
    """Asks one question after the other."""

    def __init__(self, zygote: Zygote, place: Path) -> None:
        self._zygote, self._place, self._count = zygote, place, 0

    @cached_property
    def _pair(self) -> Pair:
        return Pair()

    def close(self) -> None:
        self._pair.close()

    def rows(self) -> Iterator[Callable[[], Row]]:
        """One question each."""
        yield self.died
        yield self.disagreed
        yield self.drifted
        yield self.counted_otherwise
        yield self.late
        yield self.not_a_number
        yield self.taken_back
        yield self.started_again
        yield self.grown
        yield self.unlike

    # --- whole runs ---------------------------------------------------------------------------------------------

    def died(self) -> Row:
        """D1: at named places and, while the others wait in a sum, at any instant."""
        worst, named, right = 0.0, 0, 0
        draw = random.Random(0)
        whole: list[tuple[Sequence[str], int, str | None]] = [*PLACES, *((HOST, victim, None) for victim in (0, 1) * 3)]
        for parallel, victim, plan in whole:
            cwd = self._fresh()
            faults = {} if plan is None else {victim: plan}
            ranks = Ranks(self._zygote, cwd, "train", *RULE, *LONG, *parallel, *ALWAYS, faults=faults)
            if plan is None:
                until(lambda cwd=cwd: (cwd / "runs" / "latest").exists())  # type: ignore[misc]
                time.sleep(draw.uniform(0.0, 1.0))
                ranks.hit(victim, signal.SIGKILL)
            dead, other = ranks.wait(victim)[victim], ranks.wait(1 - victim)[1 - victim]
            worst = max(worst, other.seconds - dead.seconds)
            right += (dead.code, other.code) == (-signal.SIGKILL, ExitCode.RANKS)
            named += f"rank {victim} died" in other.err
        text = f"{right} end with 6, {named} name the rank, after {worst:.2f} s at most"
        return Row("D1 a rank is killed", len(whole), text, right == named == len(whole) and worst <= LIMIT_S)

    def late(self) -> Row:
        """D5: slow, stopped and asleep."""
        slow = Ranks(self._zygote, cwd := self._fresh(), "train", *RULE, faults={1: "ranks.answer=sleep:2@10"}).wait()
        told = [payload for _, payload in read_events(newest(cwd)) if isinstance(payload, RanksTroubledPayload)]
        warned = slow[0].code == 0 and [(each.kind, each.ranks) for each in told] == [("slow", (1,))]
        worst, right, times = 0.0, 0, 0
        for parallel in ((), HOST):
            for silent in (True, False):
                seconds, said = self._hung(parallel, silent)
                worst, right, times = max(worst, seconds), right + said, times + 1
        text = f"a slow one is told of; {right} of {times} that hang are named, {worst:.1f} s after the limit at most"
        return Row("D5 a rank is late", times + 1, text, warned and right == times and worst <= LIMIT_S)

    def _hung(self, parallel: Sequence[str], silent: bool) -> tuple[float, bool]:
        """Seconds beyond the limit, and whether rank 1 was named and all that could end did so with 6."""
        site = "ranks.collective" if parallel else "ranks.answer"
        cwd, faults = self._fresh(), {} if silent else {1: f"{site}=sleep:60@30"}
        ranks = Ranks(self._zygote, cwd, "train", *RULE, *LONG, *SOON, *parallel, faults=faults)
        until(lambda: (cwd / "runs" / "latest").exists())
        if silent:
            ranks.hit(1, signal.SIGSTOP)
        left = ranks.wait(0)[0]
        if silent:
            os.kill(ranks.pids[1], signal.SIGKILL)
        other = ranks.wait(1)[1]
        named = "rank 1" in left.err and left.code == ExitCode.RANKS
        return max(0.0, left.seconds - SOON_S), named and (silent or other.code == ExitCode.RANKS)

    def started_again(self) -> Row:
        """D8: by the launcher itself."""
        cwd = self._fresh()
        want = self._zygote.run("train", *PPO, "--workers", "1", "--quiet", cwd=cwd).out.splitlines()[-1]
        launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1")
        port = ("--master-port", str(free_port()))
        program = ("-m", "esper.scripts.train", *PPO, *ALWAYS, "--quiet")
        environment = os.environ | {"ESPER_FAULTS": "run.step=kill@8", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [*launcher, *port, *program], cwd=self._fresh(), env=environment, capture_output=True, text=True
        )
        same = ended.returncode == 0 and ended.stdout.splitlines()[-1] == want
        text = "goes on to the digest of one process" if same else ended.stderr[-200:]
        return Row("D8 torchrun --max-restarts 1, rank 0 is killed", 1, text, same)

    def unlike(self) -> Row:
        """D10: settings, data, code."""
        other = ("train", *RULE, "--set", "task.lr=0.123")
        settings = Ranks(self._zygote, self._fresh(), "train", *RULE, others={1: other}).wait()
        found = [settings[0].code == ExitCode.RANKS and "rank 1 has another setting task.lr" in settings[0].err]
        with_pair = self._pair.ask(cases.with_other_data)
        found.append(all("rank 1 has another data" in str(answer) for answer in with_pair))
        found.append("rank 1 has another version of the code" in self._with_other_code())
        text = f"{sum(found)} refused by name at the start (settings, data, code)"
        return Row("D10 ranks start with something else", len(found), text, all(found))

    def _with_other_code(self) -> str:
        """What rank 0 says where rank 1 runs a copy of the program with one more comment."""
        cwd = self._fresh()
        copied = cwd / "src"
        shutil.copytree(Path(esper.__file__).parent, copied / "esper", ignore=shutil.ignore_patterns("__pycache__"))
        with (copied / "esper" / "leyline" / "stages.py").open("a") as file:
            file.write("# another version\n")
        port, started = str(free_port()), []
        for rank in (0, 1):
            where = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            source = str(copied if rank else Path(esper.__file__).parents[1])
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "esper.scripts.train", *RULE, "--quiet"],
                    cwd=cwd,
                    env=os.environ | where | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate(timeout=120)[1] for process in started]
        return said[0]

    # --- pairs --------------------------------------------------------------------------------------------------

    def disagreed(self) -> Row:
        """D2: before every operation, another level; another decision; another stream."""
        caught = untouched = 0
        for op in OPS:
            for error, same in self._pair.ask(cases.with_another_level, op):
                caught += error.field.startswith("environment 0, slot r0c0: ")
                untouched += same
        for case in (cases.with_another_decision, cases.with_another_stream):
            caught += sum(error.ranks == (1,) for error in self._pair.ask(case))
        times = 2 * (len(OPS) + 2)
        text = f"{caught} of {times} ranks name field and rank; weights untouched in {untouched} of {2 * len(OPS)}"
        return Row("D2 ranks differ before an operation", len(OPS) + 2, text, caught == times and untouched == 16)

    def drifted(self) -> Row:
        """D3: by one unit in the last place."""
        most = found = times = 0
        for every, after in ((1, 1), (1, 5), (4, 3), (4, 8)):
            for error, later in self._pair.ask(cases.with_a_drift, every, after):
                found, most, times = found + (error.ranks == (1,)), max(most, later), times + 1
        text = f"{found} of {times} ranks name it, {most} steps later at most (compared every 1 or 4)"
        return Row("D3 a weight drifts by an ulp", times // 2, text, found == times and most < 4)

    def counted_otherwise(self) -> Row:
        """D4: which torch would answer by ending the process."""
        answers = self._pair.ask(cases.with_a_frozen_parameter)
        named = [error.field == "environment 0: parameters" for error in answers]
        return Row("D4 a rank has fewer gradients", 1, "caught before the sum on both ranks", all(named))

    def not_a_number(self) -> Row:
        """D6."""
        first, second = self._pair.ask(cases.with_spoilt_losses, float("nan"))
        kept = first == second and first.untouched
        return Row("D6 a loss is not finite on one rank", 1, "both skip, digests equal" if kept else "differ", kept)

    def taken_back(self) -> Row:
        """D7."""
        first, second = self._pair.ask(cases.with_spoilt_losses, 30.0)
        kept = first == second and first.rollbacks == 1
        return Row("D7 a loss explodes on one rank", 1, "both roll back, digests equal" if kept else "differ", kept)

    def grown(self) -> Row:
        """D9: against one process on the whole batch."""
        furthest: dict[torch.dtype, float] = {}
        for dtype in (torch.float32, torch.float64):
            (weights, digest), (_, other) = self._pair.ask(cases.weights_after_growth, dtype)
            with cases.all_in(dtype):
                alone = cases.weights(cases.grown_life(None))
            assert digest == other
            furthest[dtype] = max(float((weights[name] - value).abs().max()) for name, value in alone.items())
        single, double = furthest[torch.float32], furthest[torch.float64]
        text = f"weights differ by {single:.1e} in float32, {double:.1e} in float64, at most"
        return Row("D9 a host grows, against one process", 2, text, single < 3e-6 and double < 1e-14)

    def _fresh(self) -> Path:
        self._count += 1
        path = self._place / f"ranks-{self._count}"
        path.mkdir()
        return path
