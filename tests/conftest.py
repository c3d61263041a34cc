"""One thread per process: small hosts are slower with two, and many times slower when the machine is busy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.btc import NAME, SMALL
from tests.scripts.zygote import Zygote

from esper.kasmina.blueprints import BLUEPRINTS

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests of the command line."""
    found = Zygote()
    yield found
    found.close()


@pytest.fixture
def on_the_shelf(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a blueprint for sequences, which is in the standard set while the test runs."""
    monkeypatch.setitem(BLUEPRINTS._entries, NAME, SMALL)
    return NAME
