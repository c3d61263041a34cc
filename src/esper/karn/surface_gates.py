"""Gates of the later phases: do finer surfaces and finer seeds pay? `phases.py` says which phase asks what.

Phase 1 compares a lattice of a transformer with coarser cuts, phase 2 the two sides of a pool in a convolutional host.
As in `gates.py` nothing is decided here, and a verdict is None where there is nothing to judge.
"""

from __future__ import annotations

from dataclasses import replace

from scipy.special import chdtrc

from esper.karn import gates
from esper.karn.gates import LATE
from esper.karn.verdicts import Cohorts, Verdict, difference, judge, unjudged
from esper.leyline.statistics import estimate

SIGNIFICANT = 0.01  # probability below which placement is not called even
FEWEST = 5.0  # germinations expected on a surface, below which chi^2 says little
HEAVY = ("conv_heavy", "lora_large", "mlp")  # blueprints that are bought whole
LADDER, JUMP = "lora_ladder", "lora_large"
OVERSHOOT_STEPS = 20  # a prune so soon after a heavy germination or a GROW undoes it


def quality_per_rent(of: Cohorts) -> Verdict:
    """As the gate ROI, but it has to be better, not merely no worse."""
    found = gates.roi(of)
    passed = None if found.low is None else found.low > 0
    return replace(found, name="quality per rent", limit="lower bound > 0", passed=passed)


def placement(of: Cohorts) -> Verdict:
    """Pearson's chi^2 of germinations by surface, against a choice among the slots that were possible."""
    asks = "probability that seeds were spread over surfaces as an even choice among possible slots would have done it"
    limit = f"< {SIGNIFICANT:g}"
    rows = of.rows(
        "with planted as (select s.run, s.slot, s.slot_mask, row_number() over () as plant from live_env_step s "
        "join manifest m using (run) where list_contains(?, s.run) and s.op = 'GERMINATE' and s.done "
        "and s.round >= floor(? * m.rounds)), "
        "places as (select p.plant, k.surface, (k.slot = p.slot)::INT as here, "
        "1 / count(*) over (partition by p.plant) as even from planted p join slots k using (run) "
        "where p.slot_mask >> k.slot_index & 1 = 1) "
        "select surface, sum(here), sum(even) from places group by surface order by surface",
        of.treatment,
        LATE,
    )
    if len(rows) < 2:
        why = "nothing was planted late enough" if not rows else f"{rows[0][0]} is the only surface there is"
        return unjudged("placement", asks, limit, why)
    chi2 = sum((seen - even) ** 2 / even for _, seen, even in rows)
    chance = float(chdtrc(len(rows) - 1, chi2))
    note = ", ".join(f"{surface} {seen:.0f} of {even:.1f} expected" for surface, seen, even in rows)
    enough = min(even for *_, even in rows) >= FEWEST
    passed = chance < SIGNIFICANT if enough else None
    few = "" if enough else f"; fewer than {FEWEST:g} expected on a surface"
    return Verdict(
        "placement", asks, chance, None, None, limit, passed, int(sum(seen for _, seen, _ in rows)), f"{note}{few}"
    )


def small_steps(of: Cohorts) -> Verdict:
    asks = f"GROW_INTERNAL of {LADDER} among these and germinations of {JUMP}"
    rows = of.rows(
        "select run, (select count(*) from level_changes c where c.run = m.run and c.blueprint_id = ?2 "
        "and c.cause = 'op' and c.to_level > c.from_level), "
        "(select coalesce(sum(germinated), 0) from blueprint_stats b where b.run = m.run and b.blueprint_id = ?3) "
        "from manifest m where list_contains(?1, run)",
        of.treatment,
        LADDER,
        JUMP,
    )
    shares = [grown / (grown + jumped) for _, grown, jumped in rows if grown + jumped]
    if not shares:
        return unjudged("small steps", asks, "> 0.5", "neither happened")
    counts = f"{sum(row[1] for row in rows)} against {sum(row[2] for row in rows)}"
    return judge("small steps", asks, estimate(shares), "> 0.5", lambda found: found.mean > 0.5, len(shares), counts)


def overshoot(of: Cohorts) -> Verdict:
    """Prunes that undo: of a seed whose last contribution was negative, soon after a heavy germination or a GROW."""
    asks = f"seeds per 100 planted that were pruned for harm within {OVERSHOOT_STEPS} steps of a heavy step up"
    limit = "< 0"
    sql = (
        "with bought as (select run, g, round, env, seed_id, step from live_seed_germinated "
        "where list_contains(?2, blueprint_id) union all select run, g, round, env, seed_id, step "
        "from live_seed_level where cause = 'op' and to_level > from_level), "
        "undone as (select distinct p.run, p.g, p.round, p.env, p.seed_id from live_seed_pruned p "
        "join bought b on b.run = p.run and b.g is not distinct from p.g "
        "and b.round = p.round and b.env = p.env and b.seed_id = p.seed_id "
        "and p.step between b.step and b.step + ?3 where p.initiator <> 'governor' and p.contribution < 0), "
        "planted as (select run, sum(germinated) as seeds from blueprint_stats group by run) "
        "select run, 100 * (select count(*) from undone u where u.run = q.run) / q.seeds from planted q "
        "where list_contains(?1, run)"
    )
    ours = of.by_seed(sql, of.treatment, list(HEAVY), OVERSHOOT_STEPS)
    theirs = of.by_seed(sql, of.control, list(HEAVY), OVERSHOOT_STEPS)
    if not ours or not theirs:
        return unjudged("overshoot", asks, limit, "needs a control" if ours else "nothing was planted")
    if not any(theirs.values()):
        return unjudged("overshoot", asks, limit, "the control never overshot, so nothing can be less")
    found = difference(ours, theirs)
    return judge("overshoot", asks, found, limit, lambda each: each.mean < 0, found.n)


def kept_seeds(of: Cohorts) -> Verdict:
    asks, limit = "share of seeds that were kept among those that were kept or pruned, against the control", "> 0"
    sql = (
        "select run, sum(fossilized) / nullif(sum(fossilized) + sum(pruned), 0) from blueprint_stats "
        "where list_contains(?, run) group by run"
    )
    ours, theirs = (of.by_seed(sql, runs) for runs in (of.treatment, of.control))
    if not ours or not theirs:
        return unjudged("kept seeds", asks, limit, "no seed met an end" if not ours else "needs a control")
    found = difference(ours, theirs)
    return judge("kept seeds", asks, found, limit, lambda each: each.mean > 0, found.n)


def rollbacks_by_surface(of: Cohorts) -> Verdict:
    """The gate `rollbacks`, with the surfaces on which the steps acted that were taken back."""
    found = gates.rollbacks(of)
    rows = of.rows(
        "select coalesce(k.surface, 'no slot'), count(*) from governor r join live_env_step s on s.run = r.run "
        "and s.g is not distinct from r.g and s.round = r.round and s.env = r.env and s.step = r.step "
        "left join slots k on k.run = s.run and k.slot = s.slot where list_contains(?, r.run) group by all "
        "order by 2 desc, 1",
        of.treatment,
    )
    where = ", ".join(f"{surface} {count}" for surface, count in rows)
    return replace(found, name="rollbacks by surface", note="; ".join(filter(None, (found.note, where))))
