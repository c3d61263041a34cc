"""Each whole line is handed out once, whoever writes, dies or resumes meanwhile; and what is wrong is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.karn.conftest import ByHand, started

from esper.karn.collector import KEPT, Collector, Part, Tally, Writer
from esper.leyline.errors import ConfigError, ExitCode
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EnvStepPayload,
    LogPayload,
    RunFinishedPayload,
    UnknownEventError,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import gaps
from esper.nissa.writer import EventWriter


def told(parts: Iterator[Part]) -> list[str]:
    """Texts of the `log` events, in the order of telling."""
    logs = [lines for part in parts for table, lines in part.lines.items() if table.name == "log"]
    return [json.loads(line)["text"] for lines in logs for line in lines]


def only(collector: Collector) -> Writer:
    (writer,) = collector.writers()
    return writer


def step(**fields: object) -> EnvStepPayload:
    whole = {"op": "WAIT", "op_mask": 1, "params": 10, "effective_params": 10, "flops": 5, "stage": (1,)}
    lists = {"alpha": (0.0,), "level": (0,), "slot_params": (0,), "grad_ratio": (None,)}
    return EnvStepPayload(**{**whole, **lists, **fields})


# ---- growing files


def test_a_line_is_handed_out_once_it_is_whole_and_only_once(folder):
    first, second = folder.line("first"), folder.line("second")
    collector = Collector(folder.path)
    folder.write(first + second[:20], segment="r0.1-000000.open")

    assert told(collector.news()) == ["first"]
    assert only(collector).torn == 20
    assert told(collector.news()) == []
    folder.write(second[20:], segment="r0.1-000000.open")
    assert told(collector.news()) == ["second"]
    assert told(collector.news()) == []
    assert only(collector) == Writer("r0.1", 1, Tally(2, len(first + second), 2, 0, 1), 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_however_a_file_grows_each_line_comes_once_and_the_counts_are_those_of_the_whole(tmp_path_factory, data):
    grown = ByHand(tmp_path_factory.mktemp("grown") / "a-run")
    texts = data.draw(st.lists(st.text(max_size=8), max_size=8))
    lines = [grown.line(text, n=data.draw(st.integers(0, 3)) + 3 * at) for at, text in enumerate(texts)]
    lines.insert(
        data.draw(st.integers(0, len(lines))), data.draw(st.sampled_from([b"", b"garbage\n", b"\xff\n", b"\n"]))
    )
    whole = b"".join(lines) + data.draw(st.sampled_from([b"", b"half a li"]))
    collector, found = Collector(grown.path), []
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6))), len(whole)]:
        (grown.ev / "r0.1-000000.open").write_bytes(whole[:end])
        found += told(collector.news())
    (grown.ev / "r0.1-000000.open").rename(grown.ev / "r0.1-000000.jsonl")
    found += told(collector.news())

    at_once = Collector(grown.path)
    assert found == texts == told(at_once.news())
    assert collector.writers() == at_once.writers()
    assert only(collector).tally.bytes + only(collector).torn == len(whole)


def test_a_torn_line_that_its_writer_cut_off_and_told_elsewhere_is_no_trouble(folder):
    kept, lost = folder.line("kept"), folder.line("lost and told again")
    path = folder.write(kept + lost[:10], segment="r0.1-000000.open")
    collector = Collector(folder.path)
    assert told(collector.news()) == ["kept"]

    path.write_bytes(kept)
    folder.write(lost, segment="r0.1-000001.open")

    assert told(collector.news()) == ["lost and told again"]
    assert (only(collector).torn, only(collector).missing) == (0, 0)


def test_a_file_that_is_sealed_between_two_looks_goes_on_where_it_was(folder):
    path = folder.write(folder.line("one"), segment="r0.1-000000.open")
    collector = Collector(folder.path)
    assert told(collector.news()) == ["one"]

    folder.write(folder.line("two"), segment="r0.1-000000.open")
    path.rename(path.with_suffix(".jsonl"))
    folder.write(folder.line("three"), segment="r0.1-000001.open")

    assert told(collector.news()) == ["two", "three"]
    assert only(collector).segments == 2


def test_what_was_torn_and_is_told_again_in_as_many_bytes_is_seen_when_the_file_is_sealed(folder):
    kept, again = folder.line("kept"), folder.line("told again")
    path = folder.write(kept + b"x" * len(again), segment="r0.1-000000.open")
    collector = Collector(folder.path)
    assert told(collector.news()) == ["kept"]

    path.write_bytes(kept + again)
    path.rename(path.with_suffix(".jsonl"))

    assert told(collector.news()) == ["told again"]
    assert only(collector).torn == 0


def test_a_file_that_is_sealed_between_listing_and_opening_is_found(folder):
    folder.write(folder.line("one"), segment="r0.1-000000.open")
    later = folder.write(folder.line("two"), segment="r0.1-000001.open")
    news = Collector(folder.path).news()
    first = next(news)  # the folder has been listed now

    later.rename(later.with_suffix(".jsonl"))

    assert told(iter([first, *news])) == ["one", "two"]


def test_what_was_read_of_a_file_that_is_removed_afterwards_stays_and_a_later_reader_sees_the_gap(folder):
    folder.write(folder.line("one"))
    gone = folder.write(folder.line("two"), segment="r0.1-000001.jsonl")
    folder.write(folder.line("three"), segment="r0.1-000002.jsonl")
    collector = Collector(folder.path)
    assert told(collector.news()) == ["one", "two", "three"]

    gone.unlink()

    assert told(collector.news()) == []
    assert only(collector).missing == 0
    later = Collector(folder.path)
    assert told(later.news()) == ["one", "three"]
    assert only(later).missing == 1


def test_a_line_longer_than_what_is_read_at_once_is_one_line(folder):
    long = "x" * (20 << 20)
    folder.write(folder.line("before"), folder.line(long), folder.line("after"))

    assert told(Collector(folder.path).news()) == ["before", long, "after"]


def test_a_writer_at_work_is_followed_through_its_segments(tmp_path):
    (tmp_path / "ev").mkdir()
    collector, found = Collector(tmp_path), []
    quick = TelemetryConfig(flush_ms=1, segment_mib=1)
    texts = [f"{i} " + "x" * 400 for i in range(6000)]
    with EventWriter(tmp_path / "ev", "r0.1", quick) as events:
        for at, text in enumerate(texts):
            events.emit(LogPayload(level="info", text=text))
            if at % 200 == 0:
                found += told(collector.news())
        events.emit(RunFinishedPayload(status="done", seconds=1.0))  # critical: on the disk when `emit` returns
        rest = list(collector.news())
    assert list(collector.news()) == []

    assert found + told(iter(rest)) == texts
    assert "run_finished" in {table.name for part in rest for table in part.lines}
    tally = only(collector).tally
    assert (tally.events, tally.first_n, tally.last_n, tally.missing, tally.bad) == (6001, 0, 6000, 0, 0)
    assert only(collector).segments >= 2
    assert all(segment.sealed for segment in collector.segments())


def test_of_a_writer_that_is_killed_comes_all_that_it_had_written(tmp_path):
    (tmp_path / "ev").mkdir()
    code = """
import sys
from pathlib import Path
from esper.leyline.telemetry import LogPayload
from esper.nissa.writer import EventWriter
with EventWriter(Path(sys.argv[1])) as events:
    while True:
        events.emit(LogPayload(level="info", text="x" * 300))
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ev")])
    collector, counted = Collector(tmp_path), 0
    while counted < 5000:
        counted += len(told(collector.news()))
    writer.kill()
    writer.wait()
    counted += len(told(collector.news()))

    tally = only(collector).tally
    assert (tally.events, tally.first_n, tally.last_n) == (counted, 0, counted - 1)
    assert (tally.missing, tally.bad) == (0, 0)


# ---- counting


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 4))
def test_gaps_are_those_that_the_plain_reader_finds(tmp_path_factory, numbers, segments):
    run = ByHand(tmp_path_factory.mktemp("gaps") / "a-run")
    for at, n in enumerate(numbers):
        run.write(run.line("x", n=n), segment=f"r0.1-{at * segments // len(numbers):06d}.jsonl")
    collector = Collector(run.path)
    list(collector.news())

    assert sum(writer.missing for writer in collector.writers()) == sum(gap.count for gap in gaps(run.path))


def test_each_attempt_of_each_rank_counts_for_itself(folder):
    for writer, many in (("r0.1", 3), ("r0.2", 2), ("r1.1", 1), ("r0.10", 1)):
        folder.write(*(folder.line("x", writer) for _ in range(many)), segment=f"{writer}-000000.jsonl")
    collector = Collector(folder.path)
    list(collector.news())

    assert [(writer.name, writer.tally.events) for writer in collector.writers()] == [
        ("r0.1", 3), ("r0.2", 2), ("r0.10", 1), ("r1.1", 1),
    ]  # fmt: skip


def test_lines_that_are_no_event_are_counted_and_kept_with_their_place(folder):
    good = folder.line("good")
    unknown = json.dumps(json.loads(folder.line("x")) | {"surprise": 1}).encode() + b"\n"
    folder.write(good, b"gar\tbage \x1b[31m\n", unknown, b"\xff\xfe\n", b"\n", folder.line("last"))
    collector = Collector(folder.path)

    assert told(collector.news()) == ["good", "last"]
    tally = only(collector).tally
    assert (tally.lines, tally.events, tally.bad, only(collector).missing) == (6, 2, 4, 1)
    assert [(bad.segment, bad.line) for bad in tally.bad_lines] == [("r0.1-000000", line) for line in (2, 3, 4, 5)]
    assert tally.bad_lines[0].text == "gar\\tbage \\x1b[31m"
    assert "surprise" in tally.bad_lines[1].why
    assert all(bad.why.startswith("not an event of schema") for bad in tally.bad_lines)


def test_only_the_first_bad_lines_are_kept_and_only_the_beginning_of_each(folder):
    for segment in range(3):
        folder.write(*(b"x" * 5000 + b"\n" for _ in range(15)), segment=f"r0.1-{segment:06d}.jsonl")
    collector = Collector(folder.path)
    list(collector.news())

    tally = only(collector).tally
    assert tally.bad == 45
    assert len(tally.bad_lines) == KEPT
    assert {bad.segment for bad in tally.bad_lines} == {"r0.1-000000", "r0.1-000001"}
    assert max(len(bad.text) for bad in tally.bad_lines) < 400


def test_a_line_of_another_writer_does_not_belong_here(folder):
    folder.write(folder.line("mine"), folder.line("other", writer="r0.2"))
    collector = Collector(folder.path)

    assert told(collector.news()) == ["mine"]
    assert only(collector).tally.bad_lines[0].why == "told by writer 'r0.2' in a file of r0.1"


@pytest.mark.parametrize(
    ("fields", "where"),
    [({"flops": 2**63}, {}), ({"stage": (-(2**63) - 1,)}, {}), ({"env_id": 2**31}, {}), ({}, {"step": 2**31})],
)
def test_a_number_that_no_column_can_hold_makes_a_bad_line_and_not_another_number(folder, fields, where):
    nearly = {name: value - 1 for name, value in fields.items() if name != "stage"}
    folder.write(folder.line(step(**nearly)), folder.line(step(**fields), **where))
    folder.write(folder.line(step(**fields, train_loss=float("nan")), **where))
    collector = Collector(folder.path)
    list(collector.news())

    assert (only(collector).tally.events, only(collector).tally.bad) == (1, 2)


# ---- what is refused


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION + 1])
def test_a_run_of_another_schema_is_refused_in_one_sentence(folder, version):
    folder.write(folder.line(started(version)), folder.line("x"))

    with pytest.raises(UnknownEventError) as refused:
        list(Collector(folder.path).news())

    assert str(refused.value) == (
        f"{folder.ev / 'r0.1-000000.jsonl'}: events of schema {version}, and this program reads schema "
        f"{SCHEMA_VERSION}; read the run with the version of esper that wrote it"
    )
    assert refused.value.exit_code == ExitCode.BAD_INPUT


def test_a_newer_schema_is_known_even_where_its_first_event_has_other_fields(folder):
    line = json.loads(folder.line(started(SCHEMA_VERSION + 1))) | {"workers": 7}
    del line["envs"]
    folder.write(json.dumps(line).encode() + b"\n")

    with pytest.raises(UnknownEventError, match=f"of schema {SCHEMA_VERSION + 1}, and this program reads"):
        list(Collector(folder.path).news())


def test_a_folder_that_is_no_run_is_refused_and_an_empty_run_is_not(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: not a run folder: it has no ev/"):
        Collector(tmp_path / "nowhere")
    (tmp_path / "ev").mkdir()

    assert list(Collector(tmp_path).news()) == []
    assert Collector(tmp_path).writers() == []
