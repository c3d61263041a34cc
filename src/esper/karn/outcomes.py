"""What the documents' first experiment pack expects of its runs, as checked rows. Read `EXPECTED` first.

Runs are asked by themselves, against another one (run 1, or segments of a transformer), or only for whether what was to
be watched is there to be watched. As with gates nothing is decided here: an outcome that was not as expected is a
finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esper.karn import gates
from esper.karn import surface_gates as surfaces
from esper.karn.verdicts import Cohorts, Question, Verdict, difference, judge, unjudged
from esper.leyline.statistics import Estimate, estimate

LATE_SLOTS = 0.6  # of the way through the host; slots from there on count as late


def _by_itself(name: str, asks: str, limit: str, passes: Callable[[Estimate], bool], sql: str) -> Question:
    """sql: gives (run, number) rows for the list of runs that is its parameter; several rows of a run are averaged."""

    def question(of: Cohorts) -> Verdict:
        found = of.by_seed(sql, of.treatment)
        if not found:
            return unjudged(name, asks, limit, "there was nothing to count")
        return judge(name, asks, estimate(list(found.values())), limit, passes, len(found))

    return question


def _against_run_1(name: str, asks: str, limit: str, passes: Callable[[Estimate], bool], sql: str) -> Question:
    """sql: as above; the run is compared with run 1, seed by seed."""

    def question(of: Cohorts) -> Verdict:
        if not of.control:
            return unjudged(name, asks, limit, "needs run 1")
        ours, theirs = (of.by_seed(sql, runs) for runs in (of.treatment, of.control))
        if not ours or not theirs:
            return unjudged(name, asks, limit, "there was nothing to count in one of the runs")
        found = difference(ours, theirs)
        return judge(name, asks, found, limit, passes, found.n)

    return question


def _watched(name: str, asks: str, sql: str) -> Question:
    """sql: gives (what, number) rows; the outcome is that they exist, and the numbers stand beside it."""

    def question(of: Cohorts) -> Verdict:
        rows = [(what, value) for what, value in of.rows(sql, of.treatment) if value is not None]
        note = ", ".join(f"{what} {value:.3g}" for what, value in rows)
        return Verdict(name, asks, None, None, None, "recorded", bool(rows), len(rows), note)

    return question


def _positive(found: Estimate) -> bool:
    return found.mean > 0


def _negative(found: Estimate) -> bool:
    return found.mean < 0


heavier_seeds = _by_itself(
    "heavier seeds",
    "doublings of parameters by which what was planted is heavier than the mean of the blueprints planted",
    "> 0",
    _positive,
    "select run, sum(share * size) - avg(size) from (select run, g, share, log2(greatest(params, 1)) as size "
    "from blueprint_stats where list_contains(?, run)) group by run, g having count(*) > 1",
)
late_slots = _by_itself(
    "late slots under-used",
    "share of germinations in slots of the last two fifths of the host, less the share of such slots",
    "< 0",
    _negative,
    "select run, sum(share) filter (late) - avg(late::INT) from (select run, g, share, "
    f"slot_index >= {LATE_SLOTS} * count(*) over (partition by run, g) as late from slot_usage "
    "where list_contains(?, run)) group by run, g having count(*) > 2",
)
more_prunes = _against_run_1(
    "more prunes",
    "seeds pruned per seed planted, against run 1",
    "> 0",
    _positive,
    "select run, sum(pruned) / sum(germinated) from blueprint_stats where list_contains(?, run) group by run, g",
)
less_entropy = _against_run_1(
    "pressure on entropy",
    "normalised entropy of the heads op and slot, against run 1",
    "< 0",
    _negative,
    "select run, avg(entropy) from head_health where list_contains(?, run) and head in ('op', 'slot') group by run, g",
)
no_collapse = _by_itself(
    "no collapse",
    f"most updates in a row at which the entropy of op or slot was below 0.10; {gates.COLLAPSE_UPDATES} are a collapse",
    f"< {gates.COLLAPSE_UPDATES}",
    lambda found: found.mean < gates.COLLAPSE_UPDATES,
    "select run, max(in_a_row) from entropy_collapse where list_contains(?, run) and head in ('op', 'slot') "
    "group by run, g",
)
level_events = _by_itself(
    "events of levels",
    "SEED_INTERNAL_LEVEL_CHANGED events per 100 episodes",
    "> 0",
    _positive,
    "select m.run, 100 * (select count(*) from level_changes c where c.run = m.run) "
    "/ (select nullif(count(*), 0) from episodes e where e.run = m.run) from manifest m where list_contains(?, m.run)",
)
level_sensor = _watched(
    "the sensor of levels",
    "mean of internal_level_norm in the observation statistics",
    "select sensor, avg(mean) from observations where list_contains(?, run) and sensor like '%internal_level_norm' "
    "group by sensor order by sensor",
)
internal_ops = _watched(
    "internal operations in the decisions",
    "how often each was chosen",
    "select op, count(*) from env_steps where list_contains(?, run) and is_internal group by op order by op",
)
internal_ops_and_roi = _by_itself(
    "internal operations go with ROI",
    "correlation, over episodes, of internal operations done with J",
    "> 0",
    _positive,
    "select run, corr(used, j) as found from (select e.run, e.g, e.round, e.env, any_value(e.j) as j, "
    "count(*) filter (s.is_internal and s.done) as used from episodes e join env_steps s on s.run = e.run "
    "and s.g is not distinct from e.g and s.round = e.round and s.env = e.env where list_contains(?, e.run) "
    "group by e.run, e.g, e.round, e.env) group by run, g having isfinite(found)",
)
small_steps = _by_itself(
    "small steps rather than churn",
    "GROW and SHRINK among GROW, SHRINK, GERMINATE and PRUNE that were done",
    "> 0.5",
    lambda found: found.mean > 0.5,
    "select run, avg(is_internal::INT) from env_steps where list_contains(?, run) and done "
    "and (is_internal or op in ('GERMINATE', 'PRUNE')) group by run, g",
)
WATCHED: tuple[Question, ...] = (
    _watched(
        "entropies",
        "normalised entropy of every head where it had a choice",
        "select head, avg(entropy) from head_health where list_contains(?, run) group by head order by head",
    ),
    _watched(
        "decisions that were done",
        "share of every operation that was asked for",
        "select op, avg(done::INT) from env_steps where list_contains(?, run) group by op order by op",
    ),
    _watched(
        "fates",
        "seeds fossilised and pruned per seed planted",
        "select unnest(['fossilised', 'pruned']), unnest([sum(fossilized), sum(pruned)]) / sum(germinated) "
        "from blueprint_stats where list_contains(?, run)",
    ),
    _watched(
        "durations",
        "mean steps in each stage",
        "select stage, sum(mean_steps * spans) / sum(spans) from stage_durations where list_contains(?, run) "
        "group by stage order by stage",
    ),
    _watched(
        "rent and alpha shock",
        "effective parameters per parameter of the host, and mean of the term per episode that has one",
        "select 'effective parameters', avg(s.effective_params / e.host_params) from env_steps s join episodes e "
        "on e.run = s.run and e.g is not distinct from s.g and e.round = s.round and e.env = s.env "
        "where list_contains(?1, s.run) "
        "union all select term, avg(paid) from (select term, sum(value) as paid from reward_long "
        "where list_contains(?1, run) and term = 'alpha_shock' group by term, run, g, round, env) group by term",
    ),
    _watched(
        "governor and learner",
        "rollbacks per 100 episodes, updates skipped, largest gradient norm",
        "select unnest(['rollbacks', 'skipped', 'gradient norm']), unnest([(select 100 * avg(rollbacks) from episodes "
        "where list_contains(?1, run)), count(skipped), max(grad_norm)]) from ppo_updates where list_contains(?1, run)",
    ),
)

EXPECTED: Mapping[int, tuple[Question, ...]] = {
    1: (heavier_seeds, late_slots, *WATCHED),
    2: (more_prunes, less_entropy, no_collapse, gates.invalid_actions, gates.rollbacks, *WATCHED),
    3: (level_events, level_sensor, internal_ops, internal_ops_and_roi, gates.dominance, small_steps, *WATCHED),
    4: (surfaces.quality_per_rent, surfaces.placement, surfaces.small_steps, *WATCHED),
}
"""By the number of the run in the pack."""
