"""The process of the MCP server: what it starts, and that nothing of it is left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.karn.mcp.client import COMMAND, GROUP, Session, Shelf, family, gone


@dataclass(frozen=True)
class Raw:
    """A server to which lines are written by hand, with the handshake that clients in the field use."""

    process: subprocess.Popen[str]

    def tell(self, **message: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", **message}))

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def query(self, number: int, sql: str) -> None:
        self.tell(id=number, method="tools/call", params={"name": "query", "arguments": {"sql": sql}})


@pytest.fixture
def raw(shelf: Shelf) -> Iterator[Raw]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, "--root", str(shelf.root)], text=True, **pipes) as process:  # type: ignore[call-overload]
        server = Raw(process)
        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        server.tell(id=1, method="initialize", params=client)
        assert server.read()["result"]["serverInfo"]["name"] == "esper"
        server.tell(method="notifications/initialized")
        yield server
        process.kill()


def test_the_tables_of_at_most_three_sets_of_runs_are_held(session: Session) -> None:
    session.call("query", sql="from runs", run=f"{GROUP}/arms/heuristic-s0")  # tests before have asked about others

    assert len(family()) <= 1 + 2 * 3


def test_the_server_and_its_processes_are_gone_when_its_input_is_closed(raw: Raw) -> None:
    raw.write("this is no message")
    raw.query(2, "select count(*) from runs")
    assert raw.read()["result"]["structuredContent"]["rows"] == [[1]]
    children = psutil.Process(raw.process.pid).children(recursive=True)
    assert len(children) == 2

    out, err = raw.process.communicate(timeout=5)

    assert (out, err, raw.process.returncode) == ("", "", 0)
    assert gone(children, within_s=1)


@pytest.mark.parametrize("how", ["closed", "terminated"])
def test_it_does_not_wait_for_a_question_that_nobody_waits_for(raw: Raw, how: str) -> None:
    raw.query(2, "select count(*) from runs")
    raw.read()
    children = psutil.Process(raw.process.pid).children(recursive=True)
    raw.query(3, "select count(*) from range(100000000000) t where t.range % 7 = 3")
    time.sleep(0.3)

    if how == "terminated":
        raw.process.terminate()
    else:
        assert raw.process.stdin is not None
        raw.process.stdin.close()

    assert raw.process.wait(timeout=3) == (143 if how == "terminated" else 0)
    assert gone(children, within_s=3)


@pytest.mark.parametrize("module", ["mcp", "duckdb"])
def test_what_is_not_installed_is_named_in_a_sentence(tmp_path: Path, module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from esper.scripts.main import main; sys.exit(main(['mcp']))"

    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"esper: mcp: needs {module}; pip install 'esper[mcp]'\n"
