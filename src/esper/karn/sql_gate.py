"""The gate for SQL from people and programs that may ask, and nothing else.

    lock(con)                              # once per database, before the first question
    with closing(con.cursor()) as cursor:  # one cursor per question
        answer = ask(cursor, Question("from churn where run = $run", {"run": "20261120-140233-digits-a1b2c3"}))

Three walls stand behind each other:

1. The text is one statement of type SELECT, and its syntax tree only reads. The type is not enough: DuckDB also calls
   `WITH gone AS (DELETE FROM t) SELECT 1` and `WITH file AS (COPY t TO 'x') SELECT 1` a SELECT.
2. It runs in a read-only transaction.
3. The database reaches no file, network, extension or variable of Python, and its settings cannot be changed.

`query_process.py` adds what SQL cannot limit: time, memory, and a process that may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import msgspec

from esper.karn.plain import CELL_CHARS, cut, plain_row
from esper.leyline.errors import ConfigError
from esper.nissa.storage import shown

MOST_SQL = 50_000  # characters of one statement
MOST_ROWS = 10_000
MOST_CHARS = 4_000_000

_SETTINGS: Final[Mapping[str, str]] = {
    "python_enable_replacements": "false",
    "temp_directory": "''",
    "secret_directory": "''",
    "allow_persistent_secrets": "false",
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allowed_directories": "[]",
    "allowed_paths": "[]",
    "allowed_configs": "[]",
    "TimeZone": "'UTC'",
    "disabled_filesystems": "'LocalFileSystem'",
    "enable_external_access": "false",
    "lock_configuration": "true",  # last: nothing can be set after it
}

_READING_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE")
_TABLE_FUNCTIONS = (
    *("series", "compare", "range", "generate_series", "unnest", "repeat", "json_each", "json_tree"),
    *("duckdb_tables", "duckdb_columns", "duckdb_views"),
)
_CLOSED_FUNCTIONS = (
    *("getenv", "current_setting", "write_log", "nextval", "currval", "setval"),
    "json_serialize_plan",  # SQL in a string, which no one has looked at
    *("to_aggregate_state", "combine", "finalize", "variant_bytes_to_variant"),  # believe any bytes that they are given
)
_CLOSED_TABLES = ("pg_settings", "pg_prepared_statements", "duckdb_logs", "pragma_database_list")

_INSTEAD: Final[Mapping[duckdb.StatementType, str]] = {
    duckdb.StatementType.EXPLAIN: "ask for the plan with the flag `explain` and write the SELECT alone",
    duckdb.StatementType.MULTI: "write the values of a PIVOT out: PIVOT t ON column IN ('a', 'b') USING sum(x)",
    duckdb.StatementType.PRAGMA: "write DESCRIBE or SHOW TABLES",
    duckdb.StatementType.CALL: "write FROM",
    duckdb.StatementType.SET: "settings are fixed",
    duckdb.StatementType.VARIABLE_SET: "settings are fixed",
}


@dataclass(frozen=True)
class Question:
    """One SELECT and how much of its result is wanted; a ConfigError says what is wrong with it."""

    sql: str
    parameters: tuple[Any, ...] | dict[str, Any] = ()  # for `?` and `$1`, or for `$name`: what JSON can say
    max_rows: int = 200
    max_chars: int = 25_000  # of the whole answer as JSON
    offset: int = 0  # rows of the result that are passed over; give an ORDER BY, else rows may change places
    explain: bool = False  # the plan instead of the result; nothing is run

    def __post_init__(self) -> None:
        if len(self.sql) > MOST_SQL:
            raise ConfigError(f"query: {len(self.sql)} characters; at most {MOST_SQL} are read, so bind long lists")
        _check_text(self.sql)
        _check_range("max_rows", self.max_rows, 1, MOST_ROWS)
        _check_range("max_chars", self.max_chars, 1_000, MOST_CHARS)
        _check_range("offset", self.offset, 0, 10**12)
        if isinstance(self.parameters, dict):
            _check_text("".join(self.parameters))
            _check_parameter(list(self.parameters.values()))
        else:
            _check_parameter(list(self.parameters))


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # as DuckDB writes it


@dataclass(frozen=True)
class Answer:
    """Rows in plain values that JSON can hold; names and texts in them come from a run, so they are data."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    next_offset: int | None  # where to go on; None when nothing is left

    @property
    def truncated(self) -> bool:
        return self.next_offset is not None


def lock(con: duckdb.DuckDBPyConnection, memory_mib: int = 1024, threads: int = 2) -> None:
    """Close the database behind this connection for good; `memory_mib` is what may be used on top of its tables.

    Tables can still be filled by statements of our own, but not from files: what is new has to be bound.
    """
    (used,) = _first(con.execute("SELECT sum(memory_usage_bytes)::BIGINT FROM duckdb_memory()"))
    con.execute(f"SET memory_limit = '{math.ceil(used / 2**20) + memory_mib}MiB'")
    con.execute(f"SET threads = {threads}")
    for name, value in _SETTINGS.items():
        con.execute(f"SET {name} = {value}")


def ask(cursor: duckdb.DuckDBPyConnection, question: Question) -> Answer:
    """The answer to a question. `cursor`: of a locked database, for this question only; closing it ends everything.

    ConfigError, in one sentence, for what the question did wrong. What is the matter of whoever holds the limits comes
    as it is: duckdb.InterruptException, duckdb.OutOfMemoryException, MemoryError; and duckdb.InternalError and
    duckdb.FatalException, after which the database is not to be used again.
    """
    with _in_one_sentence():
        statement = _one_select(cursor, question.sql)
        _check_tree(_tree(cursor, statement.query))
        if question.explain:
            (statement,) = cursor.extract_statements(f"EXPLAIN {statement.query}")
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        parameters = question.parameters
        cursor.execute(statement, parameters if isinstance(parameters, dict) else list(parameters))
        return _told(cursor, question)


# ---- what may be asked -----------------------------------------------------------------------------------------------


def _one_select(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    statements = cursor.extract_statements(sql)
    if len(statements) != 1:
        count = f"{len(statements)} statements" if statements else "no statement"
        raise ConfigError(f"query: {count}; write exactly one SELECT")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        instead = _INSTEAD.get(kind, "nothing can be changed here")
        raise ConfigError(f"query: {kind.name} is refused, only one SELECT is taken; {instead}")
    return statements[0]


def _tree(cursor: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The syntax tree of a statement, as DuckDB serialises it."""
    (text,) = _first(cursor.execute("SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", [sql]))
    try:
        tree = msgspec.json.decode(text)
    except RecursionError:
        raise ConfigError("query: nested too deeply; write it flatter, with WITH or a bound list") from None
    if tree["error"]:
        raise ConfigError(f"query: {shown(tree['error_message'])}")
    return tree


def _check_tree(tree: Any) -> None:
    """Refuses a tree that does anything but read tables, views and what is written in the query itself."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            _check_node(node)
            waiting.extend(node.values())


def _check_node(node: Mapping[str, Any]) -> None:
    kind = node.get("type")
    is_query = "cte_map" in node or (isinstance(kind, str) and kind.endswith("_NODE"))
    if is_query and kind not in _READING_NODES:
        raise ConfigError(f"query: {_verb(kind)} inside WITH is refused; nothing can be changed or written here")
    if kind == "TABLE_FUNCTION" and (name := _name(node["function"], "function_name")) not in _TABLE_FUNCTIONS:
        open_ones = ", ".join(_TABLE_FUNCTIONS)
        raise ConfigError(f"query: the table function {shown(name)} is closed; besides tables there are {open_ones}")
    if "function_name" in node:
        name = _name(node, "function_name")
        if name in _CLOSED_FUNCTIONS or name.startswith("__internal"):
            raise ConfigError(f"query: the function {shown(name)} is closed here")
    if kind == "BASE_TABLE" and _name(node, "table_name") in _CLOSED_TABLES:
        raise ConfigError(f"query: {_name(node, 'table_name')} is closed here")


def _name(node: Mapping[str, Any], key: str) -> str:
    return str(node[key]).lower()


def _verb(kind: object) -> str:
    return str(kind).removesuffix("_QUERY_NODE").removesuffix("_NODE")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ConfigError("query: holds a NUL character; SQL is text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("query: holds half of a surrogate pair; SQL is UTF-8 text") from None


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value} is out of range; use {low} to {high}")


def _check_parameter(value: object) -> None:
    if isinstance(value, list | tuple):
        for item in value:
            _check_parameter(item)
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"parameters: {value} cannot be bound; write '{value}'::DOUBLE in the query")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError("parameters: a whole number beyond 64 bits cannot be bound; bind it as text and cast it")
    elif value is not None and not isinstance(value, int | float):
        raise ConfigError(f"parameters: a {type(value).__name__} cannot be bound; use text, numbers, lists or null")


# ---- what is told ----------------------------------------------------------------------------------------------------


def _told(cursor: duckdb.DuckDBPyConnection, question: Question) -> Answer:
    """As many rows as are wanted and fit; the first is made to fit, so that going on always gets further."""
    columns = tuple(_column(name, kind) for name, kind, *_ in _described(cursor))
    room = question.max_chars - _size(columns)
    if room <= 0:
        raise ConfigError(f"query: the names of its {len(columns)} columns alone fill the answer; select fewer columns")
    longest_cell = question.max_chars if question.explain else CELL_CHARS
    _pass_over(cursor, question.offset)
    rows: list[tuple[Any, ...]] = []
    while (raw := cursor.fetchone()) is not None:
        row = plain_row(raw, longest_cell)
        if not rows and _size(row) > room:
            row = _squeezed(raw, room)
        room -= _size(row)
        if len(rows) == question.max_rows or room < 0:
            return Answer(columns, tuple(rows), question.offset + len(rows))
        rows.append(row)
    return Answer(columns, tuple(rows), None)


def _column(name: str, kind: object) -> Column:
    return Column(cut(name, CELL_CHARS), cut(str(kind), CELL_CHARS))


def _described(cursor: duckdb.DuckDBPyConnection) -> Sequence[tuple[Any, ...]]:
    description = cursor.description
    assert description is not None, "a SELECT describes its columns"
    return description


def _pass_over(cursor: duckdb.DuckDBPyConnection, rows: int) -> None:
    while rows > 0 and (passed := len(cursor.fetchmany(min(rows, 2048)))):
        rows -= passed


def _squeezed(raw: Sequence[object], room: int) -> tuple[Any, ...]:
    """A row whose cells are cut until it fits into `room` characters."""
    longest_cell = CELL_CHARS
    while longest_cell >= 8:
        longest_cell //= 2
        row = plain_row(raw, longest_cell)
        if _size(row) <= room:
            return row
    raise ConfigError(f"query: one row of {len(raw)} columns is longer than the answer may be; select fewer columns")


def _size(value: object) -> int:
    return len(msgspec.json.encode(value).decode())


# ---- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Turns what DuckDB says of a question into one sentence that tells nothing of this machine."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.PermissionException, duckdb.OperationalError):
        # Their own words hold paths and names of hosts.
        raise ConfigError("query: reaches outside of the tables, where everything is closed") from None
    except (duckdb.ProgrammingError, duckdb.DataError, duckdb.IntegrityError, duckdb.NotSupportedError) as error:
        raise ConfigError(f"query: {_sentence(str(error))}") from None


def _sentence(message: str) -> str:
    """DuckDB's words without the excerpt of the query, advice on extensions and tracebacks that follow them."""
    words = message.split("\n\n")[0].split("\nTraceback")[0].split("\nStack Trace")[0]
    return shown(" ".join(words.split()))


def _first(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = result.fetchone()
    assert row is not None, "an aggregate or a constant has one row"
    return row
