"""The phase-0 gates: did growing in small steps pay, without thrash, collapse or breakage? Read `GATES` first.

Each gate asks one question of a cohort, the runs of one treatment with a seed each, and where the question is "better
than what?" of a control cohort too. A gate answers with a number, its interval, its limit and a verdict; the verdict is
None where there is nothing to judge, and `note` says why. Nothing here decides anything: a failed gate blocks nothing.
"""

from __future__ import annotations

from statistics import fmean

from esper.karn.verdicts import (
    Cohorts,
    Question,
    Verdict,
    difference,
    judge,
    shown,
    unjudged,
)
from esper.leyline.statistics import estimate, point_in

USAGE, HEAVY, COLLAPSE_UPDATES, ROLLBACKS = 0.10, "conv_heavy", 5, 1.0
RATE, CONVERGENCE = 0.10, 0.25
_NO_CONTROL = "no such episode of the control came to a sound end"
SAME_POINTS = 0.5  # what is no loss of ROI, and what a shrink that cost nothing may move
LATE = 0.8  # of the rounds; what a policy does after them counts as trained


# --- the questions -------------------------------------------------------------------------------------------------


def usage(of: Cohorts) -> Verdict:
    asks = "internal operations among decisions besides WAIT while a ladder seed lives, last fifth of the rounds"
    rows = of.rows(
        "select run, sum(internal), sum(acting), sum(uniform_share * steps) / sum(steps) from internal_usage "
        "where list_contains(?, run) and late group by run",
        of.treatment,
    )
    shares = [internal / acting for _, internal, acting, _ in rows if acting]
    acting = sum(int(row[2]) for row in rows)
    if not shares:
        return unjudged("usage", asks, f">= {USAGE:.0%}", "no decision was taken while a ladder seed lived")
    even = [row[3] for row in rows if row[3] is not None]
    note = f"{sum(even) / len(even):.1%} if all that was possible had been as likely" if even else ""
    return judge("usage", asks, estimate(shares), f">= {USAGE:.0%}", lambda found: found.mean >= USAGE, acting, note)


def dominance(of: Cohorts) -> Verdict:
    asks, limit = f"share of {HEAVY} among germinations, against the control, ROI not lower", "< 0"
    if not of.control:
        return unjudged("dominance", asks, limit, "needs a control")
    sql = (
        "select run, coalesce(sum(germinated) filter (blueprint_id = ?2), 0) / sum(germinated) from blueprint_stats "
        "where list_contains(?1, run) group by run"
    )
    ours, theirs = (of.by_seed(sql, runs, HEAVY) for runs in (of.treatment, of.control))
    offered = of.rows(
        "select count(*) from choices where list_contains(?, run) and head = 'blueprint' and choice = ?",
        of.treatment,
        HEAVY,
    )
    if not ours or not theirs:
        return unjudged("dominance", asks, limit, "nothing was planted in one of the cohorts")
    found = difference(ours, theirs)
    if offered == [(0,)]:
        return judge("dominance", asks, found, limit, lambda _: None, found.n, f"vacuous: {HEAVY} is not offered")
    return judge("dominance", asks, found, limit, lambda each: each.mean < 0 and roi(of).passed, found.n)


def _slack(of: Cohorts) -> float:
    """What counts as no difference, in the unit of the treatment's metric; points where its manifest names none."""
    units = of.rows("select distinct unit from manifest where list_contains(?, run)", of.treatment)
    return SAME_POINTS * min((point_in(None if unit is None else str(unit)) for (unit,) in units), default=1.0)


def roi(of: Cohorts) -> Verdict:
    least = -_slack(of)
    asks = "test metric less rent of the parameters, last fifth of the rounds, against the control"
    limit = f">= {least:g}"
    sql = (
        "select e.run, avg(e.j) from episodes e join manifest m using (run) "
        "where list_contains(?, e.run) and e.round >= floor(? * m.rounds) group by e.run"
    )
    ours = of.by_seed(sql, of.treatment, LATE)
    if not ours:
        return unjudged("ROI", asks, limit, "no episode of the last fifth of the rounds came to a sound end")
    if not of.control:
        return unjudged("ROI", asks, limit, f"needs a control; by itself {fmean(ours.values()):.2f}")
    theirs = of.by_seed(sql, of.control, LATE)
    if not theirs:
        return unjudged("ROI", asks, limit, f"{_NO_CONTROL}; by itself {fmean(ours.values()):.2f}")
    found = difference(ours, theirs)
    beside = (
        "select avg(e.test_metric), avg(e.params) from episodes e join manifest m using (run) "
        "where list_contains(?, e.run) and e.round >= floor(? * m.rounds)"
    )
    (test, params), (their_test, their_params) = (of.rows(beside, runs, LATE)[0] for runs in (of.treatment, of.control))
    note = f"test {test:.2f} against {their_test:.2f}, parameters {params:.0f} against {their_params:.0f}"
    return judge("ROI", asks, found, limit, lambda each: None if each.low is None else each.low >= least, found.n, note)


def internal_ops_pay(of: Cohorts) -> Verdict:
    asks = "metric per 1000 parameters 20 steps after a GROW, or rent saved by a SHRINK that cost nothing"
    changes = "from level_changes where list_contains(?, run) and cause = 'op' and to_level"
    grown = (f"select run, gain_20_per_1k {changes} > from_level", ())
    shrunk = (f"select run, rent_change {changes} < from_level and abs(gain_20) <= ?", (_slack(of),))
    # A mean for each seed: changes within a run share hosts and a policy, and would claim more than they show.
    by_seed = {
        name: of.by_seed(sql, of.treatment, *more) for name, (sql, more) in (("GROW", grown), ("SHRINK", shrunk))
    }
    found = {name: estimate(list(values.values())) for name, values in by_seed.items() if values}
    if not found:
        return unjudged("internal ops pay", asks, "lower bound > 0", "no change of level was followed for 20 steps")
    best = max(found, key=lambda name: found[name].mean if found[name].low is None else found[name].low or 0.0)
    note = "; ".join(f"{name}: {shown(each)}, n {each.n}" for name, each in found.items())
    bounds = [each.low for each in found.values() if each.low is not None]
    verdict = any(low > 0 for low in bounds) if bounds else None
    return judge("internal ops pay", asks, found[best], "lower bound > 0", lambda _: verdict, found[best].n, note)


def entropy(of: Cohorts) -> Verdict:
    asks = f"heads whose normalised entropy stayed below 0.10 for {COLLAPSE_UPDATES} updates, more than in the control"
    updates = of.rows("select count(*) from ppo_updates where list_contains(?, run)", of.treatment)
    if updates == [(0,)]:
        return unjudged("entropy", asks, "none", "nothing was learned in these runs")
    sql = "select distinct head from entropy_collapse where list_contains(?, run) and in_a_row >= ? order by head"
    ours, theirs = (
        [str(head) for (head,) in of.rows(sql, runs, COLLAPSE_UPDATES)] for runs in (of.treatment, of.control)
    )
    fallen = [head for head in ours if head not in theirs]
    note = ", ".join(fallen) + (f"; in the control too: {', '.join(theirs)}" if theirs else "")
    return Verdict("entropy", asks, len(fallen), None, None, "none", not fallen, int(updates[0][0]), note)


def rollbacks(of: Cohorts) -> Verdict:
    asks, limit = "rollbacks per 100 episodes, against the control", f"upper bound <= {ROLLBACKS:g}"
    sql = "select run, 100 * avg(rollbacks) from episodes where list_contains(?, run) group by run"
    ours = of.by_seed(sql, of.treatment)
    if not ours:
        return unjudged("rollbacks", asks, limit, "no episode came to its end")
    if not of.control:
        return unjudged("rollbacks", asks, limit, f"needs a control; by itself {fmean(ours.values()):.2f}")
    theirs = of.by_seed(sql, of.control)
    if not theirs:
        return unjudged("rollbacks", asks, limit, f"{_NO_CONTROL}; by itself {fmean(ours.values()):.2f}")
    found = difference(ours, theirs)
    return judge(
        "rollbacks", asks, found, limit, lambda each: None if each.high is None else each.high <= ROLLBACKS, found.n
    )


def anti_thrash(of: Cohorts) -> Verdict:
    asks = "changes of level per step of a live ladder seed; they lead somewhere and become no more"
    limit = f"rate <= {RATE:.2f}, abs(net) / changes >= {CONVERGENCE}, last third <= first third"
    (row,) = of.rows(
        "select sum(changes), sum(ladder_steps), sum(abs(net_level_change)), "
        "sum(changes) filter (early) / nullif(sum(ladder_steps) filter (early), 0), "
        "sum(changes) filter (late) / nullif(sum(ladder_steps) filter (late), 0) "
        "from (select c.*, c.round < m.rounds / 3 as early, c.round >= 2 * m.rounds / 3 as late "
        "from churn c join manifest m using (run)) where list_contains(?, run)",
        of.treatment,
    )
    changes, steps, net, first, last = (None if value is None else value for value in row)
    if not steps:
        return unjudged("anti-thrash", asks, limit, "no ladder seed ever lived")
    rate = (changes or 0.0) / steps
    convergence = (net or 0.0) / changes if changes else None
    passed = rate <= RATE and (convergence is None or convergence >= CONVERGENCE)
    passed = passed and (first is None or last is None or last <= first)
    parts = [
        "no change at all" if convergence is None else f"abs(net) / changes {convergence:.2f}",
        "first or last third without a ladder" if first is None or last is None else f"thirds {first:.3f}, {last:.3f}",
    ]
    return Verdict("anti-thrash", asks, rate, None, None, limit, passed, int(steps), ", ".join(parts))


def invalid_actions(of: Cohorts) -> Verdict:
    asks, limit = "share of decisions that were refused, against the control", "<= 0"
    sql = "select run, avg((not done)::INT) from live_env_step where list_contains(?, run) group by run"
    ours = of.by_seed(sql, of.treatment)
    by_reason = of.rows(
        "select refused_by, count(*) from live_env_step where list_contains(?, run) and not done group by all "
        "order by 2 desc, 1 limit 4",
        of.treatment,
    )
    note = ", ".join(f"{reason} {count}" for reason, count in by_reason)
    if not ours:
        return unjudged("invalid actions", asks, limit, "nothing was decided")
    if not of.control:
        alone = f"needs a control; by itself {fmean(ours.values()):.1%}"
        return unjudged("invalid actions", asks, limit, f"{alone}{': ' if note else ''}{note}")
    theirs = of.by_seed(sql, of.control)
    if not theirs:
        return unjudged("invalid actions", asks, limit, "nothing was decided in the control")
    found = difference(ours, theirs)
    return judge("invalid actions", asks, found, limit, lambda each: each.mean <= 0, found.n, note)


GATES: tuple[Question, ...] = (
    usage,
    dominance,
    roi,
    internal_ops_pay,
    entropy,
    rollbacks,
    anti_thrash,
    invalid_actions,
)
