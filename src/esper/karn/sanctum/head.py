"""The two lines above every screen: how the run stands, and what is wrong; and the line of keys below."""

from __future__ import annotations

from esper.karn.sanctum.ink import ALERT, DIM, GOOD, STRONG, Line, bar, fitted, joined, length, number, safe, text
from esper.karn.sanctum.scene import Scene
from esper.karn.state import Alert, Left, Status
from esper.karn.telling import summary
from esper.leyline.telemetry import EnvPayload
from esper.nissa.progress import duration

STANDS: dict[Status, tuple[str, str]] = {
    Status.WAITING: ("○ WAITING", DIM),
    Status.LIVE: ("● LIVE", GOOD),
    Status.PAUSED: ("‖ PAUSED", ALERT),
    Status.DONE: ("■ DONE", GOOD),
    Status.INTERRUPTED: ("■ INTERRUPTED", ALERT),
    Status.FAILED: ("✕ FAILED", ALERT),
    Status.DIED: ("✕ DIED", ALERT),
}
"""Sign, word and style of how a run stands."""


def status_line(scene: Scene, width: int) -> Line:
    """The parts that fit: those that matter least go first."""
    parts = _parts(scene)
    for name in ("program", "view", "rate", "share", "spread", "bar", "left", "lost", "round"):
        if 1 + sum(length(part) + 2 for part in parts.values()) <= width + 2:
            break
        parts.pop(name, None)
    line = joined(" ", *(joined(part, "  ") for part in parts.values()))
    return fitted(line, width)


def alert_line(scene: Scene, width: int) -> Line:
    alerts = scene.state.alerts(scene.team)
    if not alerts:
        return fitted(text(" no alerts", DIM), width)
    head = text(f" ▲ {len(alerts)} alert{'s' if len(alerts) > 1 else ''}  ", ALERT)
    told = "  ·  ".join(alert_text(alert, scene.now_s) for alert in alerts[:3])
    return fitted(joined(head, told), width)


def alert_text(alert: Alert, now_s: float) -> str:
    if alert.told is None:
        return safe(alert.text)
    payload, where = alert.told.payload, alert.told.where
    env = f"e{payload.env_id} " if isinstance(payload, EnvPayload) else ""
    ago = duration(max(0.0, now_s - where.time_s))
    return safe(f"{env}{payload.type.value} {summary(payload)}, {ago} ago")


def _parts(scene: Scene) -> dict[str, Line]:
    state, sign = scene.state, STANDS[scene.state.status(scene.now_s)]
    age = "" if state.heard_s is None else duration(max(0.0, scene.now_s - state.heard_s))
    ended = state.finished is not None
    parts = {
        "program": text("SANCTUM", STRONG),
        "run": text(safe(scene.about.run)[-48:], STRONG),
        "stands": text(sign[0] + ("" if ended or not age else f" {age}"), sign[1]),
    }
    if scene.replaying:
        parts["stands"] = joined(text("replay ", DIM), parts["stands"])
    if scene.paused:
        parts["view"] = text("‖ view paused", ALERT)
    if scene.gaze.team is not None:
        parts["team"] = text(f"group {safe(scene.gaze.team)}")
    rounds, done = (None if state.started is None else state.started.rounds), state.share_done
    now = scene.team.round
    parts["round"] = text(f"round {number(None if now is None else now + 1, 0)}/{number(rounds, 0)}")
    parts["bar"] = joined(text("│", DIM), bar(done, 14), text("│", DIM))
    parts["share"] = text("–" if done is None else f"{done:.0%}")
    parts |= _time_left(state.left, state.status(scene.now_s))
    rate = state.steps_per_second
    parts["rate"] = text("– st/s" if rate is None else f"{rate:.1f} st/s")
    lost = state.condition.lost
    parts["lost"] = text(f"lost {lost}", ALERT if lost else DIM)
    return parts


def _time_left(left: Left | None, status: Status) -> dict[str, Line]:
    if status is Status.PAUSED:
        return {"left": text("ETA paused", ALERT)}
    if left is None or status not in (Status.LIVE, Status.WAITING):
        return {}
    return {"left": text(f"ETA {duration(left.seconds)}"), "spread": text(f"±{duration(left.spread)}")}
