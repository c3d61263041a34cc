"""What the six screens show, as text: golden files, every size, every name that there is, and nothing of a run that
commands a terminal."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from tests.karn.conftest import ByHand, started, step
from tests.karn.recorded import Recorded
from tests.karn.sanctum.conftest import SIZES, page, sample, tell_everything

from esper.karn.colours import DARK, LIGHT, contrast
from esper.karn.episodes import GOVERNOR_LETTERS
from esper.karn.sanctum import board, env, ink, runs
from esper.karn.sanctum.palette import palette, stage_colour
from esper.karn.sanctum.scene import Gaze, Scene
from esper.karn.sanctum.watching import Watch
from esper.karn.state import Condition
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import SeedStage
from esper.leyline.telemetry import (
    EVENTS,
    GovernorRollbackPayload,
    LogPayload,
    RunHeartbeatPayload,
    TelemetryEventType,
)

SCREENS = range(len(board.SCREENS))
NAMES = [screen.name for screen in board.SCREENS]
HOSTILE = "a\x1b]52;c;aGk=\x07b [red]c[/] \u202ed\u0301 \x9b31m 漢"


def settled(watch: Watch, gaze: Gaze) -> Scene:
    """A scene with everything answered that the screen asks for."""
    watch.look()
    scene = watch.scene(gaze)
    for _ in range(3):
        board.whole(scene, 120, 40)
        watch.settle(60)
    return scene


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module")
def watched(garden: Path):
    watch = Watch(garden, garden.parent)
    yield watch
    watch.close()


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_a_screen_of_a_made_up_run_is_what_it_was_when_somebody_looked_at_it(watched, golden, size, screen) -> None:
    lines = board.whole(settled(watched, Gaze(screen=screen)), *size)

    golden(
        f"{board.SCREENS[screen].name.lower()}-{size[0]}x{size[1]}", "".join(ink.plain(line) + "\n" for line in lines)
    )


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_panels_stand_beside_each_other_and_fill_the_terminal(watched: Watch, size, screen: int) -> None:
    width, height = size
    scene = settled(watched, Gaze(screen=screen))
    covered = [[0] * width for _ in range(height)]

    for at in board.place(scene, width, height):
        lines = board.lines_of(scene, at)
        assert len(lines) == at.height
        assert {ink.length(line) for line in lines} == {at.width}
        for y in range(at.y, at.y + at.height):
            for x in range(at.x, at.x + at.width):
                covered[y][x] += 1

    assert {cell for row in covered[2:-1] for cell in row} == {1}
    assert {cell for row in (*covered[:2], covered[-1]) for cell in row} == {0}
    assert {ink.length(line) for line in board.whole(scene, width, height)} == {width}


@pytest.mark.parametrize("size", [(20, 5), (39, 40), (120, 11), (1, 1)])
def test_a_terminal_that_is_too_small_shows_a_sentence(watched: Watch, size: tuple[int, int]) -> None:
    lines = board.whole(watched.scene(Gaze()), *size)

    assert len(lines) == size[1]
    assert {ink.length(line) for line in lines} == {size[0]}
    if size[0] >= 20:
        assert "Sanctum needs 40 x" in " ".join(ink.plain(line).rstrip() for line in lines)


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_every_panel_can_be_seen_at_80_columns_by_zooming(watched: Watch, screen: int) -> None:
    for panel, of in enumerate(board.SCREENS[screen].panels):
        (at,) = board.place(watched.scene(Gaze(screen=screen, panel=panel, zoomed=True)), 80, 24)
        assert at.panel is of
        assert (at.width, at.height) == (80, 21)


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_every_panel_of_a_real_run_shows_rows_and_asks_for_them(recorded: Recorded, screen: int) -> None:
    watch = Watch(recorded.folder, recorded.folder.parent)
    scene = settled(watch, Gaze(screen=screen, slot=1))
    try:
        for panel in board.SCREENS[screen].panels:
            shown = "\n".join(map(ink.plain, panel.draw(scene, 100, 40)))
            assert shown.strip()
            assert "reading the run" not in shown
            sql = panel.asks(scene)
            source = watch.shelf if panel.of_shelf else watch.history
            source.ask(("asked", sql), lambda con, sql=sql: con.execute(sql, scene.bound(sql)).fetchall())
            watch.settle(60)
            assert source.trouble is None, panel.name
            assert "$" not in scene.copied(sql)
            if not panel.of_shelf:
                recorded.con.execute(scene.copied(sql))
    finally:
        watch.close()


# ---- every name has a place ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", TelemetryEventType, ids=lambda event: event.name)
def test_every_event_type_is_on_the_events_screen_with_its_record(everything: Path, event: TelemetryEventType) -> None:
    watch = Watch(everything, everything.parent)
    scene = settled(watch, Gaze(screen=NAMES.index("Events"), sought=f"type:{event.value}"))
    lines, record = (panel.draw(scene, 150, 40) for panel in board.SCREENS[NAMES.index("Events")].panels)
    watch.close()

    assert any(re.search(rf"\b{re.escape(event.value)}\b", ink.plain(line)) for line in lines)
    assert ink.plain(record[0]).split() == ["t", event.name]


def test_every_operation_stage_and_head_is_on_a_screen(everything: Path) -> None:
    watch = Watch(everything, everything.parent)
    try:
        scene = settled(watch, Gaze(screen=0))
        garden = "\n".join(map(ink.plain, board.whole(scene, 200, 60)))
        settled(watch, Gaze(screen=2))
        policy = "\n".join(map(ink.plain, board.whole(watch.scene(Gaze(screen=2)), 200, 60)))
        decisions = ["\n".join(map(ink.plain, env.DECISION.draw(watch.scene(Gaze(screen=1, step=at)), 120, 20)))
                     for at in range(len(LifecycleOp))]  # fmt: skip
        slots = "\n".join(map(ink.plain, env.SLOTS.draw(watch.scene(Gaze(screen=1)), 120, 20)))
    finally:
        watch.close()

    share = f"{100 / len(LifecycleOp):.1f}%"
    for op, decision in zip(LifecycleOp, decisions, strict=True):
        assert re.search(rf"^decision +{op.name}\b", decision, re.MULTILINE)
        assert re.search(rf"{op.name} +{re.escape(share)}", garden)
        assert re.search(rf"{op.name}.*{re.escape(share)}", policy)
    for head in HEADS:
        assert re.search(rf"{head} +0\.50", garden)
    for index, stage in enumerate(SeedStage):
        assert re.search(rf"r0c{index} +{stage.name}\b", slots)


def test_what_the_governor_said_stands_below_its_step_by_a_letter_of_its_own(everything: Path) -> None:
    watch = Watch(everything, everything.parent)
    lines = [ink.plain(line) for line in env.LANES.draw(settled(watch, Gaze(screen=1)), 120, 40)]
    watch.close()
    letters = {event.value: letter for event, letter in GOVERNOR_LETTERS.items()}

    assert letters["gov.rollback"] == "R"
    assert len(set(letters.values())) == len(letters) == sum(event.value.startswith("gov.") for event in EVENTS)
    (lane,) = [line for line in lines if line.startswith("governor")]
    assert lane.split()[1].strip("·") in letters.values()
    for name, letter in letters.items():
        assert f" {letter} {name.removeprefix('gov.')}" in lane


def test_stages_of_different_names_look_different_without_colour_where_seeds_are() -> None:
    seeded = [stage for stage in SeedStage if stage.name not in ("DORMANT", "EMBARGOED", "RESETTING")]

    assert len({ink.letter(stage) for stage in seeded}) == len(seeded)


@pytest.mark.parametrize("background", [DARK, LIGHT])
@pytest.mark.parametrize("stage", SeedStage)
def test_the_colour_of_every_stage_is_read_as_text_on_both_backgrounds(stage: SeedStage, background: str) -> None:
    assert contrast(stage_colour(stage, background), background) >= 4.5


@pytest.mark.parametrize("background", [DARK, LIGHT])
def test_every_style_is_read_as_text(background: str) -> None:
    for name, style in palette(background).items():
        assert style.color is not None
        assert style.bgcolor is not None
        colours = [each.get_truecolor().hex.upper() for each in (style.color, style.bgcolor)]
        assert contrast(*colours) >= 4.5, name


def test_without_colours_no_style_has_one_and_what_is_selected_still_stands_out() -> None:
    styles = palette(DARK, colours=False)

    assert all(style.color is None and style.bgcolor is None for style in styles.values())
    assert styles.keys() == palette(DARK).keys()
    assert styles[ink.SELECTED].reverse


# ---- text and numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_nothing_that_a_run_says_commands_the_terminal_or_widens_a_line(tmp_path: Path, screen: int) -> None:
    folder = tell_everything(tmp_path / "\x1b]0;evil\x07[bold]run", HOSTILE)

    shown = page(folder, screen, (200, 60))

    assert all(line.isprintable() for line in shown.splitlines())
    assert {len(line) for line in shown.splitlines()} == {200}


@pytest.mark.parametrize("screen", SCREENS, ids=NAMES)
def test_in_ascii_a_screen_is_as_wide_and_is_ascii_whatever_the_run_says(everything: Path, screen: int) -> None:
    watch = Watch(everything, everything.parent)
    lines = board.whole(settled(watch, Gaze(screen=screen)), 120, 40)
    watch.close()

    for line in lines:
        plain = ink.plain(ink.ascii_of(line))
        assert plain.isascii()
        assert len(plain) == 120
    assert "?" not in ink.plain(ink.ascii_of(ink.text("▁▂▃▄▅▆▇█░▒▓▏▎▍▌▋▊▉┌┐└┘─│·–±→↕▸●■✕▲▼‖…ΔΣ×○π")))


def test_what_was_not_measured_is_a_dash_and_never_a_zero(folder: ByHand) -> None:
    folder.write(folder.line(started()), folder.line(step(0), round=0, step=0))

    shown = page(folder.path, 0)

    (row,) = [line for line in shown.splitlines() if "▸e0" in line]
    assert row.split("│")[1].split()[1:3] == ["–", "–"]
    assert "no policy has learned yet" in shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (float("nan"), "nan"), (float("inf"), "inf"), (0.0, "0.00"), (-1.239, "-1.24")]
)
def test_numbers_are_shown_as_they_are(value: float | None, shown: str) -> None:
    assert ink.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "    "), (1.0, "████"), (0.5, "██  "), (1 / 32, "▏   "), (None, "    "), (7.0, "████")]
)
def test_a_share_is_a_bar_in_eighths(value: float | None, shown: str) -> None:
    assert ink.plain(ink.bar(value, 4)) == shown


def test_a_trend_is_thinned_to_means_of_equal_parts() -> None:
    assert ink.thinned([1.0, 3.0, None, 5.0, 7.0, 9.0], 3) == [2.0, 5.0, 8.0]
    assert ink.plain(ink.trend([0.0, 1.0], 4)) == "▁▁██"
    assert ink.plain(ink.trend([None, None], 4)) == "    "
    assert ink.plain(ink.trend([0.0, 0.0], 4)) == "▁▁▁▁"
    assert ink.plain(ink.trend([7.0, None], 4)) == "▄▄  "


def test_a_frame_says_how_much_it_does_not_show() -> None:
    lines = ink.framed(ink.text("T"), [ink.text(str(n)) for n in range(9)], 12, 5)

    assert [ink.plain(line) for line in lines] == [
        "┌ T ───────┐", "│0         │", "│1         │", "│2         │", "└── 6 more ┘",
    ]  # fmt: skip


# ---- how the run stands ----------------------------------------------------------------------------------------------


def head_of(folder: ByHand, condition: Condition, later_s: float) -> tuple[str, str]:
    watch = Watch(folder.path, folder.path.parent)
    watch.look()
    watch.state.hear(condition)
    scene = watch.scene(Gaze())
    scene.now_s = (watch.state.heard_s or 0.0) + later_s
    first, second = (ink.plain(line) for line in board.above(scene, 120))
    return first, second


def test_a_run_whose_process_is_silent_is_paused_and_has_no_time_left(folder: ByHand) -> None:
    folder.write(folder.line(started()), folder.line(RunHeartbeatPayload(rss_bytes=1, buffered_bytes=0)))

    assert "● LIVE 2s" in head_of(folder, Condition(running=True), 2.0)[0]
    first, _ = head_of(folder, Condition(running=True), 60.0)
    assert "‖ PAUSED 1m00s" in first
    assert "ETA paused" in first
    assert "✕ DIED" in head_of(folder, Condition(), 60.0)[0]
    assert "lost 3" in head_of(folder, Condition(lost=3), 0.0)[0]


def test_alerts_are_counted_and_told_with_what_they_are_about(folder: ByHand) -> None:
    rollback = folder.line(sample(GovernorRollbackPayload, "loss"), round=0, step=1)
    folder.write(folder.line(step(0), round=0, step=0), rollback, folder.line(LogPayload(level="warning", text="hot")))

    _, second = head_of(folder, Condition(bad_lines=1), 30.0)

    assert second.startswith(" ▲ 3 alerts  1 lines are no events  ·  e0 gov.rollback reason loss")
    assert "warning: hot" not in second, "three are told, and the line is full"


def test_a_run_in_which_nothing_was_told_is_waiting_and_every_screen_says_so(tmp_path: Path) -> None:
    folder = ByHand(tmp_path / "empty")
    for screen in SCREENS:
        shown = page(folder.path, screen)
        assert "WAITING" in shown
        assert "Traceback" not in shown


def test_the_list_of_runs_tells_why_one_of_them_cannot_be_read(garden: Path, tmp_path: Path) -> None:
    for name in ("a-run", "b-run"):
        tell_everything(tmp_path / name)
    (tmp_path / "b-run" / "run.json").write_text('{"schema_version": 10000}')
    watch = Watch(tmp_path / "a-run", tmp_path)
    scene = settled(watch, Gaze(screen=NAMES.index("Runs")))
    shown = "\n".join(map(ink.plain, runs.LIST.draw(scene, 140, 20)))
    watch.close()

    assert re.search(r"a-run +x", shown)
    assert "b-run: schema 10000: another version of esper wrote it" in shown


def test_a_redraw_of_16_environments_with_8_slots_is_quick_enough_to_be_done_four_times_a_second() -> None:
    from bench.sanctum import drawn, made_up

    scene = made_up(envs=16, slots=8)
    drawn(scene)
    began = time.process_time()
    for _ in range(10):
        drawn(scene)

    assert (time.process_time() - began) / 10 <= 0.045, "three times the bound of the bench"
    assert len(EVENTS) == len(TelemetryEventType)
