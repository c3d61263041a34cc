-- Questions about runs, one view each. `views.py` reads names and comments out of this file: a comment right above a
-- view says what it answers, its grain stands in brackets. Views read the rows that a later attempt has not replaced
-- (`live_*`). Rounds, episodes and steps count from 0; metrics are in the task's unit, `sign` is 1 where more is better.


-- [run] What ran, when, and how its last attempt ended; `complete` is false where lines are missing on the disk.
create view runs as
with attempts as (
    select run, max(attempt) as attempt from integrity group by run
), ended as (
    select f.run, arg_max(f.status, f.ts) filter (f.attempt = a.attempt) as status,
        arg_max(f.reason, f.ts) filter (f.attempt = a.attempt) as reason, arg_max(f.seconds, f.ts) as seconds
    from live_run_finished f join attempts a using (run) group by f.run
), played as (
    select run, count(*) as episodes, max(round) + 1 as rounds_done, avg(test_metric) as test_metric,
        avg(params) as params, avg(host_params) as host_params
    from live_episode_finished group by run
), seen as (
    select run, sum(events) as events, sum(missing) as missing, sum(bad_lines) as bad_lines from integrity group by run
)
select m.run, m.group_of, m.task, m.controller, m.seed, m.started,
    case when m.running then 'running' else coalesce(ended.status, 'died') end as status, ended.reason,
    coalesce(played.rounds_done, 0) as rounds_done, m.rounds, coalesce(played.episodes, 0) as episodes, ended.seconds,
    played.test_metric, m.metric, m.unit, played.params, played.host_params, coalesce(seen.events, 0) as events,
    coalesce(seen.missing, 0) = 0 and coalesce(seen.bad_lines, 0) = 0 and m.incomplete is null as complete
from manifest m left join ended using (run) left join played using (run) left join seen using (run);


-- [round] Progress: metrics and rewards of each round's episodes, and how long it took.
create view rounds as
with played as (
    select run, g, round, avg(test_metric) as test_metric, avg(val_metric) as val_metric, min(val_metric) as val_min,
        max(val_metric) as val_max, avg(params) as params, avg(fossilized) as fossilized,
        avg(log2(params / host_params)) as doublings
    from live_episode_finished group by all
)
select r.run, r.g, r.round, r.ts, r.episodes, p.val_metric, p.val_min, p.val_max, p.test_metric, r.reward_mean, p.params,
    p.doublings, p.fossilized, r.seconds
from live_round_finished r left join played p
    on p.run = r.run and p.g is not distinct from r.g and p.round = r.round;


-- [episode] One host from its start to its end. j = sign * test metric - rent * doublings of the parameters.
create view episodes as
with acted as (
    select run, g, round, env, count(*) as steps, count(*) filter (op <> 'WAIT') as operations,
        count(*) filter (not done) as refused, count(*) filter (op = 'GERMINATE' and done) as germinated
    from live_env_step group by all
), taken_back as (
    select run, g, round, env, count(*) as rollbacks from live_gov_rollback group by all
)
select e.run, e.g, e.round, e.episode, e.env, a.steps, a.operations, a.refused, a.germinated, e.fossilized,
    coalesce(t.rollbacks, 0) as rollbacks, e.val_metric, e.test_metric, e.test_loss, e.host_params, e.params,
    log2(e.params / e.host_params) as doublings, m.sign * e.test_metric - m.rent * log2(e.params / e.host_params) as j,
    e.reward, e.flops, e.flops_wasted, e.outcome, e.drawn
from live_episode_finished e join manifest m using (run)
left join acted a on a.run = e.run and a.g is not distinct from e.g and a.round = e.round and a.env = e.env
left join taken_back t on t.run = e.run and t.g is not distinct from e.g and t.round = e.round and t.env = e.env;


-- [step of an environment] Everything at a step.
create view env_steps as
select s.*, o.is_internal, s.op = 'WAIT' as waits, bit_count(s.op_mask) = 1 as forced
from live_env_step s join ops o using (op);


-- [step x slot] Stage, alpha, level and active parameters of every slot after the step, and which seed is in it.
create view slot_steps as
with one as (
    select run, g, round, episode, env, step, unnest(range(len(stage))) as slot_index, stage, alpha, level, slot_params,
        grad_ratio, val_metric
    from live_env_step
), flat as (
    select run, g, round, episode, env, step, slot_index, stage[slot_index + 1] as stage_index,
        alpha[slot_index + 1] as alpha, level[slot_index + 1] as level, slot_params[slot_index + 1] as slot_params,
        grad_ratio[slot_index + 1] as grad_ratio, val_metric
    from one
), planted as (  -- until when: an asof join sorts every step of every slot, and takes five times as long
    select b.run, b.g, b.round, b.env, s.slot_index, b.seed_id, b.blueprint_id, b.internal_max_level, b.step as first,
        lead(b.step) over (partition by b.run, b.g, b.round, b.env, b.slot_id order by b.step, b.writer, b.n) as next
    from live_seed_germinated b join slots s on s.run = b.run and s.slot = b.slot_id
)
select f.run, f.g, f.round, f.episode, f.env, f.step, f.slot_index, s.slot, t.stage, f.alpha, f.level, f.slot_params,
    f.grad_ratio, t.is_live, t.is_live or t.stage = 'FOSSILIZED' as holds_seed,
    case when t.is_live or t.stage = 'FOSSILIZED' then p.seed_id end as seed_id,
    case when t.is_live or t.stage = 'FOSSILIZED' then p.blueprint_id end as blueprint_id,
    t.is_live and coalesce(p.internal_max_level > 1, false) as is_live_ladder, f.val_metric
from flat f join slots s on s.run = f.run and s.slot_index = f.slot_index
join stages t on t.stage_index = f.stage_index
left join planted p on p.run = f.run and p.g is not distinct from f.g and p.round = f.round and p.env = f.env
    and p.slot_index = f.slot_index and f.step >= p.first and (p.next is null or f.step < p.next);


-- [event] All that happened to seeds, in one list, in order.
create view lifecycle as
with told as (
    select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'germinated' as event,
        format('{} parameters, blend {}, tempo {}', params, blend, tempo) as what from live_seed_germinated
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'stage',
        format('{} -> {} by {}', from_stage, to_stage, driver) from live_seed_stage
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'gate',
        gate || if(passed, ' passed', ' refused: ' || array_to_string(
            [c.name for c in checks if not c.passed], ', ')) from live_seed_gate
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'level',
        format('{} -> {} of {} by {}', from_level, to_level, internal_max_level, cause) from live_seed_level
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'contribution',
        format('{:+.3f} against {}', metric, against) from live_seed_cf
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'pruned',
        format('by {} at age {}', initiator, age) from live_seed_pruned
    union all select run, g, round, env, step, writer, n, slot_id, seed_id, blueprint_id, 'fossilized',
        format('at age {}, {} parameters', age, params) from live_seed_fossilized
)
select t.run, t.g, t.round, t.round * m.envs + t.env as episode, t.env, t.step, t.slot_id as slot, t.seed_id,
    t.blueprint_id, t.event, t.what, t.writer, t.n
from told t join manifest m using (run)
order by t.run, t.g, t.round, t.env, t.step, t.writer, t.n;


-- [stage of a seed] Swimlanes: from which step to which a slot was in a stage. `to_step` is the last step in it, and the
-- last that was told where the stage had not ended by then.
create view lifecycle_spans as
with told as (
    select run, coalesce(g, '') as team, round, env, max(step) + 1 as steps from live_env_step group by all
), moved as (
    select c.run, c.g, c.round, c.round * m.envs + c.env as episode, c.env, c.slot_id as slot, c.seed_id,
        c.blueprint_id, c.to_stage as stage, c.step as from_step, c.driver,
        greatest(coalesce(t.steps, 0), c.step) as told_steps, c.writer, c.n,
        lead(c.step) over w as next_step, lead(c.to_stage) over w as next_stage
    from live_seed_stage c join manifest m using (run) left join told t
        on t.run = c.run and t.team = coalesce(c.g, '') and t.round = c.round and t.env = c.env
    window w as (partition by c.run, c.g, c.round, c.env, c.slot_id order by c.step, c.writer, c.n)
)
select run, g, round, episode, env, slot, seed_id, blueprint_id, stage, from_step,
    coalesce(next_step, told_steps) - 1 as to_step, coalesce(next_step, told_steps) - from_step as steps,
    driver, next_stage
from moved where stage <> 'DORMANT';


-- [stage x blueprint] How long seeds stay in a stage, in steps, and where they go from there.
create view stage_durations as
select run, g, blueprint_id, stage, count(*) as spans, avg(steps) as mean_steps, median(steps) as median_steps,
    max(steps) as longest, count(*) filter (next_stage = 'PRUNED') as pruned,
    count(*) filter (next_stage = 'FOSSILIZED') as fossilized
from lifecycle_spans group by all;


-- [change of level] What a change of capacity bought: the metric before it and 1, 5 and 20 steps later, and what the
-- seed contributed by leave-one-out before and after (O2). `level_effect`: with the change against without it.
create view level_changes as
with changes as (
    select c.run, c.g, c.round, c.round * m.envs + c.env as episode, c.env, c.step, c.slot_id as slot, c.seed_id,
        c.blueprint_id, c.from_level, c.to_level, c.internal_max_level, c.params_before, c.internal_effective_params,
        c.cause, m.sign, m.rent, c.writer, c.n, coalesce(c.g, '') as team
    from live_seed_level c join manifest m using (run)
), around as (  -- joined once for all four, since the steps are many and the changes few
    select c.run, c.writer, c.n, any_value(s.val_metric) filter (c.later = -1) as metric_before,
        any_value(s.effective_params) filter (c.later = -1) as all_before,
        any_value(s.val_metric) filter (c.later = 0) as metric_1, any_value(s.val_metric) filter (c.later = 4) as metric_5,
        any_value(s.val_metric) filter (c.later = 19) as metric_20
    from (select *, unnest([-1, 0, 4, 19]) as later from changes) c join live_env_step s on s.run = c.run
        and s.g is not distinct from c.g and s.round = c.round and s.env = c.env and s.step = c.step + c.later
    group by c.run, c.writer, c.n
), contribution as (
    select run, coalesce(g, '') as team, round, env, step, seed_id, against, metric, metric_sem from live_seed_cf
), effects as (
    select c.run, c.team, c.round, c.env, c.step, c.seed_id,
        arg_max(f.metric, f.step) filter (f.against = 'off' and f.step < c.step) as contribution_before,
        arg_min(f.metric, f.step) filter (f.against = 'off' and f.step >= c.step) as contribution_after,
        arg_min(f.metric, f.step) filter (f.against = 'level' and f.step >= c.step) as level_effect,
        arg_min(f.metric_sem, f.step) filter (f.against = 'level' and f.step >= c.step) as level_effect_sem
    from changes c join contribution f using (run, team, round, env, seed_id) group by all
)
select c.run, c.g, c.round, c.episode, c.env, c.step, c.slot, c.seed_id, c.blueprint_id, c.from_level, c.to_level,
    c.internal_max_level, c.internal_effective_params - c.params_before as params_added, c.cause,
    a.metric_before, a.metric_1, a.metric_5, a.metric_20, c.sign * (a.metric_20 - a.metric_before) as gain_20,
    1000 * c.sign * (a.metric_20 - a.metric_before) / nullif(c.internal_effective_params - c.params_before, 0)
        as gain_20_per_1k,
    -c.rent * log2((a.all_before + c.internal_effective_params - c.params_before) / a.all_before) as rent_change,
    e.contribution_before, e.contribution_after, e.level_effect, e.level_effect_sem, c.writer, c.n
from changes c
left join around a on a.run = c.run and a.writer = c.writer and a.n = c.n
left join effects e on e.run = c.run and e.team = c.team and e.round = c.round and e.env = c.env and e.step = c.step
    and e.seed_id = c.seed_id;


-- [episode x slot] Is this thrash? Changes of level by decisions, how far they led, and how often one took back the one
-- before. Rollbacks count in `net_level_change` alone. `thrash`: more than a change in ten steps, or going round in
-- circles (four changes or more that together lead less than a quarter as far).
create view churn as
with ladders as (
    select run, coalesce(g, '') as team, round, episode, env, slot, count(*) as ladder_steps
    from slot_steps where is_live_ladder group by all
), moved as (
    select c.run, coalesce(c.g, '') as team, c.round, c.round * m.envs + c.env as episode, c.env, c.slot_id as slot,
        c.cause, c.to_level - c.from_level as change,
        lag(c.to_level - c.from_level) over (
            partition by c.run, c.g, c.round, c.env, c.slot_id, c.seed_id, c.cause order by c.step, c.writer, c.n)
            as previous
    from live_seed_level c join manifest m using (run)
), counted as (
    select run, team, round, episode, env, slot, count(*) filter (cause = 'op') as changes,
        count(*) filter (cause = 'op' and change > 0) as grown, count(*) filter (cause = 'op' and change < 0) as shrunk,
        sum(change) as net_level_change,
        count(*) filter (cause = 'op' and sign(change) <> sign(previous)) as reversals
    from moved group by all
)
select run, nullif(team, '') as g, round, episode, env, slot, coalesce(l.ladder_steps, 0) as ladder_steps,
    coalesce(c.changes, 0) as changes, coalesce(c.grown, 0) as grown, coalesce(c.shrunk, 0) as shrunk,
    coalesce(c.net_level_change, 0) as net_level_change, coalesce(c.reversals, 0) as reversals,
    coalesce(c.changes, 0) / nullif(l.ladder_steps, 0) as level_change_rate,
    coalesce(c.changes / nullif(l.ladder_steps, 0) > 0.10
        or (c.changes >= 4 and abs(c.net_level_change) / c.changes < 0.25), false) as thrash
from ladders l full join counted c using (run, team, round, episode, env, slot);


-- [step of an environment] A decision in words: what was chosen, what was possible, what became of it.
create view decisions as
select s.run, s.g, s.round, s.episode, s.env, s.step,
    concat_ws(' ', s.op, s.slot, s.blueprint, s.style, s.tempo, s.alpha_target, s.alpha_speed, s.alpha_curve) as decision,
    s.op, s.slot, s.blueprint, s.style, s.tempo, s.alpha_target, s.alpha_speed, s.alpha_curve,
    [name for name, index in (select list(op order by op_index) from ops) if s.op_mask >> (index - 1) & 1 = 1]
        as possible_ops,
    s.forced, s.log_prob, exp(s.log_prob) as probability, s.value, s.done, s.refused_by, s.why, s.reward,
    s.output_change, s.writer, s.n
from env_steps s;


-- [round x head x choice] How often a choice was taken, over the steps at which its head mattered; how often it was
-- possible, where masks tell (operations and slots); and how often what was asked for was done.
create view action_mix as
with asked as (
    select run, g, round, done, op <> 'WAIT' as acts, op_mask, slot_mask, unnest([
        {'head': 'op', 'choice': op}, {'head': 'slot', 'choice': slot}, {'head': 'blueprint', 'choice': blueprint},
        {'head': 'style', 'choice': style}, {'head': 'tempo', 'choice': tempo},
        {'head': 'alpha_target', 'choice': alpha_target}, {'head': 'alpha_speed', 'choice': alpha_speed},
        {'head': 'alpha_curve', 'choice': alpha_curve}]) as pick
    from live_env_step
), taken as (
    select run, coalesce(g, '') as team, round, pick.head as head, pick.choice as choice, count(*) as n,
        count(*) filter (done) as done, count(*) filter (acts) as n_acting
    from asked where pick.choice is not null group by all
), totals as (
    select run, team, round, head, sum(n) as total, sum(n_acting) as total_acting from taken group by all
), open_ops as (
    select s.run, coalesce(s.g, '') as team, s.round, 'op' as head, o.op as choice,
        avg(s.op_mask >> o.op_index & 1) as possible_share
    from live_env_step s cross join ops o group by all
), open_slots as (
    select s.run, coalesce(s.g, '') as team, s.round, 'slot' as head, k.slot as choice,
        avg(s.slot_mask >> k.slot_index & 1) as possible_share
    from live_env_step s join slots k using (run) where s.slot is not null group by all
), open_choices as (from open_ops union all from open_slots)
select t.run, nullif(t.team, '') as g, t.round, t.head, t.choice, t.n, t.n / totals.total as share,
    case when t.head = 'op' and t.choice <> 'WAIT' then t.n / nullif(totals.total_acting, 0) end as share_of_acting,
    o.possible_share, t.done / t.n as done_share
from taken t join totals using (run, team, round, head)
left join open_choices o using (run, team, round, head, choice);


-- [round x head] Entropy of every head over the steps where it had a choice (1: it chose evenly), how far it moved and
-- how strongly it was pulled; `collapsed` below 0.10.
create view head_health as
with u as (select run, g, round, update, entropy, kl, clipped, relevant, head_grad_norm from live_ppo_updated),
entropies as (select run, g, round, update, unnest(entropy) as pair from u),
kls as (select run, g, round, unnest(kl) as pair from u),
clips as (select run, g, round, unnest(clipped) as pair from u),
counts as (select run, g, round, unnest(relevant) as pair from u),
norms as (select run, g, round, unnest(head_grad_norm) as pair from u)
select e.run, e.g, e.round, e.update, e.pair.name as head, e.pair.value as entropy, e.pair.value < 0.10 as collapsed,
    k.pair.value as kl, c.pair.value as clip_fraction, r.pair.value as decisions, n.pair.value as grad_norm
from entropies e
left join kls k on k.run = e.run and k.g is not distinct from e.g and k.round = e.round and k.pair.name = e.pair.name
left join clips c on c.run = e.run and c.g is not distinct from e.g and c.round = e.round and c.pair.name = e.pair.name
left join counts r on r.run = e.run and r.g is not distinct from e.g and r.round = e.round and r.pair.name = e.pair.name
left join norms n on n.run = e.run and n.g is not distinct from e.g and n.round = e.round and n.pair.name = e.pair.name;


-- [step of an environment x term] What the reward was made of; terms that were 0 have no row.
create view reward_long as
with one as (select run, g, round, episode, env, step, reward, unnest(terms) as pair from live_env_step)
select run, g, round, episode, env, step, pair.name as term, pair.value as value, reward from one;


-- [blueprint x level] What seeds brought and what they cost: the last leave-one-out measurement of each seed, in points
-- of the metric, against the rent of its active parameters. `on_frontier`: no other pair brings more for less.
create view rent_roi as
with last_measured as (
    select run, g, round, env, slot_id, seed_id, blueprint_id, arg_max(metric, step) as contribution, max(step) as step
    from live_seed_cf where against = 'off' group by all
), held as (  -- what the seed was then; without `slot_steps`, which spreads every step of the run over its slots first
    select c.run, c.g, c.round, c.env, c.blueprint_id, c.contribution, s.level[k.slot_index + 1] as level,
        s.slot_params[k.slot_index + 1] as slot_params
    from last_measured c join slots k on k.run = c.run and k.slot = c.slot_id
    join live_env_step s on s.run = c.run and s.g is not distinct from c.g and s.round = c.round and s.env = c.env
        and s.step = c.step
    join stages t on t.stage_index = s.stage[k.slot_index + 1] and (t.is_live or t.stage = 'FOSSILIZED')
), seeds as (
    select h.run, h.g, h.blueprint_id, h.level, h.slot_params, h.contribution as gain,
        m.rent * log2((e.host_params + h.slot_params) / e.host_params) as rent
    from held h join manifest m using (run)
    join live_episode_finished e on e.run = h.run and e.g is not distinct from h.g and e.round = h.round
        and e.env = h.env
), grouped as (
    select run, g, blueprint_id, level, count(*) as seeds, avg(gain) as gain, avg(rent) as rent,
        avg(gain) - avg(rent) as roi, avg(slot_params) as params
    from seeds group by all
)
select *, not exists (
    from grouped o where o.run = a.run and o.g is not distinct from a.g and o.gain >= a.gain and o.rent <= a.rent
        and (o.gain > a.gain or o.rent < a.rent)) as on_frontier
from grouped a;


-- [blueprint] Which blueprints were planted and what became of them; `prune_per_fossil` is their ratio.
create view blueprint_stats as
with planted as (
    select run, g, blueprint_id, count(*) as germinated, avg(params) as params from live_seed_germinated group by all
), kept as (select run, g, blueprint_id, count(*) as fossilized from live_seed_fossilized group by all),
lost as (
    select run, g, blueprint_id, count(*) as pruned, avg(age) as age_at_prune from live_seed_pruned group by all
), measured as (
    select c.run, c.g, c.blueprint_id, avg(c.metric) as contribution
    from live_seed_cf c where c.against = 'off' group by all
)
select p.run, p.g, p.blueprint_id, p.germinated, p.germinated / sum(p.germinated) over (partition by p.run, p.g) as share,
    coalesce(k.fossilized, 0) as fossilized, coalesce(l.pruned, 0) as pruned,
    coalesce(l.pruned, 0) / nullif(k.fossilized, 0) as prune_per_fossil, l.age_at_prune, p.params, m.contribution
from planted p
left join kept k on k.run = p.run and k.g is not distinct from p.g and k.blueprint_id = p.blueprint_id
left join lost l on l.run = p.run and l.g is not distinct from p.g and l.blueprint_id = p.blueprint_id
left join measured m on m.run = p.run and m.g is not distinct from p.g and m.blueprint_id = p.blueprint_id;


-- [slot] Where seeds were planted; `concentration` of the whole run is 1 where all went into one slot and 1 / slots where
-- they were spread evenly (Herfindahl index).
create view slot_usage as
with planted as (
    select run, g, slot_id as slot, count(*) as germinated from live_seed_germinated group by all
), kept as (select run, g, slot_id as slot, count(*) as fossilized from live_seed_fossilized group by all),
teams as (select distinct run, g from live_env_step),
counted as (
    select t.run, t.g, s.slot, s.slot_index, s."order", s.surface, s.channels,
        coalesce(p.germinated, 0) as germinated, coalesce(k.fossilized, 0) as fossilized
    from teams t join slots s using (run)
    left join planted p on p.run = t.run and p.g is not distinct from t.g and p.slot = s.slot
    left join kept k on k.run = t.run and k.g is not distinct from t.g and k.slot = s.slot
)
select *, germinated / nullif(sum(germinated) over team, 0) as share,
    sum(germinated * germinated) over team / nullif(power(sum(germinated) over team, 2), 0) as concentration
from counted window team as (partition by run, g);


-- [surface] The same by injection surface.
create view surface_usage as
select run, g, surface, count(*) as slots, sum(germinated) as germinated, sum(fossilized) as fossilized,
    sum(germinated) / nullif(sum(sum(germinated)) over (partition by run, g), 0) as share
from slot_usage group by run, g, surface;


-- [update] How the policy learned, and every sign by which a broken learner is known.
create view ppo_updates as
select run, g, round, ts, update, nullif(skipped, '') as skipped, imitated, sequences, steps, epochs, forced_share, ratio_error,
    invalid_executed, all_masked, explained_variance, approx_kl, clip_fraction, policy_loss, value_loss, entropy_bonus,
    op_value_loss, grad_norm, value_mean, value_deviation, memory_rms, lr, entropy_share, op_values, failures,
    restored_update
from live_ppo_updated;


-- [update x operation] Mean Q(s, op) over the round, in points: what the diagnostic critic thinks of each operation.
create view op_values as
with one as (select run, g, round, update, unnest(op_values) as pair from live_ppo_updated)
select run, g, round, update, pair.name as op, pair.value as value from one;


-- [round x sensor] What sensors read: mean, deviation, and the shares outside their range and at the policy's limit.
create view observations as
with one as (select run, g, round, unnest(sensors) as s from live_obs_stats)
select run, g, round, s.name as sensor, s.mean as mean, s.deviation as deviation, s.outside as outside_share,
    s.saturated as saturated_share
from one;


-- [rollback] What the governor took back, and the decision of the step that it happened in.
create view governor as
select r.run, r.g, r.round, r.round * m.envs + r.env as episode, r.env, r.step, r.reason, r.detector, r.loss,
    r.baseline, r.z_loss, r.z_grad, r."limit", r.steps, r.culprit, r.restored_epoch, r.restored_steps, r.rollbacks,
    d.decision, d.done, r.nf, r.writer, r.n
from live_gov_rollback r join manifest m using (run)
left join decisions d on d.run = r.run and d.g is not distinct from r.g and d.round = r.round and d.env = r.env
    and d.step = r.step;


-- [rank in trouble] Ranks of a run that were slow, died, hung or were in another state than the others: in which field,
-- and what this rank had there beside what all had.
create view ddp_divergence as
with told as (
    select run, round, ts, kind, steps as optimiser_steps, nullif(field, '') as field, "values" as all_values, text, writer, n,
        unnest(ranks) as rank
    from live_ranks_trouble
)
select run, round, rank, kind, optimiser_steps, field, all_values[rank + 1] as value, all_values, text, ts, writer, n from told;


-- [run] Does the reward mean what it should? Correlation of an episode's return with what it was worth on the test split.
create view calibration as
select run, g, count(*) as episodes, corr(reward, j) as return_and_j, corr(reward, sign_metric) as return_and_metric,
    avg(reward) as mean_return, avg(j) as mean_j
from (select e.*, m.sign * e.test_metric as sign_metric from episodes e join manifest m using (run)) group by run, g;


-- [round x phase] Where the time went.
create view throughput as
with one as (select run, g, round, episodes, seconds, unnest(phases) as pair from live_round_finished)
select o.run, o.g, o.round, o.seconds, o.episodes * m.episode_length / o.seconds as steps_per_second,
    o.pair.name as phase, o.pair.value as phase_seconds, o.pair.value / o.seconds as share
from one o join manifest m using (run);


-- [run x round] Is the ladder used? Decisions besides WAIT at steps where a live ladder seed stood before them, the
-- internal ones among them, and what their share would be if every possible operation besides WAIT were as likely.
create view internal_usage as
with present as (  -- 32 steps in a number, since to join step with step takes half as long again
    select run, coalesce(g, '') as team, round, env, (step + 1) // 32 as block,
        bit_or(1::BIGINT << (step + 1) % 32) as steps
    from slot_steps where is_live_ladder group by all
), internal as (select sum(1 << op_index)::BIGINT as bits from ops where is_internal)
select s.run, s.g, s.round, s.round >= floor(0.8 * m.rounds) as late, count(*) as steps,
    count(*) filter (not s.waits) as acting, count(*) filter (s.is_internal) as internal,
    count(*) filter (s.is_internal) / nullif(count(*) filter (not s.waits), 0) as share,
    avg(bit_count(s.op_mask & i.bits) / nullif(bit_count(s.op_mask) - 1, 0)) as uniform_share
from env_steps s join present p on p.run = s.run and p.team = coalesce(s.g, '') and p.round = s.round
    and p.env = s.env and p.block = s.step // 32 and (p.steps >> s.step % 32) & 1 = 1
join manifest m on m.run = s.run cross join internal i
group by s.run, s.g, s.round, late;


-- [update x head] Collapse that lasts: for how many updates in a row, this one included, a head's entropy was below 0.10.
create view entropy_collapse as
with marked as (
    select run, g, round, update, head, entropy, collapsed,
        sum(not collapsed::BOOLEAN) over (partition by run, g, head order by update) as stretch
    from head_health
)
select run, g, round, update, head, entropy,
    case when collapsed then count(*) filter (collapsed) over (
        partition by run, g, head, stretch order by update) else 0 end as in_a_row
from marked;


-- A metric over time in at most `points` buckets: smallest, mean and largest of each. x counts steps through all rounds;
-- null in the place of an environment, of the first or of the last x stands for all there are.
create macro series(which_run, metric, which_env, x0, x1, points) as table
with told as (
    select s.round * m.episode_length + s.step as x, case metric
        when 'val_metric' then s.val_metric when 'val_loss' then s.val_loss when 'train_loss' then s.train_loss
        when 'reward' then s.reward when 'params' then s.params when 'effective_params' then s.effective_params
        when 'flops' then s.flops else error(format('{}: is not kept at every step', metric)) end as y
    from live_env_step s join manifest m using (run)
    where s.run = which_run and (which_env is null or s.env = which_env)
), picked as (
    from told where x >= coalesce(x0, x) and x <= coalesce(x1, x)
), span as (select min(x) as first, greatest(max(x) - min(x) + 1, 1) as width from picked)
select min(x) as x, min(y) as low, avg(y) as mean, max(y) as high, count(y) as n
from picked cross join span
group by floor((x - first) * points / width) order by x;


-- Two sets of runs side by side: of every measure of an episode the means over the last fifth of the rounds that a run
-- has done, their difference a - b, and its 95 % interval, paired by seed. `seeds`: how many both sets have; one gives no
-- interval, and where there is none the means are compared unpaired. A run with missing lines is refused.
create macro compare(a, b) as table
with asked as (
    select 'a' as side, unnest(a) as run union all select 'b', unnest(b)
), judged as (
    select k.side, k.run, r.rounds_done, case when r.run is null then error(format('run {}: is not open here', k.run))
        when not r.complete then error(format('run {}: lines of it are missing on the disk, so it deserves no verdict',
            k.run)) else r.seed end as seed
    from asked k left join runs r using (run)
), told as (
    select j.side, j.seed, j.run, unnest([
        {'place': 1, 'measure': 'test_metric', 'value': e.test_metric},
        {'place': 2, 'measure': 'val_metric', 'value': e.val_metric}, {'place': 3, 'measure': 'j', 'value': e.j},
        {'place': 4, 'measure': 'reward', 'value': e.reward}, {'place': 5, 'measure': 'params', 'value': e.params},
        {'place': 6, 'measure': 'doublings', 'value': e.doublings},
        {'place': 7, 'measure': 'fossilized', 'value': e.fossilized},
        {'place': 8, 'measure': 'operations', 'value': e.operations},
        {'place': 9, 'measure': 'refused', 'value': e.refused},
        {'place': 10, 'measure': 'rollbacks', 'value': e.rollbacks}, {'place': 11, 'measure': 'flops', 'value': e.flops},
        {'place': 12, 'measure': 'flops_wasted', 'value': e.flops_wasted}], recursive := true)
    from judged j join episodes e on e.run = j.run and e.round >= floor(0.8 * j.rounds_done)
), by_run as (
    select side, seed, run, place, measure, avg(value) as value from told group by all having isfinite(avg(value))
), by_seed as (
    select side, seed, place, measure, avg(value) as value from by_run group by all
), means as (
    select place, measure, avg(value) filter (side = 'a') as mean_a, avg(value) filter (side = 'b') as mean_b
    from by_seed group by all
), paired as (
    select x.measure, count(*) as seeds, avg(x.value - y.value) as difference,
        stddev_samp(x.value - y.value) / sqrt(count(*)) as standard_error
    from by_seed x join by_seed y on x.side = 'a' and y.side = 'b' and x.measure = y.measure and x.seed = y.seed
    group by x.measure
)
select m.measure, m.mean_a as a, m.mean_b as b, coalesce(p.difference, m.mean_a - m.mean_b) as difference,
    p.difference - t.quantile * p.standard_error as low, p.difference + t.quantile * p.standard_error as high,
    coalesce(p.seeds, 0) as seeds
from means m left join paired p using (measure)
left join students_t t on t.n = least(p.seeds, (select max(n) from students_t))
where m.mean_a is not null and m.mean_b is not null order by m.place;
