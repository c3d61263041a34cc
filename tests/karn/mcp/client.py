"""A client of `esper mcp`, and the runs that it asks about. The fixtures are in `conftest.py`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from anyio.from_thread import BlockingPortal
from mcp import Client

from esper.leyline.telemetry import Envelope, EnvStepPayload, Payload

COMMAND = (sys.executable, "-m", "esper.scripts.main", "mcp")
GROUP = "20261120-000000-compare-digits-000000"
TOOLS = {
    *("list_runs", "describe_run", "list_views", "describe_view", "query", "series", "lifecycle", "explain_step"),
    *("compare_runs", "gates", "tail"),
}


@dataclass(frozen=True)
class Shelf:
    """A root with one learned run, the newest, and one with arms: two rules on the same two seeds."""

    root: Path
    run: str
    told: list[tuple[Envelope, Payload]]

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / self.run / "run.json").read_text())
        return found

    def steps(self, episode: int) -> list[EnvStepPayload]:
        return [p for w, p in self.told if isinstance(p, EnvStepPayload) and w.episode == episode]


@dataclass(frozen=True)
class Session:
    """A client that is connected."""

    portal: BlockingPortal
    client: Client

    def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The answer to a good call, which is the same as text and as structure, and keeps to the limits."""
        result = self.portal.call(lambda: self.client.call_tool(tool, arguments))
        (content,) = result.content
        assert not result.is_error, content.text
        assert json.loads(content.text) == result.structured_content
        assert len(content.text) <= 25_000
        found: dict[str, Any] = result.structured_content
        return found

    def refused(self, tool: str, /, **arguments: Any) -> str:
        """What a bad call is told: one sentence, without the insides of the program."""
        result = self.portal.call(lambda: self.client.call_tool(tool, arguments))
        (content,) = result.content
        text: str = content.text
        assert result.is_error, text
        assert len(text.splitlines()) == 1
        assert len(text) < 1_000
        assert not any(word in text for word in ("Traceback", "File ", "broke down"))
        return text

    def read(self, uri: str) -> str:
        (content,) = self.portal.call(lambda: self.client.read_resource(uri)).contents
        text: str = content.text
        return text


def family() -> list[psutil.Process]:
    """The server of the session and the processes that answer its questions."""
    (server,) = [p for p in psutil.Process().children() if p.cmdline()[-3:-1] == ["mcp", "--root"]]
    return [server, *server.children(recursive=True)]


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether they all end in time; what is only waiting to be collected has ended."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.02)
    return False


def table(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(rows["columns"], row, strict=True)) for row in rows["rows"]]
