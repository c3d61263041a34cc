"""The program in a terminal: every key on every screen at every size, over a real run and over one being written."""

from __future__ import annotations

import asyncio
import csv
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.karn.conftest import step
from tests.karn.recorded import Recorded
from tests.karn.sanctum.conftest import SIZES, tell_everything
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widgets import OptionList

from esper.karn.feed import Event, Feed
from esper.karn.sanctum import board, ink, keys
from esper.karn.sanctum.app import Help, Sanctum
from esper.karn.sanctum.watching import Watch
from esper.leyline.telemetry import SCHEMA_VERSION, RunFinishedPayload, RunStartedPayload, UnknownEventError
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

LEAVES = {"q"}
SCREENS = [str(number) for number in range(1, len(board.SCREENS) + 1)]


@asynccontextmanager
async def opened(
    folder: Path, size: tuple[int, int], exports: Path, newer: Callable[[Path], Watch | None] = lambda _: None
) -> AsyncIterator[tuple[Sanctum, Pilot[None]]]:
    root = folder.parent
    app = Sanctum(Watch(folder, root), lambda name: Watch(root / name, root), newer=newer, exports=exports)
    try:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.watch_.state.version > 0 or app.failed is not None)
            yield app, pilot
    finally:
        app.watch_.close()


async def until(pilot: Pilot[None], holds: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it never came"
        await pilot.pause(0.02)


async def settle(app: Sanctum, pilot: Pilot[None]) -> None:
    """Until the views have answered what the screen asks."""
    for _ in range(3):
        await asyncio.to_thread(app.watch_.settle, 30.0)
        await pilot.pause()


def on_screen(app: Sanctum) -> str:
    """What the boxes show."""
    return "\n".join(ink.plain(line) for box in app._boxes if box.display for line in box._lines)


def check_inside(app: Sanctum) -> None:
    """No widget that is shown leaves the terminal, and the boxes lie in it as they are drawn."""
    width, height = app.size
    for widget in app.screen.walk_children():
        scrolled = any(isinstance(each, VerticalScroll | OptionList) for each in widget.ancestors)
        if widget.display and widget.region.area and not scrolled:
            region = widget.region
            assert region.x >= 0, widget
            assert region.y >= 0, widget
            assert region.right <= width, (widget, region)
            assert region.bottom <= height, (widget, region)
    for box in app._boxes:
        if box.display:
            assert {ink.length(line) for line in box._lines} <= {box.region.width}


async def press_everything(folder: Path, size: tuple[int, int], exports: Path) -> None:
    async with opened(folder, size, exports) as (app, pilot):
        for screen in SCREENS:
            for key in keys.KEYS:
                for name in key.names:
                    if name in LEAVES or name in SCREENS:
                        continue
                    if app.gaze.screen != int(screen) - 1:
                        await pilot.press(screen)
                    await pilot.press(name)
                    if type(app.screen).__name__ != "Screen" or app.query_one("#sought").display:
                        await pilot.pause()
                        check_inside(app)
                        await pilot.press("escape")
                    assert app.failed is None
                check_inside(app)
            await settle(app, pilot)
            check_inside(app)
            assert app.watch_.history.trouble is None
            assert app.watch_.shelf.trouble is None
        await pilot.press("q")
    assert app.return_code == 0


@pytest.mark.parametrize("recorded", ["ruled"], indirect=True)
@pytest.mark.parametrize("size", SIZES[:1], ids=str)
def test_every_key_on_every_screen_keeps_every_widget_inside(recorded: Recorded, size, tmp_path: Path) -> None:
    asyncio.run(press_everything(recorded.folder, size, tmp_path))

    assert list(tmp_path.glob("*.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_key_on_every_screen_of_every_size_and_run(recorded: Recorded, size, tmp_path: Path) -> None:
    asyncio.run(press_everything(recorded.folder, size, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_key_on_every_screen_of_every_size_while_a_run_is_written(size, tmp_path: Path) -> None:
    """Twenty steps a second, of two hosts in turn."""
    with RunFolder.create(tmp_path / "runs", "live", "live") as folder:
        with EventWriter(folder.ev, folder.next_writer()) as events:
            begin = {"schema_version": SCHEMA_VERSION, "envs": 2, "rounds": 1000, "episode_length": 10}
            events.emit(RunStartedPayload(controller="c", task="t", **begin))
            told, enough = 0, threading.Event()

            def write() -> None:
                nonlocal told
                while not enough.wait(0.05):
                    env, at = told % 2, told // 2
                    here = {"round": at // 10, "episode": at // 10 * 2 + env, "step": at % 10}
                    events.emit(msgspec.structs.replace(step(told, val_metric=float(told)), env_id=env), **here)
                    told += 1

            writer = threading.Thread(target=write)
            writer.start()
            try:
                asyncio.run(press_everything(folder.path, size, tmp_path))
            finally:
                enough.set()
                writer.join()
            assert told > 10, "it was not written while it was looked at"
        assert events.incomplete is None


def test_a_terminal_that_changes_its_size_is_filled_again_and_a_tiny_one_gets_a_sentence(everything: Path, tmp_path):
    async def story() -> None:
        async with opened(everything, (120, 40), tmp_path) as (app, pilot):
            for size in (*SIZES, (20, 5), (120, 40)):
                await pilot.resize_terminal(*size)
                await pilot.pause(0.2)
                check_inside(app)
                assert ("Sanctum needs" in on_screen(app)) == (size == (20, 5))

    asyncio.run(story())


def test_the_keys_lead_from_the_garden_to_a_decision_and_back(recorded: Recorded, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(recorded.folder, (120, 40), tmp_path) as (app, pilot):
            await pilot.press("j")
            assert app.gaze.env == 1
            assert "▸e1" in on_screen(app)
            await pilot.press("enter", "g")
            assert (app.gaze.screen, app.gaze.step) == (keys.ENV, 0)
            told = app.scene.episode.at(0)
            assert f"decision  {told.op}" in on_screen(app)
            await pilot.press("right_square_bracket")
            assert app.gaze.step == 1
            await pilot.press("G")
            assert app.gaze.step == app.scene.episode.last_step
            await pilot.press("left_curly_bracket")
            happened = {each.where.step for each in app.scene.episode.happened}
            acted = {at for at, told in app.scene.episode.walk() if told.op != "WAIT"}
            assert app.gaze.step == max(
                at for at in happened | acted if at is not None and at < app.scene.episode.last_step
            )
            await pilot.press("enter")
            await settle(app, pilot)
            assert app.gaze.sought == f"env:1 round:{app.scene.round}"
            assert {payload.env_id for _, payload in app.scene.listed().events} == {1}
            await pilot.press("escape", "escape")
            assert (app.gaze.screen, app.gaze.sought) == (keys.GARDEN, "")

    asyncio.run(story())


def test_an_episode_of_an_old_round_is_read_back_from_the_tables(recorded: Recorded, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(recorded.folder, (120, 40), tmp_path) as (app, pilot):
            app.watch_.state.team().episodes.clear()  # as in a run of many rounds
            app.gaze.screen, app.gaze.round = keys.ENV, 0
            app._draw()
            assert "reading the run" in on_screen(app)
            await settle(app, pilot)
            mine = {at: told for (round_, env, at), told in recorded.steps().items() if (round_, env) == (0, 0)}
            assert dict(app.scene.episode.walk()) == mine

    asyncio.run(story())


def test_a_filter_narrows_the_events_and_c_copies_where_one_is(recorded: Recorded, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(recorded.folder, (120, 40), tmp_path) as (app, pilot):
            await pilot.press("slash", *"type:seed.level", "enter")
            await settle(app, pilot)
            listed = app.scene.listed()
            assert {payload.type.value for _, payload in listed.events} <= {"seed.level"}
            assert len(listed.events) == sum(payload.type.value == "seed.level" for _, payload in recorded.told)
            await pilot.press("n")
            assert app.gaze.row == min(1, max(0, len(listed.events) - 1))
            if listed.events:
                await pilot.press("c")
                where = listed.events[app.gaze.row][0]
                assert app.clipboard == f'{{"writer": "{where.writer}", "n": {where.counter}}}'

    asyncio.run(story())


def test_x_writes_the_rows_of_the_panel_and_y_copies_sql_that_gives_them(recorded: Recorded, tmp_path: Path) -> None:
    async def story() -> str:
        async with opened(recorded.folder, (120, 40), tmp_path) as (app, pilot):
            await pilot.press("3", "n", "x")
            await until(pilot, lambda: bool(list(tmp_path.glob("*.csv"))) and "rows:" in app._notice)
            await pilot.press("x")
            await until(pilot, lambda: len(list(tmp_path.glob("*.csv"))) == 2)
            await pilot.press("y")
            return app.clipboard

    sql = asyncio.run(story())

    first, second = (list(csv.reader(path.open())) for path in sorted(tmp_path.glob("*.csv")))
    asked = recorded.con.execute(sql)
    assert first == second
    assert first[0] == [column[0] for column in asked.description]
    assert len(first) == 1 + len(asked.fetchall())


def test_pause_stops_the_view_and_q_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    async def story(folder: RunFolder, events: EventWriter) -> None:
        def tell(number: int, metric: float) -> None:
            events.emit(step(number, val_metric=metric), round=0, episode=0, step=number)

        tell(0, 11.25)
        async with opened(folder.path, (120, 40), tmp_path) as (app, pilot):
            await until(pilot, lambda: "11.25" in on_screen(app))
            assert "● LIVE" in on_screen(app)
            tell(1, 22.5)
            told = time.monotonic()
            await until(pilot, lambda: "22.50" in on_screen(app))
            assert time.monotonic() - told < 2.0, "twice what is promised on a quiet machine"
            await pilot.press("space")
            tell(2, 33.75)
            await pilot.pause(0.8)
            assert "33.75" not in on_screen(app)
            assert "view paused" in on_screen(app)
            await pilot.press("space")
            await until(pilot, lambda: "33.75" in on_screen(app))
            await press_all_screens(app, pilot)
            await pilot.press("q")
        tell(3, 44.0)

    with RunFolder.create(tmp_path / "runs", "live", "live") as folder:
        with EventWriter(folder.ev, folder.next_writer()) as events:
            begin = {"schema_version": SCHEMA_VERSION, "envs": 1, "rounds": 1, "episode_length": 9}
            events.emit(RunStartedPayload(controller="c", task="t", **begin))
            asyncio.run(story(folder, events))
            events.emit(RunFinishedPayload(status="done", seconds=1.0))
        assert events.incomplete is None
        assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "ev", "run.lock"]


async def press_all_screens(app: Sanctum, pilot: Pilot[None]) -> None:
    for screen in SCREENS:
        await pilot.press(screen)
        await settle(app, pilot)
        check_inside(app)


def test_two_runs_are_marked_and_compared_and_another_is_opened(tmp_path: Path) -> None:
    for name in ("a-run", "b-run"):
        tell_everything(tmp_path / name)

    async def story() -> None:
        async with opened(tmp_path / "a-run", (120, 40), tmp_path) as (app, pilot):
            await pilot.press("6")
            await settle(app, pilot)
            await pilot.press("space", "j", "space", "c")
            await settle(app, pilot)
            assert set(app.gaze.marked) == {"a-run", "b-run"}
            assert "settings that differ: 0" in on_screen(app)
            await pilot.press("escape", "g", "enter")
            await until(pilot, lambda: app.watch_.state.version > 0)
            assert app.watch_.about.run == "b-run"

    asyncio.run(story())


def test_a_newer_run_is_followed_where_that_was_asked_for(tmp_path: Path) -> None:
    for name in ("a-run", "b-run"):
        tell_everything(tmp_path / name)

    def newer(watched: Path) -> Watch | None:
        return None if watched.name == "b-run" else Watch(tmp_path / "b-run", tmp_path)

    async def story() -> None:
        async with opened(tmp_path / "a-run", (80, 24), tmp_path, newer) as (app, pilot):
            await until(pilot, lambda: app.watch_.about.run == "b-run")

    asyncio.run(story())


def test_a_replay_tells_a_run_from_its_beginning(recorded: Recorded, tmp_path: Path) -> None:
    lasted = recorded.told[-1][0].time_s - recorded.told[0][0].time_s

    async def story() -> None:
        app = Sanctum(Watch(recorded.folder, recorded.folder.parent, speed=lasted / 2), lambda _: pytest.fail("opens"))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.watch_.state.version > 0)
            assert (app.watch_.state.heard_s or 0.0) < recorded.told[-1][0].time_s
            assert "replay ● LIVE" in on_screen(app)
            await until(pilot, lambda: "■ DONE" in on_screen(app))
            assert app.watch_.state.heard_s == recorded.told[-1][0].time_s
        app.watch_.close()

    asyncio.run(story())


def test_help_shows_every_key_and_light_is_another_palette(everything: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(everything, (120, 60), tmp_path) as (app, pilot):
            await pilot.press("question_mark")
            assert isinstance(app.screen, Help)
            shown = "\n".join(strip.text for strip in app.screen._compositor.render_strips())
            for key in keys.KEYS:
                assert key.does in shown
            await pilot.press("escape")
            dark = app._boxes[0]._styles
            app._paint("sanctum-light")
            assert app._boxes[0]._styles is not dark

    asyncio.run(story())


def test_a_run_is_not_seen_before_its_first_reading_is_over(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, news, seen = Watch(everything, everything.parent), Feed.news, []

    def spied(self: Feed) -> Iterator[Event]:
        for event in news(self):
            seen.append(watch.state.version)
            yield event

    monkeypatch.setattr(Feed, "news", spied)
    watch.look()

    assert set(seen) == {0}
    assert watch.state.version == len(seen)


def test_a_run_that_becomes_unreadable_ends_the_program_with_its_sentence(everything: Path, tmp_path: Path) -> None:
    folder = tell_everything(tmp_path / "run")
    (folder / "run.json").unlink()
    lines = (folder / "ev" / "r0.1-000000.jsonl").read_bytes()
    (folder / "ev" / "r0.1-000000.jsonl").write_bytes(lines.replace(b'"schema_version":', b'"schema_version":9', 1))

    async def story() -> Sanctum:
        async with opened(folder, (80, 24), tmp_path) as (app, _):
            return app

    app = asyncio.run(story())

    assert isinstance(app.failed, UnknownEventError)
    assert "read the run with the version of esper that wrote it" in str(app.failed)
