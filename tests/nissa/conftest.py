"""A run folder for every test that writes events."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as events are concerned."""
    (tmp_path / "ev").mkdir()
    return tmp_path
