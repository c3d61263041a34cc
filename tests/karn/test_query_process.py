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

HOSTILE = """
drop table t
drop view v
drop schema main cascade
truncate t
delete from t
delete from t where i = 1 returning i
update t set i = 0
insert into t values (1, 'a')
insert into t select * from t returning i
merge into t using (select 1 as i) u on t.i = u.i when matched then delete
alter table t rename to u
alter table t add column x integer
create table u as select 1
create temp table u (i integer)
create or replace view v as select 1
create schema u
create sequence u
create type u as enum ('a')
create macro f(x) as x
create temp macro f(x) as table select x
create index u on t (i)
create or replace persistent secret s (type http)
comment on table t is 'mine'
with gone as (delete from t returning i) select * from gone
with gone as (delete from t) select 1
with more as (insert into t values (1, 'a') returning i) select * from more
with other as (update t set i = 0 returning i) select count(*) from other
with file as (copy t to 'out.csv') select 1
with file as materialized (copy (select 1) to 'out.parquet' (format parquet)) from file
with a as (with b as (delete from t returning i) from b) from a
select * from (with gone as (delete from t returning i) from gone)
with low as (select 1) delete from t
from t; drop table t
select 1; select 2
select 1;; drop table t;
select 1 /* ; */ ; drop table t -- select
begin
begin; delete from t; commit
commit
rollback
prepare p as delete from t
execute p
deallocate p
explain select 1
explain delete from t
explain analyze delete from t
explain analyze copy t to 'out.csv'
explain analyze with gone as (delete from t) select 1
copy t to 'out.csv'
copy t to 'secret.csv'
copy t to '/dev/stdout'
copy (select 1) to 'out.parquet' (format parquet)
copy t from 'secret.csv'
copy from database memory to other
export database 'out'
import database 'out'
attach 'secret.db'
attach 'new.db' as other
attach ':memory:' as other
detach memory
use memory
install httpfs
force install spatial from 'https://example.com'
load httpfs
load 'secret.db'
set enable_external_access = true
set lock_configuration = false
set allowed_directories = ['/']
set memory_limit = '100GB'
set threads = 64
set variable x = 1
reset memory_limit
set session temp_directory = '.'
pragma table_info('t')
pragma enable_profiling
pragma database_list
pragma version
call pragma_version()
call range(3)
call enable_logging(storage = 'file', storage_path = 'out')
vacuum
vacuum analyze t
analyze
checkpoint
force checkpoint
from checkpoint()
from force_checkpoint()
from 'secret.csv'
from "latest"
from 'secret.db'
from '*.csv'
from '/etc/hostname'
from 'file:///etc/hostname'
from 'https://example.com/a.csv'
from 's3://bucket/a.parquet'
describe 'secret.csv'
summarize 'secret.csv'
select * from t join 'secret.csv' using (i)
select (select max(s) from 'secret.csv')
select * from read_csv('secret.csv')
select * from main.read_csv('secret.csv')
select * from system.main.read_csv_auto('secret.csv')
select * from "READ_TEXT"('/etc/hostname')
select * from read_blob('secret.db')
select * from read_json('secret.csv')
select * from read_ndjson_objects('secret.csv')
select * from read_parquet('secret.csv')
select * from parquet_metadata('secret.csv')
select * from read_duckdb('secret.db')
select * from sniff_csv('secret.csv')
select * from glob('*')
select * from glob('/etc/*')
from t, lateral (select * from read_text(s))
select (select content from read_text('/etc/hostname'))
with a as (from read_text('/etc/hostname')) from a
select 1 order by (select count(*) from glob('*'))
select 1 limit (select count(*) from glob('*'))
select count(*) filter (where exists (from glob('*'))) over () from t
from query('delete from t')
from query('from read_text(''/etc/hostname'')')
from query_table('secret.csv')
from json_execute_serialized_sql(json_serialize_sql('select 1'))
select json_serialize_plan('from read_text(''/etc/hostname'')')
select getenv('SECRET_TOKEN')
select list_transform(['SECRET_TOKEN'], lambda x: getenv(x))
select current_setting('secret_directory')
select 'secret_directory'.current_setting()
from duckdb_settings()
from pg_settings
from pg_catalog.pg_settings
from pragma_database_list
from duckdb_secrets()
from which_secret('a', 'http')
from duckdb_extensions()
from duckdb_logs
from duckdb_temporary_files()
from pragma_storage_info('t')
from enable_logging()
from enable_profiling(save_location = 'out')
from create_external_resource('a')
from pandas_scan(1)
from arrow_scan(1, 2, 3)
from seq_scan('t')
from histogram_values(t, i)
select write_log('a')
select nextval('t')
select __internal_decompress_string(1)
select * from question
select * from cursor
select * from pd.DataFrame
select * from st_read('secret.csv')
pivot t on s using sum(i)
select $undefined
select ?
select
selec\u0442 1
\u0455elect 1
\uff24\uff32\uff2f\uff30 table t
dr\u200bop table t
\u202edrop table t
select 1\uff1b drop table t
drop\u00a0table\u3000t
  \t\v\f  drop /* select */ table -- select
-- select\rdrop table t
/* select 1 */ drop table t
/* /* select */ */ drop table t
--
;;;
select '
select "
select /* never closed
""".strip("\n").split("\n")

CRAFTED = {
    "a NUL": "select 1\0; drop table t",
    "half a surrogate": "select '\udfff'",
    "line breaks": "\r\n\r\n drop \r table \n t \r\n",
    "nothing at all": "",
    "a long statement": "select '" + "x" * 60_000 + "'",
    "a long name": "select " + "x" * 40_000,
    "many brackets": "select " + "(" * 20_000 + "1" + ")" * 20_000,
    "brackets that stay open": "select " + "(" * 40_000,
    "a long sum": "select " + "1+" * 20_000 + "1",
    "deep lists": "select " + "[" * 400 + "1" + "]" * 400,
    "deep subqueries": "select " + "(select " * 300 + "1" + ")" * 300,
    "deep unions": "select 1 " + "union select 1 " * 3000,
    "a long IN list": "select i from t where i in (" + "1," * 30_000 + "1)",
    "many joins": "select * from t" + " natural join t" * 2000,
    "lists that are too large": "select list_aggregate(range(10000000000), 'sum')",
}


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


ENDLESS = [
    "with recursive n as (select 1 as x union all select x + 1 from n) select count(*) from n",
    "with recursive n as (select 1 as x union all select x + 1 from n) from n where x < 0",
    "select sum(a.range * b.range) from range(100000) a, range(10000000) b",
    "select count(*) from t a, t b, t c, t d where a.i * b.i = c.i * d.i + 7",
    "select count(*) from range(1000000000000)",
    "select sleep_ms(60000)",
    "select levenshtein(repeat('a', 50000), repeat('b', 50000))",
    "from range(1000000000000) where range < 0",
]
GREEDY = [
    "select count(*) from range(1000000000) a, range(1000000000) b",
    "select repeat('x', 2000000000)",
    "select length(repeat('x', 2000000000))",
    "select list_aggregate(range(100000000), 'sum')",
    "select list(range) from range(300000000)",
    "select string_agg(s || range, '') from t, range(1000000)",
    "select printf('%2000000000d', 1)",
    "select array_agg(x) from (select repeat('y', 100000000) as x from range(50))",
    "from range(1000000000) order by hash(range)",
]


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
