"""Bad arguments and broken runs: each call is refused with a sentence, nothing changes, and the next is answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import MCPError
from tests.karn.mcp.client import GROUP, TOOLS, Session, Shelf, table

# --- bad input -----------------------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("query", {"sql": "from runs", "run": "20990101-nothing"}, "no such run"),
    ("query", {"sql": "from runs", "run": "../.."}, "cannot be used"),
    ("query", {"sql": "from runs", "run": "/etc"}, "cannot be used"),
    ("query", {"sql": "from runs", "run": f"{GROUP}/arms/../.."}, "has no arm"),
    ("query", {"sql": "from runs", "run": f"{GROUP}/arms/"}, "has no arm"),
    ("query", {"sql": "from runs", "run": []}, "none is named"),
    ("query", {"sql": "from runs", "run": "latest\x00"}, "cannot be used"),
    ("query", {"sql": "from no_such_view"}, "no_such_view"),
    ("query", {"sql": "select 1; select 2"}, "exactly one SELECT"),
    ("query", {"sql": "drop table env_step"}, "DROP"),
    ("query", {"sql": "delete from env_step"}, "DELETE"),
    ("query", {"sql": "copy env_step to 'stolen.csv'"}, "COPY"),
    ("query", {"sql": "attach 'stolen.db'"}, "ATTACH"),
    ("query", {"sql": "set memory_limit = '1TB'"}, "SET"),
    ("query", {"sql": "from read_text('/etc/passwd')"}, "closed"),
    ("query", {"sql": "select * from '/etc/passwd'"}, "query:"),
    ("query", {"sql": "with gone as (delete from env_step) select 1"}, "refused"),
    ("query", {"sql": "explain analyze delete from env_step"}, "EXPLAIN"),
    ("query", {"sql": "select $x"}, "x"),
    ("query", {"sql": "select $x", "params": {"x": {"a": 1}}}, "cannot be bound"),
    ("query", {"sql": 3}, "Expected `str`"),
    ("query", {"sql": "from runs", "max_rows": 10**9}, "<= 200"),
    ("query", {"sql": "from runs", "max_rows": "many"}, "Expected `int`"),
    ("query", {"sql": "from runs", "offset": -1}, ">= 0"),
    ("query", {"sql": "from runs", "limit": 3}, "no argument 'limit'"),
    ("query", {}, "missing required field `sql`"),
    ("list_runs", {"limit": 0}, ">= 1"),
    ("list_runs", {"status": "fine"}, "fine"),
    ("list_runs", {"root": "/"}, "takes status, limit, offset"),
    ("describe_run", {"run": "nothing"}, "no such run"),
    ("describe_view", {"name": "chrun"}, "did you mean 'churn'"),
    ("describe_view", {"name": "churn; drop table x"}, "there is none"),
    ("series", {"metric": "happiness"}, "it is one of"),
    ("series", {"metric": "val_metric", "points": 201}, "<= 200"),
    ("series", {"metric": "val_metric", "env": 7}, "no step of environment 7"),
    ("series", {"metric": "val_metric", "run": GROUP}, "name one of them"),
    ("lifecycle", {"episode": 6}, "has episodes 0 to 5"),
    ("lifecycle", {"episode": 2**40}, "2147483647"),
    ("lifecycle", {"episode": 0, "env": 1}, "was played in environment 0"),
    ("lifecycle", {"episode": 0, "group": "a"}, "has no groups"),
    ("explain_step", {"episode": 0, "step": 20}, "has steps 0 to 19"),
    ("explain_step", {"episode": 0}, "missing required field `step`"),
    ("compare_runs", {"a": "latest"}, "missing required field `b`"),
    ("compare_runs", {"a": "latest", "b": {"run": "latest"}}, "Expected `str | array`"),
    ("gates", {"run": "latest", "vs": "../x"}, "cannot be used"),
    ("tail", {"types": ["seed.levels"]}, "did you mean 'seed.level'"),
    ("tail", {"after": "yesterday"}, "is no cursor"),
    ("tail", {"after": "r0.1:" + "9" * 19}, "is no cursor"),
    ("no_such_tool", {}, "there is none"),
]


@pytest.mark.parametrize(
    ("tool", "arguments", "says"), BAD, ids=lambda value: None if isinstance(value, dict) else value
)
def test_a_bad_call_is_refused_with_a_sentence_and_the_next_is_answered(
    session: Session, tool: str, arguments: dict[str, Any], says: str
) -> None:
    assert says in session.refused(tool, **arguments)
    assert session.call("query", sql="select count(*) from runs")["rows"] == [[1]]


def test_nothing_on_the_disk_changes(session: Session, shelf: Shelf) -> None:
    session.call("query", sql="from runs")  # readers may keep what they have read of sealed files
    before = tree(shelf.root)

    for tool, arguments, _ in BAD:
        session.refused(tool, **arguments)

    assert tree(shelf.root) == before


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(("run", "sql", "episode", "step", "metric", "a", "b", "vs", "after", "types", "name", "params"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tool=st.sampled_from(sorted(TOOLS)), arguments=st.dictionaries(NAMES, JSON, max_size=4))
def test_any_arguments_get_an_answer_or_a_sentence(session: Session, tool: str, arguments: dict[str, Any]) -> None:
    result = session.portal.call(lambda: session.client.call_tool(tool, arguments))

    (content,) = result.content
    assert len(content.text) <= 25_000
    if result.is_error:
        assert len(content.text.splitlines()) == 1
        assert "broke down" not in content.text


# --- broken runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(shelf: Shelf) -> Iterator[Path]:
    """A copy of a run, to be damaged."""
    folder = shelf.root / "20261120-000002-broken-000000"
    shutil.copytree(shelf.root / GROUP / "arms" / "heuristic-s0", folder, ignore=shutil.ignore_patterns("*.parquet"))
    yield folder
    shutil.rmtree(folder)


def test_a_link_in_a_run_folder_is_not_followed(session: Session, broken: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    (broken / "ev" / "r0.1-000001.jsonl").symlink_to(secret)

    assert "is not followed" in session.refused("query", sql="from bad_lines", run=broken.name)
    assert {run["status"] for run in session.call("list_runs")["runs"] if run["run"] == broken.name} == {"unreadable"}

    (broken / "ev" / "r0.1-000001.jsonl").unlink()
    (broken / "run.json").unlink()
    (broken / "run.json").symlink_to(secret)
    with pytest.raises(MCPError, match="is not followed"):
        session.read(f"karn://runs/{broken.name}/manifest")


def test_a_run_of_another_schema_is_refused_and_others_are_answered(session: Session, broken: Path) -> None:
    manifest = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps(manifest | {"schema_version": 99}))

    assert "schema 99" in session.refused("describe_run", run=broken.name)
    assert session.call("query", sql="select count(*) from runs")["rows"] == [[1]]


def test_a_run_with_missing_lines_is_told_and_gets_no_verdict(session: Session, broken: Path) -> None:
    (segment,) = (broken / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:5], b"\xff\x00 nonsense\n", *lines[7:]]))

    found = session.call("describe_run", run=broken.name)
    assert table(found["runs"])[0]["complete"] is False
    assert (table(found["integrity"])[0]["missing"], table(found["integrity"])[0]["bad_lines"]) == (2, 1)
    assert "deserves no verdict" in session.refused("compare_runs", a=broken.name, b=broken.name)
    assert "deserves no verdict" in session.refused("gates", run=broken.name)


def test_an_event_longer_than_an_answer_is_cut_and_passed(session: Session, broken: Path) -> None:
    (segment,) = (broken / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"ENV_STEP"' in line)
    heads = ("slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve", "refused_by", "why")
    step = json.loads(lines[at]) | dict.fromkeys(heads, "x" * 5_000) | {"alpha": [0.123456789] * 2_000}
    step |= {name: [2] * 2_000 for name in ("stage", "level", "slot_params")}
    lines[at] = json.dumps(step).encode() + b"\n"
    segment.write_bytes(b"".join(lines))

    counters, after, more = [], "", True
    while more:
        found = session.call("tail", run=broken.name, after=after, limit=200)
        assert found["events"]
        counters += [event["n"] for event in found["events"]]
        after, more = found["next"], found["truncated"]
    assert counters == list(range(len(lines)))
