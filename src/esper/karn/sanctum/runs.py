"""Screen 6, Runs: what ran beside this run, how it ended, and how two of them compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from esper.karn.sanctum import ink
from esper.karn.sanctum.garden import window_of
from esper.karn.sanctum.ink import ALERT, DIM, SELECTED, STRONG, Cell, Line, joined, number, row, safe, size, text
from esper.karn.sanctum.scene import READING, Panel, Rows, Scene
from esper.karn.tables import quoted

RUNS_SQL = """select run, status, task, controller, rounds_done, rounds, test_metric, params, passed, judged, complete,
    host_git, null as why from runs join (select run, host_git from manifest) using (run) left join (
    select run, count(*) filter (passed) as passed, count(passed) as judged from gates group by run) using (run)
union all select run, 'unread', null, null, null, null, null, null, null, null, null, null, why from unread
order by run desc"""
_LIST_BESIDE = 8  # lines of the list while two of its runs are compared
_NEEDED = "mark two runs with space, then c compares them"


def run_names(scene: Scene) -> list[str]:
    """In the order of the list."""
    rows = scene.shelf(RUNS_SQL)
    return [] if rows is None else [str(each[0]) for each in rows]


def _list(scene: Scene, width: int, height: int) -> list[Line]:
    rows = scene.shelf(RUNS_SQL)
    if rows is None:
        return [READING]
    wide = width >= 110
    name = max(16, width - (77 if wide else 51))
    widths = (1, name, 11, -8, -8, -8, -6, *((12, 12) if wide else ()))
    head = ["", "run", "status", "rounds", "test", "params", "gates", *(("task", "controller") if wide else ())]
    lines = [joined(" ", row([text(each, DIM) for each in head], widths))]
    at = min(scene.gaze.row, len(rows) - 1)
    for index in window_of(range(len(rows)), at, height - 1):
        cells = _cells(scene, rows[index], wide)
        if index == at:
            cells = [text(ink.plain(cell) if not isinstance(cell, str) else cell, SELECTED) for cell in cells]
        lines.append(joined(text("▸" if index == at else " ", STRONG), row(cells, widths)))
    return lines if rows else [text("there are no runs", DIM)]


def _cells(scene: Scene, told: tuple[Any, ...], wide: bool) -> list[Cell]:
    run, status, task, controller, done, rounds, test, params, passed, judged, complete, _git, why = told
    marked = text("*" if run in scene.gaze.marked else " ", ALERT)
    if why is not None:
        return [marked, f"{safe(run)}: {safe(why)}", text(status, ALERT), *["–"] * (4 + 2 * wide)]
    bad = status in ("died", "failed") or not complete
    gates = "–" if passed is None else f"{passed}/{judged}"
    cells: list[Cell] = [marked, safe(run), text(safe(status) + ("" if complete else "!"), ALERT if bad else "")]
    cells += [f"{number(done, 0)}/{number(rounds, 0)}", number(test), size(params), gates]
    return cells + ([safe(task or "–"), safe(controller or "–")] if wide else [])


def _comparison(scene: Scene, width: int, _height: int) -> list[Line]:
    gaze = scene.gaze
    if not gaze.compares or len(gaze.marked) != 2:
        return [text(_NEEDED, DIM), text(f"{len(gaze.marked)} of 2 marked", DIM)]
    one, other = gaze.marked
    rows = scene.shelf(compare_sql(one, other))
    configs, curves = scene.shelf(_config_sql(one, other)), scene.shelf(_curve_sql(one, other))
    if rows is None or configs is None or curves is None:
        return [READING]
    lines = [text(f"a  {safe(one)}"), text(f"b  {safe(other)}"), *_curves(curves, width), text("")]
    widths = (14, -10, -10, -11, 22)
    lines.append(row([text(h, DIM) for h in ("measure", "a", "b", "a - b", "95 % interval")], widths))
    for measure, a, b, difference, low, high, seeds in rows:
        interval = "one seed: none" if low is None else f"[{_short(low)}, {_short(high)}] n={seeds}"
        lines.append(row([safe(measure), _short(a), _short(b), _short(difference, True), interval], widths))
    return [*lines, text(""), *_differences(gaze.marked, configs, width)]


def _curves(rows: Rows, width: int) -> list[Line]:
    """The validation metric round by round, of both on one scale."""
    values = [value for each in rows for value in each[1:3]]
    known = [value for value in values if value is not None]
    if not known:
        return []
    ends: list[float | None] = [min(known), max(known)]
    room = max(4, width - 24)
    found = []
    for at, name in ((1, "a"), (2, "b")):
        mine = [each[at] for each in rows]
        bars = ink.plain(ink.trend([*ends, *ink.thinned(mine, room - 2)], room))[2:]
        last = [value for value in mine if value is not None]
        found.append(joined(f"{name}  ", bars, f"  {number(last[-1] if last else None)} at the end"))
    return found


def _differences(runs: Sequence[str], rows: Rows, width: int) -> list[Line]:
    told = {run: _flat(json.loads(config or "{}")) for run, config in rows}
    one, other = (told.get(run, {}) for run in runs)
    names = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    lines = [text(f"settings that differ: {len(names)}", DIM)]
    return lines + [ink.fitted(text(safe(f"  {n}: {one.get(n)} | {other.get(n)}")), width) for n in names]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _short(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.4g}" if signed else f"{value:.4g}"


def compare_sql(one: str, other: str) -> str:
    return f"from compare([{quoted(one)}], [{quoted(other)}])"


def _config_sql(one: str, other: str) -> str:
    return f"select run, config::VARCHAR from manifest where run in ({quoted(one)}, {quoted(other)}) order by run"


def _curve_sql(one: str, other: str) -> str:
    a, b = quoted(one), quoted(other)
    return (
        f"select round, avg(val_metric) filter (run = {a}), avg(val_metric) filter (run = {b}) from rounds "
        f"where run in ({a}, {b}) group by round order by round"
    )


LIST = Panel(
    "runs",
    lambda _scene: text("RUNS  Enter opens, space marks, c compares", ink.TITLE),
    _list,
    RUNS_SQL,
    least=6,
    wants=lambda scene: (
        min(len(run_names(scene)) + 3, _LIST_BESIDE) if scene.gaze.compares else len(run_names(scene)) + 3
    ),
    of_shelf=True,
)


def _compared(scene: Scene) -> str:
    """The comparison, once there is one; until then the list."""
    return compare_sql(*scene.gaze.marked) if len(scene.gaze.marked) == 2 else RUNS_SQL


COMPARISON = Panel("comparison", lambda _scene: text("COMPARISON", ink.TITLE), _comparison, _compared, of_shelf=True)
