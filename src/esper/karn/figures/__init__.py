"""Every figure there is: its name, the question that it answers, and how it is to be read. Read `PANELS`.

    con = open_memory([Path("runs/20261120-140233-digits-a1b2c3")]).con
    draw("lanes", con, ["20261120-140233-digits-a1b2c3"])        # a Plotly figure, a Table, or Nothing with a reason

Reports, screens and notebooks draw from this list alone. A figure is made of views of `views.sql` and knows no files.
`canvas.py` is what figures are made with; `hosts.py` draws an episode step by step, `rounds.py` what changes from
round to round, `learner.py` the policy, `seeds.py` what became of seeds, `comparison.py` runs beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import plotly.graph_objects as go

from esper.karn.figures import comparison, hosts, learner, rounds, seeds
from esper.karn.figures.canvas import Drawn, Host, Line, Nothing, Subject, Table, lines_of, subject, titled
from esper.leyline.errors import ConfigError, did_you_mean

__all__ = [
    "PANELS",
    "Drawn",
    "Host",
    "Line",
    "Nothing",
    "Panel",
    "Subject",
    "Table",
    "draw",
    "lines_of",
    "panel",
    "subject",
]


@dataclass(frozen=True)
class Panel:
    """One figure or table. `together`: it shows several lines beside each other, the others show the first."""

    name: str
    question: str
    reading: str  # a sentence: how to read it
    make: Callable[[Subject], Drawn]
    together: bool = False

    def draw(self, of: Subject) -> Drawn:
        """With its question as title."""
        drawn = self.make(of)
        return titled(drawn, self.question) if isinstance(drawn, go.Figure) else drawn


PANELS: dict[str, Panel] = {
    each.name: each
    for each in (
        Panel(
            "comparison",
            "How do the runs compare?",
            "± is a 95 % interval over the episodes of the last fifth of the rounds, or over seeds; "
            "J = test metric less rent for every doubling of the parameters of the run's own host.",
            comparison.comparison,
            together=True,
        ),
        Panel(
            "worth",
            "What did each run reach, and with how many parameters?",
            "Below the dotted line a run is worth less than the best one, once rent is paid. Seeds of the same "
            "settings are one point; bars are 95 % intervals.",
            comparison.worth,
            together=True,
        ),
        Panel(
            "progress",
            "Does it get better from round to round?",
            "Means over the episodes of a round; hollow symbols are the test split, which nothing learns from.",
            rounds.progress,
            together=True,
        ),
        Panel(
            "gates",
            "Which gates hold?",
            "Every run by itself; gates that need a control are judged by the command: esper gates RUN --vs CONTROL.",
            comparison.judged,
            together=True,
        ),
        Panel(
            "growth",
            "How good did the host become, and how big?",
            "The host of the last finished round that was worth most. Letters below are the stages that seeds entered; "
            "the star is the test split, without the seeds that were not kept.",
            hosts.growth,
        ),
        Panel(
            "lanes",
            "What lived in each slot, and when?",
            "One lane per slot of the same episode; every bar is a stage with its letter, the digits below a "
            "ladder are its level, and R is where the governor took a step back.",
            hosts.lanes,
        ),
        Panel(
            "operations",
            "What was decided, round by round?",
            "Shares of all decisions of a round, done or refused.",
            rounds.operations,
        ),
        Panel(
            "choices",
            "What was chosen besides the operation?",
            "One bar per head, over the whole run and over the decisions that the head mattered to.",
            rounds.choices,
        ),
        Panel(
            "entropy",
            "How open is the policy still?",
            "Normalised entropy of every head where it had a choice; 0 means that it always does the same.",
            learner.entropies,
        ),
        Panel(
            "health",
            "Does the policy learn soundly?",
            "One value per update; dotted lines are what the settings ask for.",
            learner.health,
        ),
        Panel(
            "values",
            "What does the critic expect of each operation?",
            "Mean over the states of a round of the return expected after each operation.",
            learner.operation_values,
        ),
        Panel(
            "rewards",
            "What was the reward made of, round by round?",
            "Weighted terms of a mean episode stand on each other, gains above and costs below zero; the line is their "
            "sum. Shaping terms that telescope add up to nothing.",
            rounds.rewards,
        ),
        Panel(
            "reward",
            "What was the reward of the episode made of?",
            "The same step by step, of the episode shown above.",
            rounds.reward,
        ),
        Panel(
            "planted",
            "Which blueprints were planted, and which were kept?",
            "Seeds of the whole run; those neither kept nor pruned were alive when their episode ended.",
            seeds.planted,
        ),
        Panel(
            "rent",
            "Do seeds bring more than their rent?",
            "Mean of the last leave-one-out measurement of each seed, by blueprint and level (L); "
            "above the dotted line it is more than the rent of the seed's parameters.",
            seeds.rent,
        ),
        Panel(
            "churn",
            "Are levels changed with a purpose, or back and forth?",
            "Many changes with a net change near zero, and reversals, are thrash.",
            seeds.churn,
        ),
        Panel(
            "levels",
            "What did a change of level bring?",
            "Change of the metric after decisions, with 95 % intervals over decisions; hosts also learn meanwhile, so "
            "only the last column, measured with and without the change, is the change's own doing.",
            seeds.level_effects,
        ),
        Panel(
            "time",
            "Where did the time go?",
            "Seconds of each phase of the main loop, and steps of all environments per second.",
            rounds.time,
        ),
    )
}
"""In the order in which a report shows them."""


def panel(name: str) -> Panel:
    """Raises ConfigError for a name that is not in the list."""
    if name not in PANELS:
        raise ConfigError(f"figure {name!r}: there is none{did_you_mean(name, PANELS)}; there are {', '.join(PANELS)}")
    return PANELS[name]


def draw(name: str, con: duckdb.DuckDBPyConnection, runs: Sequence[str], host: Host | None = None) -> Drawn:
    """The figure of these runs, of a database with the views. Raises ConfigError for an unknown name."""
    return panel(name).draw(subject(con, lines_of(con, runs), host))
