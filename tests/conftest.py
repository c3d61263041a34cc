"""One thread per process: small hosts are slower with two, and many times slower when the machine is busy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.scripts.zygote import Zygote

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests of the command line."""
    found = Zygote()
    yield found
    found.close()
