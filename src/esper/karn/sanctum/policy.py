"""Screen 3, Policy: is the controller healthy, and what does it choose? Rounds run from left to right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

from esper.karn.sanctum import ink
from esper.karn.sanctum.ink import ALERT, DIM, Cell, Line, joined, number, row, safe, text
from esper.karn.sanctum.scene import READING, WINDOW, WINDOWS, Panel, Rows, Scene
from esper.karn.state import ENTROPY_FLOOR, collapsed
from esper.leyline.factored_actions import HEADS, OPS
from esper.leyline.telemetry import EnvPayload

Series = dict[str, dict[int, tuple[float | None, ...]]]
"""By name and round, what was told of it."""


def window_words(scene: Scene) -> str:
    window = WINDOWS[scene.gaze.window]
    return "all rounds" if window is None else f"last {window} rounds"


def _heads(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_HEADS_SQL)
    if rows is None:
        return [READING]
    found, rounds = series_of(rows)
    room = max(6, width - 46)
    widths = (12, room, -5, -6, -6, -6)
    lines = [row([text(h, DIM) for h in ("head", "H/Hmax", "now", "KL", "clip", "|grad|")], widths)]
    for head in HEADS:
        told = found.get(head, {})
        now = told[rounds[-1]] if rounds and rounds[-1] in told else (None,) * 4
        low = now[0] is not None and collapsed(now[0])
        cells: list[Cell] = [head, ink.shades([told[r][0] if r in told else None for r in rounds], room)]
        cells += [text(number(now[0]) + ("!" if low else ""), ALERT if low else "")]
        lines.append(row([*cells, number(now[1], 4), number(now[2]), number(now[3], 3)], widths))
    return [*lines, text(f"dark = high  ! below the floor of {ENTROPY_FLOOR:.2f}  – nothing to choose", DIM)]


def _ops(scene: Scene, width: int, _height: int) -> list[Line]:
    return _shares(scene, width, _OPS_SQL, "op", [op.name for op in OPS])


def _blueprints(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_BLUEPRINTS_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text("nothing was planted in these rounds", DIM)]
    room = max(6, width - 47)
    widths = (14, room, -6, -6, -6, -7)
    lines = [row([text(h, DIM) for h in ("blueprint", "share of seeds planted", "share", "kept", "pruned", "cf")],
                 widths)]  # fmt: skip
    for name, share, kept, pruned, contribution in rows:
        lines.append(row([safe(name), ink.bar(share, room), ink.share(share), number(kept, 0), number(pruned, 0),
                          number(contribution, signed=True)], widths))  # fmt: skip
    return lines


def _slots(scene: Scene, width: int, _height: int) -> list[Line]:
    return _shares(scene, width, _SLOTS_SQL, "slot", list(scene.slots))


def _shares(scene: Scene, width: int, sql: str, what: str, names: Sequence[str]) -> list[Line]:
    """How often each of these was chosen, round by round; how often it could be, and how often it was done."""
    rows = scene.rows(sql)
    if rows is None:
        return [READING]
    found, rounds = series_of(rows)
    room = max(6, width - 45)
    widths = (17, room, -6, -8, -6)
    lines = [row([text(h, DIM) for h in (what, "share per round (darker = more)", "now", "possible", "done")], widths)]
    for name in names:
        told = found.get(name, {})
        now = told[rounds[-1]] if rounds and rounds[-1] in told else (None,) * 3
        shares = [told[r][0] if r in told else 0.0 for r in rounds]
        share = now[0] if now[0] is not None else _none(rounds)
        darker = [None if value is None else sqrt(value) for value in shares]  # so that rare ones differ too
        cells: list[Cell] = [safe(name), ink.shades(darker, room), ink.share(share)]
        lines.append(row([*cells, ink.share(now[1]), ink.share(now[2], 0)], widths))
    return lines


def _none(rounds: Sequence[int]) -> float | None:
    """Nobody chose it: that is 0 where anything was chosen."""
    return 0.0 if rounds else None


def series_of(rows: Rows) -> tuple[Series, list[int]]:
    """Rows of (round, name, values ...)."""
    found: Series = {}
    for round_, name, *values in rows:
        found.setdefault(str(name), {})[int(round_)] = tuple(values)
    return found, sorted({int(round_) for round_, *_ in rows})


def curves(rows: Rows, names: Sequence[tuple[str, int]], width: int) -> list[Line]:
    """A line with a trend per column of (round, values ...), its last value behind it. names: with decimals."""
    room = max(4, width - 22)
    lines = []
    for at, (name, digits) in enumerate(names, start=1):
        values = [each[at] for each in rows]
        known = [value for value in values if value is not None]
        last = number(known[-1] if known else None, digits)
        lines.append(row([name, ink.trend(values, room), last], (11, room, -8)))
    return lines


def _curves(sql: str, names: Sequence[tuple[str, int]], nothing: str) -> Callable[[Scene, int, int], list[Line]]:
    def draw(scene: Scene, width: int, _height: int) -> list[Line]:
        rows = scene.rows(sql)
        if rows is None:
            return [READING]
        return curves(rows, names, width) if rows else [text(nothing, DIM)]

    return draw


def _governor(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_GOVERNOR_SQL)
    if rows is None:
        return [READING]
    lines = curves(rows, [("rollbacks", 1), ("refused", 1)], width)
    here = [
        told for key, each in scene.team.episodes.items() if key[0] >= scene.first_round for told in each.governor()
    ]
    for told in sorted(here, reverse=True):
        env = told.payload.env_id if isinstance(told.payload, EnvPayload) else None
        lines.append(joined(text(f"e{number(env, 0)} ", DIM), text(told.payload.type.value, ALERT)))
    return [text("per 100 episodes", DIM), *lines]


_HEADS_SQL = (
    f"select round, head, entropy, kl, clip_fraction, grad_norm from head_health where {WINDOW} order by round, head"
)
_OPS_SQL = (
    f"select round, choice, share, possible_share, done_share from action_mix where {WINDOW} and head = 'op' "
    "order by round, choice"
)
_SLOTS_SQL = _OPS_SQL.replace("'op'", "'slot'")
_BLUEPRINTS_SQL = f"""with planted as (from live_seed_germinated where {WINDOW}),
    kept as (select blueprint_id, count(*) as n from live_seed_fossilized where {WINDOW} group by all),
    lost as (select blueprint_id, count(*) as n from live_seed_pruned where {WINDOW} group by all),
    brought as (
        select blueprint_id, avg(metric) as cf from live_seed_cf where {WINDOW} and against = 'off' group by all
    )
select blueprint_id, count(*) / sum(count(*)) over () as share, coalesce(any_value(k.n), 0) as kept,
    coalesce(any_value(l.n), 0) as pruned, any_value(b.cf) as contribution
from planted left join kept k using (blueprint_id) left join lost l using (blueprint_id)
    left join brought b using (blueprint_id) group by blueprint_id order by share desc"""
_PPO_SQL = (
    "select round, approx_kl, clip_fraction, explained_variance, policy_loss, value_loss, grad_norm, entropy_share, "
    f"forced_share from ppo_updates where {WINDOW} order by round"
)
_RETURNS_SQL = (
    "select round, quantile_cont(reward, 0.9), quantile_cont(reward, 0.5), quantile_cont(reward, 0.1), "
    f"avg(val_metric), avg(test_metric) from episodes where {WINDOW} group by round order by round"
)
_GOVERNOR_SQL = (
    f"select round, 100 * avg(rollbacks), 100 * avg(refused) from episodes where {WINDOW} group by round order by round"
)

HEADS_OVER_TIME = Panel(
    "entropy",
    lambda scene: text(f"HEADS  entropy, {window_words(scene)}", ink.TITLE),
    _heads,
    _HEADS_SQL,
    wants=lambda _scene: len(HEADS) + 4,
)
OPS_OVER_TIME = Panel(
    "choices",
    lambda scene: text(f"OPS  {window_words(scene)}", ink.TITLE),
    _ops,
    _OPS_SQL,
    wants=lambda _scene: len(OPS) + 3,
)
BLUEPRINTS = Panel(
    "blueprints",
    lambda scene: text(f"BLUEPRINTS  {window_words(scene)}", ink.TITLE),
    _blueprints,
    _BLUEPRINTS_SQL,
    wants=lambda scene: len(scene.rows(_BLUEPRINTS_SQL) or ()) + 3,
)
SLOTS = Panel(
    "places",
    lambda scene: text(f"SLOTS  chosen where an operation needs one, {window_words(scene)}", ink.TITLE),
    _slots,
    _SLOTS_SQL,
)
PPO = Panel(
    "learning",
    lambda scene: text(f"PPO  {window_words(scene)}", ink.TITLE),
    _curves(
        _PPO_SQL,
        [("KL", 4), ("clip", 2), ("EV", 2), ("π loss", 3), ("V loss", 3), ("|grad|", 2), ("H weight", 2),
         ("forced", 2)],
        "no policy has learned in these rounds",
    ),
    _PPO_SQL,
    wants=lambda _scene: 10,
)  # fmt: skip
RETURNS = Panel(
    "returns",
    lambda _scene: text("RETURNS  per episode", ink.TITLE),
    _curves(
        _RETURNS_SQL,
        [("p90", 2), ("p50", 2), ("p10", 2), ("validation", 2), ("test", 2)],
        "no episode has come to its end",
    ),
    _RETURNS_SQL,
    wants=lambda _scene: 7,
)
GOVERNOR = Panel("rollbacks", lambda _scene: text("GOVERNOR", ink.TITLE), _governor, _GOVERNOR_SQL)
