"""What may be asked and what is told, on tables of this process; `test_query_process.py` has the hostile questions."""

from __future__ import annotations

import json
import math
from contextlib import closing
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.karn.plain import CELL_CHARS, plain_row
from esper.karn.sql_gate import MOST_SQL, Answer, Column, Question, ask, lock
from esper.leyline.errors import ConfigError


@pytest.fixture(scope="module")
def con():
    with closing(duckdb.connect()) as con:
        con.execute("CREATE TABLE t AS SELECT range AS i, 'x' || range AS s FROM range(10)")
        con.execute("COMMENT ON TABLE t IS 'ten numbers'")
        con.execute("CREATE VIEW v AS FROM t WHERE i < 3")
        lock(con, memory_mib=256)
        yield con


def answer_to(con, sql, parameters=(), **wanted) -> Answer:
    with closing(con.cursor()) as cursor:
        return ask(cursor, Question(sql, parameters, **wanted))


def refusal_of(con, sql, parameters=(), **wanted) -> str:
    with pytest.raises(ConfigError) as refused:
        answer_to(con, sql, parameters, **wanted)
    return str(refused.value)


# ---- ordinary questions

ORDINARY = {
    "select 1": [(1,)],
    "SELECT i FROM t WHERE i > 8": [(9,)],
    "  \n-- a comment\nselect i /* another */ from t where i = 2 ; -- the end\n": [(2,)],
    "from v": [(0, "x0"), (1, "x1"), (2, "x2")],
    "from t select max(i)": [(9,)],
    "select '2026-03-04 05:06:07+00'::timestamptz": [("2026-03-04T05:06:07+00:00",)],
    "values (1, 'a'), (2, 'b')": [(1, "a"), (2, "b")],
    "table v": [(0, "x0"), (1, "x1"), (2, "x2")],
    "(select 3)": [(3,)],
    "with low as (select i from t where i < 2) select sum(i) from low": [(1,)],
    "with low as materialized (from v) select count(*) from low": [(3,)],
    "with recursive n(x) as (select 1 union all select x + 1 from n where x < 4) select list(x) from n": [
        ([1, 2, 3, 4],)
    ],
    "select i from t where i < 1 union all select 7": [(0,), (7,)],
    "select a.i from t a join v b using (i) where a.i = (select max(i) from v)": [(2,)],
    "select i, row_number() over (order by i desc) from v order by i": [(0, 3), (1, 2), (2, 1)],
    "select k, count(*) from (select i % 2 as k from t) group by all order by all": [(0, 5), (1, 5)],
    "from t pivot (count(*) for i in (1, 2) group by s) where s = 'x1'": [("x1", 1, 0)],
    "unpivot (select 1 as a, 2 as b) on a, b": [("a", 1), ("b", 2)],
    "select list_transform([1, 2], lambda x: x + 1)": [([2, 3],)],
    "select unnest([5, 6])": [(5,), (6,)],
    "select range from range(2)": [(0,), (1,)],
    "select key from json_each('{\"a\": 1}')": [("a",)],
    "select columns('^i') from v": [(0,), (1,), (2,)],
    "select case when i = 0 then 'none' else 'some' end from v limit 2": [("none",), ("some",)],
    "show tables": [("t",), ("v",)],
    "select column_name from (describe v)": [("i",), ("s",)],
    "select column_name, max from (summarize v)": [("i", "2"), ("s", "x2")],
    "select table_name from information_schema.tables order by all": [("t",), ("v",)],
    "select comment from duckdb_tables() where table_name = 't'": [("ten numbers",)],
}


@pytest.mark.parametrize("sql", ORDINARY)
def test_ordinary_questions_are_answered(con, sql):
    assert list(answer_to(con, sql).rows) == ORDINARY[sql]


def test_an_answer_names_its_columns_and_their_types(con):
    assert answer_to(con, "from v limit 0") == Answer((Column("i", "BIGINT"), Column("s", "VARCHAR")), (), None)


def test_parameters_are_bound_and_never_read_as_sql(con):
    hostile = "'; DROP TABLE t; --"

    assert answer_to(con, "select ?, ?", (hostile, 2)).rows == ((hostile, 2),)
    assert answer_to(con, "select $2, $1", (1, None)).rows == ((None, 1),)
    assert answer_to(con, "select $who", {"who": hostile}).rows == ((hostile,),)
    assert answer_to(con, "select i from t where i = any($some)", {"some": [3, 4]}).rows == ((3,), (4,))
    assert answer_to(con, "select i from t where i > $low", {"low": 8}, explain=True).columns[0].name == "explain_key"


@pytest.mark.parametrize("parameters", [(), (1, 2), {"other": 1}])
def test_parameters_that_do_not_fit_are_refused(con, parameters):
    assert "parameter" in refusal_of(con, "select $mine", parameters)


# ---- what is no question

NOT_ONE_SELECT = {
    "": "query: no statement; write exactly one SELECT",
    "-- nothing\n/* at all */ ;": "query: no statement; write exactly one SELECT",
    "select 1; select 2": "query: 2 statements; write exactly one SELECT",
    "select 1; drop table t; select 2": "query: 3 statements; write exactly one SELECT",
    "explain select 1": "query: EXPLAIN is refused, only one SELECT is taken; "
    "ask for the plan with the flag `explain` and write the SELECT alone",
    "pivot t on i using count(*)": "query: MULTI is refused, only one SELECT is taken; "
    "write the values of a PIVOT out: PIVOT t ON column IN ('a', 'b') USING sum(x)",
    "call range(3)": "query: CALL is refused, only one SELECT is taken; write FROM",
    "pragma version": "query: PRAGMA is refused, only one SELECT is taken; write DESCRIBE or SHOW TABLES",
    "drop table t": "query: DROP is refused, only one SELECT is taken; nothing can be changed here",
    "with gone as (delete from t returning i) select * from gone": "query: DELETE inside WITH is refused; "
    "nothing can be changed or written here",
    "with file as (copy t to 'x.csv') select 1": "query: COPY inside WITH is refused; "
    "nothing can be changed or written here",
    "select current_setting('threads')": "query: the function current_setting is closed here",
    "from pg_settings": "query: pg_settings is closed here",
    "select * from 'x.csv'": "query: reaches outside of the tables, where everything is closed",
    "select \0": "query: holds a NUL character; SQL is text",
    "select '\ud800'": "query: holds half of a surrogate pair; SQL is UTF-8 text",
}


@pytest.mark.parametrize("sql", NOT_ONE_SELECT)
def test_what_is_no_question_is_refused_with_what_to_write_instead(con, sql):
    assert refusal_of(con, sql) == NOT_ONE_SELECT[sql]


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("select nothing from t", 'Referenced column "nothing" not found'),
        ("selekt 1", 'syntax error at or near "selekt"'),
        ("select * from nowhere", "nowhere does not exist"),
        ("select 'a'::int", "Could not convert string 'a'"),
        ("select error('so\n\n  /etc/passwd')", "so"),
    ],
)
def test_a_mistake_is_one_line_in_the_words_of_duckdb(con, sql, part):
    refusal = refusal_of(con, sql)

    assert part in refusal
    assert "\n" not in refusal
    assert "Traceback" not in refusal
    assert "LINE 1" not in refusal


@pytest.mark.parametrize(
    "wanted",
    [
        {"sql": "x" * (MOST_SQL + 1)},
        {"max_rows": 0},
        {"max_rows": 10_001},
        {"max_chars": 10},
        {"offset": -1},
        {"parameters": (math.nan,)},
        {"parameters": (math.inf,)},
        {"parameters": (2**63,)},
        {"parameters": ({"a": 1},)},
        {"parameters": ["a\0b"]},
        {"parameters": {"a\0b": 1}},
        {"parameters": ([["\ud800"]],)},
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_before_anything_runs(wanted):
    with pytest.raises(ConfigError) as refused:
        Question(**{"sql": "select 1", **wanted})

    assert "\n" not in str(refused.value)


# ---- the walls, each by itself


def test_duckdb_calls_a_select_what_changes_things_inside_with(con):
    """The reason why the type of a statement is not enough, and the wall that stands behind the tree."""
    sql = "WITH gone AS (DELETE FROM t RETURNING i) SELECT * FROM gone"

    assert [str(statement.type) for statement in con.extract_statements(sql)] == ["StatementType.SELECT"]
    with closing(con.cursor()) as cursor:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        with pytest.raises(duckdb.TransactionException):
            cursor.execute(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY t TO 'out.csv'",
        "WITH file AS (COPY t TO 'out.csv') SELECT 1",
        "COPY t FROM 'in.csv'",
        "FROM 'in.csv'",
        "FROM read_text('in.csv')",
        "FROM glob('*')",
        "ATTACH 'other.db'",
        "EXPORT DATABASE 'out'",
        "IMPORT DATABASE 'out'",
        "INSTALL spatial",
        "LOAD spatial",
        "FROM 'https://example.com/a.csv'",
        "SET threads = 1",
        "RESET memory_limit",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "PRAGMA enable_profiling",
        "CREATE PERSISTENT SECRET (TYPE http)",
        "FROM enable_logging(storage = 'file', storage_path = 'log')",
        "FROM secrets_of_python",
    ],
)
def test_a_locked_database_reaches_nothing_whatever_is_run_on_it(tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("i,s\n1,a\n")
    secrets_of_python = {"a": np.arange(3)}
    with closing(duckdb.connect()) as con:
        con.execute("CREATE TABLE t (i INTEGER, s VARCHAR)")
        lock(con, memory_mib=64)

        with pytest.raises(duckdb.Error):
            con.execute(sql)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    with closing(duckdb.connect()) as con:
        assert con.execute("FROM secrets_of_python").fetchall() == [(0,), (1,), (2,)], secrets_of_python


def test_a_locked_database_can_still_be_filled_by_what_is_bound():
    with closing(duckdb.connect()) as con:
        con.execute("CREATE TABLE t (line JSON)")
        lock(con)
        con.execute("INSERT INTO t SELECT unnest(?::VARCHAR[])", [['{"a": 1}', '{"a": 2}']])

        assert answer_to(con, "select sum(line.a::int) from t").rows == ((3,),)


def test_memory_is_limited_on_top_of_the_tables():
    with closing(duckdb.connect()) as con:
        con.execute("CREATE TABLE big AS SELECT random() AS x FROM range(20_000_000)")
        lock(con, memory_mib=64)

        assert answer_to(con, "select count(*) from big").rows == ((20_000_000,),)
        with pytest.raises(duckdb.OutOfMemoryException):
            answer_to(con, "select x from big order by x desc")


def test_a_plan_is_told_and_nothing_of_it_is_run(con):
    answer = answer_to(con, "select count(*) from range(1000000000) a, range(1000000000) b; -- endless", explain=True)

    ((key, plan),) = answer.rows
    assert key == "physical_plan"
    assert len(plan) > 200
    assert answer.columns[1] == Column("explain_value", "VARCHAR")
    assert "syntax error" in refusal_of(con, "analyze select 1", explain=True)
    assert "syntax error" in refusal_of(con, "(analyze) select 1", explain=True)
    assert "DELETE inside WITH" in refusal_of(con, "with gone as (delete from t) select 1", explain=True)


# ---- how much is told


def test_rows_come_in_pages_and_the_answer_says_where_to_go_on(con):
    seen, offset, pages = [], 0, 0
    while offset is not None:
        answer = answer_to(con, "select i from t order by i", max_rows=4, offset=offset)
        seen += [i for (i,) in answer.rows]
        assert answer.truncated == (answer.next_offset is not None)
        offset, pages = answer.next_offset, pages + 1

    assert seen == list(range(10))
    assert pages == 3


@pytest.mark.parametrize("offset", [10, 11, 10**9])
def test_nothing_is_left_behind_the_end(con, offset):
    assert answer_to(con, "from t", offset=offset) == answer_to(con, "from t where false")


def test_exactly_as_many_rows_as_wanted_is_not_truncated(con):
    assert not answer_to(con, "from t", max_rows=10).truncated
    assert answer_to(con, "from t", max_rows=9).truncated


def test_an_answer_is_no_longer_than_wanted_and_every_page_gets_further(con):
    sql = "select i, repeat(s, 100 * i) as s from t order by i"
    seen, offset = [], 0
    while offset is not None:
        answer = answer_to(con, sql, max_chars=1_000, offset=offset)
        told = json.dumps([[[c.name, c.type] for c in answer.columns], answer.rows])
        assert len(told) < 1_100
        assert answer.rows
        seen += [i for i, _ in answer.rows]
        offset = answer.next_offset

    assert seen == list(range(10))


def test_a_long_cell_is_cut_and_says_how_long_it_was(con):
    ((text, short),) = answer_to(con, "select repeat('ab', 5000), repeat('ab', 1000)").rows

    assert text == "ab" * (CELL_CHARS // 2) + "… (10000 characters)"
    assert short == "ab" * 1000


def test_more_columns_than_fit_are_refused(con):
    wide = ", ".join(f"{n} as a_rather_long_name_{n}" for n in range(800))

    assert "select fewer columns" in refusal_of(con, f"select {wide}", max_chars=1_000)


# ---- in which form

VALUES = [
    ("null", None),
    ("true", True),
    ("1.5::double", 1.5),
    ("1.10::decimal(10, 2)", 1.1),
    ("1234567890123456.789::decimal(30, 3)", "1234567890123456.789"),
    ("9007199254740992", 2**53),
    ("9007199254740993", "9007199254740993"),
    ("170141183460469231731687303715884105727::hugeint", "170141183460469231731687303715884105727"),
    ("'nan'::double", "nan"),
    ("'-inf'::float", "-inf"),
    ("date '2026-11-20'", "2026-11-20"),
    ("timestamp '2026-11-20 12:00:00.5'", "2026-11-20T12:00:00.500000"),
    ("'294247-01-01'::timestamp", "294247-01-01 00:00:00"),
    ("time '01:02:03'", "01:02:03"),
    ("interval '1 day 2 hours'", "1 day, 2:00:00"),
    ("'c0ffee00-0000-0000-0000-000000000000'::uuid", "c0ffee00-0000-0000-0000-000000000000"),
    ("'a\\x00\\xFFz'::blob", "a\\x00\\xFFz"),
    ("'101'::bit", "101"),
    ("[1, null, 'nan'::double]", [1, None, "nan"]),
    ("{'a': 1, 'b': [date '2026-11-20']}", {"a": 1, "b": ["2026-11-20"]}),
    ("map([1, 2], ['a', 'b'])", {"1": "a", "2": "b"}),
    ("'{\"a\": 1}'::json", '{"a": 1}'),
    ("'up'::enum('up', 'down')", "up"),
    ("row(1, 2)", [1, 2]),
    ("42::variant", 42),
    ("union_value(number := 2)", 2),
]


@pytest.mark.parametrize(("sql", "expected"), VALUES, ids=[sql for sql, _ in VALUES])
def test_every_type_becomes_what_json_can_say(con, sql, expected):
    ((value,),) = answer_to(con, f"select {sql}").rows

    assert value == expected
    assert type(value) is type(expected)


@given(st.binary(max_size=40))
def test_a_blob_is_written_as_duckdb_writes_it(con, blob):
    ((expected,),) = con.cursor().execute("select ?::blob::varchar", [blob]).fetchall()

    assert plain_row([blob]) == (expected,)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
)
cells = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))


@given(st.lists(cells, max_size=5), st.integers(1, 200))
def test_every_cell_can_be_said_in_json_and_none_is_long(cells, longest):
    told = plain_row(cells, longest)

    assert json.loads(json.dumps(told, allow_nan=False)) == list(told)
    for cell in told:
        assert not isinstance(cell, date | datetime | time | timedelta | Decimal | UUID | bytes | tuple)
        assert len(json.dumps(cell, ensure_ascii=False).replace("\\", "")) < 12 * longest + 400


def test_a_list_that_is_long_or_deep_is_cut_where_it_ends_being_readable():
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    (numbers, nested) = plain_row([list(range(10**6)), deep], 60)

    assert numbers == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, "… (1000000 items)"]
    assert json.dumps(nested).count("[") <= 21
