"""The table of an exam, in Markdown, and what it says in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.task import Metric
from esper.scripts.exam_arms import HostResult, RunResult
from esper.simic.experiments.halving import Found
from esper.simic.experiments.schedules import Schedule
from esper.simic.experiments.statistics import Estimate, estimate, paired_difference

PPO, SHUFFLED = "ppo", "ppo-shuffled"
TITLES: dict[str, str] = {
    PPO: "PPO",
    SHUFFLED: "PPO with shuffled sensors",
    "schedule": "best fixed schedule",
    "heuristic": "heuristic",
    "periodic": "periodic",
    "random": "random, as many operations",
    "static": "never grown",
}
"""What the arms are called, in the order of the rows."""

RIVALS = tuple(name for name in TITLES if name not in (PPO, SHUFFLED))


@dataclass(frozen=True)
class Exam:
    """What was found. The hosts of every arm are the same, in the same order."""

    task: str
    metric: Metric
    rent: float
    stand_in: str  # why this is no exam; empty where it is one
    hosts: Mapping[str, Sequence[HostResult]]  # by arm
    training: RunResult
    stages: Sequence[RunResult]  # of the search
    found: Found

    def against(self, rival: str) -> Estimate:
        """J of PPO minus that of the rival, host by host."""
        return paired_difference(self.values(PPO, _j), self.values(rival, _j))

    def values(self, arm: str, of: Callable[[HostResult], float]) -> list[float]:
        return [of(host) for host in self.hosts[arm]]


def _j(host: HostResult) -> float:
    return host.j


def report(exam: Exam, command_line: Sequence[str]) -> str:
    """The whole of `table.md`."""
    held_out, training, found = exam.hosts[PPO], exam.training, exam.found
    seeds = list(dict.fromkeys(host.seed for host in held_out))
    searched, trained = sum(stage.cpu_seconds for stage in exam.stages), training.cpu_seconds
    lines = [f"**A stand-in, not an exam: {exam.stand_in}.**", ""] if exam.stand_in else []
    lines += [
        f"`esper {' '.join(command_line)}`: {len(held_out)} held-out hosts, {len(held_out) // len(seeds)} of each "
        f"seed of {', '.join(map(str, seeds))}, the same for all arms. J = test {exam.metric.name} in points - "
        f"{exam.rent:g} x log2(exported / host parameters); ± and [ ] are 95 % intervals.",
        "",
        _table(exam),
        "",
        f"PPO trained on {training.episodes} episodes in {trained / 60:.1f} CPU minutes, seed {training.seed}; J on "
        f"validation, mean of the first and of the last tenth of its rounds: {_from_to(training.means())}. The search "
        f"tried {found.candidates} schedules in {found.episodes} episodes and {searched / 60:.1f} CPU minutes.",
        "",
        *_words(exam),
        "",
        f"The best fixed schedule: {in_words(found.schedule)}.",
    ]
    return "\n".join(lines)


def _table(exam: Exam) -> str:
    head = (
        "arm",
        "J (points)",
        "PPO - this arm",
        f"test {exam.metric.name} ({exam.metric.unit})",
        "exported parameters",
        "training GFLOPs",
        "operations per episode",
    )
    rows = [_row(head), _row(("---", *["---:"] * (len(head) - 1)))]
    return "\n".join([*rows, *(_row(_cells(exam, arm)) for arm in TITLES)])


def _cells(exam: Exam, arm: str) -> tuple[str, ...]:
    hosts = exam.hosts[arm]
    tests = [host.test_metric for host in hosts if host.test_metric is not None]
    lost = len(hosts) - len(tests)
    shown = _shown(estimate(tests)) if tests else "–"
    return (
        TITLES[arm],
        _shown(estimate(exam.values(arm, _j))),
        "" if arm == PPO else _signed(exam.against(arm)),
        shown + (f" ({lost} diverged)" if lost else ""),
        f"{fmean(host.params for host in hosts):.0f}",
        f"{fmean(host.flops for host in hosts) / 1e9:.1f}",
        f"{fmean(host.operations for host in hosts):.1f}",
    )


def _words(exam: Exam) -> list[str]:
    """A sentence per rival, whether PPO looks, and the verdict."""
    lines = [f"- Against {TITLES[rival]}: {_outcome(exam.against(rival))}." for rival in RIVALS]
    gain = exam.against(SHUFFLED)
    sees = (
        "PPO acts on what it sees: shuffled sensors lower its J"
        if gain.says > 0
        else ("PPO acts as a fixed schedule: shuffled sensors do not lower its J")
    )
    return [*lines, f"- {sees}, {_interval(gain)}.", "", verdict(exam)]


def verdict(exam: Exam) -> str:
    """Who won, in a sentence. Where arms are equal, the one that does less is called the best."""
    says: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for rival in RIVALS:
        says[exam.against(rival).says].append(_called(rival))
    phrases = {-1: "lost to", 0: "was not told apart from", 1: "beat"}
    parts = [f"{phrases[sign]} {_listed(names)}" for sign in (-1, 0, 1) if (names := says[sign])]
    best = max(reversed(TITLES), key=lambda arm: fmean(exam.values(arm, _j)))
    return f"**PPO {'; it '.join(parts)}.** Best mean J: {TITLES[best]}, {fmean(exam.values(best, _j)):.1f}."


def in_words(schedule: Schedule) -> str:
    """What a schedule does, epoch by epoch, epochs with nothing to do left out."""
    acts = [(epoch, decision) for epoch, decision in enumerate(schedule) if decision["op"] != LifecycleOp.WAIT.name]
    told = (f"{epoch} {' '.join(decision.values())}" for epoch, decision in acts)
    return "; ".join(told) or "never grow"


def as_dict(exam: Exam) -> dict[str, object]:
    """`table.json`: everything that the table was made from."""
    return {
        "task": exam.task,
        "metric": exam.metric.name,
        "unit": exam.metric.unit,
        "rent": exam.rent,
        "stand_in": exam.stand_in,
        "verdict": verdict(exam),
        "against": {arm: _estimate_as_dict(exam.against(arm)) for arm in TITLES if arm != PPO},
        "arms": {arm: [vars(host) for host in exam.hosts[arm]] for arm in TITLES},
        "training": {"run": exam.training.run, "seed": exam.training.seed, "means": exam.training.means()},
        "search": {
            "runs": [stage.run for stage in exam.stages],
            "candidates": exam.found.candidates,
            "episodes": exam.found.episodes,
            "gain": exam.found.gain,
            "schedule": list(exam.found.schedule),
        },
    }


def _estimate_as_dict(gain: Estimate) -> dict[str, float | int | None]:
    return {"mean": gain.mean, "low": gain.low, "high": gain.high, "hosts": gain.n}


def _from_to(means: Sequence[float]) -> str:
    tenth = max(1, len(means) // 10)
    return f"{fmean(means[:tenth]):.1f} and {fmean(means[-tenth:]):.1f}"


def _outcome(gain: Estimate) -> str:
    won = {1: "PPO won", -1: "PPO lost", 0: "no clear difference"}[gain.says]
    return f"{won}, {_interval(gain)}"


def _interval(gain: Estimate) -> str:
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _called(arm: str) -> str:
    return {"static": "the host never grown", "random": "random operations"}.get(arm, f"the {TITLES[arm]}")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(value: Estimate) -> str:
    text = f"{value.mean:.2f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.2f}"


def _signed(value: Estimate) -> str:
    return f"{value.mean:+.2f} ± {value.half_width:.2f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
