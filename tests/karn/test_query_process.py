"""Hostile questions and processes that die: each ends in one sentence, and the next question is answered at once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.karn.hostile import CRAFTED, ENDLESS, GREEDY, HOSTILE
from tests.karn.toy_source import ROWS, break_down, open_toy

from esper.karn.query_process import QueryLimits, QueryProcess
from esper.karn.sql_gate import Question
from esper.leyline.errors import ConfigError

WHOLE = ((ROWS, ROWS * (ROWS - 1) // 2),)
AT_ONCE_S = 1.0
IMPATIENT_S = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with things that a hostile question may want to read or to write over."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.csv").write_text("i,s\n1,the secret\n")
    (folder / "secret.db").write_bytes(b"not a database")
    (folder / "latest").symlink_to("secret.csv")
    return folder


@pytest.fixture(scope="module")
def process(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SECRET_TOKEN", "the secret")
        with QueryProcess(open_toy, str(folder), QueryLimits(memory_mib=256)) as process:
            yield process


@pytest.fixture(scope="module")
def impatient(folder):
    """The same with little time and memory, for questions that have to run into limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        limits = QueryLimits(seconds=IMPATIENT_S, grace_s=IMPATIENT_S, memory_mib=128)
        with QueryProcess(open_toy, str(folder), limits) as process:
            yield process


@pytest.mark.parametrize(("seconds", "least"), [(5.0, 10), (30.0, 60), (3600.0, 7200)])
def test_whoever_has_the_patience_gets_the_processor_time_of_all_threads(seconds: float, least: int) -> None:
    limits = QueryLimits.lasting(seconds)

    assert limits.threads == 2
    assert limits.seconds == seconds
    assert limits.cpu_s >= least


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(process: QueryProcess, sql: str, **wanted) -> str:
    with pytest.raises(ConfigError) as error:
        process.ask(Question(sql, **wanted))
    sentence = str(error.value)
    assert sentence.isprintable()  # so it is one line
    assert len(sentence) < 400
    assert "Traceback" not in sentence
    assert sys.prefix not in sentence
    return sentence


def check_next_question(process: QueryProcess) -> None:
    began = time.monotonic()
    answer = process.ask(Question("select count(*), sum(i) from t"))

    assert answer.rows == WHOLE
    assert time.monotonic() - began < AT_ONCE_S


def processes_below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


# ---- hostile questions


def check_hostile(process: QueryProcess, folder: Path, sql: str) -> str:
    before = content(folder)

    sentence = refused(process, sql)

    assert "the secret" not in sentence
    assert content(folder) == before
    check_next_question(process)
    return sentence


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_questions_are_refused_and_nothing_is_harmed(process, folder, sql):
    check_hostile(process, folder, sql)


@pytest.mark.parametrize("name", CRAFTED)
def test_malformed_questions_are_refused_and_nothing_is_harmed(process, folder, name):
    check_hostile(process, folder, CRAFTED[name])


@pytest.mark.parametrize("sql", ENDLESS)
def test_questions_without_end_are_stopped_in_time(impatient, folder, sql):
    began = time.monotonic()

    sentence = check_hostile(impatient, folder, sql)

    assert sentence == "query: stopped after 0.5 s; narrow it with WHERE, or group before joining"
    assert time.monotonic() - began < 2 * IMPATIENT_S + AT_ONCE_S


@pytest.mark.parametrize("sql", GREEDY)
def test_questions_that_want_too_much_memory_are_stopped(impatient, folder, sql):
    sentence = check_hostile(impatient, folder, sql)

    assert sentence in (
        "query: needs more than 128 MiB of memory; ask for less at a time",
        "query: stopped after 0.5 s; narrow it with WHERE, or group before joining",  # on a slow machine
    )


def test_the_time_to_pass_over_rows_is_limited_too(impatient, folder):
    assert "stopped after 0.5 s" in refused(impatient, "from range(1000000000000)", offset=10**12)
    check_next_question(impatient)


def test_processor_time_is_limited_when_the_clock_is_not(folder):
    with QueryProcess(open_toy, str(folder), QueryLimits(seconds=60, cpu_s=1)) as process:
        sentence = refused(process, "select sum(a.range * b.range) from range(100000) a, range(10000000) b")

        assert sentence == "query: it took more than 1 s of processor time; ask for less at a time"
        check_next_question(process)


# ---- ordinary questions


def test_ordinary_questions_are_answered(process):
    answer = process.ask(Question("from v where k < $k", {"k": 2}))

    assert [column.name for column in answer.columns] == ["k", "c"]
    assert answer.rows == ((0, 334), (1, 333))
    assert process.ask(Question("select s from t where i = ?", (7,))).rows == (("x7",),)
    assert process.ask(Question("from t order by i", max_rows=2, offset=4)).next_offset == 6
    assert process.ask(Question("select 'nan'::double, [date '2026-11-20'], {'a': 1}")).rows == (
        ("nan", ["2026-11-20"], {"a": 1}),
    )
    assert "Seq Scan" in process.ask(Question("from t", explain=True)).rows[0][1]


def test_a_question_is_answered_from_what_is_there_now(tmp_path):
    with QueryProcess(open_toy, str(tmp_path)) as process:
        assert process.ask(Question("select sum(number) from told")).rows == ((None,),)

        (tmp_path / "new.txt").write_text("1\n2\n")
        assert process.ask(Question("select sum(number) from told")).rows == ((3,),)

        (tmp_path / "new.txt").write_text("1\n2\nno number\n")
        assert refused(process, "select 1") == "new.txt: holds what is no number"

        (tmp_path / "new.txt").write_text("1\n2\n40\n")
        assert process.ask(Question("select sum(number) from told")).rows == ((43,),)


def test_questions_from_many_threads_each_get_their_own_answer(process):
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda n: process.ask(Question("select ?::int", (n,))).rows, range(40))

    assert list(answers) == [((n,),) for n in range(40)]


# ---- processes


def children_of(make) -> tuple[QueryProcess, list[psutil.Process]]:
    before = {child.pid for child in processes_below(os.getpid())}
    process = make()
    return process, [child for child in processes_below(os.getpid()) if child.pid not in before]


def test_closing_leaves_no_process_behind(folder):
    process, children = children_of(lambda: QueryProcess(open_toy, str(folder)))
    assert len(children) == 2

    process.close()
    process.close()

    assert not [child for child in children if child.is_running()]


@pytest.mark.parametrize("killed", [1, 2])
def test_a_question_is_answered_although_the_idle_processes_were_killed(folder, killed):
    process, children = children_of(lambda: QueryProcess(open_toy, str(folder)))
    with process:
        for child in children[:killed]:
            child.kill()

        check_next_question(process)
        assert len([child for child in processes_below(os.getpid()) if child not in children[:killed]]) >= 2


def test_a_process_that_is_killed_while_it_answers_costs_one_answer(folder):
    process, children = children_of(lambda: QueryProcess(open_toy, str(folder), QueryLimits(seconds=60)))
    with process:
        threading.Timer(0.3, children[0].kill).start()
        sentence = refused(process, "select count(*) from range(1000000000000)")

        assert sentence == "query: its process was killed; ask for less at a time"
        check_next_question(process)


def test_a_wait_that_is_broken_off_does_not_spoil_the_next_answer(folder):
    class EnoughError(Exception):
        pass

    def enough(*_: object) -> None:
        raise EnoughError

    with QueryProcess(open_toy, str(folder), QueryLimits(seconds=60)) as process:
        kept = signal.signal(signal.SIGALRM, enough)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(EnoughError):
                process.ask(Question("select 'late' from range(1000000000000) where range < 0"))
        finally:
            signal.signal(signal.SIGALRM, kept)

        check_next_question(process)


def test_a_process_outlives_the_thread_that_started_it(folder):
    with ThreadPoolExecutor(1) as threads:
        process = threads.submit(QueryProcess, open_toy, str(folder)).result()
    with process:
        time.sleep(0.6)

        check_next_question(process)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_kernel_limits_files_memory_and_core_dumps(folder):
    process, children = children_of(lambda: QueryProcess(open_toy, str(folder)))
    with process:
        process.ask(Question("select 1"))
        limits = {kind: children[0].rlimit(kind) for kind in range(16)}
        environment = children[0].environ()

    assert limits[resource.RLIMIT_FSIZE] == (0, 0)
    assert limits[resource.RLIMIT_CORE] == (0, 0)
    assert limits[resource.RLIMIT_NOFILE] == (64, 64)
    assert 1 << 30 < limits[resource.RLIMIT_AS][0] < 8 << 30
    assert 15 <= limits[resource.RLIMIT_CPU][0] < 30
    assert not {"HOME", "PATH", "USER"} & environment.keys()


PARENT = """
import sys
from esper.karn.query_process import QueryLimits, QueryProcess
from esper.karn.sql_gate import Question
from tests.karn.toy_source import open_toy
with QueryProcess(open_toy, sys.argv[1], QueryLimits(seconds=100, cpu_s=200)) as process:
    print("open", flush=True)
    process.ask(Question(sys.argv[2]))
    print("asked", flush=True)
    input()
"""


@pytest.mark.parametrize(
    ("sql", "said"),
    [("select 1", ["open", "asked"]), ("select count(*) from range(1000000000000)", ["open"])],
    ids=["idle", "busy"],
)
def test_no_process_outlives_a_parent_that_is_killed(folder, sql, said):
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), sql],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with parent:
        for word in said:
            assert parent.stdout.readline() == f"{word}\n"
        time.sleep(0.2)
        children = processes_below(parent.pid)
        parent.kill()

    assert len(children) == 2
    _, left = psutil.wait_procs(children, timeout=5)
    assert not left


# ---- loading


def test_what_is_wrong_with_a_source_is_said_when_it_is_opened(tmp_path):
    with pytest.raises(ConfigError, match=r"^absent: no such folder$"):
        QueryProcess(open_toy, str(tmp_path / "absent"))


def test_a_source_that_breaks_down_while_it_loads_is_one_sentence():
    process_count = len(processes_below(os.getpid()))

    with pytest.raises(ConfigError, match=r"^tables: cannot be loaded: its process broke down$"):
        QueryProcess(break_down, None)
    assert len(processes_below(os.getpid())) == process_count


def test_a_source_that_takes_too_long_to_load_is_given_up(folder):
    with pytest.raises(ConfigError, match=r"^tables: not loaded within 0\.01 s; open fewer runs at once$"):
        QueryProcess(open_toy, str(folder), QueryLimits(load_s=0.01))


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="seconds"):
        QueryLimits(seconds=0)
