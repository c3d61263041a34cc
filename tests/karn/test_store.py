"""Runs as a database: the same tables from lines and from Parquet; attempts, manifests and what is missing."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb
import pytest
from bench.memory_store import ENVS, EPISODE
from tests.karn.conftest import ROUND, ByHand, all_of, column, one, parquet, started, step
from tests.scripts.zygote import Zygote

from esper.karn.store import Store
from esper.karn.tables import TABLES
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    LogPayload,
    Payload,
    RoundFinishedPayload,
    RunResumedPayload,
    SeedPrunedPayload,
    UnknownEventError,
)
from esper.nissa.config import TelemetryConfig
from esper.nissa.reader import read_events
from esper.nissa.run_folder import RunFolder
from esper.nissa.writer import EventWriter

# ---- all that was told


@pytest.fixture(scope="module")
def recorded(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves behind."""
    place = tmp_path_factory.mktemp("recorded")
    ended = zygote.run("train", "heuristic", "--rounds", "2", "--episode-length", "8", "--quiet", cwd=place)
    assert ended.code == 0, ended.err
    (folder,) = place.glob("runs/2*")
    return folder


def test_the_steps_of_a_recorded_run_leave_zeros_out_and_have_them_in_the_table(recorded):
    lines = b"".join(path.read_bytes() for path in (recorded / "ev").glob("*.jsonl")).splitlines()
    steps = [line for line in lines if line.startswith(b'{"t":"ENV_STEP"')]

    assert not [line for line in steps if b'"alpha_delta_sq_sum":0.0' in line or b'"reward":0.0' in line]
    with Store.open([recorded], cache=False) as store:
        zeros = one(store, "select count(*) from env_step where alpha_delta_sq_sum = 0")
    assert zeros == sum(b"alpha_delta_sq_sum" not in line for line in steps) > 0


def test_every_event_of_a_recorded_run_is_a_row_of_its_table_and_nothing_else_is(recorded):
    told = [(envelope.writer, envelope.counter, payload.type) for envelope, payload in read_events(recorded)]

    with Store.open([recorded], cache=False) as store:
        rows = [
            (writer, n, table.event)
            for table in TABLES
            for writer, n in store.con.execute(f"SELECT writer, n FROM {table.name}").fetchall()
        ]
        assert sorted(rows, key=lambda row: row[1]) == told
        assert one(store, "SELECT count(*) FROM live_env_step") == 16
        assert store.con.execute("SELECT task, seed, running FROM manifest").fetchall() == [("digits", 0, False)]
        assert store.refresh() == 0


def test_a_run_of_which_lines_are_missing_says_so(folder):
    folder.write(folder.line("x"), b"garbage\n", folder.line("x", n=5), b"half a li")
    folder.write(folder.line("y", writer="r0.2", n=1), segment="r0.2-000000.open")
    (folder.ev / "INCOMPLETE").write_text("r0.1: no space left on device\n")
    size = (folder.ev / "r0.1-000000.jsonl").stat().st_size

    with Store.open([folder.path]) as store:
        first, second = store.con.execute("SELECT * EXCLUDE (run) FROM integrity ORDER BY writer").fetchall()

        why = "r0.1-000000, line 2: not an event of schema"
        assert first[:10] == ("r0.1", 1, 1, size - 9, 2, 0, 5, 4, 9, 1)
        assert first[10].startswith(why)
        assert first[11] == "no space left on device"
        assert second[:10] == ("r0.2", 2, 1, len(folder.line("y", writer="r0.2", n=1)), 1, 1, 1, 1, 0, 0)
        assert second[10:] == (None, None)
        assert one(store, "SELECT incomplete FROM manifest") == "r0.1: no space left on device"
        assert one(store, "SELECT text FROM bad_lines") == "garbage"


def test_what_names_no_writer_is_said_of_each(folder):
    folder.write(folder.line("x"))
    (folder.ev / "INCOMPLETE").write_text("")

    with Store.open([folder.path]) as store:
        assert one(store, "SELECT incomplete FROM integrity") == "a writer could not write"


# ---- live


def test_a_run_at_work_is_followed(tmp_path):
    run = RunFolder.create(tmp_path, "digits", "live")
    config = TelemetryConfig(flush_ms=1, segment_mib=1, heartbeat_s=3600.0)  # no sign of life among what is counted
    with run, EventWriter(run.ev, run.next_writer(), config) as events:
        with Store.open([run.path]) as store:
            assert one(store, "SELECT task FROM manifest") is None
            events.emit(started())  # critical events are on the disk when `emit` returns
            assert store.refresh() == 1
            run.write_manifest({"schema_version": SCHEMA_VERSION, "config": {"task": {"name": "digits"}}})
            for number in range(20):
                events.emit(LogPayload(level="info", text="x" * 100_000))
                events.emit(pruned(number))
                assert store.refresh() == 2
                assert one(store, "SELECT max(age) FROM live_seed_pruned") == number
                assert one(store, "SELECT count(*) FROM log") == number + 1
            assert store.refresh() == 0
            assert one(store, "SELECT running FROM manifest") is True
            assert one(store, "SELECT rounds FROM manifest") == 3  # of the first event, as no settings were told
            assert one(store, "SELECT segments FROM integrity") >= 2
            assert one(store, "SELECT missing FROM integrity") == 0
            assert parquet(run.path) == []
            events.close()
            run.close()
            assert store.refresh() == 0
            assert one(store, "SELECT running FROM manifest") is False
    with Store.open([run.path]) as again:
        assert one(again, "SELECT count(*) FROM seed_pruned") == 20


def pruned(age: int) -> Payload:
    return SeedPrunedPayload(slot_id="r0c1", seed_id="e0-1", blueprint_id="norm", initiator="fade", age=age, params=1)


def test_a_database_that_is_closed_to_files_can_still_be_brought_up_to_date(folder):
    folder.write(folder.line("one"), segment="r0.1-000000.open")
    with Store.open([folder.path]) as store:
        store.con.execute("SET enable_external_access = false")
        store.con.execute("SET lock_configuration = true")
        folder.write(*(folder.line(step(i), round=0, step=i) for i in range(5)), segment="r0.1-000000.open")
        folder.write(b"garbage\n", segment="r0.1-000000.open")
        (folder.ev / "r0.1-000000.open").rename(folder.ev / "r0.1-000000.jsonl")
        (folder.path / "run.json").write_text('{"slots": [{"id": "r0c0", "order": 0, "surface": "X", "channels": 1}]}')

        assert store.refresh() == 5
        assert one(store, "SELECT sum(flops) FROM env_step") == 10
        assert one(store, "SELECT slot FROM slots") == "r0c0"
        assert parquet(folder.path) == []


def test_whoever_asks_during_a_refresh_sees_all_of_it_or_nothing(folder):
    """Ten attempts tell the same steps; none may ever be seen twice."""
    folder.write(*rounds_of(folder, "r0.0", (0, 0), 100), segment="r0.0-000000.jsonl")
    twice = "SELECT max(c) FROM (SELECT count(*) AS c FROM live_env_step GROUP BY round, step)"
    seen: set[int] = set()
    with Store.open([folder.path], cache=False) as store:
        done = threading.Event()

        def ask() -> None:
            with store.con.cursor() as cursor:
                while not done.is_set():
                    seen.update(count for (count,) in cursor.execute(twice).fetchall())

        asking = threading.Thread(target=ask)
        asking.start()
        for attempt in range(1, 10):
            again = [folder.line(resumed(0, 0), f"r0.{attempt}"), *rounds_of(folder, f"r0.{attempt}", (0, 0), 100)]
            folder.write(*again, segment=f"r0.{attempt}-000000.jsonl")
            assert store.refresh() == 501
        done.set()
        asking.join()
        assert one(store, "SELECT count(*) FROM live_env_step") == 400
    assert seen == {1}


def test_sql_neither_sees_variables_nor_leaves_files_behind(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = duckdb.connect().execute("SELECT 1 AS a")
    with Store.open([folder.path]) as store:
        with pytest.raises(duckdb.CatalogException):
            store.con.execute("SELECT * FROM secret")
        store.con.execute("SET memory_limit = '40MB'")
        with pytest.raises(duckdb.OutOfMemoryException):
            store.con.execute("SELECT i FROM range(8000000) AS t(i) ORDER BY hash(i)").fetchone()
    assert secret.fetchall() == [(1,)]
    assert [path.name for path in tmp_path.iterdir()] == ["a-run"]


# ---- attempts


def resumed(round_: int, step_: int) -> RunResumedPayload:
    return RunResumedPayload(from_round=round_, from_step=step_)


def rounds_of(folder: ByHand, writer: str, first: tuple[int, int], rounds: int, steps: int = 4) -> list[bytes]:
    """Lines of an attempt from this round and step on; a step's `params` say which attempt told it."""
    lines = []
    for round_ in range(first[0], rounds):
        for step_ in range(first[1] if round_ == first[0] else 0, steps):
            told = step(step_, train_loss=float(writer[-1]))
            lines.append(folder.line(told, writer, round=round_, episode=round_, step=step_))
        finished = RoundFinishedPayload(episodes=1, reward_mean=float(writer[-1]), seconds=1.0)
        lines.append(folder.line(finished, writer, round=round_))
    return lines


def two_attempts(folder: ByHand) -> None:
    """The second goes on in the middle of round 1, after the first had reached the middle of round 2."""
    first = [folder.line(started()), *rounds_of(folder, "r0.1", (0, 0), 2)]
    first += [*rounds_of(folder, "r0.1", (2, 0), 3)[:2], folder.line("a word of the first")]
    folder.write(*first)
    second = [folder.line(resumed(1, 2), "r0.2"), *rounds_of(folder, "r0.2", (1, 2), 3)]
    folder.write(*second, segment="r0.2-000000.open")


def curve(store: Store) -> list[tuple[int, int, float]]:
    told = store.con.execute("SELECT round, step, train_loss FROM live_env_step ORDER BY round, step, writer")
    return told.fetchall()


GOES_ON = [(0, s, 1.0) for s in range(4)] + [(1, 0, 1.0), (1, 1, 1.0), (1, 2, 2.0), (1, 3, 2.0)]
GOES_ON += [(2, s, 2.0) for s in range(4)]


def test_what_a_later_attempt_told_again_stands_in_the_place_of_what_was_told_before(folder):
    two_attempts(folder)

    with Store.open([folder.path]) as store:
        assert curve(store) == GOES_ON
        assert column(store, "SELECT round FROM live_round_finished ORDER BY round") == [0, 1, 2]
        assert column(store, "SELECT reward_mean FROM live_round_finished ORDER BY round") == [1.0, 2.0, 2.0]
        assert one(store, "SELECT count(*) FROM env_step") == 10 + 6
        assert one(store, "SELECT count(*) FROM env_step WHERE superseded AND attempt = 1") == 4
        assert one(store, "SELECT count(*) FROM env_step WHERE superseded AND attempt = 2") == 0
        assert column(store, "SELECT text FROM live_log") == ["a word of the first"]  # has no round
        assert one(store, "SELECT count(*) FROM live_run_started") == 1


def test_it_is_the_same_from_parquet_and_if_the_later_attempt_comes_while_we_look(folder):
    two_attempts(folder)
    later = folder.ev / "r0.2-000000.open"
    aside = later.rename(folder.path / "aside")
    with Store.open([folder.path], cache=False) as live:
        assert len(curve(live)) == 10
        aside.rename(later)
        live.refresh()
        assert curve(live) == GOES_ON
        looked = all_of(live)

    later.rename(later.with_suffix(".jsonl"))
    for _ in range(2):  # the first opening writes Parquet, the second reads it
        with Store.open([folder.path]) as store:
            assert curve(store) == GOES_ON
            assert all_of(store) == looked
    assert parquet(folder.path)


def test_ranks_resume_for_themselves_and_a_third_attempt_hides_the_second(folder):
    folder.write(*rounds_of(folder, "r0.1", (0, 0), 2))
    folder.write(*rounds_of(folder, "r1.1", (0, 0), 2), segment="r1.1-000000.jsonl")
    folder.write(folder.line(resumed(1, 0), "r0.2"), *rounds_of(folder, "r0.2", (1, 0), 2), segment="r0.2-000000.jsonl")
    folder.write(folder.line(resumed(0, 3), "r0.3"), segment="r0.3-000000.jsonl")

    with Store.open([folder.path]) as store:
        told = store.con.execute("SELECT writer, round, step FROM live_env_step ORDER BY ALL").fetchall()

        assert [row for row in told if row[0] == "r0.1"] == [("r0.1", 0, s) for s in range(3)]
        assert [row for row in told if row[0] == "r0.2"] == []
        assert len([row for row in told if row[0] == "r1.1"]) == 8


# ---- which runs


def test_several_runs_are_told_apart(copied, folder):
    folder.write(folder.line(step(0), round=0, step=0))

    with Store.open([copied, folder.path]) as store:
        counts = dict(store.con.execute("SELECT run, count(*) FROM env_step GROUP BY run").fetchall())
        assert counts == {"whole": ROUND, "a-run": 1}
        assert column(store, "SELECT run FROM manifest ORDER BY run") == ["a-run", "whole"]
    with Store.open([copied, folder.path], names=["control", "treatment"]) as store:
        assert column(store, "SELECT DISTINCT run FROM integrity ORDER BY run") == ["control", "treatment"]


def test_a_run_is_called_by_its_own_name_behind_that_of_its_group(tmp_path):
    with RunFolder.create(tmp_path, "compare", "whole") as whole:
        RunFolder.create_in(whole.path / "arms" / "ppo").close()

    with Store.open([tmp_path / "latest", whole.path, whole.path / "arms" / "ppo"]) as store:
        runs = store.con.execute("SELECT run, group_of, path FROM manifest ORDER BY run").fetchall()

    assert runs == [
        ("whole", None, str(whole.path.resolve())),
        ("whole/arms/ppo", "whole", str((whole.path / "arms" / "ppo").resolve())),
    ]


def test_two_folders_of_one_name_are_refused(tmp_path):
    folders = [ByHand(tmp_path / top / "same").path for top in ("a", "b")]

    with pytest.raises(ConfigError, match=r"run 'same': two folders are called so; open them one at a time"):
        Store.open(folders)
    with Store.open(folders, names=["a", "b"]) as store:
        assert column(store, "SELECT run FROM manifest ORDER BY run") == ["a", "b"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="not a run folder: it has no ev/"):
            Store.open([path])


def test_a_run_of_another_schema_is_refused_by_its_manifest_and_by_its_events(folder):
    sentence = f"events of schema 9, and this program reads schema {SCHEMA_VERSION}; read the run with the version of"
    folder.write(folder.line(started(9)))
    with pytest.raises(UnknownEventError, match=sentence):
        Store.open([folder.path])

    (folder.ev / "r0.1-000000.jsonl").unlink()
    (folder.path / "run.json").write_text('{"schema_version": 9}')
    with pytest.raises(UnknownEventError, match=sentence):
        Store.open([folder.path])


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", '{"config": NaN}', "\x00"])
def test_a_file_that_is_no_manifest_is_refused(folder, text):
    (folder.path / "run.json").write_text(text)

    with pytest.raises(ConfigError, match=r"run\.json: not the manifest of a run"):
        Store.open([folder.path])


# ---- manifests


def test_a_manifest_is_a_row_with_its_slots_and_choices(copied):
    with Store.open([copied]) as store:
        shown = store.con.execute(
            """SELECT task, controller, seed, envs, rounds, episode_length, metric, unit, sign, rent, schema_version,
            running, incomplete, group_of, config ->> '$.reward.rent', pid FROM manifest"""
        ).fetchone()
        slots = store.con.execute(
            'SELECT slot_index, slot, "order", surface, channels FROM slots ORDER BY 1'
        ).fetchall()
        ops = column(store, "SELECT choice FROM choices WHERE head = 'op' ORDER BY choice_index")
        heads = column(store, "SELECT DISTINCT head FROM choices")

    assert shown[:10] == ("made_up", "ppo", 0, ENVS, 1, EPISODE, "accuracy", "%", 1.0, 3.0)
    assert shown[10:] == (SCHEMA_VERSION, False, None, None, "3.0", None)
    assert slots[:2] == [(0, "r0c0", 0, "BLOCK_END", 8), (1, "r0c1", 1, "BLOCK_END", 16)]
    assert (ops[0], ops[6]) == ("WAIT", "GROW_INTERNAL")
    assert set(heads) == set(HEADS)


@pytest.mark.parametrize("text", ["{}", '{"config": null}', '{"metric": 5, "config": {"run": 7}}'])
def test_what_a_manifest_does_not_say_is_null(folder, text):
    (folder.path / "run.json").write_text(text)

    with Store.open([folder.path]) as store:
        told = "task, controller, seed, envs, metric, unit, sign, rent, started, pid"
        (row,) = store.con.execute(f"SELECT {told} FROM manifest").fetchall()
        assert set(row) == {None}
        assert one(store, "SELECT count(*) FROM slots") == 0


def test_a_run_runs_as_long_as_its_folder_is_held(tmp_path):
    run = RunFolder.create(tmp_path, "digits", "held")
    with Store.open([run.path]) as store:
        assert one(store, "SELECT running FROM manifest") is True
        run.close()
        store.refresh()
        assert one(store, "SELECT running FROM manifest") is False
        (run.path / "run.lock").write_text("process 999999999 on elsewhere\n")
        store.refresh()
        assert one(store, "SELECT running FROM manifest") is False
        with RunFolder(run.path):
            store.refresh()
            assert one(store, "SELECT running FROM manifest") is True


def test_each_team_of_a_run_resumes_from_a_place_of_its_own(folder):
    steps = [(team, at) for team in ("a", "b") for at in range(3)]
    folder.write(*(folder.line(step(0), "r0.1", group=team, round=1, step=at) for team, at in steps))
    again = [folder.line(resumed(1, at), "r0.2", group=team) for team, at in (("a", 2), ("b", 0))]
    folder.write(*again, segment="r0.2-000000.jsonl")

    with Store.open([folder.path]) as store:
        told = store.con.execute("SELECT g, step FROM live_env_step ORDER BY ALL").fetchall()

    assert told == [("a", 0), ("a", 1)]
