"""Screen 4, Churn: is the ladder used or thrashed, and what does a change of level buy?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper.karn.sanctum import ink
from esper.karn.sanctum.garden import window_of
from esper.karn.sanctum.ink import ALERT, DIM, SELECTED, STRONG, Cell, Line, joined, number, row, safe, size, text
from esper.karn.sanctum.policy import curves, window_words
from esper.karn.sanctum.scene import READING, WINDOW, Panel, Rows, Scene

_NO_LADDERS = "no ladder lived in these rounds"
_CELL = 11
_DARKEST = 0.10  # changes per step; more of them are thrash by the view `churn`


def _grid(scene: Scene, width: int, height: int) -> list[Line]:
    rows = scene.rows(_GRID_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text(_NO_LADDERS, DIM)]
    found: Mapping[tuple[int, str], Any] = {(env, safe(slot)): rest for env, slot, *rest in rows}
    envs = sorted({env for env, _ in found})
    most = max(1, (width - 14) // (_CELL + 1))
    slots = [scene.slots[at] for at in window_of(range(len(scene.slots)), scene.gaze.slot, most)]
    widths = (4, *[_CELL] * len(slots), -7)
    lines = [joined(" ", row([text(each, DIM) for each in ("env", *slots, "all")], widths))]
    for env in window_of(envs, envs.index(scene.gaze.env) if scene.gaze.env in envs else 0, height - 2):
        cells = [_cell(scene, env, slot, found.get((env, slot))) for slot in slots]
        mine = [value for (other, _), value in found.items() if other == env]
        changes, steps = sum(value[0] for value in mine), sum(value[1] for value in mine)
        chosen = env == scene.gaze.env
        whole = number(changes / steps if steps else None, 3)
        lines.append(joined(text("▸" if chosen else " ", STRONG), row([f"e{env}", *cells, whole], widths)))
    return [*lines, text("changes per step of a ladder (darker = more)  ▲▼ net  ! thrash", DIM)]


def _cell(scene: Scene, env: int, slot: str, told: Any) -> Line:
    if told is None:
        return text("·", DIM)
    changes, steps, net, _reversals, thrash = told
    rate = changes / steps if steps else None
    sign = "▲" if net > 0 else "▼" if net < 0 else " "
    style = SELECTED if (env, slot) == (scene.gaze.env, scene.slot) else ALERT if thrash else ""
    dark = ink.plain(ink.shades([None if rate is None else rate / _DARKEST], 1))
    return text(f"{dark}{'!' if thrash else ' '} {number(rate, 3)} {sign}", style)


def _over_time(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_TIME_SQL)
    if rows is None:
        return [READING]
    names = [("grown", 0), ("shrunk", 0), ("net", 0), ("reversals", 0), ("per step", 3)]
    return curves(rows, names, width) if rows else [text(_NO_LADDERS, DIM)]


def worst(scene: Scene) -> Rows:
    """(environment, slot, round, ...) of the episodes of the list, the worst first; none as long as it is not known."""
    return scene.rows(_WORST_SQL) or []


def _worst(scene: Scene, width: int, height: int) -> list[Line]:
    rows = scene.rows(_WORST_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text("no level was changed in these rounds", DIM)]
    widths = (4, 8, -5, -7, -4, -9, max(6, width - 47))
    head = ("env", "slot", "round", "changes", "net", "reversals", "levels visited")
    lines = [joined(" ", row([text(each, DIM) for each in head], widths))]
    chosen = min(scene.gaze.row, len(rows) - 1)
    for at in window_of(range(len(rows)), chosen, height - 1):
        env, slot, round_, changes, net, reversals, thrash, levels = rows[at]
        style = SELECTED if at == chosen else ALERT if thrash else ""
        path = " ".join(map(str, levels)) if levels else ""
        cells: list[Cell] = [text(f"e{env}", style), safe(slot), number(round_, 0), number(changes, 0)]
        cells += [f"{net:+.0f}", number(reversals, 0) + ("!" if thrash else ""), path]
        lines.append(joined(text("▸" if at == chosen else " ", STRONG), row(cells, widths)))
    return lines


def _occupancy(scene: Scene, width: int, _height: int) -> list[Line]:
    rows = scene.rows(_OCCUPANCY_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text(_NO_LADDERS, DIM)]
    room = max(4, width - 20)
    lines = [row([text(each, DIM) for each in ("level", "of steps", "")], (6, room, -6))]
    return [
        *lines,
        *(row([f"L{level}", ink.bar(share, room), ink.share(share)], (6, room, -6)) for level, share in rows),
    ]


def _buys(scene: Scene, _width: int, _height: int) -> list[Line]:
    rows = scene.rows(_BUYS_SQL)
    if rows is None:
        return [READING]
    if not rows:
        return [text("no level was changed in these rounds", DIM)]
    widths = (6, -4, -14, -6)
    lines = [row([text(each, DIM) for each in ("change", "n", "Δ metric ± 95%", "params")], widths)]
    for before, after, n, gain, half, added in rows:
        told = number(gain, signed=True) + ("" if half is None else f" ± {number(half)}")
        lines.append(row([f"{before} → {after}", number(n, 0), told, size(added, signed=True)], widths))
    return [*lines, text("20 steps on; hosts learn too", DIM)]


def _price(scene: Scene, width: int, _height: int) -> list[Line]:
    rows: Rows | None = scene.rows(_PRICE_SQL)
    if rows is None:
        return [READING]
    ((steps, internal, acting, refused, price, total),) = rows
    if not steps:
        return [text("no decisions in these rounds", DIM)]
    parts = (
        ("GROW+SHRINK, of all ops", ink.share(internal / acting if acting else None)),
        ("refused of these", ink.share(refused / internal if internal else None)),
        ("price, of all costs", ink.share(price / total if total and price else None)),
    )
    return [row([name, value], (max(10, width - 9), -7)) for name, value in parts]


_GRID_SQL = (
    "select env, slot, sum(changes), sum(ladder_steps), sum(net_level_change), sum(reversals), bool_or(thrash) "
    f"from churn where {WINDOW} group by env, slot order by env, slot"
)
_TIME_SQL = (
    "select round, sum(grown), sum(shrunk), sum(net_level_change), sum(reversals), "
    f"sum(changes) / nullif(sum(ladder_steps), 0) from churn where {WINDOW} group by round order by round"
)
_WORST_SQL = f"""with path as (
    select run, g, round, env, slot_id as slot, list(to_level order by step, writer, n) as levels
    from live_seed_level where {WINDOW} group by all
) select c.env, c.slot, c.round, c.changes, c.net_level_change, c.reversals, c.thrash, p.levels
from (from churn where {WINDOW} and changes > 0) c left join path p on p.round = c.round and p.env = c.env
    and p.slot = c.slot
order by c.thrash desc, c.reversals desc, c.changes desc, c.round desc, c.env, c.slot limit 200"""
_OCCUPANCY_SQL = (
    f"select level, count(*) / sum(count(*)) over () from slot_steps where {WINDOW} and is_live_ladder "
    "group by level order by level"
)
_BUYS_SQL = f"""select c.from_level, c.to_level, count(c.gain_20), avg(c.gain_20),
    any_value(t.quantile) * stddev_samp(c.gain_20) / sqrt(count(c.gain_20)), avg(c.params_added)
from (select *, count(gain_20) over (partition by from_level, to_level) as told from level_changes
    where {WINDOW} and cause = 'op') c left join students_t t on t.n = c.told
group by c.from_level, c.to_level order by c.to_level < c.from_level, c.from_level"""
_PRICE_SQL = f"""with s as (from env_steps where {WINDOW}), paid as (
    select sum(abs(value)) filter (term in ('intervention', 'churn')) as price, sum(abs(value)) as total
    from reward_long where {WINDOW} and value < 0
) select count(*), count(*) filter (is_internal), count(*) filter (not waits),
    count(*) filter (is_internal and not done), any_value(price), any_value(total) from s cross join paid"""

GRID = Panel(
    "churn",
    lambda scene: text(f"LEVEL CHANGES  env × slot, {window_words(scene)}", ink.TITLE),
    _grid,
    _GRID_SQL,
    least=6,
    wants=lambda scene: len(scene.team.envs) + 4,
)
OVER_TIME = Panel(
    "changes-over-time",
    lambda scene: text(f"OVER TIME  {window_words(scene)}", ink.TITLE),
    _over_time,
    _TIME_SQL,
    wants=lambda _scene: 7,
)
WORST = Panel("worst", lambda _scene: text("WORST THRASH  Enter opens the episode", ink.TITLE), _worst, _WORST_SQL)
OCCUPANCY = Panel(
    "occupancy",
    lambda _scene: text("LADDER OCCUPANCY", ink.TITLE),
    _occupancy,
    _OCCUPANCY_SQL,
    wants=lambda _scene: 9,
)
BUYS = Panel("buys", lambda _scene: text("WHAT A CHANGE BUYS", ink.TITLE), _buys, _BUYS_SQL, wants=lambda _scene: 13)
PRICE = Panel("price", lambda _scene: text("PRICE", ink.TITLE), _price, _PRICE_SQL)
