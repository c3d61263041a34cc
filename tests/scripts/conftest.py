"""One zygote for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.scripts.zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    found = Zygote()
    yield found
    found.close()
