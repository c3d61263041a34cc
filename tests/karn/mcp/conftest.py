"""Recorded runs on a shelf, and the SDK's own client connected to a server that reads them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal
from mcp import Client, StdioServerParameters
from tests.karn.mcp.client import COMMAND, GROUP, Session, Shelf, family, gone
from tests.karn.recorded import TINY
from tests.scripts.zygote import Zygote

from esper.nissa.reader import read_events

PPO = ("ppo", *TINY, "--blueprints", "conv_ladder", "norm", "--set", "policy.network.prior=0")
SHORT = ("--envs", "1", "--episode-length", "8")


@pytest.fixture(scope="session")
def shelf(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    place = tmp_path_factory.mktemp("mcp")
    asked = {
        f"{rule}-s{seed}": (rule, *TINY, *SHORT, "--seed", str(seed))
        for rule in ("heuristic", "random")
        for seed in (0, 1)
    }
    asked["learned"] = (*PPO, "--rounds", "3", "--envs", "2", "--episode-length", "20")
    for name in asked:
        (place / name).mkdir()
    started = [zygote.start("train", *command, cwd=place / name) for name, command in asked.items()]
    for pid in started:
        ended = zygote.wait(pid)
        assert ended.code == 0, ended.err
    root = place / "runs"
    (root / GROUP / "ev").mkdir(parents=True)
    (root / GROUP / "arms").mkdir()
    (root / GROUP / "run.json").write_text('{"schema_version": 3, "compare": "digits"}')
    for name in asked:
        (folder,) = place.glob(f"{name}/runs/2*")
        folder.rename(root / folder.name if name == "learned" else root / GROUP / "arms" / name)
    run = next(path.name for path in root.iterdir() if path.name != GROUP)
    (root / "latest").symlink_to(run)
    return Shelf(root, run, list(read_events(root / run)))


@pytest.fixture(scope="module")
def session(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    server = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "--root", str(shelf.root)], cwd=elsewhere)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Client(server)) as client:
        yield Session(portal, client)
        processes = family()
    assert gone(processes, within_s=2)
    assert list(elsewhere.iterdir()) == []
