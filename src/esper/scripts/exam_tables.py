"""The table of an exam, in Markdown, and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from esper.leyline.config import encode
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.statistics import Estimate, estimate, paired_difference, seed_means
from esper.leyline.task import Metric
from esper.scripts.exam_arms import HostResult, RunResult
from esper.scripts.exam_searches import Searched
from esper.simic.agent.config import TeacherConfig
from esper.simic.experiments.schedules import Schedule
from esper.tamiyo.config import HeuristicConfig

PPO, SHUFFLED = "ppo", "ppo-shuffled"
TITLES: dict[str, str] = {
    PPO: "PPO",
    SHUFFLED: "PPO with shuffled sensors",
    "schedule": "best fixed schedule",
    "heuristic": "tuned heuristic",
    "periodic": "periodic",
    "random": "random, as many operations",
    "static": "never grown",
}
"""What the arms are called, in the order of the rows."""

RIVALS = tuple(name for name in TITLES if name not in (PPO, SHUFFLED))


@dataclass(frozen=True)
class Exam:
    """What was found. The hosts of every arm are the same, in the same order, equally many of each seed."""

    task: str
    metric: Metric
    rent: float
    stand_in: str  # why this is no exam; empty where it is one
    hosts: Mapping[str, Sequence[HostResult]]  # by arm
    training: RunResult
    teacher: TeacherConfig  # of PPO
    scheduled: Searched[Schedule]
    tuned: Searched[HeuristicConfig]

    def against(self, rival: str) -> Estimate:
        """J of PPO minus that of the rival, seed by seed."""
        return paired_difference(self.worth(PPO), self.worth(rival))

    @property
    def digits(self) -> int:
        """Decimals of means over many hosts."""
        return self.metric.digits + 1

    def worth(self, arm: str) -> list[float]:
        """Of every held-out seed, J of the arm, the mean over the seed's hosts."""
        return seed_means((host.seed, host.j) for host in self.hosts[arm])


def report(exam: Exam, command_line: Sequence[str]) -> str:
    """The whole of `table.md`."""
    held_out, training = exam.hosts[PPO], exam.training
    schedules, settings = exam.scheduled, exam.tuned
    seeds = len(exam.worth(PPO))
    lines = [f"**A stand-in, not an exam: {exam.stand_in}.**", ""] if exam.stand_in else []
    lines += [
        f"`esper {' '.join(command_line)}`: {seeds} held-out seeds of {len(held_out) // seeds} hosts each, the same "
        f"for all arms. J = {_better(exam.metric)} in {exam.metric.points} - {exam.rent:g} x log2(exported / host "
        "parameters), of a seed the mean over its hosts; ± and [ ] are 95 % intervals over seeds.",
        "",
        _table(exam),
        "",
        f"PPO trained on {training.episodes} episodes in {training.cpu_seconds / 60:.1f} CPU minutes, seed "
        f"{training.seed}; return (sum of rewards), mean of the first and of the last tenth of its rounds: "
        f"{_from_to(training.means(), exam.metric.digits)}. {_taught(exam)}The searches tried "
        f"{_tried(schedules, 'schedules')}, and "
        f"{_tried(settings, 'settings of the heuristic')}.",
        "",
        *_words(exam),
        "",
        f"The best fixed schedule: {in_words(schedules.found.best)}. The heuristic, tuned: "
        f"{settings_in_words(settings.found.best)}.",
    ]
    return "\n".join(lines)


def _better(metric: Metric) -> str:
    """The test metric, more being better."""
    return f"{'' if metric.higher_is_better else '-'}test {metric.name}"


def _tried(searched: Searched[Any], what: str) -> str:
    found = searched.found
    return f"{found.candidates} {what} in {found.episodes} episodes and {searched.cpu_minutes:.1f} CPU minutes"


def _taught(exam: Exam) -> str:
    rule, rounds = exam.teacher.rule, exam.teacher.rounds
    if rule is None:
        return ""
    return f"In the first {rounds} of its {len(exam.training.returns)} rounds it imitated {TITLES.get(rule, rule)}. "


def _table(exam: Exam) -> str:
    head = (
        "arm",
        f"J ({exam.metric.points})",
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
    tests = [(host.seed, host.test_metric) for host in hosts if host.test_metric is not None]
    lost = len(hosts) - len(tests)
    digits = exam.digits
    shown = _shown(estimate(seed_means(tests)), digits) if tests else "–"
    return (
        TITLES[arm],
        _shown(estimate(exam.worth(arm)), digits),
        "" if arm == PPO else _signed(exam.against(arm), digits),
        shown + (f" ({lost} diverged)" if lost else ""),
        f"{fmean(host.params for host in hosts):.0f}",
        f"{fmean(host.flops for host in hosts) / 1e9:.1f}",
        f"{fmean(host.operations for host in hosts):.1f}",
    )


def _words(exam: Exam) -> list[str]:
    """A sentence per rival, whether PPO looks, and the verdict."""
    lines = [f"- Against {TITLES[rival]}: {_outcome(exam.against(rival), exam.digits)}." for rival in RIVALS]
    gain = exam.against(SHUFFLED)
    sees = (
        "PPO acts on what it sees: shuffled sensors lower its J"
        if gain.says > 0
        else ("PPO acts as a fixed schedule: shuffled sensors do not lower its J")
    )
    return [*lines, f"- {sees}, {_interval(gain, exam.digits)}.", "", verdict(exam)]


def verdict(exam: Exam) -> str:
    """Who won, in a sentence. Where arms are equal, the one that does less is called the best."""
    says: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for rival in RIVALS:
        says[exam.against(rival).says].append(_called(rival))
    phrases = {-1: "lost to", 0: "was not told apart from", 1: "beat"}
    parts = [f"{phrases[sign]} {_listed(names)}" for sign in (-1, 0, 1) if (names := says[sign])]
    best = max(reversed(TITLES), key=lambda arm: fmean(exam.worth(arm)))
    return (
        f"**PPO {'; it '.join(parts)}.** Best mean J: {TITLES[best]}, {fmean(exam.worth(best)):.{exam.metric.digits}f}."
    )


def in_words(schedule: Schedule) -> str:
    """What a schedule does, epoch by epoch, epochs with nothing to do left out."""
    acts = [(epoch, decision) for epoch, decision in enumerate(schedule) if decision["op"] != LifecycleOp.WAIT.name]
    told = (f"{epoch} {' '.join(decision.values())}" for epoch, decision in acts)
    return "; ".join(told) or "never grow"


def settings_in_words(settings: HeuristicConfig) -> str:
    """Those that are not the usual ones."""
    usual, found = encode(HeuristicConfig()), encode(settings)
    changed = [f"{name}={_listed_plainly(value)}" for name, value in found.items() if value != usual[name]]
    return ", ".join(changed) or "the usual settings"


def _listed_plainly(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


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
        "search": _searched_as_dict(exam.scheduled) | {"schedule": list(exam.scheduled.found.best)},
        "tuning": _searched_as_dict(exam.tuned) | {"settings": encode(exam.tuned.found.best)},
    }


def _searched_as_dict(searched: Searched[Any]) -> dict[str, object]:
    found = searched.found
    return {
        "runs": [stage.run for stage in searched.stages],
        "candidates": found.candidates,
        "episodes": found.episodes,
        "gain": found.gain,
    }


def _estimate_as_dict(gain: Estimate) -> dict[str, float | int | None]:
    return {"mean": gain.mean, "low": gain.low, "high": gain.high, "seeds": gain.n}


def _from_to(means: Sequence[float], digits: int) -> str:
    tenth = max(1, len(means) // 10)
    return f"{fmean(means[:tenth]):.{digits}f} and {fmean(means[-tenth:]):.{digits}f}"


def _outcome(gain: Estimate, digits: int) -> str:
    won = {1: "PPO won", -1: "PPO lost", 0: "no clear difference"}[gain.says]
    return f"{won}, {_interval(gain, digits)}"


def _interval(gain: Estimate, digits: int) -> str:
    return f"{gain.mean:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"


def _called(arm: str) -> str:
    return {"static": "the host never grown", "random": "random operations"}.get(arm, f"the {TITLES[arm]}")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(value: Estimate, digits: int) -> str:
    text = f"{value.mean:.{digits}f}"
    return text if value.half_width is None else f"{text} ± {value.half_width:.{digits}f}"


def _signed(value: Estimate, digits: int) -> str:
    return f"{value.mean:+.{digits}f} ± {value.half_width:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
