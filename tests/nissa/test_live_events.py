"""What a later attempt has told again is not counted twice: events as if nothing had been interrupted."""

from __future__ import annotations

from pathlib import Path

from esper.leyline.telemetry import LogPayload, RunResumedPayload
from esper.nissa.reader import live_events
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

Told = tuple[str, str | None, int | None, int | None]  # text, group, round, step


def tell(folder: RunFolder, *lines: Told, resumed: tuple[str | None, int, int] | None = None, writer: str = "") -> None:
    """One attempt."""
    with EventWriter(folder.ev, writer or folder.next_writer()) as events:
        if resumed is not None:
            group, round_, step = resumed
            events.emit(RunResumedPayload(from_round=round_, from_step=step), group=group)
        for text, group, round_, at in lines:
            events.emit(LogPayload(level="info", text=text), group=group, round=round_, step=at)


def live(folder: RunFolder) -> list[str]:
    return [payload.text for _, payload in live_events(folder.path) if isinstance(payload, LogPayload)]


def test_steps_from_the_place_on_are_replaced_and_what_has_no_round_stays(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "made") as folder:
        first = [("begun", None, None, None), ("0.0", None, 0, 0), ("end of 0", None, 0, None), ("1.0", None, 1, 0)]
        tell(folder, *first, ("1.1", None, 1, 1), ("end of 1", None, 1, None), ("2.0", None, 2, 0))
        tell(folder, ("1.1 again", None, 1, 1), resumed=(None, 1, 1))

        assert live(folder) == ["begun", "0.0", "end of 0", "1.0", "1.1 again"]


def test_each_team_goes_on_from_its_own_place(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "made") as folder:
        tell(folder, ("a0", "a", 1, 0), ("a1", "a", 1, 1), ("b0", "b", 1, 0), ("b1", "b", 1, 1))
        with EventWriter(folder.ev, folder.next_writer()) as events:
            events.emit(RunResumedPayload(from_round=1, from_step=1), group="a")
            events.emit(RunResumedPayload(from_round=1, from_step=0), group="b")

        assert live(folder) == ["a0"]


def test_another_rank_is_left_alone(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "made") as folder:
        tell(folder, ("rank 0", None, 0, 0))
        tell(folder, ("rank 1", None, 0, 0), writer="r1.1")
        tell(folder, resumed=(None, 0, 0))

        assert live(folder) == ["rank 1"]
