"""`run.json`: what a reader needs to understand a run's events, and `--config-json` to rerun it."""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from esper.leyline.config import encode
from esper.leyline.telemetry import SCHEMA_VERSION
from esper.scripts.config import EsperConfig
from esper.tolaria.protocol import EngineProtocol


def manifest_of(config: EsperConfig, engine: EngineProtocol) -> Mapping[str, Any]:
    """Primitives only; `git` is None where the package does not run from a checkout."""
    metric = engine.setup.task.metric
    return {
        "schema_version": SCHEMA_VERSION,
        "run": secrets.token_hex(16),  # which no other run has, wherever the folder is moved
        "config": encode(config),
        "slots": [
            {"id": spec.slot_id, "order": spec.order, "surface": spec.surface.name, "channels": spec.dim}
            for spec in engine.specs
        ],
        "heads": engine.space.names(),
        "metric": {"name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "git": commit(),
        "host": platform.node(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache
def commit() -> str | None:
    """The commit this package runs from, with a plus where the tree has changes; None outside a checkout."""
    here = Path(__file__)
    # A virtual environment may lie inside another project's checkout, so git has to know this file.
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")


def _git(here: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=here.parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
